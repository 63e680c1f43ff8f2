"""Tests of the ledger."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symlearn.claims import MIME, Claims, scoreboard


def check(**numbers):
    Claims("demo").check("a claim", **numbers)


def test_a_claim_within_its_tolerance_is_recorded():
    claims = Claims("demo")
    claims.check("the slope is 2", predicted=2, measured=2.05, rtol=0.05, source="eq. 3")
    (claim,) = claims.entries
    assert claim.holds
    assert claim.deviation == pytest.approx(0.5)
    assert (claim.text, claim.source, claim.predicted, claim.measured) == ("the slope is 2", "eq. 3", "2", "2.05")


@pytest.mark.parametrize(
    "numbers",
    [
        {"predicted": 1, "measured": 1.11, "rtol": 0.1},
        {"predicted": 0, "measured": 1e-300, "rtol": 0.5},
        {"predicted": 0, "measured": -0.21, "atol": 0.2},
        {"predicted": 3, "measured": 3.7, "n_sigma": 3, "stderr": 0.2},
        {"predicted": np.nan, "measured": 1, "atol": 1},
        {"predicted": 1, "measured": np.nan, "atol": 1},
        {"predicted": 1, "measured": np.inf, "atol": 1},
        {"predicted": np.inf, "measured": 1, "atol": 1},
        {"predicted": np.inf, "measured": -np.inf, "rtol": 0.5},
        {"predicted": [1, 2, 3], "measured": [1, 2, 3.4], "rtol": 0.1},
        {"predicted": 1, "measured": [1, 1.3], "n_sigma": 2, "stderr": [0.1, 0.1]},
    ],
)
def test_a_claim_outside_its_tolerance_raises_and_says_everything(numbers):
    claims = Claims("demo")
    with pytest.raises(
        AssertionError, match=r"claim of 'demo' does not hold:\n 1\. FAILS   a claim\n +predicted .*of the"
    ):
        claims.check("a claim", **numbers)
    assert not claims.entries[0].holds


@pytest.mark.parametrize(
    "numbers",
    [
        {"predicted": np.inf, "measured": np.inf, "rtol": 0.1},
        {"predicted": 0, "measured": 0, "rtol": 0.1},
        {"predicted": -np.inf, "measured": [-np.inf, -np.inf], "atol": 0.1},
    ],
)
def test_equal_numbers_hold_whatever_the_tolerance(numbers):
    check(**numbers)


# Subnormal numbers have no digits left for a relative tolerance.
@given(st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-290), st.floats(1e-6, 0.99))
def test_relative_tolerance_is_relative_to_the_prediction(predicted, rtol):
    check(predicted=predicted, measured=predicted * (1 + 0.999 * rtol), rtol=rtol)
    if predicted:
        with pytest.raises(AssertionError):
            check(predicted=predicted, measured=predicted * (1 + 1.01 * rtol), rtol=rtol)


def test_the_worst_entry_of_an_array_counts():
    claims = Claims("demo")
    claims.check("all", predicted=[1.0, 10.0], measured=[1.05, 10.1], rtol=0.1)
    assert claims.entries[0].deviation == pytest.approx(0.5)
    assert claims.entries[0].predicted == "1…10"


OK = {"predicted": 1, "measured": 1}


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ({}, ValueError, "tolerance must be exactly one of rtol, atol, n_sigma, got none"),
        ({"rtol": 0.1, "atol": 0.1}, ValueError, "tolerance must be exactly one .* got rtol, atol"),
        ({"rtol": 0.1, "n_sigma": 1, "stderr": 1}, ValueError, "tolerance must be exactly one"),
        ({"rtol": 0}, ValueError, "rtol must be a number between 0 and 1"),
        ({"rtol": 1}, ValueError, "rtol must be a number between 0 and 1, both excluded, got 1"),
        ({"rtol": -0.1}, ValueError, "rtol must be"),
        ({"rtol": np.nan}, ValueError, "rtol must be finite"),
        ({"rtol": "0.1"}, TypeError, "rtol must be real numbers, got str"),
        ({"rtol": [0.1, 0.2]}, ValueError, "rtol must be a number"),
        ({"atol": 0}, ValueError, "atol must be a number > 0, got 0"),
        ({"atol": -1}, ValueError, "atol must be a number > 0, got -1"),
        ({"atol": np.inf}, ValueError, "atol must be finite, got inf"),
        ({"n_sigma": 3}, ValueError, "stderr must be given together with n_sigma, and only then, got none"),
        ({"n_sigma": 0, "stderr": 1}, ValueError, "n_sigma must be a number > 0"),
        ({"n_sigma": 3, "stderr": 0}, ValueError, "stderr must be > 0, got 0"),
        ({"n_sigma": 3, "stderr": [0.1, -1]}, ValueError, "stderr must be > 0, got -1"),
        ({"n_sigma": 3, "stderr": np.nan}, ValueError, "stderr must be finite"),
        ({"rtol": 0.1, "stderr": 1}, ValueError, "stderr must be given together with n_sigma"),
        ({"atol": 0.1, "predicted": "1"}, TypeError, "predicted must be real numbers, got str"),
        ({"atol": 0.1, "measured": None}, TypeError, "measured must be real numbers, got NoneType"),
        ({"atol": 0.1, "measured": 1j}, TypeError, "measured must be real numbers"),
        ({"atol": 0.1, "measured": True}, TypeError, "measured must be real numbers, got bool"),
        ({"atol": 0.1, "measured": []}, ValueError, "measured must be not empty"),
        ({"atol": 0.1, "predicted": [1, 2], "measured": [1, 2, 3]}, ValueError, "measured must be of a shape that"),
        ({"n_sigma": 1, "stderr": [1, 1, 1], "predicted": [1, 2]}, ValueError, "measured must be of a shape that"),
        ({"atol": 0.1, "predicted": [[1, 2], [3]]}, (ValueError, TypeError), "predicted must be"),
    ],
)
def test_a_claim_that_cannot_fail_or_makes_no_sense_is_refused(numbers, error, message):
    with pytest.raises(error, match=message):
        check(**(OK | numbers))


@pytest.mark.parametrize("text", ["", "   ", None, 3])
def test_a_claim_needs_words(text):
    with pytest.raises(ValueError, match="text must be a sentence"):
        Claims("demo").check(text, predicted=1, measured=1, atol=1)


@pytest.mark.parametrize(("chapter", "error"), [("no-slug", ValueError), ("", ValueError), (None, TypeError)])
def test_a_ledger_needs_the_slug_of_a_chapter(chapter, error):
    with pytest.raises(error, match="chapter must be"):
        Claims(chapter)


def test_a_ledger_is_shown_as_table_text_and_json():
    claims = Claims("demo")
    claims.check("a < b & c", predicted=1, measured=1.05, rtol=0.1)
    bundle = claims._repr_mimebundle_()
    assert "a &lt; b &amp; c" in bundle["text/html"]
    assert '<td class="measured">1.05</td>' in bundle["text/html"]
    assert "demo: 1 of 1 claims hold" in bundle["text/plain"]
    assert json.loads(json.dumps(bundle[MIME]))["claims"][0]["holds"] is True


def write_notebook(path, outputs):
    cells = [{"cell_type": "markdown", "source": ["# A title\n", "text"]}, {"cell_type": "code", "outputs": outputs}]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_the_scoreboard_gathers_what_the_chapters_stored(tmp_path):
    claims = Claims("demo")
    claims.check("one", predicted=1, measured=1, atol=0.1)
    output = {"output_type": "execute_result", "data": claims._repr_mimebundle_()}
    board = scoreboard([write_notebook(tmp_path / "demo.ipynb", [output])])
    assert board.ledgers == {"demo": claims.entries}
    assert repr(board) == "demo: 1 of 1 claims hold"
    assert '<a href="chapters/demo.html#claims">A title</a>' in board._repr_html_()


def test_a_chapter_without_its_own_ledger_is_refused(tmp_path):
    with pytest.raises(ValueError, match="notebooks must be executed chapters with a ledger of their own"):
        scoreboard([write_notebook(tmp_path / "demo.ipynb", [])])
    claims = Claims("other")
    output = {"output_type": "execute_result", "data": claims._repr_mimebundle_()}
    with pytest.raises(ValueError, match="got one of 'other'"):
        scoreboard([write_notebook(tmp_path / "demo.ipynb", [output])])
