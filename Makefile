# make quickstart   sets everything up, trains a small U-Net and writes a report (minutes)
# make test         sets everything up and runs the tests

PYTHON ?= python3
VENV ?= .venv
TEST_PROCESSES ?= 2
BIN = $(VENV)/bin

.PHONY: help install quickstart test lint

help:
	@sed -n '1,2s/^# //p' Makefile

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segjax needs Python 3.11 or newer; this is %d.%d" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

quickstart: install
	$(BIN)/python experiments/quickstart.py --workdir runs/quickstart

test: install lint
	@# A crashed process is not replaced: with --dist loadfile pytest-xdist would wait for ever (#1327).
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
