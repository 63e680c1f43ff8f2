"""The picture of an audit: how exact every family is, how balanced, and how the units of every space are."""

from __future__ import annotations

import math
from typing import Any

from symlearn._audit_report import AuditReport, Group, UnitHealth, grouped, unwell
from symlearn.plotting import DATA, SIMULATION, THEORY, WIDTH, use_book_style

_COLOURS = {"exact": THEORY, "exact up to eps": DATA, "broken": SIMULATION, "frozen": "0.6"}
_MOST = 28  # rows


def picture(report: AuditReport) -> Any:
    """Violations on a logarithmic axis, imbalances as bars, and the units of every space."""
    from matplotlib import rc_context, rcParams

    with rc_context():
        use_book_style()
        rcParams.update({"axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5})
        return _drawn(report)


def _drawn(report: AuditReport) -> Any:
    import matplotlib.pyplot as plt

    groups = grouped([*report.symmetries, *report.broken])[:_MOST]
    spaces = (unwell(report) if len(report.units) > _MOST else list(report.units))[:_MOST]
    rows = [max(len(some), 2) + 3 for some in (groups, spaces)]
    figure = plt.figure(figsize=(WIDTH + 0.8, 0.24 * sum(rows)), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=rows, width_ratios=(1.4, 1))
    violations, units = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, :])
    _violations(violations, groups)
    _imbalances(figure.add_subplot(grid[0, 1], sharey=violations), groups)
    _units(units, spaces)
    return figure


def _violations(axes: Any, groups: list[Group]) -> None:
    for status, colour in _COLOURS.items():
        these = [(group.violation, row) for row, group in enumerate(groups) if group.status == status]
        if these:
            sizes = [min(max(size, 1e-17), 10.0) for size, _ in these]
            axes.plot(sizes, [row for _, row in these], "o", color=colour, ms=6, label=status)
    labels = [f"{_short(' / '.join((*group.incoming[:1], *group.outgoing[:1])))}  {group.kind}" for group in groups]
    axes.set(
        xscale="log", xlim=(2e-18, 20), xticks=(1e-16, 1e-11, 1e-6, 1e-1), xlabel="change of the outputs, relative"
    )
    axes.grid(axis="x", alpha=0.3)
    _named_rows(axes, labels)


def _imbalances(axes: Any, groups: list[Group]) -> None:
    bars = [0.0 if math.isnan(group.imbalance) else group.imbalance for group in groups]
    axes.barh(range(len(groups)), bars, color=THEORY, height=0.6)
    axes.set(xlim=(0, 1), xlabel="imbalance of in and out")
    axes.tick_params(axis="y", length=0, labelleft=False)


def _units(axes: Any, spaces: list[UnitHealth]) -> None:
    start = [0.0] * len(spaces)
    for word, colour in (("dead", SIMULATION), ("duplicates", DATA), ("silent", "0.7")):
        shares = [len(_second(getattr(space, word))) / space.units for space in spaces]
        label = word if any(shares) else None
        axes.barh(range(len(spaces)), shares, left=start, color=colour, label=label, height=0.6)
        start = [before + share for before, share in zip(start, shares, strict=True)]
    effective = [space.effective_rank / space.units for space in spaces]
    axes.plot(effective, range(len(spaces)), "|", color="0.2", ms=10, mew=1.8, label="effective rank")
    axes.set(xlim=(0, 1.01), xlabel="share of the units")
    _named_rows(axes, [f"{_short(space.space)} ({space.units})" for space in spaces])


def _named_rows(axes: Any, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    if labels:
        look = {"handletextpad": 0.2, "columnspacing": 1.2, "borderaxespad": 0.1}
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, **look)


def _second(entries: tuple[Any, ...]) -> set[Any]:
    """Units that could go: the second ones of pairs."""
    return {entry[1] if isinstance(entry, tuple) else entry for entry in entries}


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"
