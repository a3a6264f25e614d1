# make demo: sets everything up and trains the damped pendulum.   make test: sets up and runs every check.
VENV ?= .venv
PYTHON ?= python3
EPOCHS ?= 1000
BIN := $(VENV)/bin
CONSTRAINTS := $(if $(wildcard constraints-ci.txt),-c constraints-ci.txt)
PACKAGE_FILES := pyproject.toml hatch_build.py $(wildcard constraints-ci.txt)

.PHONY: demo test lint quick slow docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo-installed
# Where this fails it has said why in one line, and the example takes the embedded engine.
	@$(BIN)/pyjode setup || true
	$(BIN)/python examples/damped_pendulum.py --epochs $(EPOCHS)

# Lint first; the two tiers side by side, since each is one process on one core; the output of each in one piece.
test: lint
	$(MAKE) -j2 --output-sync=target quick slow

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m "not slow"

# Exit status 5 means that no test carries the mark: nothing failed.
slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m slow || [ $$? -eq 5 ]

docs: $(VENV)/.docs-installed
	$(BIN)/python -m sphinx -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: $(PACKAGE_FILES) | $(BIN)/python
	$(BIN)/python -m pip install $(CONSTRAINTS) -e ".[plots]"
	@touch $@

$(VENV)/.test-installed: $(PACKAGE_FILES) | $(BIN)/python
	$(BIN)/python -m pip install $(CONSTRAINTS) -e ".[test,dev]"
	@touch $@

$(VENV)/.docs-installed: $(PACKAGE_FILES) | $(BIN)/python
	$(BIN)/python -m pip install $(CONSTRAINTS) -e ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) dist build docs/_build docs/gallery .pytest_cache .mypy_cache .ruff_cache .hypothesis
