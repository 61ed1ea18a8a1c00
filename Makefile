# What one does here, by name; `make help` lists it. Needs python3 (3.11 or later) with venv and pip, and nothing else.
# The virtual environment is made on first use; a stamp in it says which lock it stands for, so a second call starts at once.
# The hot path is compiled (setup.py) into that environment and never into the tree: `run`, `demo`, `bench` and `system` take
# what is installed there, made anew when a source has changed; all else, and everything with PURE=1, takes the sources.

# An interpreter built with its own profile is half as fast again: the first at hand that is one and can also compile. A
# distribution's always is, though Debian's does not say so; of others, only those that were asked to be.
FIT    := import ensurepip, os, sys, venv; from sysconfig import get_config_var as var, get_path; \
          sys.exit(sys.version_info < (3, 11) or not os.path.exists(get_path("include") + "/Python.h") \
          or sys.prefix != "/usr" and "--enable-optimizations" not in (var("CONFIG_ARGS") or ""))
PYTHON ?= $(shell for one in python3 /usr/bin/python3; do \
            $$one -c '$(FIT)' 2>/dev/null && echo $$one && exit; done; echo python3)
VENV   ?= .venv
PURE   ?=
ARGS   ?=
FUZZ   ?= 1000000

BIN     := $(VENV)/bin
PIP     := PYTHONWARNINGS=ignore $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
PYTEST  := $(BIN)/python -m pytest
SOURCES := $(shell find setup.py pyproject.toml requirements.lock yugong -type f ! -name '*.pyc' | LC_ALL=C sort | xargs sha256sum | sha256sum)
BUILT   := $(if $(PURE),,$(VENV)/.built-$(firstword $(SOURCES)))
# -P keeps the tree, which we stand in, off the import path: what is left is what is installed.
START   := $(if $(PURE),env PYTHONPATH=$(CURDIR) )$(BIN)/python
SAFE    := $(if $(PURE),,env PYTHONSAFEPATH=1 )
TYPED   := yugong $(wildcard bench)
QUICK   := tests/test_floors.py $(wildcard tests/base tests/core)
NATIVE  := $(wildcard $(addprefix tests/,base core upstream proxy surface system test_cli.py test_house.py))
LOCKING := $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --newline lf --no-emit-options \
           --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --build-deps-for editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run demo test check lint system compiled bench bench-peers fuzz lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf '  make %-12s %s\n' "$$name" "$$text"; done

run: $(VENV)/.run $(BUILT)  ## the proxy, on loopback; ARGS= are passed on, PURE=1 does not compile
	@exec $(START) -P -m yugong run $(ARGS)

demo: $(VENV)/.run $(BUILT)  ## the emulated upstream, on loopback
	@exec $(START) -P -m yugong demo $(ARGS)

test: lint  ## everything but the slow: lint, types, floors and unit tests on the sources; then `compiled`
	@$(PYTEST) -q -m "not slow and not system" $(ARGS)
	@$(MAKE) --no-print-directory compiled

check: lint  ## the fast part: lint, types, floors, the pure tests
	@$(PYTEST) -q -m "not slow and not system" $(QUICK)

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted; run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary $(TYPED)

system: $(VENV)/.dev $(BUILT)  ## only the tests that start real processes
	@$(SAFE)$(PYTEST) -q -m "system and not slow" $(ARGS)

compiled: $(VENV)/.dev $(BUILT)  ## the system tests, and the tests of what is compiled, on the compiled
	@cat /dev/null $(BUILT) >&2; ! grep -q failed /dev/null $(BUILT)
	@$(SAFE)$(PYTEST) -q -m "not slow" $(NATIVE) $(ARGS)

fuzz: $(VENV)/.dev  ## the parsers, FUZZ= examples each (a million)
	@YUGONG_FUZZ=$(FUZZ) $(PYTEST) -q -k fuzz -o faulthandler_timeout=0 $(ARGS)

bench: $(VENV)/.dev $(BUILT)  ## processor time and latency beside nginx and a plain relay
	@$(START) -m bench run $(ARGS)

bench-peers: $(VENV)/.dev $(BUILT)  ## the same beside other gateways, where installed
	@$(START) -m bench peers $(ARGS)

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
	@echo "Making $(VENV) with $(PYTHON) ($$($(PYTHON) --version 2>&1))" >&2
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: $(BIN)/python requirements.lock
	@echo "Setting up $(VENV) …" >&2
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: $(BIN)/python requirements-dev.lock
	@echo "Setting up $(VENV) with what tests and lint need …" >&2
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $(VENV)/.run $@

$(VENV)/.built-%: | $(VENV)/.run
	@echo "Compiling the hot path: about a minute, once for these sources (PURE=1 does without) …" >&2
	@rm -rf build $(VENV)/.built-*
	@$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@cat build/uncompiled 2>/dev/null | tee $@ >&2
	@rm -rf build
