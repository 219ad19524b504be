# make quickstart   sets everything up, trains a small U-Net and writes a report (minutes)
# make test         sets everything up and runs the tests
# make test-quick   sets everything up and runs some tests of each part (minutes)

# The newest Python from 3.14 down to 3.11, unless PYTHON names one.
PYTHON ?=
VENV ?= .venv
TEST_PROCESSES ?= 2
BIN = $(VENV)/bin
CONSTRAINTS = import sys; print("constraints.txt" if sys.version_info >= (3, 12) else "constraints-py311.txt")
# A crashed process is not replaced: with --dist loadfile pytest-xdist would wait for ever (#1327).
PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0

.PHONY: help venv install quickstart test test-quick lint

help:
	@sed -n '1,3s/^# //p' Makefile

venv:
	@.ci/make-venv $(VENV) $(PYTHON)

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt constraints-py311.txt | venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $$($(BIN)/python -c '$(CONSTRAINTS)') --editable '.[test]'
	@touch $@

quickstart: install
	$(BIN)/python experiments/quickstart.py --workdir runs/quickstart

test: install lint
	$(PYTEST)

test-quick: install
	$(PYTEST) -m quick

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Types are checked against the newest jax, which Python 3.11 does not have.
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
	  PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/python -m pyright --pythonpath $(BIN)/python; fi
