# One environment in .venv, made by the first target that needs it and again when the text of pyproject.toml changes.
#   PYTHON       interpreter that makes the environment (3.11 to 3.13)
#   TORCH_INDEX  package index for torch alone, where the default one would bring another build than you want
#   EXTRAS       groups of pyproject.toml installed beside the core
#   SET          benchmark tables of `make results`: names under $$ONEREC_DATA or folders; configs/tables/NAME.yaml, where
#                there is one, tells how such a table is read and split
#   SEEDS        further seeds of `make results` beside 0
#   PROCESSES    processes of `make demo`, `make align` and `make results`, started by torchrun where there are several
#   BUNDLE       folder that `make serve` serves
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
EXTRAS ?= dev,serve,traces,deepspeed,rl
SET ?= amazon14_beauty
SEEDS ?=
PROCESSES ?= 1
BUNDLE ?= runs/demo/bundle
PYTEST_ARGS ?=

BIN := .venv/bin
LAUNCH := $(BIN)/$(if $(filter-out 1,$(PROCESSES)),torchrun --nproc-per-node $(PROCESSES),python)
INSTALLED := .venv/.installed-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help install test lint demo demo-smoke align results record serve clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: $(INSTALLED) ## make .venv with everything the project needs

# torch goes first and alone: its exact version decides which build comes, and the rest then finds it in place.
$(INSTALLED):
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --editable ".[$(EXTRAS)]"
	rm -f .venv/.installed-*
	touch $@

test: $(INSTALLED) ## run the tests (PYTEST_ARGS="-k trie" for some of them)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(INSTALLED) ## train, evaluate and bundle a model on the embedded data, in runs/demo
	$(LAUNCH) train.py --config configs/demo.yaml --fallback configs/demo-world.yaml

demo-smoke: $(INSTALLED) ## the same path in its smallest form, in runs/smoke
	rm -rf runs/smoke
	$(BIN)/python train.py --config configs/smoke.yaml
	$(BIN)/python train.py --config configs/smoke.yaml --stage align

align: $(INSTALLED) ## tune the demo's model with rewards, in runs/demo/align
	$(LAUNCH) train.py --config configs/demo.yaml --stage align

results: $(INSTALLED) ## train and evaluate the recipe on tables (SET="NAME_OR_FOLDER …", SEEDS="1 2"), keep and print results/
	set -e; for set in $(SET); do run=$$(basename $$set); runs=; for seed in 0 $(SEEDS); do \
		name=$$run; test $$seed = 0 || name=$$run-$$seed; runs="$$runs runs/$$name"; \
		config=configs/tables/$$run.yaml; test -f $$config || config=configs/recipe.yaml; \
		$(LAUNCH) train.py --config $$config \
			--set data.path=$$set --set name=$$name --set seed=$$seed; \
	done; $(BIN)/python -m onerec.evaluation $$runs --out results/$$run; cp runs/$$run/config.yaml results/$$run/; done
	$(BIN)/python -m onerec.evaluation.record results

record: $(INSTALLED) ## print what results/ holds, published figures beside ours
	$(BIN)/python -m onerec.evaluation.record results

serve: $(INSTALLED) ## answer requests from the demo's bundle (BUNDLE=runs/NAME/bundle for another)
	$(BIN)/python serve.py --bundle $(BUNDLE)

clean: ## remove the environment and caches; runs/ and results/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
