# make demo   trains a Collaboration of Experts on digits, shows its table, predicts a few files
# make demo-translation   the same for translation: German numbers, dates and amounts into English (five minutes)
# make test   all that CI runs: lint, types, tests and doctests (seven minutes on two quiet cores)
# make quick  tests that start no other process and train nothing (times of all: CONTRIBUTING.md)
# make lint, make types, make fuzz, make matrix   see CONTRIBUTING.md
# Everything is installed into .venv on the first call (a few minutes: torch is large) and reused afterwards.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
UV ?= $(shell command -v uv || echo .venv-boot/bin/uv)
BIN := .venv/bin

# Threads that wait for each other must not spin: on a machine shared with other work that costs 10 to 100 times.
export OMP_WAIT_POLICY ?= PASSIVE

# Without bytecode half of an import is compiling. Who wants none beside the sources has it in .bytecode.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.bytecode
endif

.PHONY: demo demo-translation test quick style lint types fuzz matrix setup lock clean
.DEFAULT_GOAL := demo

demo: setup
	@COE_BIN=$(BIN) sh recipes/demo.sh

demo-translation: setup
	@OMP_NUM_THREADS=1 $(BIN)/coe-translation train demo --out runs/demo-translation --resume --parallel 2
	@$(BIN)/coe-translation evaluate runs/demo-translation

test: setup style types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not process and not slow and not fuzz"

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style  ## what make test checks by tests too, alone
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest --confcutdir=tests/docs tests/docs/test_prose.py

types: setup
	$(BIN)/mypy

fuzz: setup  ## every parser against FUZZ_EXAMPLES damaged inputs, other ones in every run
	$(BIN)/python -m pytest -n auto -m fuzz --hypothesis-profile=fuzz tests

# Oldest and newest Python, lowest versions (not on 3.13: some have no wheels for it) and locked ones; 7 GB each.
MATRIX := 3.11-lowest-direct 3.13-locked 3.11-locked

matrix: $(addprefix matrix-,$(MATRIX))

matrix-%: .venv/.installed
	sh tests/matrix.sh $(UV) $*

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python"; exit 1; }
	@command -v $(UV) >/dev/null || { echo "== installing uv (the package installer) into .venv-boot"; \
		$(PYTHON) -m venv .venv-boot && .venv-boot/bin/pip install --quiet uv; }
	@echo "== installing the locked packages into .venv (torch is large: about four minutes the first time)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python "$(PYTHON)" .venv
	@$(UV) pip install --quiet --python $(BIN)/python -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@echo "== compiling the transport solver (once; it is cached)"
	@$(BIN)/python -c "import torch, coe_core; [coe_core.balanced_assignment(torch.zeros(2, 2, dtype=kind)) for kind in (torch.float32, torch.float64)]"
	@touch $@

lock:  ## resolve requirements.lock again (all supported Pythons and platforms; no host names in it)
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
		--no-header --no-annotate --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .venv-boot .venv-matrix .bytecode build *.egg-info
