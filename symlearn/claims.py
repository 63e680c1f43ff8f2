"""The ledger of a chapter: each claim of its theory against what was measured, with a stated tolerance.

A claim that fails raises, so a chapter whose claims do not hold does not run. Displaying a ledger gives a table to read
and, beside it, machine-readable JSON; :func:`scoreboard` gathers the ledgers of all chapters from the stored outputs of
their notebooks.
"""

from __future__ import annotations

import html
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from symlearn._checks import check_finite, check_real, invalid, wrong_type

MIME = "application/vnd.symlearn.claims+json"


@dataclass(frozen=True)
class Claim:
    """One line of a ledger.

    Attributes
    ----------
    text : str
        What is claimed.
    source : str
        The equation or theorem it follows from.
    predicted, measured : str
        The numbers to three significant digits; the range for an array.
    tolerance : str
        The agreement that the claim demands.
    deviation : float
        Distance between measured and predicted in units of the tolerance; the largest over an array.
    holds : bool
        Whether the deviation is at most 1.
    """

    text: str
    source: str
    predicted: str
    measured: str
    tolerance: str
    deviation: float
    holds: bool


class Claims:
    """Predicted-versus-measured ledger of one chapter.

    Parameters
    ----------
    chapter : str
        Slug of the chapter, as in ``chapters/<slug>.ipynb``.

    Examples
    --------
    >>> claims = Claims("demo")
    >>> claims.check("a fair coin shows heads half of the time", predicted=0.5, measured=0.497, n_sigma=3, stderr=0.005)
    >>> claims
    demo: 1 of 1 claims hold
     1. holds   a fair coin shows heads half of the time
                predicted 0.5, measured 0.497, 0.2 of the tolerance (3 standard errors)
    """

    def __init__(self, chapter: str) -> None:
        if not isinstance(chapter, str):
            raise wrong_type("chapter", "a str", chapter)
        if not chapter.isidentifier():
            raise invalid("chapter", "the slug of a chapter", chapter)
        self.chapter = chapter
        self._entries: list[Claim] = []

    @property
    def entries(self) -> tuple[Claim, ...]:
        """The claims checked so far, in order."""
        return tuple(self._entries)

    def check(
        self,
        text: str,
        *,
        predicted: ArrayLike,
        measured: ArrayLike,
        rtol: float | None = None,
        atol: float | None = None,
        n_sigma: float | None = None,
        stderr: ArrayLike | None = None,
        source: str = "",
    ) -> None:
        """Check one claim, record it, and raise if it fails.

        Exactly one tolerance is given. For arrays every entry has to hold.

        Parameters
        ----------
        text : str
            What is claimed, in a sentence.
        predicted, measured : array_like
            Numbers or arrays that broadcast against each other.
        rtol : float, optional
            Holds if ``|measured - predicted| <= rtol * |predicted|``; 0 < rtol < 1.
        atol : float, optional
            Holds if ``|measured - predicted| <= atol``; > 0.
        n_sigma : float, optional
            Holds if ``|measured - predicted| <= n_sigma * stderr``; > 0.
        stderr : array_like, optional
            Standard error of ``measured``; goes with ``n_sigma``.
        source : str
            Equation or theorem that the prediction comes from.

        Raises
        ------
        AssertionError
            If the claim does not hold; NaN on either side never holds.
        ValueError
            If not exactly one tolerance is given, or if it is one that cannot fail.
        """
        if not isinstance(text, str) or not text.strip():
            raise invalid("text", "a sentence", repr(text))
        want, got = check_real("predicted", predicted), check_real("measured", measured)
        bound, tolerance = _tolerance(want, rtol, atol, n_sigma, stderr)
        try:
            want, got, bound = np.broadcast_arrays(want, got, bound)
        except ValueError:
            shapes = f"shapes {want.shape}, {got.shape}, {bound.shape}"
            raise invalid("measured", "of a shape that broadcasts with predicted and its tolerance", shapes) from None
        if not got.size:
            raise invalid("measured", "not empty", got)
        deviation = _deviation(want, got, bound)
        claim = Claim(text, source, _number(want), _number(got), tolerance, deviation, deviation <= 1)
        self._entries.append(claim)
        if not claim.holds:
            raise AssertionError(f"claim of {self.chapter!r} does not hold:\n{_lines(len(self._entries), claim)}")

    def __repr__(self) -> str:
        held = sum(claim.holds for claim in self._entries)
        head = f"{self.chapter}: {held} of {len(self._entries)} claims hold"
        return "\n".join([head, *(_lines(i, claim) for i, claim in enumerate(self._entries, 1))])

    def _repr_html_(self) -> str:
        return _table(self._entries)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        record = {"chapter": self.chapter, "claims": [asdict(claim) for claim in self._entries]}
        return {"text/plain": repr(self), "text/html": self._repr_html_(), MIME: record}


@dataclass(frozen=True)
class Scoreboard:
    """The ledgers of several chapters, by slug, as :func:`scoreboard` read them."""

    ledgers: dict[str, tuple[Claim, ...]]
    titles: dict[str, str]

    def __repr__(self) -> str:
        return "\n".join(
            f"{slug}: {sum(claim.holds for claim in claims)} of {len(claims)} claims hold"
            for slug, claims in self.ledgers.items()
        )

    def _repr_html_(self) -> str:
        return "".join(
            f'<h3><a href="chapters/{slug}.html#claims">{html.escape(self.titles[slug])}</a></h3>{_table(claims)}'
            for slug, claims in self.ledgers.items()
        )


def scoreboard(notebooks: list[str | os.PathLike[str]]) -> Scoreboard:
    """Gather the ledgers from the stored outputs of executed notebooks.

    Parameters
    ----------
    notebooks : list of path
        Chapters in the order of the book.

    Returns
    -------
    Scoreboard

    Raises
    ------
    ValueError
        If a notebook holds no ledger, or one of another chapter.
    """
    ledgers, titles = {}, {}
    for path in map(Path, notebooks):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        records = [o["data"][MIME] for cell in cells for o in cell.get("outputs", []) if MIME in o.get("data", {})]
        if not records or records[-1]["chapter"] != path.stem:
            found = f"one of {records[-1]['chapter']!r}" if records else "none"
            raise invalid("notebooks", f"executed chapters with a ledger of their own ({path.name})", found)
        ledgers[path.stem] = tuple(Claim(**claim) for claim in records[-1]["claims"])
        titles[path.stem] = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
    return Scoreboard(ledgers, titles)


def _tolerance(
    predicted: np.ndarray,
    rtol: float | None,
    atol: float | None,
    n_sigma: float | None,
    stderr: ArrayLike | None,
) -> tuple[np.ndarray, str]:
    given = {name: t for name, t in (("rtol", rtol), ("atol", atol), ("n_sigma", n_sigma)) if t is not None}
    if len(given) != 1:
        raise invalid("tolerance", "exactly one of rtol, atol, n_sigma", ", ".join(given) or "none")
    ((name, value),) = given.items()
    size = check_finite(name, value)
    if size.ndim or size <= 0 or (name == "rtol" and size >= 1):
        raise invalid(name, "a number between 0 and 1, both excluded" if name == "rtol" else "a number > 0", value)
    if (name == "n_sigma") != (stderr is not None):
        raise invalid("stderr", "given together with n_sigma, and only then", "none" if stderr is None else name)
    if name == "rtol":
        return size * np.abs(predicted), f"{100 * float(size):.3g} %"
    if name == "atol":
        return size, f"± {float(size):.3g}"
    error = check_finite("stderr", stderr)  # type: ignore[arg-type]
    if (error <= 0).any():
        raise invalid("stderr", "> 0", error.min())
    return size * error, f"{float(size):.3g} standard errors"


def _deviation(predicted: np.ndarray, measured: np.ndarray, bound: np.ndarray) -> float:
    distance = np.where(predicted == measured, 0.0, np.abs(measured - np.where(np.isinf(predicted), 0, predicted)))
    distance = np.where(np.isinf(predicted) & (predicted != measured), np.inf, distance)
    ratio = np.divide(distance, bound, out=np.where(distance == 0, 0.0, np.inf), where=(bound > 0) & np.isfinite(bound))
    return float(np.where(np.isnan(predicted) | np.isnan(measured), np.inf, ratio).max())


def _number(values: np.ndarray) -> str:
    low, high = f"{np.min(values):.3g}", f"{np.max(values):.3g}"
    return low if low == high else f"{low}…{high}"


def _breakable(number: str) -> str:
    return number.replace("…", "…<wbr>")


def _lines(number: int, claim: Claim) -> str:
    verdict = "holds" if claim.holds else "FAILS"
    source = f" ({claim.source})" if claim.source else ""
    return (
        f"{number:2d}. {verdict}   {claim.text}{source}\n"
        f"            predicted {claim.predicted}, measured {claim.measured}, "
        f"{claim.deviation:.2g} of the tolerance ({claim.tolerance})"
    )


def _row(claim: Claim) -> str:
    """Cells of one claim; what was measured is marked, so that a comparison of notebooks can leave it out."""
    return (
        f"<td>{html.escape(claim.text)}</td><td>{html.escape(claim.source)}</td>"
        f"<td>{_breakable(claim.predicted)}</td>"
        f'<td class="measured">{_breakable(claim.measured)}</td><td>{claim.tolerance}</td>'
        f'<td class="measured">{100 * claim.deviation:.2g} %</td>'
        f"<td>{'holds' if claim.holds else '<strong>FAILS</strong>'}</td>"
    )


def _table(claims: list[Claim] | tuple[Claim, ...]) -> str:
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("claim", "source", "predicted", "measured", "tolerance", "used", "verdict")
    )
    rows = "".join(f"<tr>{_row(claim)}</tr>" for claim in claims)
    return (
        f'<div class="symlearn-claims" tabindex="0" role="region" aria-label="claims, predicted and measured">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
