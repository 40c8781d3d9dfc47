# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test test-eval test-crash test-crash-full test-serve bench-overhead bench-determinism check install clean

quickstart: install
	$(BIN)/shard run quickstart

test: install
	$(BIN)/python -m pytest -m "not slow"

# What needs lm-evaluation-harness: some fifty packages more, which `make test` does without; accelerate for its `hf` backend.
test-eval: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,eval]' accelerate
	$(BIN)/python -m pytest tests/evaluation/test_lm_eval_adapter.py

# Minutes: runs killed at random moments (SHARD_CRASH_SEED=N repeats them), gradients that repeat, a disk that fills up.
test-crash: install
	$(BIN)/python -m pytest tests/crash -m slow --ignore=tests/crash/test_full.py -s

# A quarter of an hour: the same with the reference model.
test-crash-full: install
	$(BIN)/python -m pytest tests/crash/test_full.py -m slow -s

# A minute: transformers' own server on an export, asked through the OpenAI client.
test-serve: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[serve]'
	$(BIN)/python -m pytest tests/release/test_serve.py -m slow

# What safety and repeatability cost; ten minutes each, on a machine that does nothing else.
bench-overhead: install
	$(BIN)/python benchmarks/overhead.py

bench-determinism: install
	$(BIN)/python benchmarks/determinism.py

# Style and types.
check: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

install: $(VENV)/.installed

# torch first and alone: whichever build of the pinned version is at hand (CPU, CUDA) is the one that the rest gets.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shard needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
