# Everything a fresh machine needs: `make quickstart` (the main job) and `make test` make .venv and install into it.

PYTHON ?= python3
# One environment for each interpreter, so that `make test PYTHON=python3.13` leaves the usual one alone.
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
RUN := $(VENV)/bin/python
# The reference of some tests, which skip without it. `make test TORCH=` leaves out a large download.
TORCH ?= $(if $(filter python3,$(PYTHON)),torch==2.13.0 efficientnet-lite-pytorch==0.1.0)

# Containers often set it; the tests start some hundred processes, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test-fast test test-slow lint format docs bench clean

quickstart: $(VENV)/.user
	$(RUN) train.py --config=configs/quickstart.py --workdir=runs/quickstart

# Two processes share the files of tests, in the order of the arguments: what takes longest first.
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
LONGEST_FIRST := tests/training tests/models tests

# While editing: nothing that compiles a network or starts processes.
test-fast: $(VENV)/.test
	$(PYTEST) -m "not slow and not medium and not optimized" tests

test: $(VENV)/.test
	$(PYTEST) -m "not slow and not optimized" $(LONGEST_FIRST) --durations=25

test-slow: $(VENV)/.test
	$(PYTEST) -m "slow and not optimized" tests/test_notebooks.py $(LONGEST_FIRST) --durations=25
	$(PYTEST) -m optimized --optimized tests/test_learning.py tests --durations=10

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.test
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# build/site/index.html opens from the disk; `python -m http.server --directory build/site` lets its search work, too.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

# Compared with torchvision, in a separate environment; appends to benchmarks/RESULTS.md.
bench: $(VENV)/.test
	PYTHON=$(RUN) benchmarks/cpu.sh

clean:
	rm -rf .venv .venv-* .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[light]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(if $(TORCH),$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH))
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@
