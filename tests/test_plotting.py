"""Tests of the book's look."""

import colorsys
from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from symlearn.plotting import PALETTE, label_lines, measured, theory, use_book_style

# Machado, Oliveira & Fernandes (2009), severity 1, for linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def linear(color):
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(color, paper):
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (color, paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def on_a_dark_page(color):
    """The stylesheet's invert(0.93) hue-rotate(180deg)."""
    rgb = 0.93 + np.array(to_rgb(color)) * (1 - 2 * 0.93)
    r, g, b = 0.2126, 0.7152, 0.0722
    rotate = np.array([[2 * r - 1, 2 * g, 2 * b], [2 * r, 2 * g - 1, 2 * b], [2 * r, 2 * g, 2 * b - 1]])
    return tuple(np.clip(rotate @ rgb, 0, 1))


def lab(color, vision):
    rgb = np.clip(np.array(VISION[vision]) @ linear(color), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("color", PALETTE)
def test_every_colour_is_legible_on_a_light_and_on_a_dark_page(color):
    # 3:1 is what WCAG asks of graphics.
    assert contrast(color, "white") >= 3
    assert contrast(on_a_dark_page(color), on_a_dark_page("white")) >= 3


@pytest.mark.parametrize("color", PALETTE)
def test_colours_keep_their_hue_on_a_dark_page(color):
    hue, dark_hue = (colorsys.rgb_to_hsv(*rgb)[0] for rgb in (to_rgb(color), on_a_dark_page(color)))
    assert abs((hue - dark_hue + 0.5) % 1 - 0.5) < 0.09


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_for_every_reader(vision):
    # 10 units of CIELAB are plain to see side by side; 2.3 are just noticeable.
    assert min(np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in combinations(PALETTE, 2)) > 10


def test_labels_stand_at_the_line_ends_in_the_lines_colours_without_overlap(ax):
    for slope, color in zip((1.0, 1.001, 1.002), PALETTE, strict=False):
        theory(ax, [0, 1], [0, slope], label=f"slope {slope}", color=color)
    label_lines(ax)
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert [text.get_text() for text in ax.texts] == ["slope 1.0", "slope 1.001", "slope 1.002"]
    assert [text.get_color() for text in ax.texts] == list(PALETTE[:3])
    assert all(above.y0 >= below.y1 for below, above in pairwise(boxes))


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_label_far_from_others_stays_level_with_its_line(ax, scale):
    ax.set(xscale=scale, yscale=scale)
    (line,) = ax.plot([1, 10, 100], [1, 10, 1000], label="cube")
    label_lines(ax, [line])
    assert ax.texts[0].xy == pytest.approx((100, 1000))
    assert ax.texts[0].xyann[1] == pytest.approx(0)


def test_measured_draws_points_and_bars_of_one_standard_error(ax):
    points = measured(ax, [1, 2], [3.0, 4.0], [0.5, 0.25], "runs")
    assert points.get_linestyle() == "None"
    assert points.get_label() == "runs"
    (bars,) = ax.collections
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[2.5, 3.5], [3.75, 4.25]]


def test_the_style_is_set_and_is_what_figures_get():
    with plt.rc_context():
        use_book_style()
        figure, ax = plt.subplots()
        assert not ax.spines["top"].get_visible()
        assert figure.get_facecolor() == (1, 1, 1, 1)
        plt.close(figure)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ax: theory(None, [1], [1]), TypeError, "ax must be a matplotlib Axes, got NoneType"),
        (lambda ax: measured("ax", [1], [1]), TypeError, "ax must be a matplotlib Axes, got str"),
        (lambda ax: label_lines(3), TypeError, "ax must be a matplotlib Axes, got int"),
        (lambda ax: label_lines(ax), ValueError, "lines must be at least one line with a label, got none"),
        (lambda ax: theory(ax, ["a"], [1]), TypeError, "x must be real numbers"),
        (lambda ax: theory(ax, [1], [1j]), TypeError, "y must be real numbers"),
        (lambda ax: measured(ax, [1], [1], ["?"]), TypeError, "stderr must be real numbers"),
    ],
)
def test_bad_input_is_refused_by_name(ax, call, error, message):
    with pytest.raises(error, match=message):
        call(ax)
