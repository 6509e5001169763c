# Every target installs what it needs: a bare machine with make and Python 3.11 or newer will do.

PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
VENV ?= .venv
ARGS ?=

SHELL := /bin/sh
BIN := $(VENV)/bin

# Which extras of pyproject.toml are installed; each includes those before it.
GRPC := $(VENV)/.ready-grpc
SITE := $(VENV)/.ready-site
DEMO := $(VENV)/.ready-demo
TEST := $(VENV)/.ready-test
DEV := $(VENV)/.ready-dev

WITH_grpc := grpc
WITH_site := site
WITH_demo := grpc demo
WITH_test := grpc site demo test
WITH_dev := grpc site demo test dev

EXAMPLES := simple async typed local multi-service concurrent killed flow-demo retry pause ticket-cart \
	delayed approval webhook query restate saga fastapi schedule streaming

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-loaded check format format-check lint types coverage-core test-all-pythons \
	proto run-service run-ticket-service $(EXAMPLES:%=run-%) bench scale docs-tables clean \
	nats-up nats-cluster nats-down docker-up run-processor demo-nats bench-nats

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '  %-20s %s\n' 'run-EXAMPLE' 'Run examples/EXAMPLE.py (ARGS="--help"); EXAMPLE is one of'
	@printf '%s\n' '$(EXAMPLES)' | fold -s -w 80 | sed 's/^/                       /; s/ *$$//'

setup: $(DEV) ## Make the environment and install Perdure with all that its development needs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Perdure needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed. Debian and Ubuntu keep it in a package of its own: python3-venv."; \
		exit 1; }

$(VENV)/.ready-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[$*]'
	@touch $(WITH_$*:%=$(VENV)/.ready-%)

# However the run ends, the service is stopped and the folder removed.
demo: $(GRPC) ## Run 1,000 workflows of three gRPC calls each on a temporary SQLite file
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 130' INT && trap 'exit 143' TERM && \
	$(BIN)/python -m examples.services.process examples.services.hello -- \
		$(BIN)/perdure run examples/concurrent.py:concurrent 'user-{i}' --url "sqlite:$$folder/demo.db" \
		--count 1000 --concurrency 500 --service 'HelloService={address}'

# The run only waits: the two workers do the work. However it ends, they end too, and the data is removed.
demo-nats: $(DEMO) ## The same on a temporary NATS server with two workers
	@$(BIN)/python -m examples.services.nats_server run -- \
		$(BIN)/python -m examples.services.process examples.services.hello -- \
		$(BIN)/python -m examples.services.workers 2 examples/concurrent.py --url {url} \
			--service 'HelloService={address}' --max-concurrent 250 -- \
		$(BIN)/perdure run examples/concurrent.py:concurrent 'user-{i}' --url {url} --no-worker \
			--count 1000 --concurrency 500 $(ARGS)

# Two at a time: most of them wait for leases and servers. A file's tests stay together, with what they share.
test: $(TEST) ## Run all tests (ARGS="-k name"; ARGS="-n 0" for one at a time)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Meanwhile two processes per core do nothing but compute. They end with the tests, however these end.
test-loaded: $(TEST) ## Run all tests on a machine that is kept busy
	@$(BIN)/python -m tests.load 2 -- $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: format-check lint types coverage-core test ## Run everything that must hold before a commit

format: $(DEV) ## Format the code and sort its imports
	@$(BIN)/ruff check --quiet --select I --fix .
	@$(BIN)/ruff format .

format-check: $(DEV)
	@$(BIN)/ruff format --check .

lint: $(DEV)
	@$(BIN)/ruff check .

# The public names as a user's checker sees them (tests/typing), and the layers, are part of the tests.
types: $(DEV)
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python

coverage-core: $(DEV) ## Run the tests of the core; every branch must be taken
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest --quiet tests/core
	@$(BIN)/python -m coverage report

test-all-pythons: ## Run all tests under each Python of PYTHONS that is found on PATH or by pyenv
	@ran=; failed=; \
	for version in $(PYTHONS); do \
		python=; \
		for candidate in "python$$version" "$$(pyenv prefix "$$(pyenv latest $$version 2>/dev/null)" 2>/dev/null)/bin/python"; do \
			if "$$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" 2>/dev/null; then \
				python=$$candidate; break; \
			fi; \
		done; \
		if [ -z "$$python" ]; then echo "Python $$version: not found, left out"; continue; fi; \
		echo "Python $$version:"; ran="$$ran $$version"; \
		$(MAKE) --no-print-directory VENV=.venv-$$version PYTHON="$$python" test || failed="$$failed $$version"; \
	done; \
	if [ -z "$$ran" ]; then echo "None of $(PYTHONS) was found."; exit 1; fi; \
	if [ -n "$$failed" ]; then echo "Failed under Python$$failed."; exit 1; fi; \
	echo "Passed under Python$$ran."

proto: $(DEV) ## Generate the gRPC code of the examples and tests again
	@$(call generate,examples/services)
	@$(call generate,tests/grpc)

# A folder's protos are seen as if they lay in the folder itself, so that the code is written there and imports itself by
# its full name.
generate = PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I $(1)=$(1)/protos \
	--python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
	$(patsubst $(1)/protos/%,$(1)/%,$(wildcard $(1)/protos/*.proto))

run-service: $(GRPC) ## Run HelloService on port 9090
	@$(BIN)/python -m examples.services.hello --port 9090 $(ARGS)

run-ticket-service: $(GRPC) ## Run TicketService on port 9091
	@$(BIN)/python -m examples.services.ticket --port 9091 $(ARGS)

run-fastapi: $(SITE)

$(EXAMPLES:%=run-%): run-%: $(GRPC)
	@$(BIN)/python -m examples.$(subst -,_,$*) $(ARGS)

nats-up docker-up: $(DEMO) ## Leave a NATS server running on port 4322 (ARGS="--sync always")
	@$(BIN)/python -m examples.services.nats_server up $(ARGS)

nats-cluster: $(DEMO) ## Leave three NATS nodes running on ports 4322 to 4324, with sync_interval always
	@$(BIN)/python -m examples.services.nats_server up --nodes 3 --sync always $(ARGS)

nats-down: $(DEMO) ## Stop them; their data stays in .nats
	@$(BIN)/python -m examples.services.nats_server down $(ARGS)

run-processor: $(DEMO) ## Run a worker on that server; it calls `make run-service`
	@$(BIN)/perdure worker examples/concurrent.py --url nats://127.0.0.1:4322 --service HelloService=127.0.0.1:9090 $(ARGS)

bench: $(GRPC) ## Run the benchmarks on SQLite
	@$(BIN)/python -m benchmarks.embedded $(ARGS)

bench-nats: $(DEMO) ## Run the benchmarks on a NATS server
	@$(BIN)/python -m benchmarks.jetstream $(ARGS)

scale: $(DEMO) ## Measure 100,000 suspended invocations, 10,000 timers, a sweep
	@$(BIN)/python -m benchmarks.scale $(ARGS)

docs-tables: $(GRPC) ## Rewrite the tables in docs/ that are made from the code
	@$(BIN)/python -m tests.docs.tables

clean: ## Remove everything that these targets made, environments included
	@test ! -d .nats || $(MAKE) --no-print-directory nats-down
	rm -rf .venv .venv-3.* .nats .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
