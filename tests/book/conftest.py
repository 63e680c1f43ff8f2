"""What the book's tests share: the built site, and an environment that holds the wheel and no checkout."""

import functools
import http.server
import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from tools.repository import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The book, built as ``make book`` does: warnings are errors. In a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("the book")
    build = "from jupyter_book.cli.main import main; main()"
    options = ["build", "-W", "-n", "--keep-going", "--all", "--path-output", str(folder), "."]
    done = subprocess.run([sys.executable, "-c", build, *options], cwd=ROOT, capture_output=True, text=True)
    said = done.stdout.splitlines() + done.stderr.splitlines()
    assert done.returncode == 0, "\n".join(
        [line for line in said if "WARNING" in line or "ERROR" in line] or said[-20:]
    )
    return folder / "_build" / "html"


@pytest.fixture(scope="session")
def address(site):
    """Where a local server serves the site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The library's wheel, built from this checkout without network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *options, str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def clean_python(wheel, tmp_path_factory):
    """A Python with the wheel installed, the dependencies at hand, and no trace of the checkout.

    The dependencies come from this environment's folder by a path file: ``.pth`` files inside that folder, such as the
    one of the editable install, are not read from there.
    """
    folder = tmp_path_factory.mktemp("clean") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", packages, str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
