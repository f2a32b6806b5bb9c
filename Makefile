# make run    the proxy in front of your Ollama, or of a simulated one where none answers
# make demo   three simulated clients share a simulated card for some 20 s
# make test   environment, dependencies, all tests (ARGS= is handed to pytest)
# make lint, make types, make wheel, make clean; .ci/run does everything that must pass

VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
NODE_READY := tests/node/node_modules/.ready
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run demo test lint types wheel clean node

help:
	@sed -n 's/^# //p' Makefile

run: $(RUN_READY)
	@$(BIN)/ollama-swap-proxy run $(ARGS)

demo: $(RUN_READY)
	@$(BIN)/ollama-swap-proxy demo

test: $(TEST_READY) node
	$(BIN)/python -m pytest -p tests.skips_plugin $(ARGS)

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST_READY)
	$(BIN)/mypy --strict

wheel: $(TEST_READY)
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist tests/node/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ollama_swap_proxy tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A Python of 3.11 or later is looked for, newest first; PYTHON=... chooses another.
$(BIN)/python:
	@for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$python ($$("$$python" --version))"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "$$python cannot make environments (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; \
	  fi; \
	done; \
	echo "Python 3.11 or later is needed and was not found. Name one with: make PYTHON=/path/to/python3.11" >&2; exit 1

$(RUN_READY): pyproject.toml | $(BIN)/python
	@echo "Installing what the proxy needs into $(VENV)"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable .
	@touch $@

$(TEST_READY): pyproject.toml $(RUN_READY)
	@echo "Installing what the tests need into $(VENV)"
	@$(PIP) install --group dev
	@touch $@

# The JavaScript client, for the tests that drive it; without Node they are skipped, and the skip is printed.
node:
	@if command -v npm >/dev/null && command -v node >/dev/null; then $(MAKE) --no-print-directory $(NODE_READY); \
	else echo "SKIPPED: the tests of the JavaScript client (there is no node and npm here)"; fi

$(NODE_READY): tests/node/package.json tests/node/package-lock.json
	@echo "Installing the JavaScript client into tests/node"
	@cd tests/node && npm ci --silent --no-audit --no-fund
	@touch $@
