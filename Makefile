# `make` explains the targets. `make demo` and `make test` work in a fresh clone.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# TensorRT-RTX has wheels for this platform only. Its builder needs no GPU.
RTX := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))

# Tests and the demo use what is installed and in the repository, never the network.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo test check setup clean

help:  ## explain the targets (this text)
	@echo 'make TARGET, where TARGET is one of:'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	  | while IFS='|' read -r name text; do printf '  %-7s  %s\n' "$$name" "$$text"; done
	@echo
	@echo 'demo, test and check set up .venv by themselves when it is missing or out of date.'
	@echo 'PYTHON=python3.12 make …  sets it up with another interpreter (3.10 or newer).'

demo: $(READY)  ## checkpoint → verified engine → batch job, step by step; minutes
	@$(OFFLINE) $(BIN)/python examples/demo.py

test: $(READY)  ## ruff, mypy and the tests that need no GPU
	$(BIN)/ruff check
	$(BIN)/mypy
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) -m 'not gpu and not demo'

check: $(READY)  ## ruff check, ruff format --check and mypy, without the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

setup: $(READY)  ## install tfc and everything for work on it into .venv
	@:

clean:  ## remove .venv, caches and what builds left
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. Choose an interpreter with: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "tfc needs Python 3.10 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Choose another interpreter with: make PYTHON=python3.12" >&2; exit 1; }
	@echo 'Setting up .venv, once. This takes minutes: torch is large, more so where it has CUDA.'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@$(if $(RTX),$(BIN)/python -m pip install -qq -c constraints.txt -e '.[rtx]' || \
	  echo 'TensorRT-RTX could not be installed: tests that build with it are skipped.')
	@touch $@
