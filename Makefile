# One habit: `make check test`. `make help` lists the rest. Needs git, make and Python 3.11+.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEMPLATES := template.yaml $(wildcard infra/*.yaml)
TYPED := layers/meterline/meterline layers/client/meterline_client infra functions tests

ONCE ?=
TRACE ?=
PROFILE ?= staging
MINUTES ?=
RATE ?=
PYTEST_ARGS ?=
SEEDS ?= 20
CUSTOMERS ?= 50
JOBS ?= 1

export SAM_CLI_TELEMETRY := 0
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run test check format openapi simulate bench load deploy lock clean dynamodb-local axe-core

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 24

$(INSTALLED): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# uv first, from its own hashes in the same lock; uv then installs the rest.
	test -x $(BIN)/uv || { awk '/^uv==/ {on=1} on {print} on && !/\\$$/ {exit}' requirements/dev.txt > $(VENV)/uv.txt \
		&& $(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(VENV)/uv.txt; }
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements/dev.txt
	@# The layers' packages, importable from wherever their folders stand.
	$(BIN)/python -c 'import pathlib, site; pathlib.Path(site.getsitepackages()[0], "meterline.pth").write_text("../../../../layers/meterline\n../../../../layers/client\n")'
	touch $@

run: $(INSTALLED) ## Everything on this machine: emulator, local Stripe, a workload. ONCE=1 ends, TRACE=FILE replays
	@$(BIN)/python -m infra.local.run $(if $(ONCE),--once) $(if $(TRACE),--trace "$(TRACE)")

test: $(INSTALLED) ## All tests. PYTEST_ARGS="-k name" narrows
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(INSTALLED) ## Format, lint, types, templates and their rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(TYPED)
	$(BIN)/sam validate --lint --region us-east-1 --template template.yaml
	$(BIN)/cfn-lint $(TEMPLATES)
	$(BIN)/python -m pytest -q tests/unit/test_template.py

format: $(INSTALLED) ## Put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: $(INSTALLED) ## functions/serve_openapi/openapi.json, after a change of the API
	@$(BIN)/python -m infra.openapi_file

simulate: $(INSTALLED) ## Ninety days of everything that goes wrong. SEEDS=20 CUSTOMERS=50 JOBS=1
	@$(BIN)/python -m tests.faults.ninety_days --seeds $(SEEDS) --customers $(CUSTOMERS) --jobs $(JOBS)

bench: $(INSTALLED) ## What an event costs, next to baselines of the same run
	@$(BIN)/python -m tests.bench

load: $(INSTALLED) ## The stack under load, and its books. MINUTES=10 RATE=events a second (else a ramp finds it)
	@$(BIN)/python -m tests.load $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RATE),--rate $(RATE))

deploy: $(INSTALLED) ## To AWS. PROFILE=staging or PROFILE=production, a section of samconfig.toml
	@$(BIN)/python -m infra.cli deploy "$(PROFILE)"

DYNAMODB_LOCAL := .local/dynamodb-local
DYNAMODB_LOCAL_PACKAGE := amplify-dynamodb-simulator@2.9.30
DYNAMODB_LOCAL_SHA256 := 3503ffac19f183407909fecdacf4db51ab1fdad1da7b2f177016670b2d80e4b9

dynamodb-local: $(DYNAMODB_LOCAL)/DynamoDBLocal.jar ## Amazon's own DynamoDB for tests (needs npm and Java)

$(DYNAMODB_LOCAL)/DynamoDBLocal.jar:
	rm -rf $(DYNAMODB_LOCAL).new
	mkdir -p $(DYNAMODB_LOCAL).new
	cd $(DYNAMODB_LOCAL).new && npm pack --silent $(DYNAMODB_LOCAL_PACKAGE) >/dev/null
	$(PYTHON) -c 'import hashlib, pathlib, sys; [each] = pathlib.Path("$(DYNAMODB_LOCAL).new").glob("*.tgz"); \
		sys.exit(hashlib.sha256(each.read_bytes()).hexdigest() != "$(DYNAMODB_LOCAL_SHA256)" and "another package than expected")'
	tar -xzf $(DYNAMODB_LOCAL).new/*.tgz -C $(DYNAMODB_LOCAL).new package/emulator
	rm -rf $(DYNAMODB_LOCAL)
	mv $(DYNAMODB_LOCAL).new/package/emulator $(DYNAMODB_LOCAL)
	rm -rf $(DYNAMODB_LOCAL).new

AXE := .local/axe-core
AXE_PACKAGE := axe-core@4.14.1
AXE_SHA256 := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745

axe-core: $(AXE)/axe.min.js ## The accessibility checker of the dashboard's tests (needs npm)

$(AXE)/axe.min.js:
	rm -rf $(AXE).new
	mkdir -p $(AXE).new
	cd $(AXE).new && npm pack --silent $(AXE_PACKAGE) >/dev/null
	$(PYTHON) -c 'import hashlib, pathlib, sys; [each] = pathlib.Path("$(AXE).new").glob("*.tgz"); \
		sys.exit(hashlib.sha256(each.read_bytes()).hexdigest() != "$(AXE_SHA256)" and "another package than expected")'
	tar -xzf $(AXE).new/*.tgz -C $(AXE).new package/axe.min.js
	rm -rf $(AXE)
	mv $(AXE).new/package $(AXE)
	rm -rf $(AXE).new

lock: $(INSTALLED) ## Resolve the lock files anew from requirements/dev.in and layers/dependencies/requirements.in
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q \
		requirements/dev.in -o requirements/dev.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q \
		layers/dependencies/requirements.in -c requirements/dev.txt -o layers/dependencies/requirements.txt

clean: ## Throw away what was built or downloaded, but not the virtual environment
	rm -rf .aws-sam .local .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
