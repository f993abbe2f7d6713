# What a person and CI type. Everything that these need they install themselves: Python packages into .venv, engines into a cache.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo demo-pool test check bench drill pool-test wheel-test golden clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml ci/venv
	ci/venv $(VENV)
	touch $@

demo: $(STAMP) ## the main job on this machine: a campaign over LAT runs, planned, run, audited
	ci/demo local

demo-pool: $(STAMP) ## the same on a real HTCondor pool with Apptainer
	ci/demo pool

check: $(STAMP) ## formatting, lint, types, layers, unit tests: under a minute
	ci/check

test: $(STAMP) ## everything, engines included
	ci/check
	ci/test

pool-test: $(STAMP) ## only the tests on the real HTCondor pool
	ci/test pool

drill: $(STAMP) ## the long forms: hundreds of kills, thousands of jobs
	ci/test drill

wheel-test: $(STAMP) ## the wheel in an empty venv, outside the checkout
	ci/test wheel

bench: $(STAMP) ## benchmarks, each against its floor in the same run
	ci/bench

golden: $(STAMP) ## write the golden files, the fault matrix and the JSON Schemas anew; look at the diff before you commit it
	$(BIN)/python -m pytest tests/golden -q --update-golden
	$(BIN)/python -m tests.worker.faults --write
	$(BIN)/python -m tests.schemas --write

clean: ## stop the pool of this checkout and remove what was made here
	-ci/pool clean
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
