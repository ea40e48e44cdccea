# Everything on a fresh machine with make and Python 3.11+: `make up` serves a model, `make test` proves the lifecycle.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8080
PYTEST_ARGS ?=

.PHONY: up test lint rehearse sandbox deploy-dry clean

up: $(STAMP)
	$(BIN)/supervise run local --port $(PORT)

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# A snapshot and a restore in gVisor, of the embedded model. Needs root.
rehearse: $(STAMP) sandbox
	$(BIN)/supervise rehearse local

# gVisor, for rehearsals; tests of those are skipped without it.
sandbox:
	@command -v runsc >/dev/null || { set -x; apt-get update -qq && apt-get install -qq -y --no-install-recommends runsc; }

# What Modal would receive, from Modal's own CLI, without an account.
deploy-dry: $(STAMP)
	$(BIN)/python tests/deploy_dry.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv when it is there: it takes a fifth of the time.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("warmboot needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV), about half a minute ..."
	@if command -v uv >/dev/null; then \
		set -x; uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[local,dev]'; \
	else \
		set -x; $(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
