# Needs Python 3.11 or newer and make, nothing else. Every target may be called again.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# On Linux the usual index gives torch with CUDA (gigabytes). An index of CPU builds, such as PyTorch's own, can be
# named here: make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo
TORCH_INDEX ?=
PYTEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Sparse kernels that a venv of this checkout is built with; without the variable, all of them.
export PARETOPRUNE_KERNEL_SETS ?= portable avx2

BIN := .venv/bin
STAMP := .venv/.installed
ZOO_STAMP := .venv/.zoo
ZOO ?= --peer --jobs 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv demo test slow random lint bench clean

help:
	@echo "make demo    the main job on scikit-learn's digits; writes runs/demo"
	@echo "make test    the quick tests      make slow   the long ones"
	@echo "make random  10,000 random plans for random networks, against their references"
	@echo "make lint    ruff, mypy, the import contract"
	@echo "make bench   where the time of a search goes"
	@echo "make zoo     prune real networks and judge them, beside Torch-Pruning; hours (ZOO='--only own/*' takes a part)"
	@echo "make clean   remove build products and caches (runs/ and .venv/ stay)"

# What is imported is compiled then; all of torch at once takes two minutes.
venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard src/paretoprune/sparsity/kernels/csrc/*.?pp)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --no-deps -c constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/paretoprune demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 3600 $(PYTEST_FLAGS)

random: $(STAMP)
	PARETOPRUNE_RANDOM_CASES=5000 $(BIN)/python -m pytest -n 2 --timeout 86400 tests/graph/test_random_networks.py tests/graph/test_random_sequences.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/pipeline.py

$(ZOO_STAMP): $(STAMP) benchmarks/zoo/requirements.txt
	$(BIN)/python -m pip install --no-deps -r benchmarks/zoo/requirements.txt
	@touch $@

zoo: $(ZOO_STAMP)
	PYTHONPATH=benchmarks $(BIN)/python -m zoo $(ZOO)

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
