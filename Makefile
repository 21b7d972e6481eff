# `make demo` and `make test` ask for nothing but Python (3.11 to 3.13), make and Linux: each first installs what is missing.
.DEFAULT_GOAL := help
SHELL := /bin/sh

# Optional, on the command line: make demo PYTHON=/path/to/python3 TORCH_INDEX_URL=...
export PYTHON
export TORCH_INDEX_URL

# More arguments for one run: make test PYTEST_ARGS="tests/setup -x", make demo DEMO_ARGS=--quick
PYTEST_ARGS ?=
DEMO_ARGS ?=
# A wheel of pyg-lib for `make test-pyg-lib`; by default PyG's own wheel host has one.
PYG_LIB ?=
# torch's CPU build, so that no CUDA library enters the lists.
UV_COMPILE_FLAGS ?= --torch-backend=cpu

BIN := .venv/bin
UV_COMPILE := uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-annotate $(UV_COMPILE_FLAGS)

.PHONY: help demo compiled test test-fast test-pyg-lib lint format docs doctor hooks requirements wheel release clean distclean venv venv-dev

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: compiled  ## install what is missing, then run the whole flow on real data (DEMO_ARGS=--quick for the short one)
	$(BIN)/multifacet demo $(DEMO_ARGS)

# Once an installation, so that the first run does not wait for it.
compiled: venv
	@[ -e .venv/.compiled ] || { $(BIN)/multifacet compile && touch .venv/.compiled; } || \
		echo "multifacet: going on; the first run compiles its kernels itself" >&2

test: venv-dev  ## install what is missing, then run the tests (PYTEST_ARGS="tests/setup -x" for some of them)
	$(BIN)/python -m pytest --numprocesses=2 $(PYTEST_ARGS)

test-fast: venv-dev  ## the tests but for the slow ones
	$(BIN)/python -m pytest --numprocesses=2 -m "not slow" $(PYTEST_ARGS)

# In a folder of its own: .venv, and the plain run of the tests, must not need pyg-lib.
test-pyg-lib: export PYTHONPATH := $(CURDIR)/build/pyg-lib
test-pyg-lib: venv-dev  ## the tests that pyg-lib touches, with pyg-lib (PYG_LIB=path/to/pyg_lib-*.whl for a wheel at hand)
	rm -rf build/pyg-lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/pyg-lib $(or $(PYG_LIB),-r requirements/pyg-lib.txt)
	$(BIN)/python -c "import torch_geometric.typing as t; assert t.WITH_PYG_LIB, 'pyg-lib does not load with this torch'"
	$(BIN)/python -m pytest tests/graphdb/sampling tests/graphdb/test_pyg.py -k "sampling or pygs" $(PYTEST_ARGS)

lint: venv-dev  ## ruff, formatting, types, the order of the rooms, and spelling
	@status=0; for linter in "ruff check ." "ruff format --check ." mypy lint-imports codespell; do \
		echo "$(BIN)/$$linter"; $(BIN)/$$linter || status=1; \
	done; exit $$status

format: venv-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv-dev  ## build the documentation site, build/site (strict: a broken link or an undocumented name fails)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --clean

doctor: venv  ## check the installation, and print the line that mends each fault
	$(BIN)/multifacet doctor

hooks: venv-dev  ## run the linters before every commit
	$(BIN)/pre-commit install

requirements:  ## pin the lists anew from pyproject.toml (needs uv)
	$(UV_COMPILE) pyproject.toml --extra cpu --extra demo --no-emit-package torch -o requirements/cpu.txt
	$(UV_COMPILE) --group dev --no-emit-package torch -c requirements/cpu.txt -o requirements/dev.txt
	$(UV_COMPILE) --group docs -c requirements/cpu.txt -c requirements/dev.txt -o requirements/docs.txt

wheel: venv  ## build dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

release: venv  ## build the wheel, try it in a clean venv, and tag the commit (after make test)
	sh requirements/release.sh

clean:  ## remove build leftovers and caches (keeps .venv and runs/)
	rm -rf .venv/.compiled build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf .venv .venv.discarded

venv:
	@sh requirements/install.sh

venv-dev:
	@sh requirements/install.sh --dev
