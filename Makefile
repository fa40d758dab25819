# Two commands do everything on a fresh machine: `make train` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

EXP ?= patches_dual
# Values are what was typed: make would take $ for the beginning of a variable's name.
$(foreach name,SRC OUT CKPT RUN OTHER MASK RUNS RESULTS COMPARE LOG NAME LICENCE SBATCH IMAGES IN SET ARGS,\
	$(if $(filter command environment,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
# Lists are words of the shell. Without quotes no sign in them is an order to it: neither a comment nor a variable,
# nor another command. Quotes are the shell's own.
hash := \#
open := (
close := )
signs = $$ ` ; & | < > $(hash) $(open) $(close)
escaped = $(if $(2),$(call escaped,$(subst $(firstword $(2)),\$(firstword $(2)),$(1)),$(wordlist 2,99,$(2))),$(1))
listed = $(if $(findstring ',$(1))$(findstring ",$(1)),$(1),$(call escaped,$(1),$(signs)))
settings = $(call listed,$(SET))
override ARGS := $(call listed,$(ARGS))
# A text for the shell, whole. The shell does not expand ~ behind SRC= everywhere, nor inside quotes.
start := <start>
text = '$(subst ','\'',$(subst $(start),,$(subst $(start)~/,$(HOME)/,$(start)$(1))))'
# Lists of paths go to the shell as they are written, so that quotes keep names with spaces whole.
paths = $(subst '~/,'$(HOME)/,$(subst "~/,"$(HOME)/,$(listed)))
streaming = $(if $(filter-out 0,$(RESIZE)),--resize) $(if $(filter-out 0,$(NORMALIZE)),--normalize)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO := data/demo16/manifest.json
DEMO32 := data/demo32/manifest.json
# What the demo's experiments learn from is made where it is missing.
half = $(patsubst patches_%,%,$(filter patches_a patches_b,$(EXP)))
SHARDS = $(if $(dry),,$(made))
made = $(if $(half),data/demo_$(half)/manifest.json,$(if $(filter patches_%,$(EXP)),$(DEMO))) $(if $(filter patches32_%,$(EXP)),$(DEMO32))

# What every command takes: QUIET=1, LOG=file, DRY=1, and ARGS="…", options as dualscore's help names them.
# DUALSCORE_VIA has the commands that are suggested be make's.
dry := $(filter-out 0,$(DRY))
general = $(if $(filter-out 0,$(QUIET)),--quiet) $(if $(LOG),--log-file $(call text,$(LOG))) $(if $(dry),--dry-run)
dualscore = DUALSCORE_VIA=make $(PY) -m dualscore $(general)
prepare = DUALSCORE_VIA=make $(PY) -m data_prep $(general)
# Of the variables that a target needs, those that were not given: an error that names them alone.
which_CKPT = which model
which_IMAGES = which images
which_IN = which images of the model's kind
which_OUT = which other images
missing = $(subst =… which,=… and which,$(strip $(foreach name,$(1),$(if $($(name)),,$(which_$(name)) with $(name)=…))))
need = $(if $(call missing,$(1)),echo "error: say $(call missing,$(1))" >&2; exit 2;)
# Of targets that are no commands of dualscore's, DRY=1 shows what would be run.
show = $(if $(dry),echo "would run:")

.PHONY: help install train submit study evaluate score noise measure ood compress decompress export convert sample denoise inpaint bench gpu-report figures data verify-data status tensorboard screenshots experiments examples newcomer test test-long test-all test-wheel test-oldest test-newest torture faults lint lock clean

help:  ## Print the targets
	@echo "make TARGET [EXP=$(EXP)] [SET=\"key=value …\"]"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  %-17s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## Create the environment in .venv (done by the others when needed)

$(INSTALLED): requirements.lock pyproject.toml setup.py
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating the environment in $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

data/demo%/manifest.json: | $(INSTALLED)
	@$(prepare) build demo --out data/demo$* --size $*

data/demo_%/manifest.json: | $(INSTALLED)
	@$(prepare) build demo_$* --out data/demo_$*

train: $(INSTALLED) $(SHARDS)  ## Train EXP, or go on where it stopped; FRESH=1 anew beside, NAME=… another run
	@set -f; $(dualscore) train $(EXP) $(settings) $(if $(NAME),--name $(call text,$(NAME))) $(if $(filter-out 0,$(FRESH)),--fresh) $(ARGS)

submit: $(INSTALLED) $(if $(SWEEP),,$(SHARDS))  ## Give EXP (or SWEEP=name) to Slurm: NODES=1 GPUS=8 TIME=24:00:00 PARTITION=…; DRY=1 prints the script
	@set -f; $(dualscore) submit $(if $(SWEEP),$(SWEEP) --sweep,$(EXP)) $(settings) $(if $(NAME),--name $(call text,$(NAME))) \
		$(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) $(if $(TASKS),--tasks $(TASKS)) $(if $(CPUS),--cpus $(CPUS)) \
		$(if $(TIME),--time $(TIME)) $(if $(PARTITION),--partition $(PARTITION)) $(if $(SBATCH),--sbatch=$(call text,$(SBATCH))) $(ARGS)

study: $(INSTALLED) $(if $(dry),,$(DEMO) $(DEMO32))  ## Compare variants of an experiment, or go on: STUDY=name of a file in studies/
	@$(if $(STUDY),,echo "error: say which study with STUDY=…; there are: $(basename $(notdir $(wildcard studies/*.yaml)))" >&2; exit 2;) \
	$(dualscore) study $(STUDY) $(ARGS)

evaluate: $(INSTALLED)  ## Measure EXP's best checkpoint, or CKPT=file
	@set -f; $(dualscore) evaluate $(EXP) $(settings) $(if $(NAME),--name $(call text,$(NAME))) $(if $(CKPT),--checkpoint $(call text,$(CKPT))) $(ARGS)

score: $(INSTALLED)  ## How probable images are, and where they are not: IMAGES="files, folders, tars" [CKPT=file or run; else the models in the box] [OUT=scores] [BOUND=16] [PART=K/N] [PSNR=20] [RESIZE=1] [NORMALIZE=1]
	@$(call need,IMAGES) \
	$(dualscore) score $(if $(CKPT),$(call text,$(CKPT))) $(call paths,$(IMAGES)) \
		$(if $(OUT),--out $(call text,$(OUT))) $(if $(BOUND),--bound $(BOUND)) $(if $(PART),--part $(PART)) $(if $(PSNR),--psnr $(PSNR)) $(streaming) $(ARGS)

noise: $(INSTALLED)  ## How noisy photographs are: IMAGES="files, folders, tars" [CKPT=file or run; else the models in the box] [OUT=noise]
	@$(call need,IMAGES) \
	$(dualscore) noise $(if $(CKPT),$(call text,$(CKPT))) $(call paths,$(IMAGES)) $(if $(OUT),--out $(call text,$(OUT))) $(ARGS)

measure: $(INSTALLED)  ## The likelihood of any denoiser: CKPT="run, folder of diffusers or file.py:name" IMAGES="files or folders" [COMPARE="others"] [OUT=measured] [RESIZE=1]
	@set -f; $(call need,CKPT IMAGES) \
	$(dualscore) measure $(call text,$(CKPT)) $(call paths,$(IMAGES)) $(if $(COMPARE),--compare $(call paths,$(COMPARE))) \
		$(if $(OUT),--out $(call text,$(OUT))) $(if $(filter-out 0,$(RESIZE)),--resize) $(ARGS)

ood: $(INSTALLED)  ## Tell other images from the model's kind: CKPT=file or run IN="files or folders" OUT="files or folders" [RESULTS=ood] [PSNR="40 20"] [RESIZE=1] [NORMALIZE=1]
	@$(call need,CKPT IN OUT) \
	$(dualscore) ood $(call text,$(CKPT)) --in $(call paths,$(IN)) --out $(call paths,$(OUT)) \
		$(if $(RESULTS),--results $(call text,$(RESULTS))) $(if $(PSNR),--psnr $(PSNR)) $(streaming) $(ARGS)

compress: $(INSTALLED)  ## Images as a file, from which the same pixels come: IMAGES="files, folders, tars" [CKPT=file or run; else the models in the box] [OUT=images.dual] [LEVELS=100]
	@$(call need,IMAGES) \
	$(dualscore) compress $(if $(CKPT),$(call text,$(CKPT))) $(call paths,$(IMAGES)) \
		$(if $(OUT),--out $(call text,$(OUT))) $(if $(LEVELS),--levels $(LEVELS)) $(ARGS)

decompress: $(INSTALLED)  ## The images of such a file: FILE=images.dual [OUT=decompressed]
	@$(if $(FILE),,echo "error: say which file with FILE=…" >&2; exit 2;) \
	$(dualscore) decompress $(call text,$(FILE)) $(if $(OUT),--out $(call text,$(OUT))) $(ARGS)

export: $(INSTALLED)  ## A model for others, without run and data: CKPT=file or run [OUT=model] [LICENCE="CC BY 4.0"]
	@$(call need,CKPT) \
	$(dualscore) export $(call text,$(CKPT)) $(if $(OUT),--out $(call text,$(OUT))) $(if $(LICENCE),--licence $(call text,$(LICENCE))) $(ARGS)

convert: $(INSTALLED)  ## A released checkpoint as a model: CKPT=file IMAGES="files or folders" [OUT=converted] [RESIZE=1] [LICENCE="…"]
	@$(if $(CKPT),,echo "error: say which released checkpoint with CKPT=…" >&2; exit 2;) \
	$(dualscore) convert $(call text,$(CKPT)) $(if $(IMAGES),--images $(call paths,$(IMAGES))) \
		$(if $(OUT),--out $(call text,$(OUT))) $(if $(filter-out 0,$(RESIZE)),--resize) $(if $(LICENCE),--licence $(call text,$(LICENCE))) $(ARGS)

draw_options = $(if $(COUNT),--count $(COUNT)) $(if $(METHOD),--method $(METHOD)) $(if $(STEPS),--steps $(STEPS)) \
	$(if $(OUT),--out $(call text,$(OUT)))
draw_images = $(call need,CKPT IMAGES) \
	$(dualscore) $@ $(call text,$(CKPT)) $(call paths,$(IMAGES)) \
	$(draw_options) $(if $(filter-out 0,$(RESIZE)),--resize)

sample: $(INSTALLED)  ## Draw images from a model: CKPT=file or run [COUNT=16] [METHOD=metropolis|langevin|flow] [STEPS=200] [OUT=samples]
	@$(call need,CKPT) \
	$(dualscore) sample $(call text,$(CKPT)) $(draw_options) $(ARGS)

denoise: $(INSTALLED)  ## Draw what noisy images may have been: as sample, and IMAGES="files" [PSNR=20: adds noise first] [RESIZE=1]
	@$(draw_images) $(if $(PSNR),--psnr $(PSNR)) $(ARGS)

inpaint: $(INSTALLED)  ## Hide pixels of images, draw them anew: as sample, and IMAGES="files" [MASK=mask.png] [RESIZE=1]
	@$(draw_images) $(if $(MASK),--mask $(call text,$(MASK))) $(ARGS)

bench: $(INSTALLED)  ## Speed of training, side by side with plain code: [EXP=imagenet64_dual] [SET="data.batch_size=8"] [OUT=bench.json]
	@set -f; $(show) $(PY) benchmarks/bench.py --experiment $(if $(filter file,$(origin EXP)),imagenet64_dual,$(EXP)) $(if $(REPEATS),--repeats $(REPEATS)) \
		$(if $(OUT),--out $(call text,$(OUT))) $(settings) $(ARGS)

gpu-report: $(INSTALLED)  ## Everything that can be asked of a GPU, unattended; interrupted, it goes on: [MINUTES=25] [OUT=gpu-report] [COMPARE=other/report.json]
	@$(show) $(PY) -m benchmarks.gpu $(if $(MINUTES),--minutes $(MINUTES)) $(if $(OUT),--out $(call text,$(OUT))) \
		$(if $(COMPARE),--compare $(call text,$(COMPARE))) $(ARGS)

figures: $(INSTALLED)  ## The paper's figures and tables of a run: [RUN=runs/EXP] [FIG="3 table1"] [OTHER=another run, for figure 2] [OUT=…]; RUN=energies.npy DIMENSION=4096
	@set -f; $(dualscore) figures $(call text,$(or $(RUN),runs/$(EXP))) $(settings) $(if $(FIG),--only $(FIG)) \
		$(if $(OTHER),--other $(call text,$(OTHER))) $(if $(DIMENSION),--dimension $(DIMENSION)) $(if $(OUT),--out $(call text,$(OUT))) $(ARGS)

data: $(INSTALLED)  ## Prepare shards: DATASET=imagenet64 SRC=folder OUT=data/imagenet64 [SIZE=…]
	@$(if $(DATASET),,echo "error: say which data set with DATASET=…; see docs/data.md" >&2; exit 2;) \
	$(prepare) build $(DATASET) $(if $(SRC),--src $(call text,$(SRC))) --out $(call text,$(or $(OUT),data/$(DATASET)$(SIZE))) \
		$(if $(SIZE),--size $(SIZE)) $(ARGS)

examples: $(INSTALLED)  ## Pictures to try a model on, held-out photographs and crops, into examples/: [SIZE=16]
	@$(show) $(PY) -m data_prep.examples $(if $(SIZE),--size $(SIZE)) $(ARGS)

verify-data: $(INSTALLED)  ## Check shards against their manifest: OUT=data/imagenet64
	@$(if $(OUT),,echo "error: say which data set with OUT=…" >&2; exit 2;) $(prepare) verify $(call text,$(OUT)) $(ARGS)

status: $(INSTALLED)  ## List runs: step, bits/dim, speed, time left, state
	@$(dualscore) status $(ARGS)

# The fast loader leaves out what curves say of themselves.
port = $(or $(PORT),6006)
tensorboard: $(INSTALLED)  ## Dashboards of all runs: opens on http://localhost:6006/#custom_scalars [PORT=6006]
	@[ "$(port)" -ge 1 ] 2>/dev/null && [ "$(port)" -le 65535 ] || { echo "error: PORT=$(port): must be a number up to 65535" >&2; exit 2; }
	@$(if $(dry),true,! (: 3<>"/dev/tcp/localhost/$(port)") 2>/dev/null) \
		|| { echo "error: port $(port) is taken, perhaps by another make tensorboard; take another with PORT=$$(($(port) + 1))" >&2; exit 1; }
	@echo "open http://localhost:$(port)/#custom_scalars&_smoothingWeight=0"
	@echo "  or #images  #histograms  #text  #hparams; docs/dashboards.md says what to look for; Ctrl-C ends it"
	@$(if $(dry),,mkdir -p runs;) $(show) $(VENV)/bin/tensorboard --load_fast=false --logdir runs --port $(port) $(ARGS)

screenshots: $(INSTALLED)  ## The pictures of docs/dashboards.md, for maintainers: RUNS=folder of the three runs it names
	@$(if $(RUNS),,echo "error: say which runs with RUNS=…; see benchmarks/screenshots.py" >&2; exit 2;) $(show) $(PY) benchmarks/screenshots.py $(call text,$(RUNS))

experiments: $(INSTALLED)  ## List the experiments
	@$(dualscore) experiments $(ARGS)

# Each process has its share of the tests, and takes from another one when it is done.
pytest = $(PY) -m pytest -q -n auto --dist worksteal
test: $(INSTALLED)  ## Run the tests, on all cores
	@$(show) $(pytest) -m "not long" $(ARGS)

test-long: $(INSTALLED)  ## Run the tests that take long, or need Slurm, a browser, other shells
	@$(show) $(pytest) -m long $(ARGS)

test-all: test test-long  ## Run every test

newcomer:  ## Walk through the README in a fresh clone with an environment of its own: about ten minutes
	@$(show) $(PYTHON) tests/newcomer.py

test-wheel: $(INSTALLED)  ## Install the wheel with all its dependencies, from the network, in a clean environment, and use it: [TORCH=its version]
	@$(show) $(PY) tests/installed.py $(if $(TORCH),--torch $(TORCH))

test-oldest:  ## Tests with every direct dependency at its lower bound, in .venv-oldest: [WITH="torch==…"]
	@$(show) $(PYTHON) .ci/versions oldest $(WITH)

test-newest:  ## Tests with the newest version of every dependency, in .venv-newest: [WITH="torch==2.13.0"]
	@$(show) $(PYTHON) .ci/versions newest $(WITH)

torture: $(INSTALLED)  ## Kill a run at random moments and look whether anything is lost: [KILLS=100] [SEED=0]
	@$(show) env PYTHONPATH=$(CURDIR):$(CURDIR)/src $(PY) tests/torture.py $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

faults: $(INSTALLED)  ## Type commands under what people run into, at random, and look what is lost in silence: [COMBINATIONS=300] [SEED=0]
	@$(show) env PYTHONPATH=$(CURDIR):$(CURDIR)/src $(PY) tests/faults.py $(if $(COMBINATIONS),--combinations $(COMBINATIONS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(INSTALLED)  ## Style, docstrings and types
	@$(show) $(VENV)/bin/ruff check .
	@$(show) $(VENV)/bin/ruff format --check .
	@$(show) $(VENV)/bin/mypy
	@$(show) $(VENV)/bin/pydoclint --quiet src data_prep

lock:  ## Write requirements.lock from pyproject.toml (for maintainers)
	@rm -rf .lock && $(PYTHON) -m venv .lock && .lock/bin/pip install --quiet torch==2.13.0
	@.lock/bin/pip install --quiet --disable-pip-version-check ".[data,codecs,coding,diffusers,dev]" setuptools setuptools-scm
	@{ echo "# Made by make lock: what the tests run with. torch from PyPI brings CUDA on Linux."; \
	   .lock/bin/pip freeze --all --exclude dualscore --exclude pip | sed -E 's/\+cpu$$//'; } > requirements.lock
	@rm -rf .lock build

clean:  ## Remove the environment and caches; data and runs stay
	$(show) rm -rf $(VENV) .venv-oldest .venv-newest .pytest_cache .mypy_cache .ruff_cache build
