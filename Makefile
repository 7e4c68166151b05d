# make demo: train, evaluate and report on the built-in data.   make test: the whole test suite.
# Both work on a fresh machine with Python >= 3.11, make and git: everything is installed into .venv first.

PYTHON ?= python3
BIN := .venv/bin
RUN ?= demo

.PHONY: demo test lint format install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "allpairs needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[service,faiss-cpu,dev]'
	@touch $@

# A demo that was interrupted goes on; one that is finished shows its table again.
demo: .venv/installed
	@test -d data/scenes || $(BIN)/python -m distributed.data build scenes --out data/scenes
	$(BIN)/python -m distributed.train --config configs/scenes.yaml run.name=$(RUN) $(if $(wildcard runs/$(RUN)/config.yaml),--resume)

# DeepSpeed compiles a small C++ operator on first use; its tests need the extra.
.venv/deepspeed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[deepspeed]'
	@touch $@

# Peers for cross-checks; open_clip's own dependencies would drag in torchvision, and its loss needs none of them.
.venv/peers: .venv/installed
	@$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt open_clip_torch
	@touch $@

# Files go to as many processes as there are cores, four at most: some tests start processes of their own.
test: .venv/installed .venv/deepspeed .venv/peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
