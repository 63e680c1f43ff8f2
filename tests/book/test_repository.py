"""The book's address: one value in all places, a placeholder until it is known, changed by one command."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tools.notebooks import chapters, setup_cell
from tools.repository import FILES, PLACEHOLDER, ROOT, repository, set_repository


def copy_of_the_places(folder):
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def slugs(root):
    """Every owner/name that stands in the project as an address on GitHub or its Pages."""
    found = set()
    for path in (path for pattern in FILES for path in root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"git\+https://github\.com/([\w-]+/[\w.-]+?)@", text))
        found |= set(re.findall(r"colab\.research\.google\.com/github/([\w-]+/[\w.-]+?)/", text))
        found |= {f"{owner}/{name}" for owner, name in re.findall(r"https://([\w-]+)\.github\.io/([\w.-]+)", text)}
    config = yaml.safe_load((root / "_config.yml").read_text())
    options = config["sphinx"]["config"]["html_theme_options"]
    return found | {
        u.removeprefix("https://github.com/") for u in (config["repository"]["url"], options["repository_url"])
    }


def test_all_places_agree():
    assert slugs(ROOT) == {repository()}


def test_every_chapter_has_the_set_up_cell_of_this_address():
    for path in chapters():
        first = next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        assert "".join(first["source"]) == setup_cell(), path.name
        assert "hide-cell" in first["metadata"]["tags"]


def test_one_call_moves_the_book_and_another_moves_it_back(tmp_path):
    root = copy_of_the_places(tmp_path)
    before = {path: path.read_text() for path in root.rglob("*") if path.is_file()}
    assert set_repository("https://github.com/some-one/a.book", root)
    assert slugs(root) == {"some-one/a.book"}
    assert not any(PLACEHOLDER in path.read_text() for path in root.rglob("*") if path.is_file())
    set_repository(f"https://github.com/{repository()}", root)
    assert {path: path.read_text() for path in before} == before


@pytest.mark.parametrize(
    "url", ["", "github.com/a/b", "https://github.com/a", "https://example.org/a/b", "https://github.com/a/b/c"]
)
def test_an_address_that_is_none_is_refused_and_nothing_is_written(url, tmp_path):
    root = copy_of_the_places(tmp_path)
    with pytest.raises(ValueError, match="URL must be https://github.com/<owner>/<name>"):
        set_repository(url, root)
    assert slugs(root) == {repository()}


def without_symlearn(code):
    """Run a set-up cell where the library is missing; its pip line prints instead of installing."""
    code = re.sub(r"(?m)^( *)%pip (.*)$", r"\1print('WOULD INSTALL')", code)
    program = f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n{code}"
    return subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd="/")


@pytest.mark.skipif(repository() != PLACEHOLDER, reason="the address is set")
def test_the_set_up_cell_installs_nothing_while_the_address_is_unknown():
    done = without_symlearn(setup_cell())
    assert "WOULD INSTALL" not in done.stdout
    assert "The book's address is not set" in done.stderr
    assert "make repository URL=" in done.stderr


def test_the_set_up_cell_installs_once_the_address_is_known():
    done = without_symlearn(setup_cell().replace(repository(), "some-one/a-book"))
    assert "WOULD INSTALL" in done.stdout
