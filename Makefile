# Type `make help`. `make demo` and `make test` install what they need first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format data pocket pocket-figures inherit-figures inherit-sd15 distill-figures \
	distill-throughput distill-sd15 experts-figures experts-sd15 switch-figures

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
	$(BIN)/python -m pytest -n auto

check: setup ## Format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

data: setup ## Fetch and render the drawings that the bundled model learnt from (needs npm)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pocket]'
	$(BIN)/python -m asdm_cli.pocket data

pocket: setup ## Train the bundled model anew; hours, goes on after an interruption
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pocket]'
	$(BIN)/python -m asdm_cli.pocket train
	$(BIN)/python -m asdm_cli.pocket export

FRONTS := runs/inherit-pocket-front-ddim runs/inherit-pocket-front-dpm runs/inherit-pocket-levels
inherit-figures: setup ## Plans against DeepCache and fewer steps on the bundled model; hours on 2 cores
	for run in $(FRONTS); do OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(shell nproc) \
		-m asdm_cli inherit recipes/$${run#runs/}.yaml --overwrite || exit 1; done
	$(BIN)/asdm show $(FRONTS) --out runs/inherit-figures.html --overwrite

inherit-sd15: setup ## What plans save at the real size of SD 1.5 (random weights); slow on a CPU
	$(BIN)/asdm bench recipes/bench-sd15-inherit.yaml --overwrite

STUDENTS := runs/distill-pocket-students
TOGETHER := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(shell nproc) -m asdm_cli
distill-figures: setup data/train.tar ## A-SDM's three steps on the bundled model: distil, assemble, distil again; an hour
	for set in base small tiny; do $(BIN)/asdm prune recipes/prune-pocket-$$set.yaml --overwrite || exit 1; done
	$(TOGETHER) distill recipes/distill-pocket-students.yaml --overwrite
	for layers in 1122 1222 2211; do \
		levels=$$(echo $$layers | sed 's/1/base,/g; s/2/original,/g; s/,$$//'); \
		$(BIN)/asdm assemble recipes/assemble-pocket-1122.yaml --set donors.base=$(STUDENTS)/students/base \
			--set "levels=[$$levels]" --out runs/assembled-$$layers --overwrite || exit 1; done
	$(TOGETHER) distill recipes/distill-pocket-assembled.yaml --overwrite
	$(BIN)/asdm bench recipes/bench-pocket-distilled.yaml --overwrite
	$(TOGETHER) eval recipes/eval-pocket-distilled.yaml --overwrite
	$(BIN)/asdm show runs/bench-pocket-distilled runs/eval-pocket-distilled --out runs/distill-figures.html --overwrite

data/train.tar: | setup
	$(MAKE) data

distill-throughput: setup ## What a training step costs beside its bare work and beside a plain loop
	for set in base small tiny; do $(BIN)/asdm prune recipes/prune-pocket-$$set.yaml --overwrite || exit 1; done
	$(BIN)/python scripts/distill_throughput.py

distill-sd15: setup ## Pruned and assembled UNets, and a training step, at the real size of SD 1.5 (random weights)
	$(BIN)/asdm bench recipes/bench-sd15-assembled.yaml --dtype bfloat16 --overwrite
	$(BIN)/python scripts/distill_throughput.py sd15

EXPAND := $(BIN)/asdm condconv-expand recipes/condconv-pocket-base.yaml --overwrite --set model
BASE := $(STUDENTS)/students/base
experts-figures: setup ## Expert convolutions on the bundled model (after distill-figures); an hour
	for count in 2 4 8; do \
		$(EXPAND)=$(BASE) --set expand.experts=$$count --out runs/condconv/base-$$count-time || exit 1; \
		$(EXPAND)=$(BASE) --set expand.experts=$$count --set expand.router=features \
			--out runs/condconv/base-$$count || exit 1; done
	$(EXPAND)=$(BASE) --set expand.router=features --set expand.start=inherited --set expand.share=0.05 \
		--out runs/condconv/base-4-inherited
	$(EXPAND)=runs/assembled-1122 --out runs/condconv/1122-4-time
	$(EXPAND)=runs/assembled-1122 --set expand.router=features --out runs/condconv/1122-4
	$(TOGETHER) distill recipes/distill-pocket-experts.yaml --overwrite
	$(BIN)/asdm bench recipes/bench-pocket-experts.yaml --overwrite
	$(TOGETHER) eval recipes/eval-pocket-experts.yaml --overwrite
	$(BIN)/asdm show runs/bench-pocket-experts runs/eval-pocket-experts --out runs/experts-figures.html --overwrite

experts-sd15: setup ## What mixing kernels costs at the real size of SD 1.5 (random weights)
	$(BIN)/asdm bench recipes/bench-sd15-experts.yaml --overwrite

SWITCHED := runs/switch-pocket-search runs/switch-pocket-everything
switch-figures: setup ## Several UNets in one generation, searched and by hand (after distill-figures); an hour
	for run in $(SWITCHED); do $(TOGETHER) switch recipes/$${run#runs/}.yaml --overwrite || exit 1; done
	$(BIN)/asdm show $(SWITCHED) --out runs/switch-figures.html --overwrite

HARDWARE ?= $(shell nproc) CPU cores
pocket-figures: setup ## Measure the bundled model and renew its card and sample sheet
	$(BIN)/pip install --quiet -c constraints.txt -e '.[pocket]'
	$(BIN)/asdm eval recipes/eval-pocket-figures.yaml --overwrite
	$(BIN)/python -m asdm_cli.pocket card runs/eval-pocket-figures --hardware "$(HARDWARE)"
