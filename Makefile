# On a new machine, two commands are enough: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# To install torch from another index: make setup PIP_FLAGS="--extra-index-url ..."
PIP_FLAGS ?=
BIN := $(VENV)/bin
RUN := $(BIN)/python -m kinopoisk_ft
# One process per core with one thread each, because threads that spin while they wait slow each other
# down. Compiled files are kept, although Docker images often disable this: otherwise, each process
# compiles the package and all tests. Files run in the order of their names, because by default the
# longest files run last.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
TEST_OPTIONS := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest $(TEST_OPTIONS)
STAMP := $(VENV)/.installed
DEMO := outputs/demo
# The folder of `make tracking-server`. It is not this folder's store, whose artifacts have local paths.
SERVER ?= $(CURDIR)/outputs/tracking-server
# Or BACKEND=postgresql://user@host/database, with the extra 'postgresql'.
BACKEND ?= sqlite:///$(SERVER)/mlflow.db
# With HOST=0.0.0.0, everybody who can reach this machine has access, without a password.
HOST ?= 127.0.0.1
PORT ?= 5000

# How often `make bench` runs the project and its peer.
ROUNDS ?= 3
# How long `make chaos` disturbs runs and `make fuzz` tries each kind of input, and their seed.
MINUTES ?= 20
SEED ?= 1
# The device of `make gpu-check`, cuda or cpu; by default a GPU if there is one.
DEVICE ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-all demo test test-all test-cluster test-lowest lint types audit bench chaos fuzz gpu-check ui tracking-server report notebooks docs schema clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(STAMP) ## create .venv and install the pinned packages

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[dev]'
	$(BIN)/python -m kinopoisk_ft.ops.precompile
	@touch $@

setup-all: $(STAMP).all ## also the extras for parallel jobs: joblib, Slurm, Ray, PostgreSQL

$(STAMP).all: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) \
		--editable '.[dev,parallel,slurm,ray,postgresql]'
	@touch $@

demo: $(STAMP) ## pretrain two small bases, compare all approaches on bundled data, show the report
	@echo "Compare five approaches on 4,000 synthetic reviews. This takes about 3 minutes on two cores:"
	@echo "1. Pretrain two small models (2 jobs)."
	@echo "2. Fine-tune them in different ways, and fit TF-IDF (5 jobs)."
	@echo "3. Write the report."
	@echo
	@$(RUN) sweep=demo_bases output_dir=$(DEMO)/bases
	@echo
	@$(RUN) sweep=demo output_dir=$(DEMO)/runs
	@$(BIN)/python -m kinopoisk_ft.report --experiment demo --output $(DEMO)/report > $(DEMO)/report.txt
	@echo
	@echo "Report: $(CURDIR)/$(DEMO)/report/comparison.html; open it in a browser"
	@echo "MLflow: make ui, then http://127.0.0.1:5000, experiment 'demo'"

test: $(STAMP) ## quick tests
	$(PYTEST)

test-all: $(STAMP).all ## all tests, including the slow ones
	$(PYTEST) -m 'not cluster'

# Without xdist: a cluster has as many nodes as the machine has cores.
test-cluster: $(STAMP).all ## real clusters of Slurm, Ray and torchrun on this machine; needs root (docs/scale.md)
	$(TEST_ENV) $(BIN)/python -m pytest -m cluster -rs -v tests/cluster

# Torch comes first and from pip, which PIP_FLAGS can point to a CPU build. `uv` then keeps it.
test-lowest: ## quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet $(PIP_FLAGS) torch==2.13.0 uv
	.venv-lowest/bin/uv pip install --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
	$(TEST_ENV) .venv-lowest/bin/python -m pytest $(TEST_OPTIONS)

lint: $(STAMP) ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy

audit: $(STAMP) ## known vulnerabilities (needs the package index) and licences of the pinned packages
	$(BIN)/python .ci/audit.py

bench: $(STAMP) ## the comparison with a Hugging Face Trainer in full (replaces results/peer.*), the others quickly
	$(BIN)/python benchmarks/peer.py --rounds $(ROUNDS) \
		--json benchmarks/results/peer.json --markdown benchmarks/results/peer.md
	for script in $(filter-out %/gpu_check.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script --quick || exit 1; done

chaos: $(STAMP) ## kill and disturb small runs in many ways, and check that nothing is lost; MINUTES=20 SEED=1
	OMP_NUM_THREADS=1 $(BIN)/python tools/chaos --minutes $(MINUTES) --seed $(SEED)

fuzz: $(STAMP) ## try damaged and hostile files, and check that each is read or refused; MINUTES=20 for each kind, SEED=1
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz --minutes $(MINUTES) --seed $(SEED)

gpu-check: $(STAMP) ## tests and speed on a GPU in ten minutes; DEVICE=cpu rehearses it without a GPU
	$(BIN)/python benchmarks/gpu_check.py $(if $(DEVICE),--device $(DEVICE))

ui: $(STAMP) ## open the MLflow store of this folder on http://127.0.0.1:5000
	$(BIN)/kinopoisk-ft ui --uri sqlite:///$(CURDIR)/mlflow.db

tracking-server: $(STAMP) ## one MLflow server for parallel jobs; see docs/scale.md
	mkdir -p '$(SERVER)'
	$(BIN)/python -m mlflow server --backend-store-uri '$(BACKEND)' \
		--artifacts-destination '$(SERVER)/artifacts' --host $(HOST) --port $(PORT)

report: $(STAMP) ## compare the runs in the store of this folder
	$(BIN)/python -m kinopoisk_ft.report

notebooks: $(STAMP) ## execute copies of the notebooks in outputs/notebooks
	rm -rf outputs/notebooks
	mkdir -p outputs
	cp -r notebooks outputs/notebooks
	cd outputs/notebooks && PATH="$(CURDIR)/$(BIN):$$PATH" \
		"$(CURDIR)/$(BIN)/python" -m nbconvert --to notebook --execute --inplace *.ipynb
	$(BIN)/python -m nbconvert --coalesce-streams outputs/notebooks/*.ipynb

# mkdocs-material advertises a successor in each build. With --quiet, mkdocs would not see its warnings,
# which make a strict build fail.
docs: $(STAMP) ## build the website of the documentation into outputs/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "Documentation: $(CURDIR)/outputs/site/index.html; open it in a browser"

schema: $(STAMP) ## write the JSON schemas of the config groups, which editors read
	$(BIN)/python -m kinopoisk_ft.config.schema

clean: ## remove build files and caches; keep the store, outputs and .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find kinopoisk_ft tests -name __pycache__ -type d -prune -exec rm -rf {} +
