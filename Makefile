# hawq_tvm: `make demo` and `make test` set up all they need, in .venv, and run.

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit fuzz mutate lint typecheck format clean

# The first interpreter that is Python 3.11 or newer; `make PYTHON=...` names another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Where pip finds PyTorch's CPU build, if not where it finds the rest (README, Installation).
TORCH_INDEX ?=
# What `make fuzz` draws its inputs from, and how many.
SEED ?= 0
COUNT ?= 100000

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## Make the virtual environment that everything below runs in

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; install it, or name one with make PYTHON=..." >&2; exit 1; }
	@for c in "$$CXX" "$$CC" g++ gcc clang++ clang c++ cc; do command -v "$$c" >/dev/null 2>&1 && exit 0; done; \
		echo "error: a C compiler is needed to link compiled networks; install one, as with apt install g++" >&2; exit 1
	@echo "setting up $(VENV) (once; a few minutes)"
	@for room in calibration ilp kernels; do [ -e hawq_tvm/$$room ] || ln -s ../$$room hawq_tvm/$$room; done  # not in an sdist
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@$(PIP) --constraint constraints.txt --editable '.[dev]'
	@$(PIP) --constraint constraints.txt --no-deps torchvision timm
	@touch $@

demo: setup  ## Quantise, compile, verify and time a trained ResNet-20 (half a minute)
	@$(BIN)/hawq-tvm run resnet20 --data digits --budget-bops 50% --verify-samples 540 --output runs/demo

test: lint typecheck unit  ## Lint, type check and all tests: what CI runs

unit: setup
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --quiet

fuzz: setup  ## Damage every file of a run, again and again, and read it (SEED, COUNT; some minutes)
	@$(BIN)/python -m tests.fuzz --seed $(SEED) --count $(COUNT)

lint: setup  ## Style and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

typecheck: setup  ## mypy, strict
	@$(BIN)/mypy

format: setup  ## Put the code into its format
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

mutate: setup  ## Put faults into the heart and the kernels: does a test notice each? (half an hour of two idle cores; not in CI)
	@status=0; for part in core kernels; do \
		$(BIN)/python -m tests.mutate --part $$part --output benchmarks/results/mutation.json || status=1; done; exit $$status

clean:  ## Remove the virtual environment and all runs
	rm -rf $(VENV) runs build .mutate *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
