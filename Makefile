# PYTHON chooses the interpreter, VENV the place of the virtual environment:
#   make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Of one test, in seconds; a soak may take long.
LONG_TIMEOUT_S := 3600

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The stamp is younger than both pyproject.toml while the environment is up to date,
# so only a change there (or a missing environment) needs the network.
$(STAMP): pyproject.toml sdk/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
		echo "make: Ritornello needs Python 3.11 to 3.14, but '$(PYTHON)' is:" \
			"$$($(PYTHON) --version 2>&1 || true). Choose one with PYTHON=..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -e 'sdk[cli]'
	@touch $@

.PHONY: venv
venv: $(STAMP) ## Make the virtual environment and install everything into it

# CHAOS=1 kills and pauses nodes now and then.
CHAOS ?=
ifneq ($(filter-out 0 1 no yes false true,$(CHAOS)),)
$(error CHAOS is '$(CHAOS)'; it is 1, or 0)
endif
.PHONY: run
run: $(STAMP) ## Start three nodes, deliver webhooks with them, serve until Ctrl-C
	@$(BIN)/python -m examples.webhooks $(if $(filter 1 yes true,$(CHAOS)),--chaos)

.PHONY: test
test: lint ## Lint, then run the tests
	$(BIN)/python -m pytest -n auto

.PHONY: test-long
test-long: $(STAMP) ## Run all tests, the long soaks too, with many more examples
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -n auto -m "" --timeout=$(LONG_TIMEOUT_S)

.PHONY: test-faults
test-faults: $(STAMP) ## Cut the power, fill disks, fail fsyncs (needs root and mounts)
	$(BIN)/python -m pytest -m "faults and not long" --timeout=600

# SEEDS says how many; each is a whole cluster's life of half a second or so.
SEEDS ?= 1000
.PHONY: simulate
simulate: $(STAMP) ## Run SEEDS=1000 random simulations of clusters under faults
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

.PHONY: lint
lint: $(STAMP) ## Check style, formatting, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: $(STAMP) ## Format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(STAMP) ## Write the generated pages of docs/ anew
	$(BIN)/python -m docs.generate

.PHONY: bench
bench: $(STAMP) ## Measure the state machine, a cluster, its front end, and what operators cost
	status=0; \
	for one in state_machine cluster front_end operators; do \
		$(BIN)/python -m benchmarks.$$one || status=$$?; \
	done; \
	exit $$status  # that of the last one that missed its goal

.PHONY: clean
clean: ## Remove what the other targets made, the virtual environment too
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
