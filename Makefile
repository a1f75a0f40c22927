# Everything a newcomer needs; each target makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
PIP := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
USER_STAMP := $(VENV)/.installed
STAMP := $(VENV)/.installed-dev

.PHONY: help setup demo test test-slow fuzz lint bench gpu docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(USER_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Trimtab needs Python 3.11 or newer (set PYTHON=...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(STAMP): $(USER_STAMP)
	$(PIP) -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## create .venv with everything needed to develop

demo: $(USER_STAMP)  ## the whole job on embedded data: train, prune, report (under three minutes)
	$(BIN)/trimtab demo --out demo

test: $(STAMP)  ## the default test suite, doctests included
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## tests that take longer
	$(BIN)/python -m pytest -m slow

fuzz: $(STAMP)  ## damage every kind of file 100,000 times and read it (hours; tests/fuzz)
	$(BIN)/python -m tests.fuzz --mutations 100000

lint: $(STAMP)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## every benchmark, one after the other
	@for script in benchmarks/*.py; do case $$script in */harness.py|*/table.py|*evidence*) ;; *) echo "== $$script"; $(BIN)/python $$script || exit 1;; esac; done; $(BIN)/python benchmarks/table.py

gpu:  ## tests, speed and a study on a GPU in eight minutes, with the Python at hand (ARGS=--dry: on a CPU at toy size)
	$(GPU_PYTHON) benchmarks/gpu/run.py --out gpu-results $(ARGS)

docs: $(STAMP)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what the targets made
	rm -rf $(VENV) demo site build dist
