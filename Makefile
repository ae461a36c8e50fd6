# Each target sets up .venv by itself; a second run reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# An S3 server for tests, whose packages conflict with ours.
S3 := .venv-peers-s3

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/dynopt run demo

# The part without Ray comes first, in two processes: it takes about a minute.
test: $(STAMP) $(S3)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not slow"
	$(BIN)/python -m pytest -m "ray or slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m experiments.benchmarks

$(S3)/.installed: tests/journals/s3_server.txt
	@test -x $(S3)/bin/python || $(PYTHON) -m venv $(S3)
	@$(S3)/bin/python -m pip install -qq -r tests/journals/s3_server.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers* .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV), once; this takes a minute or two."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
