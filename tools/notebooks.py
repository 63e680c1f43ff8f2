"""Run the book's notebooks and store them in canonical form, so that running them again changes nothing.

Usage: python -m tools.notebooks [--into FOLDER] [NOTEBOOK ...]

Without arguments every chapter runs in place, two at a time, then the scoreboard, which reads the chapters. With --into
each notebook runs alone in an empty folder below FOLDER and is stored there.
"""

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tools.repository import ROOT, repository

WIDGETS = "application/vnd.jupyter.widget-state+json"
# One thread: results do not depend on the number of cores, and two notebooks share two cores without waiting.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def chapters() -> list[Path]:
    """The chapters, in alphabetical order."""
    return sorted((ROOT / "chapters").glob("*.ipynb"))


def setup_cell() -> str:
    """The first code cell of every chapter."""
    return f"""\
# Installs the book's library where it is missing, as on Colab.
import importlib.util

REPOSITORY = "https://github.com/{repository()}"
if importlib.util.find_spec("symlearn") is None:
    if "/OWNER/" in REPOSITORY:
        raise RuntimeError(
            "The book's address is not set: there is nothing to install from. "
            "In a checkout, run 'make repository URL=...' "
            "or 'pip install -e .[explore]'."
        )
    %pip install -q "symlearn-book[explore] @ git+{{REPOSITORY}}@main"
import symlearn.claims  # noqa: F401, an unrelated symlearn has no claims"""


def canonical(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run: times, random widget names, the chunks of a stream."""
    for cell in notebook.cells:
        for key in ("execution", "collapsed", "scrolled", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)
    state = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.metadata = nbformat.from_dict(metadata | ({"widgets": notebook.metadata["widgets"]} if state else {}))
    text = json.dumps(notebook)
    for number, model in enumerate(state):
        text = text.replace(model, f"{number:032x}")
    return nbformat.from_dict(json.loads(text))


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook with ``folder`` as its working directory; canonical, nothing is written."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | ENVIRONMENT)
    return canonical(notebook)


def run_in_place(path: Path) -> None:
    """Run a notebook in its own folder and store it."""
    _write(execute(path, path.parent), path)


def run_alone(path: Path, into: Path) -> Path:
    """Run a copy of a notebook in an empty folder of its own below ``into`` and store it there."""
    folder = into / path.stem
    folder.mkdir(parents=True)
    copy = Path(shutil.copy(path, folder))
    _write(execute(copy, folder), copy)
    return copy


def _merge_streams(outputs: list) -> list:
    merged: list = []
    for output in outputs:
        if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def _write(notebook: nbformat.NotebookNode, path: Path) -> None:
    scratch = path.with_suffix(".part")
    nbformat.write(notebook, scratch)
    os.replace(scratch, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    paths = arguments.notebooks or chapters()

    def run(path: Path) -> None:
        run_alone(path, arguments.into) if arguments.into else run_in_place(path)
        print("ran", path, flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, paths))
    if not arguments.notebooks and not arguments.into:
        run(ROOT / "scoreboard.ipynb")


if __name__ == "__main__":
    sys.exit(main())
