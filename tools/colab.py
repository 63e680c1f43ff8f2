"""Run every chapter as Colab would: alone, in an empty folder, the wheel in an environment with Colab's ipywidgets.

Usage: python -m tools.colab FOLDER_OF_THE_WHEEL. Needs the network once; the environment is made anew each time.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tools.notebooks import chapters
from tools.repository import ROOT

COLAB = ["ipywidgets==7.7.1", "nbclient", "ipykernel"]


def main(wheels: str) -> None:
    """Make the environment, install the newest wheel into it, run the chapters."""
    wheel = max(Path(wheels).glob("symlearn_book-*.whl"), key=lambda path: path.stat().st_mtime)
    torch = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "colab"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, torch, f"{wheel.resolve()}[explore]", *COLAB], check=True)
        run = [python, "-m", "tools.notebooks", "--into", Path(folder) / "alone", *chapters()]
        subprocess.run(run, cwd=ROOT, check=True)
    print("every chapter runs alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
