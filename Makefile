PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
DEVELOPER = $(VENV)/.developer
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: say setup lint test test-slow test-page parity-full clean

TEXT ?= Hello, world! This is a voice that was made on a small computer.
SPEAKER ?=
MODEL ?=
OUTPUT ?= hello.wav

say: $(INSTALLED)
	$(BIN)/indextts2 infer --text "$(TEXT)" $(if $(SPEAKER),--speaker "$(SPEAKER)") \
		$(if $(MODEL),--model "$(MODEL)") --output "$(OUTPUT)"

setup: $(DEVELOPER)

# The C library is part of the installation: it is built again when its sources change.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard src/indextts2/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	touch $(INSTALLED)

$(DEVELOPER): $(INSTALLED)
	$(PIP_INSTALL) -e '.[dev]'
	touch $(DEVELOPER)

lint: $(DEVELOPER)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow and not full and not page"

test-slow: $(DEVELOPER)
	$(BIN)/pytest -m slow

test-page: $(DEVELOPER)
	$(BIN)/pytest tests/page -m page -rs

parity-full: $(DEVELOPER)
	$(BIN)/pytest -m full -s

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache src/indextts2/native/_kernels.*
