# make demo      set up, write a small data set, train on it, sample, judge    [MINUTES=10]
#                HOLDOUT=1 draws anew which combinations are never trained on
#                VIDEOS=/my/videos trains on that folder instead (docs/your-videos.md);
#                a new run for other videos: RUN=runs/another
# make cascade   three small stages, each trained and then sampled one after another
# make bunny     real footage: fetch Big Buck Bunny, cut it into shots, train  [MINUTES=30]
#                DEVICE=gpu, with demo or bunny: on NVIDIA GPUs
# make test      the default tests            make slow      the long ones
# make mutants   break the code on purpose    make lint      style and types

PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VIDEOS  ?=
DEVICE  ?= cpu
MINUTES ?= $(if $(filter bunny,$(MAKECMDGOALS)),30,10)
CLIPS   ?= 8000
ASKED   ?= 256
HOLDOUT ?= 0
NAME    := $(if $(filter bunny,$(MAKECMDGOALS)),bunny,$(if $(strip $(VIDEOS)),own,demo))
# Another draw of what is held out is other data, and another run.
DRAW    := $(if $(filter-out demo0,$(NAME)$(HOLDOUT)),$(if $(filter demo,$(NAME)),-$(HOLDOUT)))
RUN     ?= runs/$(NAME)$(DRAW)
DATA    ?= data/$(NAME)$(DRAW)
# Of the demo's minutes a fifth is for sampling what is judged.
TRAIN   := $(shell awk 'BEGIN { print 0.8 * $(MINUTES) }')
VENV    := .venv
BIN     := $(VENV)/bin
PY      := $(BIN)/python
export VIDEOS

ifeq ($(DEVICE),gpu)
EXTRA     := requirements-gpu.txt
INSTALLED := $(VENV)/.installed-gpu
else ifneq ($(DEVICE),cpu)
$(error DEVICE is '$(DEVICE)'; it must be cpu or gpu)
else
EXTRA     :=
INSTALLED := $(VENV)/.installed
# What a step frees is kept: glibc gives it back to the kernel, which clears every page again for the
# next step (docs/cpu.md).
MEMORY    := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# Two devices on a CPU: what XLA runs on one core at a time then runs on two. Each keeps to its own
# core: products that are divided between them wait for each other.
DEVICES   := $(MEMORY) XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false $$XLA_FLAGS"
endif

.PHONY: demo bunny cascade test slow mutants lint setup videos clean

setup: $(INSTALLED)

# What is wrong with the folder is said before anything is installed.
$(INSTALLED): requirements.txt requirements-dev.txt $(EXTRA) $(if $(strip $(VIDEOS)),| videos)
	@test -n "$(PYTHON)" || { echo "vdm_jax needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt $(EXTRA:%=-r %)
	$(if $(EXTRA),$(PY) -m vdm_jax doctor --need=gpu)
	@touch $@

videos:
	@test -d "$$VIDEOS" || { echo "VIDEOS is '$$VIDEOS', but there is no such folder; name the one your videos are in."; exit 2; }
	@find -H "$$VIDEOS" -type f | grep -qiE '\.(mp4|m4v|mov|mkv|webm|avi)$$' || { echo "VIDEOS is '$$VIDEOS', but no video is in it (mp4, m4v, mov, mkv, webm or avi)."; exit 2; }

demo: setup
ifeq ($(strip $(VIDEOS)),)
	$(PY) -m data_pipeline generate $(DATA)/clips --clips $(CLIPS) --seed 0 --holdout $(HOLDOUT)
	$(PY) -m data_pipeline generate $(DATA)/unseen --clips $(ASKED) --seed 1 --holdout $(HOLDOUT) --unseen
	$(PY) -m data_pipeline index $(DATA)/clips --out $(DATA)/manifest
	$(DEVICES) $(PY) -m vdm_jax train --config=experiments/demo.py --config.knobs.manifest=$(DATA)/manifest --workdir=$(RUN) --minutes=$(TRAIN)
	$(PY) -m vdm_jax sample $(RUN) --requests=$(DATA)/unseen/requests.jsonl --out=$(RUN)/samples
	$(PY) -m data_pipeline judge $(RUN)/samples --truth $(DATA)/unseen --trained-on $(DATA)/clips --into $(RUN)/summary.json
else
	$(PY) -m data_pipeline index "$$VIDEOS" --out $(DATA)/manifest --shots --copies 96
	$(DEVICES) $(PY) -m vdm_jax train --config=experiments/own.py --config.knobs.manifest=$(DATA)/manifest --workdir=$(RUN) --minutes=$(MINUTES)
	$(PY) -m vdm_jax sample $(RUN) --prompts=$(DATA)/manifest/captions.txt --frames=8 --height=24 --width=40 --out=$(RUN)/samples
endif
	@ls -1 $(RUN)/loss.png $(RUN)/summary.json

bunny: setup
	PY=$(PY) experiments/get_bunny.sh $(DATA)/film
	cp experiments/bunny_captions.jsonl $(DATA)/film/captions.jsonl
	$(PY) -m data_pipeline index $(DATA)/film --out $(DATA)/manifest --shots --copies 96
	$(DEVICES) $(PY) -m vdm_jax train --config=experiments/bunny.py --config.knobs.manifest=$(DATA)/manifest --workdir=$(RUN) --minutes=$(MINUTES)
	$(PY) -m vdm_jax sample $(RUN) --prompts=$(DATA)/manifest/captions.txt --frames=8 --height=24 --width=40 --out=$(RUN)/samples
	@ls -1 $(RUN)/loss.png $(RUN)/summary.json

CASCADE := data/cascade
STAGES  := base time space
# Small shapes go far: a pixel a frame, which no interpolation guesses.
SCENES  := --frames 16 --sides 32 --radius 0.27 0.33
cascade: setup
	$(PY) -m data_pipeline generate $(CASCADE)/clips --clips 4000 --seed 0 --holdout 0 $(SCENES)
	$(PY) -m data_pipeline generate $(CASCADE)/unseen --clips 128 --seed 1 --holdout 0 --unseen $(SCENES)
	$(PY) -m data_pipeline index $(CASCADE)/clips --out $(CASCADE)/manifest
	for stage in $(STAGES); do $(DEVICES) $(PY) -m vdm_jax train --config=experiments/imagen_video.py:smoke-$$stage --workdir=runs/cascade/$$stage || exit $$?; done
	$(PY) -m vdm_jax sample $(STAGES:%=runs/cascade/%) --requests=$(CASCADE)/unseen/requests.jsonl --out=runs/cascade/samples
	$(PY) -m data_pipeline judge runs/cascade/samples --truth $(CASCADE)/unseen --trained-on $(CASCADE)/clips --into runs/cascade/summary.json

test: setup
	$(PY) -m pytest -n auto --dist worksteal

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
