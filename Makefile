# make demo      set up, write a small data set, train on it, sample from it   [MINUTES=10]
# make test      the default tests            make slow      the long ones
# make mutants   break the code on purpose    make lint      style and types

PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
MINUTES ?= 10
CLIPS   ?= 1200
RUN     ?= runs/demo
DATA    ?= data/demo
# Two devices on a CPU: what XLA runs on one core at a time then runs on two.
DEVICES := XLA_FLAGS="--xla_force_host_platform_device_count=2 $$XLA_FLAGS"
VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python

.PHONY: demo test slow mutants lint setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "vdm_jax needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: setup
	$(PY) -m data_pipeline generate $(DATA)/clips --clips $(CLIPS) --seed 0
	$(PY) -m data_pipeline index $(DATA)/clips --out $(DATA)/manifest
	$(DEVICES) $(PY) -m vdm_jax train --config=experiments/demo.py --workdir=$(RUN) --minutes=$(MINUTES)
	$(PY) -m vdm_jax sample $(RUN) --prompts=experiments/demo_prompts.txt --frames=8 --height=24 --width=24 --out=$(RUN)/samples
	@ls -1 $(RUN)/loss.png $(RUN)/summary.json

test: setup
	$(PY) -m pytest

slow: setup
	$(PY) -m pytest -m slow

mutants: setup
	$(PY) -m tests.mutants

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf runs data
