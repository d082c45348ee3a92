# Two commands do everything: `make demo` and `make test`. Both create .venv and install into it first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint types docs format clean gpu-check

demo: $(STAMP)
	$(BIN)/eddecode demo

test: $(STAMP) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10  # two workers with a thread each: more would queue

# Under eight minutes on one GPU, no network. Uses the Python that has torch for CUDA: make gpu-check PYTHON=python3
gpu-check:
	PYTHONPATH=.:kernels HF_HUB_OFFLINE=1 $(PYTHON) -m benchmarks.gpu_check --out gpu-check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python docs/draw_commands.py
	$(BIN)/python -m mkdocs build --strict  # into build/site, without a network

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and alone: a range would otherwise be free to pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing PyTorch and the other packages into $(VENV): one to three minutes, by your network."
	$(BIN)/python -m pip install --progress-bar on "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --progress-bar on --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
