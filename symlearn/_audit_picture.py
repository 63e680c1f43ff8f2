"""The picture of an audit: how exact every family is, how balanced, and how the units of every space are."""

from __future__ import annotations

import math
from typing import Any

from symlearn._audit_report import AuditReport, Group, grouped, unwell
from symlearn.plotting import DATA, SIMULATION, THEORY, use_book_style

_COLOURS = {"exact": THEORY, "exact up to eps": DATA, "broken": SIMULATION, "frozen": "0.6"}
_MOST = 28  # rows


def picture(report: AuditReport) -> Any:
    """Violations on a logarithmic axis, imbalances as bars, and the units of every space."""
    from matplotlib import rc_context

    with rc_context():
        use_book_style()
        return _drawn(report)


def _drawn(report: AuditReport) -> Any:
    import matplotlib.pyplot as plt

    groups = grouped([*report.symmetries, *report.broken])[:_MOST]
    spaces = (unwell(report) if len(report.units) > _MOST else list(report.units))[:_MOST]
    rows = max(len(groups), len(spaces), 2)
    figure, axes = plt.subplots(
        1, 3, figsize=(10.5, 1.1 + 0.27 * rows), layout="constrained", width_ratios=(1.1, 0.7, 0.9)
    )
    _violations(axes[0], groups)
    bars = [0.0 if math.isnan(group.imbalance) else group.imbalance for group in groups]
    axes[1].barh(range(len(groups)), bars, color=THEORY, height=0.6)
    axes[1].set(xlim=(0, 1), yticks=[], title="imbalance", xlabel="|in - out| / (in + out)", ylim=axes[0].get_ylim())
    _units(axes[2], spaces, rows)
    return figure


def _violations(axes: Any, groups: list[Group]) -> None:
    for row, group in enumerate(groups):
        x = min(max(group.violation, 1e-17), 1e1)
        axes.plot(x, row, "o", color=_COLOURS[group.status], ms=6)
    labels = [f"{_short(' / '.join((*group.incoming[:1], *group.outgoing[:1])))}  {group.kind}" for group in groups]
    axes.set(
        xscale="log",
        xlim=(3e-18, 1e2),
        xticks=(1e-16, 1e-11, 1e-6, 1e-1),
        title="change of the outputs",
        xlabel="relative",
    )
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(max(len(groups), 1) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    for status in dict.fromkeys(group.status for group in groups):
        axes.plot([], [], "o", color=_COLOURS[status], label=status)
    if groups:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=8)


def _units(axes: Any, spaces: list[Any], rows: int) -> None:
    start = [0.0] * len(spaces)
    for word, colour in (("dead", SIMULATION), ("duplicates", DATA), ("silent", "0.7")):
        shares = [len(_second(getattr(space, word))) / space.units for space in spaces]
        label = word if any(shares) else None
        axes.barh(range(len(spaces)), shares, left=start, color=colour, label=label, height=0.6)
        start = [before + share for before, share in zip(start, shares, strict=True)]
    effective = [space.effective_rank / space.units for space in spaces]
    axes.plot(effective, range(len(spaces)), "|", color="0.2", ms=9, mew=1.6, label="effective rank")
    axes.set(xlim=(0, 1.02), title="idle units, effective rank", xlabel="share of the units")
    labels = [f"{_short(space.space)} ({space.units})" for space in spaces]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8)


def _second(entries: tuple[Any, ...]) -> set[Any]:
    """Units that could go: the second ones of pairs."""
    return {entry[1] if isinstance(entry, tuple) else entry for entry in entries}


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"
