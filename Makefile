# Every target sets up what it needs: a bare machine with make and Python 3.11 or newer will do.

PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
VENV ?= .venv
ARGS ?=

SHELL := /bin/sh
BIN := $(VENV)/bin
READY := $(VENV)/.ready

EXAMPLES := simple async typed local multi-service concurrent retry pause ticket-cart delayed \
	approval restate saga

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format format-check lint types coverage-core test-all-pythons \
	proto run-service run-ticket-service $(EXAMPLES:%=run-%) bench scale docs-tables clean \
	nats-up nats-cluster nats-down docker-up run-processor demo-nats bench-nats

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '  %-20s %s\n' 'run-EXAMPLE' 'Run examples/EXAMPLE.py: $(EXAMPLES) (ARGS="--count 50")'

setup: $(READY) ## Make the environment and install Perdure into it

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Perdure needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
		exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed. Debian and Ubuntu keep it in a package of its own: python3-venv."; \
		exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The service is stopped and the folder removed however the run ends.
demo: $(READY) ## Run 1,000 workflows of three gRPC calls each on a temporary SQLite file
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && trap 'exit 130' INT && trap 'exit 143' TERM && \
	$(BIN)/python -m examples.services.process examples.services.hello -- \
		$(BIN)/perdure run examples/concurrent.py:concurrent 'user-{i}' --url "sqlite:$$folder/demo.db" \
		--count 1000 --concurrency 500 --service 'HelloService={address}'

# The run only waits: the two workers do the work. All of them end however the run ends, and the data goes with them.
demo-nats: $(READY) ## The same on a temporary NATS server, by two workers
	@$(BIN)/python -m examples.services.nats_server run -- \
		$(BIN)/python -m examples.services.process examples.services.hello -- \
		$(BIN)/python -m examples.services.workers 2 examples/concurrent.py --url {url} \
			--service 'HelloService={address}' --max-concurrent 250 -- \
		$(BIN)/perdure run examples/concurrent.py:concurrent 'user-{i}' --url {url} --no-worker \
			--count 1000 --concurrency 500 $(ARGS)

# Two at a time: most of them wait for leases and servers. A file's tests stay together, with what they share.
test: $(READY) ## Run all tests (ARGS="-k name", ARGS="-n 0" for one at a time)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: format-check lint types coverage-core test ## Run everything that must hold before a commit

format: $(READY) ## Format the code and sort its imports
	@$(BIN)/ruff check --quiet --select I --fix .
	@$(BIN)/ruff format .

format-check: $(READY)
	@$(BIN)/ruff format --check .

lint: $(READY)
	@$(BIN)/ruff check .

# What a user's checker sees of the public names (tests/typing) and the layers are part of the tests.
types: $(READY)
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python

coverage-core: $(READY) ## Run the tests of the core; every branch must be taken
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest --quiet tests/core
	@$(BIN)/python -m coverage report

test-all-pythons: ## Run all tests under each of PYTHONS that is found on PATH or by pyenv
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

proto: $(READY) ## Generate the gRPC code of the examples and tests again
	@$(call generate,examples/services)
	@$(call generate,tests/grpc)

# A folder's protos are seen as if they lay in the folder itself, so that the code is written there and imports itself by
# its full name.
generate = PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I $(1)=$(1)/protos \
	--python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
	$(patsubst $(1)/protos/%,$(1)/%,$(wildcard $(1)/protos/*.proto))

run-service: $(READY) ## Run HelloService on port 9090
	@$(BIN)/python -m examples.services.hello --port 9090 $(ARGS)

run-ticket-service: $(READY) ## Run TicketService on port 9091
	@$(BIN)/python -m examples.services.ticket --port 9091 $(ARGS)

$(EXAMPLES:%=run-%): run-%: $(READY)
	@$(BIN)/python -m examples.$(subst -,_,$*) $(ARGS)

nats-up docker-up: $(READY) ## Leave a NATS server running on port 4322 (ARGS="--sync always")
	@$(BIN)/python -m examples.services.nats_server up $(ARGS)

nats-cluster: $(READY) ## Leave three NATS nodes running on ports 4322 to 4324, with sync_interval always
	@$(BIN)/python -m examples.services.nats_server up --nodes 3 --sync always $(ARGS)

nats-down: $(READY) ## End them; their data stays in .nats
	@$(BIN)/python -m examples.services.nats_server down $(ARGS)

run-processor: $(READY) ## Run a worker of examples/concurrent.py on that server, for `make run-service` (ARGS="--partitions 0")
	@$(BIN)/perdure worker examples/concurrent.py --url nats://127.0.0.1:4322 --service HelloService=127.0.0.1:9090 $(ARGS)

bench-nats: $(READY) ## Run those on a NATS server
	@$(BIN)/python -m benchmarks.jetstream $(ARGS)

bench: $(READY) ## Run the benchmarks
	@$(BIN)/python -m benchmarks.embedded $(ARGS)

docs-tables: $(READY) ## Write the tables in docs/ that show the code itself anew
	@$(BIN)/python -m tests.docs.tables
scale: $(READY) ## Show that it carries 100,000 suspended invocations, 10,000 timers, a sweep
	@$(BIN)/python -m benchmarks.scale $(ARGS)

clean: ## Remove all that these targets made, environments too
	@test ! -d .nats || $(MAKE) --no-print-directory nats-down
	rm -rf .venv .venv-3.* .nats .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
