PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
DEVELOPER = $(VENV)/.developer
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: say setup lint test test-slow test-page parity-full clean

TEXT ?= Hello, world! This is a voice that was made on a small computer.
SPEAKER ?=
MODEL ?= $(if $(wildcard src/indextts2/assets/embedded/config.yaml),,$(DEMONSTRATION))
OUTPUT ?= hello.wav
REFERENCE ?= ../shared/reference
DEMONSTRATION = build/reference-small

say: $(INSTALLED) $(if $(MODEL),$(MODEL)/config.yaml)
	$(BIN)/indextts2 infer --text "$(TEXT)" $(if $(SPEAKER),--speaker "$(SPEAKER)") \
		$(if $(MODEL),--model "$(MODEL)") --output "$(OUTPUT)"

# A network of the right form with weights that were never trained: it shows that everything runs, and is no voice.
$(DEMONSTRATION)/config.yaml: $(INSTALLED)
	@test -e $(REFERENCE)/make_checkpoint.py || { echo "no model: name a directory, make say MODEL=checkpoints"; exit 1; }
	$(BIN)/python $(REFERENCE)/make_checkpoint.py small $(DEMONSTRATION).part
	printf '\nsemantic_output_layer: 3\ngeneration: {max_mel_tokens: 150}\n' >> $(DEMONSTRATION).part/config.yaml
	mv $(DEMONSTRATION).part $(DEMONSTRATION)
	@echo "This model was never trained. What you will hear is noise, not a voice."

setup: $(DEVELOPER)

$(INSTALLED): pyproject.toml constraints.txt
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
	$(BIN)/pytest -m page -rs

parity-full: $(DEVELOPER)
	$(BIN)/pytest -m full -s

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
