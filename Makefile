# Every target sets up what it needs, once, and again when the pins change. `make` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PINS := requirements/cpu.txt
READY := $(VENV)/.ok-$(shell sha256sum $(PINS) | cut -c1-12)
LINKED := $(VENV)/.linked
# The first Python >= 3.11 that runs and can make environments; `make setup PYTHON=/path/to/python` overrides it.
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup quickstart test test-slow check bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## +/\t/' | expand -t 14

setup: $(LINKED)  ## make .venv with every version pinned, and link the project into it
	@:

$(READY): $(PINS)
	@if [ ! -x $(BIN)/python ]; then \
		[ -n "$(PYTHON)" ] || { echo "make: no Python >= 3.11 with venv found; try make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		echo "creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); fi
	@echo "installing $(PINS) (about 220 packages, a few minutes the first time)"
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(PINS)
	@rm -f $(VENV)/.ok-* && touch $@

$(LINKED): $(READY) pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "ready; to use it yourself: . $(VENV)/bin/activate"

quickstart: setup  ## train and steer a small model for real on this machine; ARGS="name=mine seed=1" lays overrides over the recipe
	@PATH="$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" cluster/quickstart.sh $(ARGS)

test: setup  ## the tests that need no language model; ARGS="-k directions" goes to pytest
	@$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-slow: setup  ## the tests that need the real model, vLLM, DeepSpeed or several minutes
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

check: setup  ## ruff, formatting, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup  ## measure, on this machine, what README and docs/results.md state about speed
	@shopt -s nullglob; for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python "$$f"; done

clean:  ## remove caches and build outputs; runs/ and .venv/ stay
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -path ./runs -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf
