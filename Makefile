# Two commands: `make demo` (a study with its report) and `make test` (every test; pairs of flags by a sample, and of some
# long lists of cases a part that changes with the commit: FLAGFORMER_SEED=N chooses another);
# `make quick` runs flags, reference formulas and the rules of the source, `make matrix` every pair, every three choices,
# all cases of those lists, and each setting by itself where `make test` has several in one model; `make integrations` installs TRL and lm_eval
# too, 450 MB with what they need, and runs all tests of other tools.
# Each makes .venv when it is not there; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
OLD := needs Python 3.11 or newer, but `$(PYTHON)` is not it: say which one, as `make demo PYTHON=python3.12`

# Parity is tested against two versions of one package, so that the older one has a folder of its own.
PEER := x-transformers==1.27.16
PEERS := $(VENV)/peers/x-transformers-1.27
# Folders too, so that only their parity tests and benchmarks see them.
ROUTING := routing-transformer==1.6.1 mixture-of-experts==0.2.3
ROUTINGS := $(VENV)/peers/routing-transformer-1.6
MEMFORMER := memformer==0.3.1
MEMFORMERS := $(VENV)/peers/memformer-0.3

QUICK := tests/flags tests/reference tests/house
ROUTING_TESTS := tests/reference/test_reference_routing.py tests/core/test_core_routing.py tests/core/test_core_kmeans.py \
	tests/properties/test_properties_cluster_topk.py tests/wrappers/test_routing.py
SENSITIVE := $(ROUTING_TESTS) tests/core/test_core_key_ranges.py tests/core/test_core_block_sparse.py tests/parity \
	tests/train/test_train_resume.py
MATRIX := $(foreach name,pairs triples singles features linears buffers reset storage transforms sharded quantised precision executors \
	graphs generation memory_tokens,tests/properties/test_properties_$(name).py) tests/core/test_core_compiled_decoding.py \
	tests/core/test_core_memories.py tests/core/test_core_exported_forms.py

INTEGRATIONS := tests/integrations tests/harness tests/hugging_face/test_pretrained.py \
	tests/hugging_face/test_packed_positions.py tests/hugging_face/test_trl.py

.PHONY: demo test quick sensitive matrix integrations check docs bench clean attack

demo: $(VENV)/.study
	$(BIN)/flagformer study run studies/positions.yaml --out runs/demo

# Three workers on two cores: some tests wait for the processes that they start.
test: $(VENV)/.dev $(VENV)/.peers
	$(BIN)/python -m pytest -n 3 --dist worksteal

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 $(QUICK)

# What a rounding could decide, on a CPU that has less and with one thread.
sensitive: $(VENV)/.dev $(VENV)/.peers
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(SENSITIVE)
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(ROUTING_TESTS)

matrix: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --timeout 3600 --matrix $(MATRIX)

integrations: $(VENV)/.integrations
	$(BIN)/python -m pytest -n 2 $(INTEGRATIONS)

# Random mixes of flags against an oracle in numpy.
attack: $(VENV)/.dev
	$(BIN)/python tests/oracle/attack.py --mixes 600 --seed 0

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m flagformer.lab.reference --check
	$(BIN)/python tests/house/words.py

# The pages, schemas and types that are written from the catalogue, and the site, in docs/_build/html.
docs: $(VENV)/.docs
	$(BIN)/python -m flagformer.lab.reference
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'flagformer $(OLD)' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'flagformer needs the module venv of $(PYTHON), on Debian and Ubuntu the package python3-venv' >&2; exit 1; }

$(VENV)/.study: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable ".[study]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/.study

$(VENV)/.integrations: pyproject.toml constraints.txt | $(VENV)/.dev
	$(PIP) --editable ".[integrations,eval]"
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.dev
	$(PIP) --editable ".[docs]"
	touch $@

$(VENV)/.peers: Makefile | $(VENV)/.dev
	rm -rf $(PEERS) $(ROUTINGS) $(MEMFORMERS)
	$(BIN)/python -m pip install --quiet --no-deps --target $(PEERS) $(PEER)
	$(BIN)/python -m pip install --quiet --no-deps --target $(ROUTINGS) $(ROUTING)
	$(BIN)/python -m pip install --quiet --no-deps --target $(MEMFORMERS) $(MEMFORMER)
	touch $@

clean:
	rm -rf $(VENV) runs docs/_build .pytest_cache .mypy_cache .ruff_cache
