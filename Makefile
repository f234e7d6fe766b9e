# `make help` lists the targets. The environment in .venv is made anew when pyproject.toml or constraints.txt change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.installed
OUTPUT ?= results
ALONE := tests/faults tests/harness/test_remote_mlflow.py  # tests that wait for what others would slow down

.PHONY: help quickstart test test-all lint format docs clean
.DEFAULT_GOAL := help

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP)  ## Install, compare seven methods on real furniture, write the report
	$(VENV)/bin/harness run suites/quickstart.yaml --output $(OUTPUT)

test: $(STAMP)  ## Install and run the tests (minutes, two cores, no network)
	$(VENV)/bin/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-all: test  ## All tests, the slow ones included
	$(VENV)/bin/python -m pytest -q -m slow -n 2 --dist loadfile $(ALONE:%=--ignore=%)
	$(VENV)/bin/python -m pytest -q -m slow $(ALONE)

lint: $(STAMP)  ## Style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## Put the code into shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(STAMP)  ## Build the site of these docs into build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

clean:  ## Remove the environment and caches (never results)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
