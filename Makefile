PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: say setup lint test test-slow parity-full clean

TEXT ?= Hello, world! This is a voice that was made on a small computer.
SPEAKER ?=
OUTPUT ?= hello.wav

say: $(INSTALLED)
	$(BIN)/indextts2 infer --text "$(TEXT)" $(if $(SPEAKER),--speaker "$(SPEAKER)") --output "$(OUTPUT)"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow and not full and not page"

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

test-page: $(INSTALLED)
	$(BIN)/pytest -m page -rs

parity-full: $(INSTALLED)
	$(BIN)/pytest -m full -s

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
