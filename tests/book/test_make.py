"""The two commands on machines that lack something: a clear message, and nothing half made."""

import os
import subprocess

import pytest

from tools.repository import ROOT

FAKES = {
    "old": ('case "$1" in --version) echo "Python 3.9.2";; *) exit 1;; esac', "Python 3.9.2 is too old, 3.11 or newer"),
    "bare": (
        'case "$2" in *version_info*) exit 0;; *) exit 1;; esac',
        "lacks venv (on Debian and Ubuntu: apt-get install",
    ),
}


def make(*arguments, cwd=ROOT):
    # A make that runs these tests hands its own settings down; they are not part of the question.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("target", ["book", "test", "lint"])
@pytest.mark.parametrize("kind", FAKES)
def test_an_unfit_python_is_named_with_the_remedy_and_nothing_is_left(tmp_path, kind, target):
    script, message = FAKES[kind]
    fake = tmp_path / "a python" / "python3"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    done = make(target, f"PYTHON={fake}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_not_there_is_named(tmp_path):
    done = make("book", "PYTHON=no-such-python", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "'no-such-python' not found; install Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_alone_lists_the_targets():
    listed = make().stdout
    for target in ("book", "test", "lint", "execute", "bench", "serve", "colab", "repository", "clean"):
        assert f"make {target} " in listed


def test_an_address_is_asked_for():
    done = make("-o", ".venv/.installed", "repository", "URL=nonsense")
    assert done.returncode != 0
    assert "URL must be https://github.com/<owner>/<name>, got nonsense" in done.stderr
