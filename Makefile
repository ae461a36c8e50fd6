# Each target sets up .venv by itself; a second run reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/dynopt run demo

# The part without Ray comes first, in two processes: it takes about a minute.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not slow"
	$(BIN)/python -m pytest -m "ray or slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m experiments.benchmarks

clean:
	rm -rf $(VENV) .venv-peers* .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once; this takes a minute or two."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
