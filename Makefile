# Each target makes .venv if needed, installs what it needs, and runs. Nothing else to set up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test faults lint

train: $(VENV)/train.installed
	$(BIN)/python scripts/train_with_samples.py --config configs/models/chatgot_quick.yaml

# a file's tests share runs that are trained once: they stay together
test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not network"

# kills, full disks, damaged files: LEVEL=ci takes minutes, LEVEL=long most of an hour; both end in a table
LEVEL ?= long
faults: $(VENV)/dev.installed
	$(BIN)/python -m pytest tests/faults --faults=$(LEVEL)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/train.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
