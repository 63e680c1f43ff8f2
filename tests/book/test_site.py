"""The built site, read without a browser."""

import shutil

import pytest

from tools.check_site import problems


def test_links_and_anchors_resolve_nothing_is_loaded_from_elsewhere_and_images_have_alt_text(site):
    assert problems(site) == []


@pytest.mark.parametrize(
    ("tag", "fault"),
    [
        ('<a href="no-such-page.html">x</a>', "dead link"),
        ('<a href="notation.html#no-such-anchor">x</a>', "dead anchor"),
        ('<script src="https://example.org/x.js"></script>', "loads from another host"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads from another host"),
        ('<img src="_static/favicon.svg">', "image without alt text"),
        ('<img src="gone.png" alt="x">', "dead link"),
    ],
)
def test_a_planted_fault_is_found(site, tmp_path, tag, fault):
    copy = tmp_path / "html"
    copy.mkdir()
    for name in ("intro.html", "notation.html"):
        shutil.copy(site / name, copy)
    before = set(problems(copy))
    (copy / "intro.html").write_text((copy / "intro.html").read_text() + tag)
    (found,) = set(problems(copy)) - before
    assert fault in found
