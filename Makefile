# `make setup` builds .venv; the other targets build it first if need be.
# Each can be the first command ever run and can be run again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written last, so that an interrupted set-up is continued by the next call.
STAMP := $(VENV)/.setup-complete
DEMO := output/demo
DEMO_RUN := $(BIN)/python train_net.py --config-file configs/shapes/mask_rcnn_snnet_nano.py
# More overrides of the demo's config.
OVERRIDES :=
# Each takes up to 4 GB of memory and one core.
TEST_PROCESSES := 2
PYTEST = $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check
REQUIRE_PYTHON := import sys; sys.exit(sys.version_info < (3, 10))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint

help: ## show this list
	@echo "usage: make TARGET [PYTHON=python3.x]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with everything that is needed
	@echo "$(VENV) is ready."

demo: $(STAMP) ## train the small default on generated scenes and sweep all its stitches
	@echo "== Training (1 of 2); a finished or interrupted one in $(DEMO) is continued"
	$(DEMO_RUN) --resume train.output_dir=$(DEMO) $(OVERRIDES)
	@echo "== Sweeping every stitch (2 of 2)"
	$(DEMO_RUN) --eval-only --resume train.output_dir=$(DEMO) train.init_checkpoint=$(DEMO)/model_final.pth $(OVERRIDES)
	@echo "The results are in $(DEMO)/sweep: stitches.csv, stitches.json, pareto.png, report.html"
	@echo "To try them in a browser: $(BIN)/python -m snnet_vitdet.demo --config-file $(DEMO)/config.yaml"

test: $(STAMP) ## run the tests that take seconds each
	$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## run the other tests: whole trainings, several processes, crashes
	$(PYTEST) -m slow

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

$(STAMP): $(wildcard requirements*.txt) constraints.txt pyproject.toml tools/install_detectron2.py
	@if $(BIN)/python -c '' 2> /dev/null; then \
		echo "== Using the $(VENV) that is there (1 of 4)"; \
	else \
		$(PYTHON) -c '$(REQUIRE_PYTHON)' || { \
			echo "error: '$(PYTHON)' is not Python 3.10 or newer; name one that is, for example:" \
				"make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }; \
		echo "== Making $(VENV) with $$($(PYTHON) --version) (1 of 4)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@$(BIN)/python -c '$(REQUIRE_PYTHON)' || { \
		echo "error: $(VENV) has $$($(BIN)/python --version), but 3.10 or newer is needed;" \
			"delete $(VENV) and run this again" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	@echo "== Installing detectron2 (2 of 4)"
	$(BIN)/python tools/install_detectron2.py
	@echo "== Installing torch and the other packages; the first time, this downloads some GB (3 of 4)"
	$(PIP) install -c constraints.txt -r requirements.txt -r requirements-dev.txt
	@echo "== Checking the environment (4 of 4)"
	$(BIN)/python -m snnet_vitdet.env
	@touch $@
