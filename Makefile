.DEFAULT_GOAL := help
SHELL := /bin/bash
export PYTHONUNBUFFERED := 1

# uv from PATH, else one of our own in .uv: a fresh machine needs Python and its venv module alone.
UV := $(shell command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --frozen --no-sync
ROOT ?= runs/demo

.PHONY: help setup system demo test test-slow lint format bench images results compile ui clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.complete  ## Make .venv with every extra, as locked

.venv/.complete: pyproject.toml uv.lock
	@command -v $(UV) >/dev/null || { python3 -m venv .uv && .uv/bin/pip install --quiet uv; }
	$(UV) sync --frozen --all-extras --compile-bytecode
	@touch $@

system:  # Chromium, for the tests of the pages
	@./.ci/system-packages

demo: setup  ## Fetch the demo's pictures and run the whole chain on them
	$(RUN) python -m examples.emoji --out data/raw/emoji
	@# 3: the gate refused the student, which is a result of the run and not a failure of it
	$(RUN) mobileclip run --params params/demo.yaml --root $(ROOT) --source data/raw/emoji --towers data/raw/emoji/towers || [ $$? -eq 3 ]

PYTEST = OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder --durations 25

test: setup system  ## Run the tests
	$(PYTEST) -m "not slow"

test-slow: setup  ## Run the long tests: three doors, kills, converters; containers and a cluster where there are some
	$(PYTEST) -m slow

lint: setup  ## Ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: setup  ## Format the code
	$(RUN) ruff check --fix-only --quiet .
	$(RUN) ruff format --quiet .

bench: setup  ## Print the benchmark tables
	OMP_NUM_THREADS=1 $(RUN) python -m benchmarks

results: setup  ## Train the study of docs/results.md, plain against reinforced: hours, goes on where it was stopped
	$(RUN) python -m examples.emoji --out data/raw/emoji
	$(RUN) mobileclip run --params params/demo.yaml --root $(ROOT) --source data/raw/emoji --towers data/raw/emoji/towers --to calibrate
	$(RUN) python -m benchmarks.step_cost --root $(ROOT)
	$(RUN) python -m benchmarks.learning_efficiency --root $(ROOT)

compile: setup  ## Compile the Kubeflow pipelines to build/pipelines
	$(RUN) python -m pipelines.compile --out build/pipelines

images:  ## Build the components' image, which holds all stages
	.ci/build-image

ui: setup  ## Open the MLflow page of the local runs
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(RUN) mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

clean:  ## Remove what runs and tools have written, but not the fetched pictures
	rm -rf runs build dist mlflow.db mlruns mlartifacts local_outputs .pytest_cache .mypy_cache .ruff_cache
