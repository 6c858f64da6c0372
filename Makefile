# `make up` and `make test` set up what they need; nothing but Python 3.11 and make has to be there.
PYTHON ?= python3
BIN := .venv/bin
export ORT_DISABLE_TELEMETRY := 1

.PHONY: setup up test gpu-test check audit fmt chaos compose-test simulate bench docs lock clean

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@echo "setting up .venv (a minute or two, the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --require-hashes -r requirements.lock
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

up: setup          ## run the whole service on port 8000
	$(BIN)/millrace up $(ARGS)

test: setup        ## everything that must hold, a short chaos run included
	$(BIN)/python -m pytest $(ARGS)

gpu-test: setup    ## what only a GPU can show, of its numbers; skipped where there is none
	$(BIN)/python -m pytest tests/gpu $(ARGS)

check: setup       ## style, types, and that generated docs are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.contract.wire --check
	$(BIN)/python -m tests.contract.chart --check

audit: setup       ## known vulnerabilities of what is locked, where pip's index can tell
	$(BIN)/python -m tests.contract.audit

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: setup       ## kill, pause and cut off real processes; TRIALS of each fault; CLUSTER=1, FAR=1: others
	$(BIN)/python -m tests.chaos --trials $(or $(TRIALS),20) $(if $(CLUSTER),--cluster) $(if $(FAR),--far) $(ARGS)

compose-test: setup  ## docker-compose.yml on a real Docker engine: scaled, killed, paused, restarted under load
	$(BIN)/python -m tests.compose $(ARGS)

simulate: setup    ## the protocol's state machines in SEEDS simulated worlds
	$(BIN)/python -m tests.simulate --seeds $(or $(SEEDS),10000) $(ARGS)

bench: setup       ## what it costs, measured here and now; LLAMA=DIR: beside the llama-server that is there
	$(BIN)/python -m bench$(if $(LLAMA),.peer --llama $(LLAMA)) $(ARGS)

docs: setup        ## write docs/wire.md and deploy/helm/nats.yaml from the contracts
	$(BIN)/python -m tests.contract.wire
	$(BIN)/python -m tests.contract.chart

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-header --no-annotate --quiet

lock: setup        ## requirements.lock from pyproject.toml, and the parts of it that images take
	$(LOCK) --group dev --upgrade -o requirements.lock
	@for role in gateway tokenizer engine engine-gpu detokenizer; do set -x; \
	    $(subst pyproject.toml,--group $$role -c requirements.lock,$(LOCK)) -o deploy/locks/$$role.lock; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
