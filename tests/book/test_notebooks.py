"""The chapters as source code: executed, complete, reproducible, and able to run alone."""

import base64
import io
import json
import subprocess
import warnings

import numpy as np
import pytest
from PIL import Image

from symlearn.claims import MIME
from tools.notebooks import WIDGETS, chapters, execute
from tools.repository import ROOT

NOTEBOOKS = [*chapters(), ROOT / "scoreboard.ipynb"]
PARTS = (
    "The question",
    "Setting",
    "Derivation",
    "Theory meets simulation",
    "On a real network",
    "Explore",
    "In your own work",
    "What this does not say",
    "Exercises",
    "Claims",
)


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook, mime):
    return [o["data"][mime] for c in code_cells(notebook) for o in c["outputs"] if mime in o.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_executed_in_order_without_error(path):
    cells = [cell for cell in code_cells(load(path)) if "".join(cell["source"]).strip()]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        o for cell in cells for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"
    ]


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_has_all_its_parts_in_order(path):
    text = "\n".join("".join(cell["source"]) for cell in load(path)["cells"] if cell["cell_type"] == "markdown")
    headings = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    positions = [next(i for i, heading in enumerate(headings) if heading.startswith(part)) for part in PARTS]
    assert positions == sorted(positions)
    assert 3 <= text.count("{exercise}") + text.count("### Exercise") <= 5


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_chapter_keeps_its_ledger_and_its_explorer(path):
    notebook = load(path)
    (ledger,) = outputs(notebook, MIME)
    assert ledger["chapter"] == path.stem
    assert len(ledger["claims"]) >= 8
    assert all(claim["holds"] and claim["source"] for claim in ledger["claims"])
    state = notebook["metadata"]["widgets"][WIDGETS]["state"]
    assert 1 <= len(outputs(notebook, "application/vnd.jupyter.widget-view+json")) <= 2
    assert len(json.dumps(state)) < 2_000_000
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_the_sources_in_the_ledger_are_on_the_page(path):
    notebook = load(path)
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    counts = {"eq.": text.count(":label: eq-"), "step": text.count("### Step ")}
    for claim in outputs(notebook, MIME)[0]["claims"]:
        kind, number = claim["source"].split()
        assert 1 <= int(number) <= counts[kind], claim["source"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_alt_text_a_caption_and_a_name(path):
    for cell in code_cells(load(path)):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            details = cell["metadata"]["mystnb"]
            assert len(details["image"]["alt"]) > 30
            assert details["figure"]["caption"]
            assert details["figure"]["name"].startswith("fig-")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_formula_has_lost_a_backslash(path):
    """Where a tool reads the start of ``\\frac`` as an escape, a control character is left."""
    text = "".join("".join(cell["source"]) for cell in load(path)["cells"])
    assert not {character for character in text if ord(character) < 32} - {"\n"}


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_code_in_a_chapter_is_short(path):
    lengths = {cell["id"]: len(cell["source"]) for cell in code_cells(load(path))}
    assert not {name: length for name, length in lengths.items() if length > 25}


@pytest.fixture(scope="session")
def alone(clean_python, tmp_path_factory):
    """A function that runs all chapters alone, each in an empty folder, with the wheel; the folder of the results."""

    def run():
        folder = tmp_path_factory.mktemp("alone")
        subprocess.run([clean_python, "-m", "tools.notebooks", "--into", folder, *chapters()], cwd=ROOT, check=True)
        return folder

    first = run()
    return lambda again=False: run() if again else first


def test_chapters_run_alone_in_an_empty_folder_and_give_what_is_stored(alone):
    """Running a chapter leaves ``git diff`` empty.

    On another processor than the one that made the stored outputs, pictures may differ invisibly and measured values in
    their last digits. Then the chapter has to look the same and a second run has to repeat the first to the byte.
    """
    folder = alone()
    fresh = {path: (folder / path.stem / path.name) for path in chapters()}
    changed = [path for path in chapters() if fresh[path].read_bytes() != path.read_bytes()]
    for path in changed:
        looks_the_same(load(fresh[path]), load(path))
    if changed:
        warnings.warn(f"stored on another machine, or stale (make execute): {[p.name for p in changed]}", stacklevel=1)
        again = alone(again=True)
        assert all((again / p.stem / p.name).read_bytes() == fresh[p].read_bytes() for p in changed)


def test_the_scoreboard_shows_what_the_chapters_store():
    fresh, stored = execute(ROOT / "scoreboard.ipynb", ROOT), load(ROOT / "scoreboard.ipynb")
    assert outputs(fresh, "text/html") == [
        html if isinstance(html, str) else "".join(html) for html in outputs(stored, "text/html")
    ]
    looks_the_same(fresh, stored)


def looks_the_same(fresh, stored):
    assert ["".join(cell["source"]) for cell in fresh["cells"]] == ["".join(cell["source"]) for cell in stored["cells"]]
    for one, other in zip(outputs(fresh, "image/png"), outputs(stored, "image/png"), strict=True):
        one, other = (Image.open(io.BytesIO(base64.b64decode("".join(data)))).convert("L") for data in (one, other))
        # The layout may move by a pixel with a label; a changed curve moves thousands of pixels.
        assert np.abs(np.subtract(one.size, other.size)).max() <= 3
        difference = np.abs(np.asarray(one, float) - np.asarray(other.resize(one.size), float))
        assert difference.mean() < 4, "a stored picture is stale: run make execute"
