# `make r1` runs the whole pipeline, `make test` all tests; both make .venv first if need be. `make help` lists the rest.
SHELL := /bin/bash
SCALE ?= cpu
SEED ?=
ARGS ?=
NAME ?=
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13) python3)
BIN := .venv/bin
WORKERS ?= 2
# Threads of one process get in each other's way at toy size.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
# Another name, so made again, whenever the pins or the package's own metadata change.
STAMP := .venv/installed-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
# The pins of .venv, by a path to them, DeepSpeed, vLLM for CPUs, and reasoning-gym.
ENGINES := .venv-engines/installed-$(shell cat requirements.txt requirements-gpu.txt requirements-smol.txt pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: r1 runs plan doctor report review test check lint bench engines help

r1: $(STAMP)  ## every stage at SCALE (default cpu), skipping what is done; SEED=1 ARGS="--from r1_zero"
	$(BIN)/python -m recipes.tools.pipeline --scale $(SCALE) $(if $(SEED),--seed $(SEED)) $(ARGS)

runs: $(STAMP)  ## the runs of SCALE, and those that were replaced; ARGS="--remove outputs/cpu/replaced/NAME"
	$(BIN)/python -m recipes.tools.runs outputs/$(notdir $(SCALE)) $(ARGS)

plan: $(STAMP)  ## what SCALE needs, stage by stage, before it runs; ARGS="--gpus 4 --gpu-memory 48 --host-memory 256"
	$(BIN)/python -m recipes.tools.plan --scale $(SCALE) $(ARGS)

report: $(STAMP)  ## the page of SCALE again, from what is on disk: outputs/<scale>/report/index.html
	$(BIN)/python -m recipes.tools.report --scale outputs/$(notdir $(SCALE)) $(ARGS)

doctor: $(STAMP)  ## what is wrong with SCALE before it trains; ARGS="--stage r1_zero"
	$(BIN)/python -m recipes.tools.doctor --scale $(SCALE) $(ARGS)

review: $(STAMP)  ## the page on which people review the cold start of SCALE
	$(BIN)/python -m data_prep.review outputs/$(notdir $(SCALE))/cold_start/review.jsonl $(ARGS)

test: $(STAMP)  ## all tests; ARGS="-k pipeline" for some
	$(PYTEST) $(ARGS)

check: lint  ## lint and the fast tests, under three minutes
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(STAMP)  ## ruff, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)  ## the benchmarks, one after the other; NAME=rewards ARGS="--completions 500" for one
	$(if $(ARGS),$(if $(NAME),,$(error ARGS are of one benchmark: write NAME=... as well)))
	set -e; for name in $(or $(NAME),$(basename $(notdir $(wildcard benchmarks/*.py)))); do echo "$$name"; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m "benchmarks.$$name" $(ARGS); done

engines: $(ENGINES)  ## each way of spreading weights by two processes, and vLLM, on the CPU; needs g++
	OMP_NUM_THREADS=1 .venv-engines/bin/python -m pytest -n $(WORKERS) tests/engines $(ARGS)

COMMANDS = $(shell grep -l '^if __name__' data_prep/*.py data_prep/*/*.py recipes/*.py recipes/tools/*.py)

help:  ## this list
	@sed -nE 's/^([a-z0-9]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo; echo "Each of these explains itself with --help (stages: python FILE, all others: python -m MODULE):"
	@for file in $(COMMANDS); do \
	  name=$$file; case $$file in recipes/tools/*|data_prep/*) name=$${file%.py}; name=$${name%/__main__}; name=$${name//\//.};; esac; \
	  printf '%s\t%s\n' "$$name" "$$(sed -n '1s/"""//gp' "$$file")"; done | expand -t 34

$(STAMP):
	@echo "Installing the pins of requirements.txt into .venv: some minutes, once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	rm -f .venv/installed-*
	touch $@

$(ENGINES): $(STAMP)
	$(BIN)/python -m venv --clear .venv-engines
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$(.venv-engines/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/pins.pth"
	.venv-engines/bin/python tests/engines/install.py
	touch $@
