# Everything the project does, from a fresh clone with Python 3.11+ and make. `make` lists the targets.
SHELL  := bash
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
ARGS   ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install book test lint execute bench serve colab repository wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

$(STAMP): requirements.txt constraints.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "error: '$(PYTHON)' not found; install Python 3.11 or newer, or run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$("$(PYTHON)" --version) is too old, 3.11 or newer is needed; try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV), once"
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@"$(PY)" -m pip install --quiet -r requirements.txt -c constraints.txt -e .
	@touch "$@"

install: $(STAMP) ## create .venv with all that the book, the library and the checks need

book: $(STAMP) ## build the book under _build/html, from the notebooks' stored outputs
	@"$(PY)" -c "from jupyter_book.cli.main import main; main()" build -W -n --keep-going --quiet . || { echo "error: the book has warnings; see above" >&2; exit 1; }
	@echo "$(CURDIR)/_build/html/index.html"

test: $(STAMP) ## run all tests, two at a time: library, notebooks, built pages in a browser
	"$(PY)" -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP) ## format, lint, types, floors of the house, spelling
	"$(PY)" -m ruff format --check .
	"$(PY)" -m ruff check .
	"$(PY)" -m mypy
	"$(VENV)/bin/lint-imports" 
	"$(PY)" -m codespell_lib .

execute: $(STAMP) ## run all notebooks in place, two at a time, and store them canonically
	"$(PY)" -m tools.notebooks $(ARGS)

bench: $(STAMP) ## run the benchmarks, each against its named peer
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; "$(PY)" "$$file" $(ARGS); done

serve: book ## build the book and serve it on http://localhost:8000
	"$(PY)" -m http.server --bind localhost --directory _build/html 8000

wheel: $(STAMP) ## build the library's wheel under dist
	@"$(PY)" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

colab: wheel ## run every chapter alone in an empty folder, against the wheel, in an environment like Colab's
	"$(PY)" -m tools.colab dist

repository: $(STAMP) ## write the repository's address everywhere: make repository URL=https://github.com/<owner>/<name>
	@"$(PY)" -m tools.repository "$(URL)"

clean: ## remove what was built; .venv stays
	rm -rf _build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
