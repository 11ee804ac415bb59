# `make` lists the targets. ARGS="…" is passed on to the command of a target.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Nothing here fetches a model from a hub, and Ray sends no usage statistics.
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The first of these names that is a Python 3.11.
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := $(patsubst tests/bench/peers/requirements-%.txt,.bench/%/.installed,$(wildcard tests/bench/peers/requirements-*.txt))

.PHONY: help setup demo test lint faults cluster bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 is needed, as python3.11 or python3 on the PATH" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing requirements.lock into .venv, a few minutes the first time"
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --progress-bar off -r requirements.lock
	$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## run the main job, from raw files to a score, on a simulated marketplace
	$(BIN)/raycredit demo $(ARGS)

# One process for the tests of Ray, which often wait, and one for the others (tests/conftest.py).
test: lint ## lint, then every test but the long ones; ARGS="-n0 -k foo" for some, in one process
	$(BIN)/pytest -n 2 --dist each --max-worker-restart 0 -o console_output_style=classic $(ARGS)

lint: setup ## style, types and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: setup ## the long fault injections
	$(BIN)/pytest -m faults $(ARGS)

cluster: setup ## jobs on clusters of several nodes on this machine
	$(BIN)/pytest -m cluster $(ARGS)

bench: $(patsubst tests/bench/%.py,bench-%,$(wildcard tests/bench/*.py)) ## every measurement in tests/bench
	@test -n "$^" || { echo "error: tests/bench holds no measurement" >&2; exit 1; }

bench-%: setup $(PEERS) ## one measurement: make bench-data runs tests/bench/data.py
	@test -f tests/bench/$*.py || { echo "error: there is no tests/bench/$*.py to run" >&2; exit 1; }
	$(BIN)/python -m tests.bench.$* $(ARGS)

# The tools to measure beside, in environments of their own: no job imports them, and their pins are
# not ours. PySpark needs a Java 17 or newer.
$(PEERS): .bench/%/.installed: tests/bench/peers/requirements-%.txt
	$(PYTHON) -m venv .bench/$*
	.bench/$*/bin/pip install --quiet --progress-bar off -r $<
	@touch $@

# Resolves pyproject.toml anew. The CPU and the CUDA builds of torch have one version but other
# dependencies, so the build's suffix and the CUDA packages stay out of the lock: torch itself pins
# them exactly.
lock: ## resolve pyproject.toml again into requirements.lock
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 is needed, as python3.11 or python3 on the PATH" >&2; exit 1; }
	rm -rf .lock
	$(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet --upgrade pip setuptools
	.lock/bin/pip install -qq --progress-bar off --no-build-isolation --editable '.[dev]'
	.lock/bin/pip check
	{ sed -n '/^#/p' requirements.lock; \
	  .lock/bin/pip freeze --all --exclude-editable --exclude pip \
	  | grep -vE '^(cuda-|nvidia-|triton==)' | sed -E 's/\+(cpu|cu[0-9]+)$$//'; } > .lock/requirements
	mv .lock/requirements requirements.lock
	rm -rf .lock

clean: ## remove the environment and everything that is built or cached
	rm -rf .venv .bench .lock build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find models tuning ray_jobs tests -type d -name __pycache__ -prune -exec rm -rf {} +
