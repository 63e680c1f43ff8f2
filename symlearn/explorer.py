"""Interactive figures that need no kernel.

:func:`explore` draws one frame per point of a small grid and joins them to sliders that the browser moves by itself, so
that the figure works on a published page; with ipywidgets 7 (Colab) the kernel changes the frames.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from symlearn._checks import check_choice, invalid, wrong_type

MAX_FRAMES = 60
MAX_BYTES = 1_500_000


def explore(
    draw: Callable[..., Figure],
    grid: Mapping[str, Sequence[float | str]],
    *,
    alt: str | Callable[..., str],
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, float | str] | None = None,
    image: Literal["svg", "png"] = "svg",
) -> widgets.VBox:
    """Turn a plotting function and slider grids into an interactive figure.

    Parameters
    ----------
    draw : callable
        ``draw(**values)`` returns a matplotlib ``Figure`` for one value per slider. Draw it at most 4.8 inches wide, so
        that it is legible on a phone, and with fixed axes, so that frames can be compared. The figure is closed.
    grid : mapping of str to sequence
        Values of each slider, numbers or words, by the names of ``draw``'s arguments. At most 60 frames in all.
    alt : str or callable
        What the figure shows, for readers who do not see it; the values are appended. A callable gets the values.
    labels : mapping of str to str, optional
        Label of each slider, in plain Unicode (``"log₁₀ ρ"``). Default: the name.
    start : mapping of str to value, optional
        Where the sliders stand at first. Default: their first value.
    image : {"svg", "png"}
        ``"svg"`` for lines and small scatters; ``"png"`` (48 colours) for heat maps and dense scatters.

    Returns
    -------
    ipywidgets.VBox
        Sliders above the figure.

    Raises
    ------
    ValueError
        If the grid is empty or has more than 60 points, or if all frames together exceed 1.5 MB.
    """
    names, points = _points(grid)
    labels, start = labels or {}, start or {}
    for option, given in (("labels", labels), ("start", start)):
        if unknown := set(given) - set(names):
            raise invalid(option, f"about the names of grid {names}", sorted(unknown))
    indices = {name: _index(grid[name], start, name) for name in names}
    frames = {index: _frame(draw, values, alt, image) for index, values in points.items()}
    if (size := sum(map(len, frames.values()))) > MAX_BYTES:
        raise invalid("grid", f"small enough for {MAX_BYTES / 1e6:.1f} MB of frames", f"{size / 1e6:.1f} MB")
    sliders = {name: _slider(labels.get(name, name), grid[name], indices[name]) for name in names}
    view = (
        _stack(frames, list(sliders.values())) if hasattr(widgets, "Stack") else _swap(frames, list(sliders.values()))
    )
    return widgets.VBox([*sliders.values(), view])


def _points(grid: Mapping[str, Sequence[Any]]) -> tuple[list[str], dict[tuple[int, ...], dict[str, Any]]]:
    if not isinstance(grid, Mapping):
        raise wrong_type("grid", "a dict of sequences", grid)
    names = list(grid)
    for name in names:
        if isinstance(grid[name], str) or not hasattr(grid[name], "__len__"):
            raise wrong_type(f"grid[{name!r}]", "a sequence of values", grid[name])
    count = math.prod(len(grid[name]) for name in names)
    if not names or not 1 <= count <= MAX_FRAMES:
        raise invalid("grid", f"of 1 to {MAX_FRAMES} points", f"{count if names else 0} points")
    indices = itertools.product(*(range(len(grid[name])) for name in names))
    return names, {i: {name: grid[name][k] for name, k in zip(names, i, strict=True)} for i in indices}


def _index(values: Sequence[Any], start: Mapping[str, Any], name: str) -> int:
    if name not in start:
        return 0
    if start[name] not in list(values):
        raise invalid(f"start[{name!r}]", f"one of {list(values)}", start[name])
    return list(values).index(start[name])


def _frame(draw: Callable[..., Figure], values: dict[str, Any], alt: str | Callable[..., str], image: str) -> str:
    check_choice("image", image, ("svg", "png"))
    figure = draw(**values)
    if not isinstance(figure, Figure):
        raise wrong_type("draw", "a function that returns a matplotlib Figure", figure)
    try:
        text = alt(**values) if callable(alt) else ", ".join([alt, *(f"{k} = {_word(v)}" for k, v in values.items())])
        picture = _svg(figure, text) if image == "svg" else _png(figure, text)
    finally:
        plt.close(figure)
    return f'<div class="symlearn-frame" style="background: white; color: black">{picture}</div>'


def _svg(figure: Figure, alt: str) -> str:
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "symlearn", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # What no reader sees goes: decimals beyond a hundredth of a point, notes, spaces. Other machines have other fonts.
    markup = re.sub(r"(\d\.\d\d)\d+", r"\1", buffer.getvalue())
    markup = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", markup, flags=re.DOTALL)
    markup = re.sub(r"\s+", " ", markup).replace("> <", "><").replace("'DejaVu Sans'\"", "'DejaVu Sans', sans-serif\"")
    return markup[markup.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _png(figure: Figure, alt: str) -> str:
    from PIL import Image

    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=150, metadata={"Software": None})
    picture = Image.open(raw).convert("RGB").quantize(48, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    data = base64.b64encode(small.getvalue()).decode()
    width = round(96 * figure.get_figwidth())
    return f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{data}">'


def _slider(label: str, values: Sequence[Any], index: int) -> widgets.SelectionSlider:
    return widgets.SelectionSlider(
        options=[(_word(value), i) for i, value in enumerate(values)],
        index=index,
        description=label,
        style={"description_width": "9em"},
        layout=widgets.Layout(width="100%", max_width="36em"),
    )


def _stack(frames: dict[tuple[int, ...], str], sliders: list[widgets.SelectionSlider]) -> widgets.Widget:
    """Nested stacks, one level per slider, joined to it in the browser."""

    def build(prefix: tuple[int, ...]) -> widgets.Widget:
        if len(prefix) == len(sliders):
            return widgets.HTML(frames[prefix])
        slider = sliders[len(prefix)]
        children = [build((*prefix, i)) for i in range(len(slider.options))]
        stack = widgets.Stack(children, selected_index=slider.index)
        widgets.jslink((slider, "index"), (stack, "selected_index"))
        return stack

    return build(())


def _swap(frames: dict[tuple[int, ...], str], sliders: list[widgets.SelectionSlider]) -> widgets.HTML:
    """One frame, changed by the kernel: ipywidgets 7 has no Stack."""

    def current() -> str:
        return frames[tuple(slider.index for slider in sliders)]

    view = widgets.HTML(current())
    for slider in sliders:
        slider.observe(lambda _: setattr(view, "value", current()), "index")
    return view


def _word(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
