# Two commands: `make demo` (a study with its report) and `make test` (every test).
# Each makes .venv when it is not there; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test check docs bench clean

demo: $(VENV)/.study
	$(BIN)/flagformer study run studies/positions.yaml --out runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m flagformer.flags.render --check

docs: $(VENV)/.dev
	$(BIN)/python -m flagformer.flags.render

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.study: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable ".[study]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/.study

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
