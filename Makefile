# What one does here, by name; `make help` lists it. Needs python3 (3.11 or later) with venv and pip, and nothing else.
# The virtual environment is made on first use; a stamp in it says which lock it stands for, so a second call starts at once.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
FUZZ   ?= 1000000

BIN     := $(VENV)/bin
PIP     := PYTHONWARNINGS=ignore $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
PYTEST  := $(BIN)/python -m pytest
TYPED   := yugong $(wildcard bench)
PURE    := tests/test_floors.py $(wildcard tests/base tests/core)
LOCKING := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --newline lf --no-emit-options \
           --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --build-deps-for editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run demo test check lint system bench bench-peers fuzz lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf '  make %-12s %s\n' "$$name" "$$text"; done

run: $(VENV)/.run  ## the proxy, on loopback; ARGS= are passed on
	@exec $(BIN)/yugong run $(ARGS)

demo: $(VENV)/.run  ## the emulated upstream, on loopback
	@exec $(BIN)/yugong demo $(ARGS)

test: lint  ## everything but the slow: lint, types, floors, unit and system tests
	@$(PYTEST) -q -m "not slow" $(ARGS)

check: lint  ## the fast part: lint, types, floors, the pure tests
	@$(PYTEST) -q -m "not slow and not system" $(PURE)

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted; run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary $(TYPED)

system: $(VENV)/.dev  ## only the tests that start real processes
	@$(PYTEST) -q -m "system and not slow" $(ARGS)

fuzz: $(VENV)/.dev  ## the parsers, FUZZ= examples each (a million)
	@YUGONG_FUZZ=$(FUZZ) $(PYTEST) -q -k fuzz -o faulthandler_timeout=0 $(ARGS)

bench: $(VENV)/.dev  ## processor time and latency beside nginx and a plain relay
	@$(BIN)/python -m bench run $(ARGS)

bench-peers: $(VENV)/.dev  ## the same beside other gateways, where installed
	@$(BIN)/python -m bench peers $(ARGS)

lock: $(VENV)/.dev  ## both lock files from pyproject.toml; ARGS=--upgrade takes the newest
	@CUSTOM_COMPILE_COMMAND="make lock" $(LOCKING) $(ARGS) -o requirements.lock pyproject.toml
	@CUSTOM_COMPILE_COMMAND="make lock" $(LOCKING) $(ARGS) -c requirements.lock --extra test --extra dev \
	  -o requirements-dev.lock pyproject.toml

clean:  ## what can be made again, the virtual environment included
	@rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Yugong needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)." >&2; \
	  echo "If a later one is installed, name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: $(BIN)/python requirements.lock pyproject.toml
	@echo "Setting up $(VENV) …" >&2
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python requirements-dev.lock pyproject.toml
	@echo "Setting up $(VENV) with what tests and lint need …" >&2
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(VENV)/.run $@
