# `make demo` and `make test` set up all that they need; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint types unit format docs benchmark solver-table clean clean-all

PYTHON ?= python3
DOLFINX ?= auto
TORCH ?=
ARGS ?=
NAME ?= main_job
JOBS ?= 2
VENV := $(if $(filter no,$(DOLFINX)),.venv-pip,.venv)
PY := $(VENV)/bin/python
PACKAGES := sde inference uq fem_bridge
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --timeout 900 --doctest-modules tests $(PACKAGES)

export TORCH
ifneq ($(origin PYTHON),file)
export PYTHON
endif

help:  ## Show this list
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
	@echo "Variables:"
	@echo '  ARGS="--quick"   options of the demo, the tests or the benchmark'
	@echo "  DOLFINX=no       leave DOLFINx aside: scikit-fem assembler, environment .venv-pip"
	@echo '  TORCH="..."      what pip is asked for instead of torch (version, index of builds)'
	@echo "  PYTHON=path      the Python (>= 3.11) to look at first"
	@echo "  JOBS=2           processes of the tests"

setup:
	@command -v $(PYTHON) >/dev/null || { echo "set-up: Python 3.11 or newer is needed and $(PYTHON) is not there." >&2; exit 1; }
	@$(PYTHON) scripts/set_up.py --venv $(VENV) --dolfinx $(DOLFINX)

demo: setup  ## The main job: full runs, generators, Monte Carlo on the submodel, report (out/submodel_uq)
	$(PY) -m examples.submodel_uq $(ARGS)

test: setup  ## Everything that CI runs: style, import directions, types, fast tests and docstring examples
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(MAKE) --no-print-directory types || status=1; \
	$(MAKE) --no-print-directory unit || status=1; \
	if [ $$status -ne 0 ]; then echo "make test: failed; see above." >&2; fi; \
	exit $$status

test-all: setup  ## The tests, the slow ones too
	$(PYTEST) $(ARGS)

lint: setup
	@status=0; set -x; \
	$(PY) -m ruff check . || status=1; \
	$(PY) -m ruff format --check . || status=1; \
	$(VENV)/bin/lint-imports --no-cache || status=1; \
	exit $$status

types: setup
	$(PY) -m pyright --pythonpath $(PY)

unit: setup
	$(PYTEST) -m "not slow" $(ARGS)

format: setup  ## Format the code and mend what can be mended
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs:  ## The documentation, into docs/_build/html
	@$(PYTHON) scripts/set_up.py --venv $(VENV) --dolfinx $(DOLFINX) --extras all,docs
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

benchmark: setup  ## A benchmark against its bars: make benchmark NAME=main_job
	$(PY) -m benchmarks.$(NAME) --check $(ARGS)

solver-table: setup  ## The table of solvers, into docs/solvers.md
	$(PY) -m scripts.solver_table

clean:  ## Remove what was built and computed
	rm -rf build dist *.egg-info out docs/_build docs/gallery docs/api/generated .pytest_cache .ruff_cache

clean-all: clean  ## Remove the environments too
	rm -rf .venv .venv-pip .setup
