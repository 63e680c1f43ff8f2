"""The library as its users meet it: a wheel in an environment without the checkout."""

import re
import subprocess
import zipfile

import pytest

import symlearn
from tools.repository import ROOT

# The distribution is symlearn-book; the bare name is somebody else's.
INSTALL = re.compile(r"(?:pip|uv|conda|poetry|pdm)3?\s+(?:install|add)\b[^\n]*?(?<![\w/.-])symlearn(?![\w-])")
REQUIREMENT = re.compile(r"(?m)^\s*[\"']?symlearn(?![\w-])\s*(?:[<>=~!@;\[]|[\"']\s*,?$|$)")

HEAVY = ("torch", "matplotlib", "ipywidgets", "sklearn", "scipy", "joblib")


def run(python, code, folder):
    return subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_library_is_fast_and_pulls_nothing_heavy(clean_python, tmp_path):
    code = (
        "import sys, time; start = time.perf_counter(); import symlearn; "
        f"print(time.perf_counter() - start, [name for name in {HEAVY} if name in sys.modules], symlearn.__file__)"
    )
    seconds, modules, place = min(run(clean_python, code, tmp_path).split(" ", 2) for _ in range(3))
    assert float(seconds) < 0.3
    assert modules == "[]"
    assert str(ROOT) not in place


@pytest.mark.parametrize("name", ["anisotropic_ridge", "lyapunov", "sweep", "datasets"])
def test_what_needs_no_torch_imports_none(clean_python, tmp_path, name):
    heavy = run(clean_python, f"import sys, symlearn; symlearn.{name}; print('torch' in sys.modules)", tmp_path)
    assert heavy == "False"


def test_every_public_module_is_there_and_documented():
    for name in symlearn.__all__:
        assert getattr(symlearn, name).__doc__
        assert name in dir(symlearn)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_module'"):
        symlearn.no_such_module  # noqa: B018


def test_the_wheel_holds_the_typed_library_and_its_licence_and_nothing_else(wheel):
    assert wheel.name.startswith(f"symlearn_book-{symlearn.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert "symlearn/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"symlearn", f"symlearn_book-{symlearn.__version__}.dist-info"}


def tracked_text():
    """All text of the project that could install something, by path."""
    patterns = (
        "*.md",
        "*.txt",
        "*.toml",
        "*.yml",
        "Makefile",
        "*.cff",
        ".ci/run",
        ".github/**/*.yml",
        "**/*.py",
        "**/*.ipynb",
    )
    skipped = {".venv", "_build", "dist", "vendor"}
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        if path.is_file() and not skipped & set(path.relative_to(ROOT).parts):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def test_nothing_installs_the_unrelated_package_of_the_bare_name():
    for path, text in tracked_text():
        assert not INSTALL.search(text), path
        if path.suffix in (".txt", ".toml", ".yml"):
            assert not REQUIREMENT.search(text), path


def test_the_watch_for_the_bare_name_sees_it():
    name = "symlearn"
    assert INSTALL.search(f"%pip install -q {name}")
    assert INSTALL.search(f"pip install torch '{name}==1.0'")
    assert not INSTALL.search(f'%pip install -q "{name}-book[explore] @ git+https://example.org/{name}"')
    assert REQUIREMENT.search(f"{name}>=1.0")
    assert REQUIREMENT.search(f'    "{name}",')
    assert not REQUIREMENT.search(f"{name}-book>=1.0")


def test_the_taste_in_the_readme_runs_as_printed(clean_python, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    error, pruned, flat = run(clean_python, code, tmp_path).splitlines()
    assert float(error) > 0
    assert pruned == "14716 True ()"
    assert flat == "8448"  # gains and biases against the next layer, 4224 channels, and the weights before each norm
