# Each target makes .venv itself where it is needed, and installs again only after pyproject.toml has
# changed. `demo` needs the plain install; the others add the development tools to the same .venv.

PYTHON ?= python3
ARGS ?=
WORKERS ?= auto
MAX_WORKERS ?= 4

BIN := .venv/bin
RUNS := .venv/.windrow-installed
DEVELOPS := .venv/.windrow-installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

SUPPORT := env PYTHONPATH=tests $(BIN)/python -m support

.DEFAULT_GOAL := help
.PHONY: help demo test check bench faults counterparts kafka influx clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@printf '\n  ARGS="..." is passed on to demo, test and bench; PYTHON=... makes .venv from another Python.\n'

demo: $(RUNS) ## Run the whole loop against the simulated plant
	@$(BIN)/windrow demo $(ARGS)

test: $(DEVELOPS) counterparts ## Run the tests, in parallel (WORKERS=0: in one process)
	@$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses $(MAX_WORKERS) $(ARGS)

check: $(DEVELOPS) ## Lint, formatting, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEVELOPS) ## Run the benchmarks
	@$(BIN)/python -m benchmarks $(ARGS)

faults: $(DEVELOPS) counterparts ## Break a running site on purpose, judge it, write docs/faults.md (half an hour)
	@env PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

# Before the tests, because a first build takes longer than a test may. What cannot be had here is said,
# and its tests are skipped with the reason (in CI they fail).
counterparts: $(DEVELOPS) ## Fetch Kafka and build InfluxDB for the tests, once
	@$(SUPPORT).kafka_broker prepare || true
	@$(SUPPORT).influx_server prepare || true

kafka: $(DEVELOPS) ## Run a Kafka on port 9092 until Ctrl-C, data in out/kafka (ARGS="--port N --folder D")
	@exec $(SUPPORT).kafka_broker serve $(ARGS)

influx: $(DEVELOPS) ## Run an InfluxDB on port 8086 until Ctrl-C, data in out/influx (ARGS as for kafka)
	@exec $(SUPPORT).influx_server serve $(ARGS)

clean: ## Remove .venv, builds and caches
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that works is kept, whoever made it; one that does not (half made, or its Python gone) is made anew.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys' 2>/dev/null || { \
		echo "windrow: cannot run '$(PYTHON)'. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "windrow: Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "windrow: '$(PYTHON)' lacks venv or ensurepip, so it cannot make an environment with pip in it." >&2; \
		echo "  On Debian and Ubuntu: apt install python3-venv. Otherwise name another: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear .venv

$(RUNS): pyproject.toml | .venv/bin/pip
	@echo "Installing Windrow into .venv"
	@$(PIP) install --editable .
	@touch $@

$(DEVELOPS): pyproject.toml | .venv/bin/pip
	@echo "Installing Windrow and its development tools into .venv"
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(RUNS)
