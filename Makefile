# Two commands do everything on a fresh machine: `make train` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

EXP ?= patches_dual
# The shell does not expand ~ behind SRC= everywhere, nor inside quotes.
home = $(patsubst ~/%,$(HOME)/%,$(1))
# Lists of paths go to the shell as they are written, so that quotes keep names with spaces whole.
paths = $(subst '~/,'$(HOME)/,$(subst "~/,"$(HOME)/,$(1)))
streaming = $(if $(filter-out 0,$(RESIZE)),--resize) $(if $(filter-out 0,$(NORMALIZE)),--normalize)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO := data/demo16/manifest.json
DEMO32 := data/demo32/manifest.json
# What the demo's experiments learn from is made where it is missing.
half = $(patsubst patches_%,%,$(filter patches_a patches_b,$(EXP)))
SHARDS = $(if $(half),data/demo_$(half)/manifest.json,$(if $(filter patches_%,$(EXP)),$(DEMO))) $(if $(filter patches32_%,$(EXP)),$(DEMO32))

.PHONY: help install train submit study evaluate score ood export convert sample denoise inpaint bench figures data verify-data status tensorboard experiments test torture lint lock clean

help:  ## Print the targets
	@echo "make TARGET [EXP=$(EXP)] [SET=\"key=value …\"]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  %-17s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## Create the environment in .venv (done by the others when needed)

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating the environment in $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

data/demo%/manifest.json: | $(INSTALLED)
	@$(PY) -m data_prep build demo --out data/demo$* --size $*

data/demo_%/manifest.json: | $(INSTALLED)
	@$(PY) -m data_prep build demo_$* --out data/demo_$*

train: $(INSTALLED) $(SHARDS)  ## Train EXP, or go on where it stopped; FRESH=1 anew beside, NAME=… another run
	@set -f; $(PY) -m dualscore train $(EXP) $(SET) $(if $(NAME),--name $(NAME)) $(if $(filter-out 0,$(FRESH)),--fresh)

submit: $(INSTALLED) $(if $(SWEEP),,$(SHARDS))  ## Give EXP (or SWEEP=name) to Slurm: NODES=1 GPUS=8 TIME=24:00:00 PARTITION=…; DRY=1 prints the script
	@set -f; $(PY) -m dualscore submit $(if $(SWEEP),$(SWEEP) --sweep,$(EXP)) $(SET) $(if $(NAME),--name $(NAME)) \
		$(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) $(if $(TASKS),--tasks $(TASKS)) $(if $(CPUS),--cpus $(CPUS)) \
		$(if $(TIME),--time $(TIME)) $(if $(PARTITION),--partition $(PARTITION)) $(if $(SBATCH),--sbatch="$(SBATCH)") \
		$(if $(filter-out 0,$(DRY)),--dry)

study: $(INSTALLED) $(DEMO) $(DEMO32)  ## Compare variants of an experiment, or go on: STUDY=name of a file in studies/
	@$(if $(STUDY),,echo "error: say which study with STUDY=…; there are: $(basename $(notdir $(wildcard studies/*.yaml)))" >&2; exit 2;) \
	$(PY) -m dualscore study $(STUDY)

evaluate: $(INSTALLED)  ## Measure EXP's best checkpoint, or CKPT=file
	@set -f; $(PY) -m dualscore evaluate $(EXP) $(SET) $(if $(NAME),--name $(NAME)) $(if $(CKPT),--checkpoint "$(call home,$(CKPT))")

score: $(INSTALLED)  ## How probable images are, and where they are not: CKPT=file or run IMAGES="files or folders" [OUT=scores] [PSNR=20] [RESIZE=1] [NORMALIZE=1]
	@$(if $(and $(CKPT),$(IMAGES)),,echo "error: say which model and which images with CKPT=… IMAGES=…" >&2; exit 2;) \
	$(PY) -m dualscore score "$(call home,$(CKPT))" $(call paths,$(IMAGES)) \
		$(if $(OUT),--out "$(call home,$(OUT))") $(if $(PSNR),--psnr $(PSNR)) $(streaming)

ood: $(INSTALLED)  ## Tell other images from the model's kind: CKPT=file or run IN="files or folders" OUT="files or folders" [RESULTS=ood] [PSNR="40 20"] [RESIZE=1] [NORMALIZE=1]
	@$(if $(and $(CKPT),$(IN),$(OUT)),,echo "error: say which model and which images with CKPT=… IN=… OUT=…" >&2; exit 2;) \
	$(PY) -m dualscore ood "$(call home,$(CKPT))" --in $(call paths,$(IN)) --out $(call paths,$(OUT)) \
		$(if $(RESULTS),--results "$(call home,$(RESULTS))") $(if $(PSNR),--psnr $(PSNR)) $(streaming)

export: $(INSTALLED)  ## A model for others, without run and data: CKPT=file or run [OUT=model] [LICENCE="CC BY 4.0"]
	@$(if $(CKPT),,echo "error: say which model with CKPT=…" >&2; exit 2;) \
	$(PY) -m dualscore export "$(call home,$(CKPT))" $(if $(OUT),--out "$(call home,$(OUT))") $(if $(LICENCE),--licence "$(LICENCE)")

convert: $(INSTALLED)  ## A released checkpoint as a model: CKPT=file IMAGES="files or folders" [OUT=converted] [RESIZE=1] [LICENCE="…"]
	@$(if $(CKPT),,echo "error: say which released checkpoint with CKPT=…" >&2; exit 2;) \
	$(PY) -m dualscore convert "$(call home,$(CKPT))" $(if $(IMAGES),--images $(call paths,$(IMAGES))) \
		$(if $(OUT),--out "$(call home,$(OUT))") $(if $(filter-out 0,$(RESIZE)),--resize) $(if $(LICENCE),--licence "$(LICENCE)")

draw_options = $(if $(COUNT),--count $(COUNT)) $(if $(METHOD),--method $(METHOD)) $(if $(STEPS),--steps $(STEPS)) \
	$(if $(OUT),--out "$(call home,$(OUT))")
draw_images = $(if $(and $(CKPT),$(IMAGES)),,echo "error: say which model and which images with CKPT=… IMAGES=…" >&2; exit 2;) \
	$(PY) -m dualscore $@ "$(call home,$(CKPT))" $(call paths,$(IMAGES)) \
	$(draw_options) $(if $(filter-out 0,$(RESIZE)),--resize)

sample: $(INSTALLED)  ## Draw images from a model: CKPT=file or run [COUNT=16] [METHOD=metropolis|langevin|flow] [STEPS=200] [OUT=samples]
	@$(if $(CKPT),,echo "error: say which model with CKPT=…" >&2; exit 2;) \
	$(PY) -m dualscore sample "$(call home,$(CKPT))" $(draw_options)

denoise: $(INSTALLED)  ## Add noise to images, draw what they may have been: as sample, and IMAGES="files" [PSNR=20] [RESIZE=1]
	@$(draw_images) $(if $(PSNR),--psnr $(PSNR))

inpaint: $(INSTALLED)  ## Hide pixels of images, draw them anew: as sample, and IMAGES="files" [MASK=mask.png] [RESIZE=1]
	@$(draw_images) $(if $(MASK),--mask "$(call home,$(MASK))")

bench: $(INSTALLED)  ## Speed of training, side by side with plain code: [EXP=imagenet64_dual] [SET="data.batch_size=8"] [OUT=bench.json]
	@set -f; $(PY) benchmarks/bench.py --experiment $(if $(filter file,$(origin EXP)),imagenet64_dual,$(EXP)) $(if $(REPEATS),--repeats $(REPEATS)) \
		$(if $(OUT),--out "$(call home,$(OUT))") $(SET)

figures: $(INSTALLED)  ## The paper's figures and tables of a run: [RUN=runs/EXP] [FIG="3 table1"] [OTHER=another run, for figure 2] [OUT=…]; RUN=energies.npy DIMENSION=4096
	@set -f; $(PY) -m dualscore figures "$(or $(call home,$(RUN)),runs/$(EXP))" $(SET) $(if $(FIG),--only $(FIG)) \
		$(if $(OTHER),--other "$(call home,$(OTHER))") $(if $(DIMENSION),--dimension $(DIMENSION)) $(if $(OUT),--out "$(call home,$(OUT))")

data: $(INSTALLED)  ## Prepare shards: DATASET=imagenet64 SRC=folder OUT=data/imagenet64 [SIZE=…]
	@$(if $(DATASET),,echo "error: say which data set with DATASET=…; see docs/data.md" >&2; exit 2;) \
	$(PY) -m data_prep build $(DATASET) $(if $(SRC),--src "$(call home,$(SRC))") --out "$(or $(call home,$(OUT)),data/$(DATASET)$(SIZE))" \
		$(if $(SIZE),--size $(SIZE))

verify-data: $(INSTALLED)  ## Check shards against their manifest: OUT=data/imagenet64
	@$(if $(OUT),,echo "error: say which data set with OUT=…" >&2; exit 2;) $(PY) -m data_prep verify "$(call home,$(OUT))"

status: $(INSTALLED)  ## List runs: step, bits/dim, speed, time left, state
	@$(PY) -m dualscore status

tensorboard: $(INSTALLED)  ## Dashboards of all runs at http://localhost:6006
	@$(VENV)/bin/tensorboard --logdir runs --port $(or $(PORT),6006)

experiments: $(INSTALLED)  ## List the experiments
	@$(PY) -m dualscore experiments

test: $(INSTALLED)  ## Run every test
	@$(PY) -m pytest -q

torture: $(INSTALLED)  ## Kill a run at random moments and look whether anything is lost: [KILLS=100] [SEED=0]
	@PYTHONPATH=$(CURDIR):$(CURDIR)/src $(PY) tests/torture.py $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

lint: $(INSTALLED)  ## Style, docstrings and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/pydoclint --quiet src data_prep

lock:  ## Write requirements.lock from pyproject.toml (for maintainers)
	@rm -rf .lock && $(PYTHON) -m venv .lock && .lock/bin/pip install --quiet torch==2.13.0
	@.lock/bin/pip install --quiet --disable-pip-version-check ".[data,dev]" setuptools
	@{ echo "# Made by make lock: what the tests run with. torch from PyPI brings CUDA on Linux."; \
	   .lock/bin/pip freeze --all --exclude dualscore --exclude pip | sed -E 's/\+cpu$$//'; } > requirements.lock
	@rm -rf .lock build

clean:  ## Remove the environment and caches; data and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build
