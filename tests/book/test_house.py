"""One name, four places: whoever knows a chapter's slug knows its module, its tests, its benchmark and its page."""

import hashlib
import tomllib

import pytest
import yaml

import symlearn
from tools.notebooks import chapters
from tools.repository import ROOT

GALLERY = {"claims", "explorer", "plotting"}
SLUGS = [path.stem for path in chapters()]


def table_of_contents():
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    return [
        entry["file"]
        for part in parts
        for chapter in part["chapters"]
        for entry in [chapter, *chapter.get("sections", [])]
    ]


@pytest.mark.parametrize("slug", SLUGS)
def test_a_result_has_all_its_rooms(slug):
    for room in (f"symlearn/{slug}.py", f"tests/test_{slug}.py", f"benchmarks/{slug}.py", f"api/{slug}.md"):
        assert (ROOT / room).exists(), room
    assert {f"chapters/{slug}", f"api/{slug}"} <= set(table_of_contents())
    assert slug in symlearn.__all__


def test_every_public_module_has_its_tests_and_its_page():
    modules = {path.stem for path in (ROOT / "symlearn").glob("[!_]*.py")}
    assert modules == set(symlearn.__all__)
    for name in modules:
        assert (ROOT / "tests" / f"test_{name}.py").exists(), name
        assert f"api/{name}" in table_of_contents(), name


def test_every_page_of_the_contents_exists_and_no_page_is_missing():
    pages = set(table_of_contents())
    on_disk = {p.relative_to(ROOT).with_suffix("").as_posix() for p in [*ROOT.glob("api/*.md"), *chapters()]}
    assert on_disk <= pages
    assert all((ROOT / f"{page}.md").exists() or (ROOT / f"{page}.ipynb").exists() for page in pages)


def test_the_floors_of_the_house_name_every_module():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = str(contracts)
    for path in (ROOT / "symlearn").glob("*.py"):
        if path.stem != "__init__":
            assert f"symlearn.{path.stem}" in named, f"{path.stem} stands on no floor"


def test_what_the_pages_serve_is_what_was_vendored():
    folder = ROOT / "assets" / "vendor"
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {f"./{p.relative_to(folder).as_posix()}" for p in folder.rglob("*") if p.is_file()} - {"./SHA256SUMS"}
    assert files == set(sums)
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
