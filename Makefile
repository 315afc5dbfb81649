# The two commands of the README: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= ../shared/data

.PHONY: help setup demo test lint types imports unit bench-client bench-tail reproduce simulate constraints clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv and install everything, once

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found (the embedded server has none newer); name one: make PYTHON=/path/to/python" >&2; exit 2; }
	@echo "Setting up $(VENV), once: about 2 GB, a few minutes"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## train, build, serve, kill a server, and print what every answer was worth
	$(BIN)/coin-export demo

test: lint types imports unit  ## every check that the project has

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

unit: $(READY)
	$(BIN)/python -m pytest

bench-client: $(READY)  ## measure what the client costs beside bare calls (about five minutes)
	$(BIN)/python scripts/bench_client.py --output docs/results --page docs/overhead.md

bench-tail: $(READY)  ## measure the tail under stragglers (hours, on an idle machine); goes on where it was interrupted
	$(BIN)/python scripts/bench_tail.py --output docs/results
	$(BIN)/python scripts/tail_report.py

reproduce: $(READY)  ## reproduce the paper's tables and figures (hours on two cores); goes on where it was interrupted
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,reproduce]'
	$(BIN)/python scripts/reproduce_paper.py --data-dir $(DATA)

simulate: $(READY)  ## simulate clusters, draw the figures, fill the tables of docs/simulation.md (about twenty minutes)
	$(BIN)/python scripts/simulate_cluster.py sweep
	$(BIN)/python scripts/simulate_cluster.py report

constraints:  ## resolve the pinned versions anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --extra dev --extra reproduce \
		--constraint constraints.in --output-file constraints.txt pyproject.toml

clean:  ## remove what was made
	rm -rf $(VENV) artifacts .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
