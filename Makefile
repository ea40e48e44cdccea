# Everything on a fresh machine with make and Python 3.11+: `make up` serves a model, `make test` proves the lifecycle.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVING := $(VENV)/.serving
TOOLS := $(VENV)/.tools
PORT ?= 8080
PYTEST_ARGS ?=
WORKERS ?= 2
PEERS := build/bench-peers
BENCH_ARGS ?=
SECONDS ?= 600
SOAK_ARGS ?=
ENGINES ?=
ENGINES_ARGS ?= --lanes 2

.PHONY: up test faults engines soak lint rehearse sandbox compiler deploy-dry clean

up: $(SERVING)
	$(BIN)/supervise run local --port $(PORT)

# The tests start thousands of Pythons: each would compile our modules again where the environment forbids to keep them.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(TOOLS)
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# The fault matrix: plays every row, writes down what was seen, and renders the table of docs/faults.md from that.
faults: $(TOOLS)
	FAULTS_JSON=tests/system/faults.json $(BIN)/python -m pytest tests/system/test_faults.py -k test_a_fault
	PYTHONPATH=tests $(BIN)/python -m tools.fault_table

# Real engines, each in an environment of its own, through the whole lifecycle, two at a time: make engines ENGINES=vllm
engines: $(TOOLS)
	PYTHONPATH=tests $(BIN)/python -m engines $(ENGINES) $(ENGINES_ARGS)

engines-page: $(TOOLS)
	PYTHONPATH=tests $(BIN)/python -m engines.page

# Random faults on a loop: make soak SECONDS=60 SOAK_ARGS="--seed 7"
soak: $(TOOLS)
	PYTHONPATH=tests $(BIN)/python -m system.soak $(SECONDS) $(SOAK_ARGS)

# A snapshot and a restore in gVisor, of the embedded model. Needs root.
rehearse: $(SERVING) sandbox
	$(BIN)/supervise rehearse local

# gVisor, for rehearsals; tests of those are skipped without it.
sandbox:
	@command -v runsc >/dev/null || { set -x; apt-get update -qq && apt-get install -qq -y --no-install-recommends runsc; }

# A C compiler, for the library that moves GPU memory; tests of it are skipped without one.
compiler:
	@command -v cc >/dev/null || { set -x; apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev; }

# What Modal would receive, from Modal's own CLI, without an account.
deploy-dry: $(TOOLS)
	PYTHONPATH=tests $(BIN)/python -m tools.deploy_dry

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Numbers against peers: a table, tests/bench/results.json with a plot beside it, and docs/numbers.md. Half an hour.
bench: $(TOOLS) $(PEERS)/.installed
	PYTHONPATH=tests $(BIN)/python -m bench --peers $(PEERS) $(BENCH_ARGS)
	PYTHONPATH=tests $(BIN)/python -m bench.page

# The same in under 2 minutes, on fewer and shorter loads; what is committed stays as it is.
bench-quick: $(TOOLS) $(PEERS)/.installed
	PYTHONPATH=tests $(BIN)/python -m bench --quick --peers $(PEERS) --json build/bench/quick.json $(BENCH_ARGS)

bench-page: $(TOOLS)
	PYTHONPATH=tests $(BIN)/python -m bench.page

# The peers live apart: one of them has our import name.
$(PEERS)/.installed: tests/bench/peers.txt
	@echo "installing the peers into $(PEERS) ..."
	@$(PYTHON) -m venv $(PEERS) && $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# What serving needs; the tools of development come with the first command that uses them.
$(SERVING): EXTRAS := local
$(TOOLS): EXTRAS := local,dev
$(SERVING) $(TOOLS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("warmboot needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@echo "installing warmboot[$(EXTRAS)] into $(VENV), about half a minute ..."
	@if command -v uv >/dev/null; then \
		set -x; uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
		set -x; $(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	@touch $(SERVING) $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
