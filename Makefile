# Everything runs from a fresh clone and lives in .venv. Needs python3 (3.11 or newer, with venv), make and a C compiler.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
DATA ?= data
OUT ?= runs
DEVICE ?= auto
BASE ?=
STAGES ?=
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip --disable-pip-version-check --no-input install -qq -c constraints.txt
PACKAGES := gmsa_rag integrations/langchain/langchain_gmsa integrations/llama_index/llama_index
# Tests and demo work from what is installed: nothing asks a model hub.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Two tests at a time, each on one thread: models in tests are too small to share between threads.
PARALLEL := OMP_NUM_THREADS=1
WORKERS ?= 2

.PHONY: help setup setup-dev demo test test-slow test-newest-core check docs dist train-mini bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Install what the demo and the library need
setup-dev: $(VENV)/.installed-dev ## Install what training, tests and checks need as well

$(RUN):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"gmsa-rag: expected Python >= 3.11, got {sys.version.split()[0]}. Name another with: make setup PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "gmsa-rag: this Python has no venv. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "setup: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# The stamps are written last, so an interrupted installation is taken up again by the next call.
$(VENV)/.installed: pyproject.toml constraints.txt | $(RUN)
	@echo "setup: installing torch"
	@$(INSTALL) torch
	@echo "setup: installing gmsa-rag[cpu,eval,demo] (about a minute)"
	@$(INSTALL) -e ".[cpu,eval,demo]"
	@touch $@
	@echo "setup: done"

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "setup: installing gmsa-rag[cpu,train,dev]"
	@$(INSTALL) -e ".[cpu,train,dev]"
	@touch $@
	@echo "setup: development tools done"

demo: setup ## Index, compress, retrieve and answer over the example passages
	@$(OFFLINE) $(RUN) examples/demo.py $(ARGS)

check: setup-dev ## Lint, format and type checks
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

test: setup-dev check ## All checks, then the tests and the examples in docstrings
	@$(OFFLINE) $(PARALLEL) $(RUN) -m pytest -n $(WORKERS) --doctest-modules $(PACKAGES) tests $(ARGS)

test-slow: setup-dev ## What `make test` leaves out: a whole training of a tiny model, several processes
	@$(OFFLINE) $(RUN) -m pytest -m slow tests $(ARGS)

test-newest-core: setup-dev ## The LangChain tests on the newest langchain-core there is
	@$(RUN) -m pip install -qq --no-deps --upgrade --target $(VENV)/newest-core "langchain-core>=1.8,<2"
	@ls -d $(VENV)/newest-core/langchain_core-*.dist-info
	@$(OFFLINE) $(PARALLEL) PYTHONPATH=$(VENV)/newest-core $(RUN) -m pytest -n $(WORKERS) tests/langchain $(ARGS)

docs: setup-dev ## Run every snippet of the README and docs/
	@$(OFFLINE) $(RUN) -m pytest tests/test_docs.py $(ARGS)

dist: setup-dev ## Build gmsa-rag and the two names it is found by into dist/
	@for source in . integrations/dist/*/; do $(RUN) -m build --no-isolation --outdir dist "$$source" >/dev/null; done
	@ls dist

train-mini: setup-dev ## Train gmsa-mini anew: DATA=directory OUT=runs DEVICE=auto BASE=pretrained STAGES="..."
	@PYTHON=$(RUN) DEVICE=$(DEVICE) BASE=$(BASE) bash gmsa_rag/training/launch/gmsa-mini.sh $(DATA) $(OUT) $(STAGES)

bench: setup ## Time to first token and to the answer: from memories and from full text
	@$(OFFLINE) $(RUN) -m gmsa_rag.cli bench answer --rates 8 $(ARGS)

clean: ## Remove caches and built packages; .venv stays
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks .codspeed *.egg-info
	@find . -name $(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
