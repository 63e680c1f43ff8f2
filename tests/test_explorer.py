"""Tests of the interactive figures: structure here, behaviour in a browser in tests/book."""

import re

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest

from symlearn.explorer import explore


def draw(a=1, b=2):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1], [0, float(len(b)) if isinstance(b, str) else a * b])
    return figure


def frames(box):
    """All frames' markup, in the order of the grid, with the path of slider positions that shows them."""

    def walk(widget, path=()):
        if isinstance(widget, widgets.HTML):
            yield path, widget.value
        else:
            for i, child in enumerate(widget.children):
                yield from walk(child, (*path, i))

    return dict(walk(box.children[-1]))


def test_every_point_of_the_grid_has_its_frame_and_its_alt_text():
    box = explore(draw, {"a": [1, 2], "b": [1, 2, 3]}, alt="a line")
    alts = {path: re.search('aria-label="([^"]*)"', markup)[1] for path, markup in frames(box).items()}
    assert alts == {(i, j): f"a line, a = {a}, b = {b}" for i, a in enumerate([1, 2]) for j, b in enumerate([1, 2, 3])}


def test_sliders_and_the_frame_start_where_they_are_told():
    box = explore(draw, {"a": [1, 2], "b": [1, 2, 3]}, alt="x", start={"b": 3}, labels={"a": "width α"})
    first, second, stack = box.children
    assert (first.index, second.index) == (0, 2)
    assert (first.description, second.description) == ("width α", "b")
    assert (stack.selected_index, stack.children[0].selected_index) == (0, 2)


def test_words_make_a_slider_too():
    box = explore(draw, {"b": ["one", "three"]}, alt=lambda b: f"a line called {b}")
    assert [label for label, _ in box.children[0].options] == ["one", "three"]
    assert 'aria-label="a line called three"' in frames(box)[(1,)]


def test_a_png_frame_is_an_image_with_alt_text_and_few_colours():
    box = explore(draw, {"a": [1, 2]}, alt='a "line"', image="png")
    markup = frames(box)[(0,)]
    assert markup.startswith('<div class="symlearn-frame"')
    assert 'alt="a &quot;line&quot;, a = 1"' in markup
    assert len(markup) < 15_000


def test_figures_are_closed_and_settings_restored():
    before, settings = plt.get_fignums(), dict(plt.rcParams)
    explore(draw, {"a": [1, 2, 3]}, alt="x")
    assert plt.get_fignums() == before
    assert dict(plt.rcParams) == settings


def test_the_same_call_gives_the_same_markup():
    grid = {"a": [1, 2]}
    assert frames(explore(draw, grid, alt="x")) == frames(explore(draw, grid, alt="x"))


def test_without_stack_the_kernel_swaps_the_frame(monkeypatch):
    monkeypatch.delattr(widgets, "Stack")
    box = explore(draw, {"a": [1, 2], "b": [1, 2]}, alt="x")
    assert "a = 1, b = 1" in box.children[-1].value
    box.children[0].index = 1
    assert "a = 2, b = 1" in box.children[-1].value


def noisy(a):
    figure, ax = plt.subplots(figsize=(4, 4))
    ax.plot(*np.random.default_rng(a).normal(size=(2, 100_000)))
    return figure


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grid": {}}, ValueError, "grid must be of 1 to 60 points, got 0 points"),
        ({"grid": {"a": []}}, ValueError, "grid must be of 1 to 60 points, got 0 points"),
        ({"grid": {"a": range(8), "b": range(8)}}, ValueError, "grid must be of 1 to 60 points, got 64 points"),
        ({"grid": [1, 2]}, TypeError, "grid must be a dict of sequences, got list"),
        ({"grid": {"a": 3}}, TypeError, r"grid\['a'\] must be a sequence of values, got int"),
        ({"grid": {"a": "word"}}, TypeError, r"grid\['a'\] must be a sequence of values, got str"),
        ({"labels": {"c": "x"}}, ValueError, r"labels must be about the names of grid \['a'\], got \['c'\]"),
        ({"start": {"c": 1}}, ValueError, r"start must be about the names of grid \['a'\]"),
        ({"start": {"a": 7}}, ValueError, r"start\['a'\] must be one of \[1, 2\], got 7"),
        ({"image": "gif"}, ValueError, "image must be one of 'png', 'svg', got 'gif'"),
        ({"draw": lambda a: None}, TypeError, "draw must be a function that returns a matplotlib Figure, got NoneType"),
        ({"draw": noisy}, ValueError, "grid must be small enough for 1.5 MB of frames, got"),
    ],
)
def test_bad_input_is_refused_by_name(changes, error, message):
    arguments = {"draw": draw, "grid": {"a": [1, 2]}, "alt": "x"} | changes
    with pytest.raises(error, match=message):
        explore(arguments.pop("draw"), arguments.pop("grid"), **arguments)
    plt.close("all")
