# Every target makes its own .venv when missing or when pyproject.toml has changed, and says what it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test chaos check format generate bench clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

$(READY): pyproject.toml
	@echo "==> making $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group dev
	@touch $(READY)

demo: $(READY)  ## a swarm investigates a recorded incident to an approved decision
	@echo "==> blackboard demo"
	@$(BIN)/blackboard demo $(DEMO)

test: $(READY)  ## the test suite, on a throw-away PostgreSQL
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n auto $(PYTEST)

chaos: $(READY)  ## a crash storm on the task engine, for some minutes
	@echo "==> chaos"
	@$(BIN)/python -m tests.chaos $(CHAOS)

check: $(READY)  ## everything static: format, lint, types, contracts, migrations, generated code
	@echo "==> format";      $(BIN)/ruff format --check --quiet .
	@echo "==> lint";        $(BIN)/ruff check --quiet .
	@echo "==> twin";        $(BIN)/python scripts/generate_sync.py --check
	@echo "==> types";       $(BIN)/pyright
	@echo "==> contracts";   $(BIN)/lint-imports --no-logo
	@echo "==> migrations";  $(BIN)/python scripts/check_migrations.py

format: $(READY)  ## rewrite what the formatter and the fixable lints say
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

generate: $(READY)  ## refresh generated code and the golden schema
	@$(BIN)/python scripts/generate_sync.py
	@$(BIN)/python scripts/check_migrations.py --write

bench: $(READY)  ## measure; prints one table and writes JSON
	@$(BIN)/python -m benchmarks $(BENCH)

clean:  ## remove what was made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
