# `make train` and `make test` are all that a fresh clone needs.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: train test test-fast faults check format clean

train: $(STAMP)
	$(RUN) src/train.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not slow"

# every fault of the matrix, injected; the table at the end says what was lost
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m fault

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m pytest -q tests/test_layers.py

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# installs again only when what is to be installed has changed
$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
