# Type `make help`. `make demo` and `make test` install what they need first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest check format docs data pocket pocket-figures tables table1 table2 table3 table4 table5 compression \
	hours costs targets results inherit-figures less throughput gpu

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install asdm and its tools into .venv

# torch first and alone, so that another build of it can be chosen: make setup TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asdm needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,features,peers]'
	@touch $@

demo: setup ## Prune the bundled model, measure both side by side, and write one page of it
	$(BIN)/asdm prune recipes/prune-pocket-base.yaml --overwrite
	$(BIN)/asdm bench recipes/bench-pocket.yaml --overwrite
	$(BIN)/asdm eval recipes/eval-pocket.yaml --overwrite
	$(BIN)/asdm show runs/bench-pocket runs/eval-pocket --out runs/demo.html --overwrite
	@printf '\nOpen it in a browser: %s/runs/demo.html\n' "$(CURDIR)"

test: setup ## Run the tests
	$(BIN)/python -m pytest -n auto --dist loadscope

test-oldest: ## Run the tests with the oldest versions that are allowed, in .venv-oldest (fetches another torch)
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet -c constraints-oldest.txt -e '.[dev,features,peers]'
	.venv-oldest/bin/python -m pytest -n auto --dist loadscope

check: setup ## Format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## Write docs/recipes.md anew, from the recipe classes
	$(BIN)/asdm schema --markdown > docs/recipes.md

data: setup ## Fetch and render the drawings that the bundled model learnt from (needs npm)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pocket]'
	$(BIN)/python -m pocket data

pocket: setup ## Train the bundled model anew; hours, goes on after an interruption
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pocket]'
	$(BIN)/python -m pocket train
	$(BIN)/python -m pocket export judges
	$(BIN)/python -m pocket export generator

# The paper's sections as tables, on the bundled model. On your own: make table1 MODEL=PATH DATA='shards/*.tar' PROMPTS=coco.tar
# Finished stages are kept in runs/stages and not run again; an interrupted table goes on.
MODEL ?= pocket
CLIP ?= own
HELD_OUT ?= null
SCALE ?= full
ifeq ($(filter full short smoke,$(SCALE)),)
$(error SCALE=$(SCALE): must be full, short or smoke)
endif
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
PROCESSES ?= $(if $(filter-out 0,$(GPUS)),$(GPUS),$(shell nproc))
space := $() $()
one = $(subst $(space),§,$(1))
set = $(foreach pair,$(1),--set 'inputs.$(subst §,$(space),$(pair))')
TRAINING := table1 table2 table3 table4 compression
# SCALE=smoke: everything runs, nothing is worth reading; a minute each.
smoke := limit=6 steps=4 repeats=1
smoke_training := train_steps=3 warmup=1 batch=4 per_prompt=1
smoke_table1 := fewer=[3] short_steps=2 long_steps=4
smoke_table2 := fewer=[3] again_steps=2 half_steps=2 early_steps=2 time_steps=3 explore_prompts=1
smoke_table3 := fewer=[3] again_steps=2
smoke_table4 := shares=[0,0.5] budgets=[0.8] search_prompts=2
smoke_table5 := few=3 front_limit=7 front_per_prompt=1 modes=[uniform] intervals=[2]
smoke_compression := fewer=[3] again_steps=2 half_steps=2 time_steps=3 experts_time_steps=3 drawn_steps=2
# SCALE=short: a third of the steps on half the batch, a quarter of the pictures; hours of one core in all.
short := limit=64 repeats=3
short_training := train_steps=600 batch=16
short_table1 := short_steps=150 long_steps=1200
short_table2 := again_steps=300 half_steps=150 early_steps=75 time_steps=330 explore_prompts=8
short_table3 := again_steps=300
short_table4 := per_prompt=1 search_prompts=4
short_table5 := limit=16 front_limit=64 front_per_prompt=1
short_compression := again_steps=300 half_steps=300 time_steps=330 experts_time_steps=348
# Of your own model: COCO-30K as BK-SDM evaluates, with FID's network; 1,000 prompts where many ways draw them.
# CLIP= names a CLIP's directory, HELD_OUT= shards for losses on what is not learnt from.
JUDGED := limit=30000 sampler=pndm features=inception metrics=[kid,fd,is,clip_score,psnr] clip=$(call one,$(CLIP))
TRAINED := train_steps=50000 batch=256 lr=5.0e-5 held_out=$(call one,$(HELD_OUT)) per_prompt=1
OWN_table1 := $(JUDGED) short_steps=12500 long_steps=200000
OWN_table2 := $(JUDGED) again_steps=25000 half_steps=12500 early_steps=6250 time_steps=27500
OWN_table3 := $(JUDGED) again_steps=25000
OWN_compression := $(JUDGED) again_steps=25000 half_steps=25000 time_steps=27500 experts_time_steps=29000 \
	base_macs=0.652 small_macs=0.636 tiny_macs=0.605
OWN_table4 := limit=1000 metrics=[psnr,kid]
OWN_table5 := limit=1000 front_limit=30000 front_per_prompt=1 front_metrics=[psnr,fd] features=inception
chosen = model=$(call one,$(MODEL)) $(if $(PROMPTS),prompts=$(call one,$(PROMPTS))) \
	$(if $(filter $(1),$(TRAINING)),$(if $(DATA),data=$(call one,$(DATA)))) \
	$(if $(filter-out pocket,$(MODEL)),guidance=7.5 $(OWN_$(1)) $(if $(filter $(1),$(TRAINING)),$(TRAINED))) \
	$($(SCALE)) $(if $(filter $(1),$(TRAINING)),$($(SCALE)_training)) $($(SCALE)_$(1))
place = $(if $(filter smoke,$(SCALE)),--out runs/smoke/$(1))
launch = $(if $(filter-out 1,$(PROCESSES)),--launch "env OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(PROCESSES)")

# Of the bundled model the record is kept in docs/results, and pages are made of it.
kept = $(if $(filter full-pocket short-pocket,$(SCALE)-$(MODEL)),$(BIN)/python -m scripts.results keep $(1) runs/$(1))

tables: table1 table2 table3 table4 table5 ## All five tables in a queue that goes on where it was stopped; make hours says how long
hours: setup ## How long the tables take here, each of them (after make tables compression SCALE=smoke)
	$(BIN)/python -m scripts.hours

table1: ## Compressed UNets: Base, Small, Tiny
table2: ## Model assembly: its combinations, frozen or not
table3: ## Expert convolutions (ME-CondConv)
table4: ## Several UNets in one generation
table5: ## Feature inheritance: level x mode x interval
compression: ## Every way to a smaller UNet in one table, at equal steps and at equal time
table1 table2 table3 table4 table5 compression: setup
	$(BIN)/asdm run recipes/tables/$@.yaml $(call set,$(call chosen,$@)) $(call place,$@) $(launch) --overwrite
	$(call kept,$@)

results: setup ## Write docs/results and every figure that pages show of it anew, from the kept records
	$(BIN)/python -m scripts.results

costs: setup ## What SD 1.5, 2.1 and XL cost at their real size (random weights); hours on a CPU with bfloat16
	$(BIN)/asdm run recipes/tables/costs.yaml --overwrite
	$(BIN)/python -m scripts.results keep costs runs/costs

targets: setup ## Twenty-one targets on prompts that nothing was tuned on; hours of one core
	OMP_NUM_THREADS=1 $(BIN)/asdm run recipes/tables/targets.yaml --overwrite
	$(BIN)/python -m scripts.results keep targets runs/targets
	OMP_NUM_THREADS=1 $(BIN)/asdm inherit recipes/tables/exhaustive.yaml --overwrite
	$(BIN)/python -m scripts.results keep exhaustive runs/exhaustive

FRONTS := runs/inherit-pocket-front-ddim runs/inherit-pocket-front-dpm \
	runs/inherit-pocket-calibrated-ddim runs/inherit-pocket-calibrated-dpm
inherit-figures: setup ## Plans against DeepCache and fewer steps, two samplers; hours on 2 cores
	for run in $(FRONTS); do OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(PROCESSES) \
		-m asdm_cli inherit recipes/$${run#runs/}.yaml --overwrite || exit 1; done
	$(BIN)/asdm show $(FRONTS) --out runs/inherit-figures.html --overwrite

less: setup ## Distilling from pictures that the teacher draws, and under captions of others; an hour on 2 cores
	$(BIN)/asdm run recipes/tables/less.yaml --overwrite

throughput: setup ## What a training step costs beside its bare work and beside a plain loop
	for set in base small tiny; do $(BIN)/asdm prune recipes/prune-pocket-$$set.yaml --overwrite || exit 1; done
	$(BIN)/python -m scripts.distill_throughput

# On a machine without a network, with its own torch, and the wheels of scripts/gpu-wheels.txt installed: GPU_PYTHON=python3
MINUTES ?= 9
PRESET ?= train
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),setup) ## What needs a GPU, in MINUTES: PRESET=train (bundled model, tests, SD 1.5) or measure
	$(GPU_PYTHON) -m scripts.gpu --minutes $(MINUTES) --preset $(PRESET)

HARDWARE ?= $(shell nproc) CPU cores
pocket-figures: setup ## Measure the bundled model and renew its card and sample sheet
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pocket]'
	$(BIN)/asdm eval recipes/eval-pocket-figures.yaml --overwrite
	$(BIN)/python -m pocket card runs/eval-pocket-figures --hardware "$(HARDWARE)" --remarks "$(REMARKS)"
