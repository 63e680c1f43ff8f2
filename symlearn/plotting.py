"""The look of the book: one style, one palette, theory as a line and measurement as points.

The palette keeps its colours apart for colour-blind readers and legible on light and dark pages. Lines carry their
labels directly (:func:`label_lines`); a legend is for the rare figure where that is impossible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from symlearn._checks import check_real, invalid, wrong_type

THEORY = "#0072b2"
SIMULATION = "#d55e00"
DATA = "#008662"
PALETTE = (THEORY, SIMULATION, DATA, "#8e3a8e", "#7a5c00", "#5b6670")
"""Blue, vermilion, green, purple, ochre, slate: theory, simulation and real data first."""

SEQUENTIAL = "cividis"
"""Colour map of heat maps: even in lightness, and the same for colour-blind readers."""

WIDTH = 6.4
"""Width of a figure in inches; an explorer's frame is at most :data:`NARROW`, to be legible on a phone."""

NARROW = 4.8

_STYLE = {
    "figure.figsize": (WIDTH, 3.8),
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "errorbar.capsize": 0,
    "image.cmap": SEQUENTIAL,
    "svg.hashsalt": "symlearn",
    "svg.fonttype": "none",
}


def use_book_style() -> None:
    """Set matplotlib's defaults to the book's style, for the session."""
    mpl.rcParams.update(_STYLE)


def theory(
    ax: Axes, x: ArrayLike, y: ArrayLike, label: str | None = None, *, color: str = THEORY, **kwargs: Any
) -> Line2D:
    """Draw a prediction: a line.

    Parameters
    ----------
    ax : Axes
    x, y : array_like, shape (n,)
    label : str, optional
        Written at the line's end by :func:`label_lines`.
    color : str
    **kwargs
        Passed to ``ax.plot``.

    Returns
    -------
    Line2D
    """
    (line,) = _axes(ax).plot(check_real("x", x), check_real("y", y), color=color, label=label, **kwargs)
    return line


def measured(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    stderr: ArrayLike | None = None,
    label: str | None = None,
    *,
    color: str = SIMULATION,
    **kwargs: Any,
) -> Line2D:
    """Draw a measurement: points, with bars of one standard error.

    Parameters
    ----------
    ax : Axes
    x, y : array_like, shape (n,)
    stderr : array_like, shape (n,), optional
        Standard error of ``y``, same units.
    label : str, optional
    color : str
    **kwargs
        Passed to ``ax.errorbar``.

    Returns
    -------
    Line2D
        The points.
    """
    options = {"fmt": "o", "mec": "white", "mew": 0.6, "elinewidth": 1.2, "zorder": 3, **kwargs}
    bars = None if stderr is None else check_real("stderr", stderr)
    points, _, _ = _axes(ax).errorbar(
        check_real("x", x),
        check_real("y", y),
        yerr=bars,
        color=color,
        **options,
    )
    if label is not None:
        points.set_label(label)
    return points


def label_lines(ax: Axes, lines: Sequence[Line2D] | None = None, *, gap: float = 1.25) -> None:
    """Write each line's label at its right end, in its colour, moved apart where labels would overlap.

    Parameters
    ----------
    ax : Axes
        Its limits and scales have to be final.
    lines : sequence of Line2D, optional
        Default: all lines of the axes that have a label.
    gap : float
        Smallest distance between labels, in font sizes.
    """
    if lines is None:
        lines = [line for line in _axes(ax).get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        raise invalid("lines", "at least one line with a label", "none")
    ax.figure.canvas.draw()
    ends = []
    for line in lines:
        points = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        inside = np.isfinite(points).all(1) & _inside(points, ax)
        if inside.any():
            ends.append((*points[inside][-1], line))
    ends.sort(key=lambda end: end[1])
    step = gap * mpl.rcParams["font.size"] * ax.figure.dpi / 72
    heights = _spread(np.array([y for _, y, _ in ends]), step)
    for (x, y, line), height in zip(ends, heights, strict=True):
        ax.annotate(
            str(line.get_label()),
            ax.transData.inverted().transform((x, y)),
            xytext=(5, (height - y) * 72 / ax.figure.dpi),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
        )


def _axes(ax: Axes) -> Axes:
    if not isinstance(ax, Axes):
        raise wrong_type("ax", "a matplotlib Axes", ax)
    return ax


def _inside(points: np.ndarray, ax: Axes) -> np.ndarray:
    x, y = ax.transAxes.inverted().transform(points).T
    return (x >= -1e-6) & (x <= 1 + 1e-6) & (y >= -1e-6) & (y <= 1 + 1e-6)


def _spread(heights: np.ndarray, step: float) -> np.ndarray:
    """Least moves (in the order given, ascending) that leave ``step`` between neighbours: pool adjacent violators."""
    offsets = step * np.arange(len(heights))
    groups: list[list[float]] = []
    for height in heights - offsets:
        groups.append([height])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return np.concatenate([np.full(len(group), np.mean(group)) for group in groups]) + offsets
