# The commands of the project. `make` alone lists them.

PYTHON ?= python3
# Appended to the command line of `make train` and of pytest in `make test`.
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup train test docs lint format clean

help: ## list the commands
	@echo "Commands (each sets up $(VENV) first where it needs it):"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv and install the project into it, with the development tools (PYTHON=... chooses the Python)

train: setup ## train a hard spiking network on digits by forward passes alone (ARGS="..." overrides the configuration)
	$(BIN)/python -m lightning_polystep fit --config configs/digits_spiking.yaml $(ARGS)

# Fixed thread counts, because the order of a floating-point sum, and so a hash, may depend on them.
test: export OMP_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: export NUMBA_NUM_THREADS := 2
# Two processes that take whole files, so that neither compiles what the other does, in the order of conftest.py.
test: IN_PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: lint ## all checks: ruff, mypy, pytest with the doctests (ARGS="..." goes to pytest)
	@echo "== pytest (tests and doctests)"
	@$(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

docs: setup ## build the site of docs/, the notebooks and the docstrings into build/docs
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -e ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

lint: setup ## the checks that run no code: ruff and mypy
	@echo "== ruff check (style)"
	@$(BIN)/ruff check .
	@echo "== ruff format --check (layout)"
	@$(BIN)/ruff format --check .
	@echo "== mypy (types)"
	@$(BIN)/mypy

format: setup ## repair what ruff can repair
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove caches and build results; .venv and training results stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A half-made environment is removed, so that the next attempt starts afresh.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python >= 3.11 is needed, which '$(PYTHON)' is not. Name one, for example: make setup PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamp is written last: an installation that was interrupted is repeated.
$(STAMP): pyproject.toml | $(BIN)/python
	@echo "== setup: installing the project and its tools into $(VENV) (usually 2-3 minutes; about 6.5 GB, because of torch)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -e ".[dev]"
	@touch $(STAMP)
