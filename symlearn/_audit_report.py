"""What an audit reports: findings, the health of units, recommendations; as a table, as a picture, as JSON."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from symlearn.symmetry import Symmetry, UnitPermutation


@dataclass(frozen=True)
class Finding:
    """One family of symmetries, or a near-miss.

    Attributes
    ----------
    kind : {"rescaling", "scale", "gl", "translation", "mirror", "permutation", "heads"}
    units : int
        Length of ``amount``: units, heads or key/value groups; of a translation entries over the length of its axis.
    dimension : int
        Of the group: one per unit, or d^2 per block of matrices; 0 for the discrete kinds. Flat directions, if its
        generators are independent, which those of blocks wider than all that they read and write are not.
    incoming, outgoing : tuple of str
        Trained parameters with positive and with negative exponent; of a discrete symmetry those that write and read.
    violation : float
        Largest change of the outputs over the largest output, after random amounts.
    status : {"exact", "exact up to eps", "broken", "frozen"}
        "exact up to eps": the violation comes from the eps of a norm, and falls with it. Do not move these far.
    note : str
    imbalance : float
        Mean over units of ``|in - out| / (in + out)``, squared norms; not a number without a charge of two signs.
    symmetry : Symmetry or None
        ``act(params_and_buffers, amount)`` and ``charge(params)``; None for a translation. ``amount`` is a number or of
        shape (units,); for "gl" a number or (blocks, d, d); a permutation of the units; or a mask of signs.
    charge : float
        Largest absolute charge of a unit (of a block: largest absolute eigenvalue; of a translation: largest absolute
        sum along its axis). Not a number for the discrete kinds.
    conservation : float
        Largest net synaptic saliency of a unit, in minus out, over the largest gross one: 0 where pruning by saliency
        conserves it. Not a number where running statistics move too, and for the discrete kinds.
    noise_distance : float
        Largest logarithm of a factor between a unit and the noise equilibrium; a number only if `audit` was given a
        loss.
    """

    kind: str
    units: int
    dimension: int
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    violation: float
    status: str
    note: str
    imbalance: float
    symmetry: Symmetry | None = field(repr=False)
    charge: float = math.nan
    conservation: float = math.nan
    noise_distance: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Everything but the symmetry itself, ready for JSON: None stands for a number that is not finite."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "symmetry"}
        values |= {"incoming": list(self.incoming), "outgoing": list(self.outgoing)}
        return {name: _json_number(value) for name, value in values.items()}


@dataclass(frozen=True)
class UnitHealth:
    """Units of one space that do nothing, or the same as another, and how many directions their weights span.

    Attributes
    ----------
    space : str
        First parameter that writes into the units.
    units : int
    dead : tuple of int
        Units whose outgoing weights are all 0, whose incoming weights and biases are all 0, or which are silent with
        a normalisation gain of 0.
    duplicates : tuple of (int, int)
        Units with equal incoming weights; positively parallel ones where the units can be rescaled.
    silent : tuple of int
        Units whose outgoing weights get no gradient on these inputs.
    trapped : tuple of (int, int)
        Duplicates with outgoing weights equal too, or all weights parallel where the units can be rescaled: their
        gradients are then equal or parallel, and no gradient will ever tell them apart.
    rank : int
        Rank of the incoming weights, to the precision of the parameters.
    effective_rank : float
        Exponential of the entropy of their singular values.
    symmetry : UnitPermutation or None
        The exchange of these units: its terms say which entries of which parameter belong to which unit.
    """

    space: str
    units: int
    dead: tuple[int, ...]
    duplicates: tuple[tuple[int, int], ...]
    silent: tuple[int, ...]
    trapped: tuple[tuple[int, int], ...] = ()
    rank: int = 0
    effective_rank: float = 0.0
    symmetry: UnitPermutation | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "space": self.space,
            "units": self.units,
            "dead": list(self.dead),
            "duplicates": [list(pair) for pair in self.duplicates],
            "silent": list(self.silent),
            "trapped": [list(pair) for pair in self.trapped],
            "rank": self.rank,
            "effective_rank": self.effective_rank,
        }


@dataclass(frozen=True)
class Recommendation:
    """What to do about a finding, what that would change, and the chapter which says why."""

    finding: str
    action: str
    predicted: str
    chapter: str


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found: ``print(report)`` for a table, `plot` for a picture, `to_dict` for JSON.

    Attributes
    ----------
    symmetries : tuple of Finding
        Verified, exact or exact up to eps.
    broken : tuple of Finding
        Near-misses with their size, and families that touch frozen parameters.
    units : tuple of UnitHealth
        One entry per space of exchangeable units.
    barriers : tuple of str
        Operations without a rule: what goes through them was held fixed.
    inert : dict of str to int
        Parameters with entries whose gradient is 0 on these inputs, and how many.
    n_parameters : int
    flat_dimension : int
        Sum of the dimensions of the symmetries, those exact up to eps included.
    tracer : str
        What traced the model, or why nothing could.
    seconds : float
    recommendations : tuple of Recommendation
    model_name : str
        The class of the model.
    """

    symmetries: tuple[Finding, ...]
    broken: tuple[Finding, ...]
    units: tuple[UnitHealth, ...]
    barriers: tuple[str, ...]
    inert: dict[str, int]
    n_parameters: int
    flat_dimension: int
    tracer: str
    seconds: float
    recommendations: tuple[Recommendation, ...] = ()
    model_name: str = ""

    def __repr__(self) -> str:
        counts = f"{len(self.symmetries)} symmetries, {len(self.recommendations)} recommendations"
        return f"<AuditReport of {self.model_name or 'a model'}: {self.n_parameters:,} parameters, {counts}>"

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def plot(self) -> Any:
        """A picture: the violation and the imbalance of every family, and how the units of every space are.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from symlearn._audit_picture import picture

        return picture(self)

    def to_dict(self) -> dict[str, Any]:
        """The report in lists, dicts, strings and numbers, ready for JSON: None for a number that is not finite."""
        return {
            "model_name": self.model_name,
            "symmetries": [finding.to_dict() for finding in self.symmetries],
            "broken": [finding.to_dict() for finding in self.broken],
            "units": [space.to_dict() for space in self.units],
            "barriers": list(self.barriers),
            "inert": dict(self.inert),
            "n_parameters": self.n_parameters,
            "flat_dimension": self.flat_dimension,
            "tracer": self.tracer,
            "seconds": self.seconds,
            "recommendations": [vars(each).copy() for each in self.recommendations],
        }


def as_text(report: AuditReport) -> str:
    """The report as a table for the terminal."""
    lines = [_headline(report), f"traced by {report.tracer}"]
    for title, findings in _sections(report):
        lines += ["", title, *_aligned(_finding_rows(findings))]
    if report.units:
        lines += ["", _units_title(report), *_aligned(_unit_rows(report))]
    for number, each in enumerate(report.recommendations, 1):
        lines += [""] if number > 1 else ["", "Recommendations"]
        lines += [*_wrapped(each.finding, f"  {number}. "), f"     do       {each.action}"]
        lines += [*_wrapped(each.predicted, "     expect   "), f"     chapter  {each.chapter}"]
    lines += [f"\n{note}" for note in _notes(report)]
    return "\n".join(line.rstrip() for line in lines)


def as_html(report: AuditReport, heading: str = "h4") -> str:
    """The report as a self-contained piece of HTML that takes the colours of the page it stands on."""
    parts = [f"<p><strong>{escape(_headline(report))}</strong><br>traced by {escape(report.tracer)}</p>"]
    for title, findings in _sections(report):
        shares = [None] + [group.imbalance for group in grouped(findings)]
        parts += [
            f"<{heading}>{escape(title)}</{heading}>",
            _html_table(_finding_rows(findings), {"imbalance": shares}),
        ]
    if report.units:
        parts += [f"<{heading}>{escape(_units_title(report))}</{heading}>"]
        parts += [_html_table(_unit_rows(report), {})] if _unit_rows(report) else []
    if report.recommendations:
        parts.append(f"<{heading}>Recommendations</{heading}><ol>")
        for each in report.recommendations:
            parts.append(
                f"<li>{escape(each.finding)}<br><code>{escape(each.action)}</code><br>"
                f"{escape(each.predicted)} <small>(chapter {escape(each.chapter)})</small></li>"
            )
        parts.append("</ol>")
    parts += [f"<p><small>{escape(note)}</small></p>" for note in _notes(report)]
    return f'<div class="symlearn-audit"><style>{_STYLE}</style>{"".join(parts)}</div>'


@dataclass
class Group:
    """Findings which differ only in numbers inside their names, as one row."""

    kind: str
    status: str
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    families: int = 0
    units: int = 0
    dimension: int = 0
    violation: float = 0.0
    imbalance: float = math.nan

    @property
    def names(self) -> str:
        """What is written and what is read."""
        return listed(self.incoming) + (f" / {listed(self.outgoing)}" if self.outgoing else "")


def grouped(findings: Sequence[Finding]) -> list[Group]:
    """One group per finding, or, where there are many, per pattern of names."""
    groups: dict[Any, Group] = {}
    many = len(findings) > MOST_ROWS
    for number, each in enumerate(findings):
        incoming, outgoing = (_patterns(names) if many else names for names in (each.incoming, each.outgoing))
        key = (each.kind, each.status, incoming, outgoing) if many else number
        group = groups.setdefault(key, Group(each.kind, each.status, incoming, outgoing))
        before = 0.0 if math.isnan(group.imbalance) else group.imbalance * group.units
        group.imbalance = (before + each.imbalance * each.units) / (group.units + each.units)
        group.families += 1
        group.units += each.units
        group.dimension += each.dimension
        group.violation = max(group.violation, each.violation)
    return list(groups.values())


def unwell(report: AuditReport) -> list[UnitHealth]:
    """Spaces with a unit that is dead, duplicate or silent."""
    return [space for space in report.units if space.dead or space.duplicates or space.silent]


def listed(names: tuple[str, ...]) -> str:
    """The first two names, and how many more there are."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _headline(report: AuditReport) -> str:
    share = report.flat_dimension / report.n_parameters
    percent = f" ({share:.1%})" if share <= 1 else ""
    directions = "direction" if report.flat_dimension == 1 else "directions"
    name = f"{report.model_name}: " if report.model_name else ""
    return (
        f"{name}{report.n_parameters:,} parameters, {report.flat_dimension:,} flat {directions}{percent} "
        "along which no output changes"
    )


def _sections(report: AuditReport) -> list[tuple[str, tuple[Finding, ...]]]:
    titles = ("Symmetries, each verified by moving along it", "No symmetries: broken, or frozen by requires_grad")
    return [pair for pair in zip(titles, (report.symmetries, report.broken), strict=True) if pair[1]]


def _finding_rows(findings: Sequence[Finding]) -> list[list[str]]:
    rows = [["kind", "families", "units", "flat", "imbalance", "violation", "status", "parameters in / out"]]
    for each in grouped(findings):
        share = "" if math.isnan(each.imbalance) else f"{each.imbalance:.2f}"
        numbers = [f"{each.families}", f"{each.units:,}", f"{each.dimension:,}" if each.dimension else ""]
        rows.append([each.kind, *numbers, share, _size(each.violation), each.status, each.names])
    return rows if any(int(row[1]) > 1 for row in rows[1:]) else [[row[0], *row[2:]] for row in rows]


def _units_title(report: AuditReport) -> str:
    n, ill = len(report.units), len(unwell(report))
    spaces = f"{n} space" if n == 1 else f"{n} spaces"
    return f"Units: {spaces}, " + ("no unit dead, duplicate or silent" if not ill else f"{ill} with idle units")


def _unit_rows(report: AuditReport) -> list[list[str]]:
    rows = [["written by", "units", "dead", "duplicate", "trapped", "silent", "rank", "effective rank"]]
    shown = unwell(report) if len(report.units) > MOST_ROWS else report.units
    for each in shown:
        counts = [len(each.dead), len(each.duplicates), len(each.trapped), len(each.silent)]
        sizes = [str(count) if count else "" for count in counts]
        rows.append([each.space, f"{each.units:,}", *sizes, str(each.rank), f"{each.effective_rank:.1f}"])
    return rows if len(rows) > 1 else []


def _notes(report: AuditReport) -> list[str]:
    notes = []
    if report.inert:
        count, names = sum(report.inert.values()), listed(tuple(report.inert))
        notes.append(f"No gradient on these inputs: {count:,} entries of {names}")
    if report.barriers:
        notes.append(f"Not analysed, held fixed: {', '.join(report.barriers)}")
    return notes


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of text to the left, of numbers to the right; the last is as long as it is."""
    lines = []
    columns = list(zip(*rows, strict=True))
    right = [name not in _WORDS for name in (rows[0] if rows else [])]
    widths = [max(map(len, column)) for column in columns]
    for row in rows:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(text, _LINE, initial_indent=start, subsequent_indent=" " * len(start))


def _html_table(rows: list[list[str]], bars: dict[str, list[float | None]]) -> str:
    cells = ["<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0]) + "</tr>"]
    for number, row in enumerate(rows[1:], 1):
        parts = []
        for name, cell in zip(rows[0], row, strict=True):
            share = bars.get(name, [None] * len(rows))[number]
            bar = f'<i style="width:{3 * share:.2f}em"></i>' if share is not None and not math.isnan(share) else ""
            parts.append(f"<td>{bar}{escape(cell)}</td>")
        cells.append("<tr>" + "".join(parts) + "</tr>")
    return f'<div style="overflow-x:auto"><table>{"".join(cells)}</table></div>'


def _patterns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names with a star for every number between dots, each once; "0.weight" stays as it is."""
    starred = (re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in names)
    pairs = zip(starred, names, strict=True)
    return tuple(dict.fromkeys(star if star.count(".") > star.count("*") else name for star, name in pairs))


def _size(violation: float) -> str:
    return f"{violation:.0e}" if violation >= 1e-12 else "<1e-12"  # the digits of rounding differ between machines


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_WORDS = ("kind", "status", "parameters in / out", "written by")  # columns that are not numbers
_LINE = 92  # characters of a recommendation
MOST_ROWS = 16  # longer tables are told in patterns
_STYLE = (
    ".symlearn-audit{font-size:.9em;line-height:1.4}.symlearn-audit :is(h2,h4){font-size:1.1em;margin:1em 0 .3em}"
    ".symlearn-audit table{border-collapse:collapse;margin:0}"
    ".symlearn-audit th,.symlearn-audit td{padding:.15em .7em .15em 0;text-align:left;white-space:nowrap;"
    "border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent);color:inherit;background:none}"
    ".symlearn-audit i{display:inline-block;height:.7em;margin-right:.4em;background:#0072b2}"
    ".symlearn-audit li{margin:.4em 0;overflow-wrap:anywhere}"
)
