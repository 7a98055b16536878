# `make train` and `make test` are all that a fresh clone needs; `make install` only installs.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.bench
DOCS := $(VENV)/.docs
BENCHMARKS := start_up framework_tax plain_step training_step memory matmul masked_head generation checkpointing matrix_owners
EXTRAS := wandb,comet,progress,peft:constraints.txt embed:constraints.txt lm-eval:constraints.txt curate:constraints.txt mlflow:constraints-mlflow.txt sweep:constraints-sweep.txt storage,storage-server:constraints-storage.txt
OF_CORPORA := data_loading masked_loading tokenizing near_duplicates# read corpora of the folder that PRETRAIN_ASSETS names

.PHONY: train install test test-fast test-long test-extras coverage wheel faults bench bench-full gpu settings docs check format clean

train: $(STAMP)
	$(RUN) src/train.py

install: $(STAMP)
	@echo "installed in $(VENV). Next: source $(VENV)/bin/activate"

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

# what takes too long for every change: kills, signals, damaged files, notebooks, every family and strategy end to end
test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m long

# the lines that the fast tests do not reach, when asked for; a test of start-up times may fail, as tracing takes time
coverage: $(STAMP)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev,coverage]"
	$(RUN) -m coverage erase
	-OMP_NUM_THREADS=1 $(RUN) -m coverage run -m pytest -n 2 --dist worksteal -m "not slow"
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

# the extras with their real libraries; a set that asks for other versions than the rest has an environment of its own
test-extras:
	@for set in $(EXTRAS); do extras=$${set%:*}; folder=$(VENV)-$${extras%%,*}; \
		echo "$$extras, in $$folder"; \
		test -x $$folder/bin/python || $(PYTHON) -m venv $$folder || exit 1; \
		$$folder/bin/python -m pip install --quiet --constraint $${set#*:} --editable ".[dev,$$extras]" || exit 1; \
		OMP_NUM_THREADS=1 $$folder/bin/python -m pytest tests/extras -m "long or slow or not slow" -rs || exit 1; \
	done

# every fault of the matrix, injected; the table at the end says what was lost
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m fault

# dist/pretrain-*.whl, with the presets inside
wheel: $(STAMP)
	$(RUN) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

# every claim once more, in a short form that keeps nothing: about eight minutes on two cores
bench: $(BENCH)
	@failed=; for name in $(BENCHMARKS) $(if $(PRETRAIN_ASSETS),$(OF_CORPORA)); do \
		$(RUN) benchmarks/$$name.py --quick || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "these ended with an error:$$failed"; exit 1; }
	$(if $(PRETRAIN_ASSETS),,@echo "left out, as PRETRAIN_ASSETS names no folder of corpora: $(OF_CORPORA)")

# in full, for an idle machine: writes benchmarks/results and the README's table; `make gpu` where there is a GPU
bench-full: $(BENCH)
	@failed=; for name in $(BENCHMARKS) $(OF_CORPORA) time_to_loss; do $(RUN) benchmarks/$$name.py || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "these ended with an error:$$failed"; exit 1; }
	$(RUN) benchmarks/table.py

# where there is a GPU: ceilings, kernels, races, profile and truth in less than nine minutes, and their tables; elsewhere
# a tiny form that keeps nothing
gpu: $(BENCH)
	@if $(RUN) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
		$(RUN) benchmarks/gpu_all.py --out benchmarks/results && $(RUN) benchmarks/table.py; \
	else $(RUN) benchmarks/gpu_all.py --tiny --out .cache/gpu_tiny; fi

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	MYPYPATH=src:benchmarks $(VENV)/bin/mypy --config-file benchmarks/mypy.ini benchmarks/*.py
	$(RUN) -m pytest -q tests/test_layers.py

# the page of all settings and the help of each command, from the code that declares them
settings: $(STAMP)
	mkdir -p docs/reference/help
	$(RUN) -m pretrain.config.settings_help > docs/reference/settings.md
	@for name in $$($(VENV)/bin/pretrain | sed -n 's/^  \([a-z]*\) .*/\1/p'); do \
		$(VENV)/bin/pretrain $$name --help > docs/reference/help/$$name.txt || exit 1; done

# the site, in site/: each link and anchor is checked
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# installs again only when what is to be installed has changed
$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# peers that ask for other versions of torch than ours come without what they ask for: they need little of it here
$(BENCH): $(STAMP)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev,bench]"
	$(RUN) -m pip install --quiet --no-deps litgpt==0.5.13 jsonargparse==4.53.0 litdata==0.2.76 mosaicml-streaming==0.13.0 \
		boto3 botocore s3transfer jmespath brotli cramjam catalogue python-snappy zstd \
		ai2-olmo-core==3.0.0 dataclass-extensions bettermap
	touch $(BENCH)

$(DOCS): $(STAMP)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $(DOCS)

clean:
	rm -rf $(VENV) $(VENV)-* build dist site .cache .mypy_cache .ruff_cache .pytest_cache
