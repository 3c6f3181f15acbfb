# `make demo` and `make test` need Python 3.11 and a package index; the tools they use are installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

.PHONY: help demo test test-long planted check format docs bench scale evidence train-policy replay outage faults soak overload audit clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A stamp file marks an installation; make installs again when the files it depends on change. All extras share the pins.
$(VENV)/.pipeline: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Tamiyo needs Python 3.11 or later, but $(PYTHON) is " + sys.version) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline]'
	@touch $@

$(VENV)/.dev: $(VENV)/.pipeline
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev,bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev,docs]'
	@touch $@

demo: $(VENV)/.pipeline  ## Train a real network with Tamiyo beside its static twin; ARGS="--task digits --seed 1"
	@$(BIN)/tamiyo demo $(ARGS)

# One process a file, so that its tests share their set-up; four processes, as half of the tests wait for something.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.dev  ## Run the test suite in four processes; ARGS="-k windows", or -n0 for one process
	@$(PYTEST) -m "not long" $(ARGS)

test-long: $(VENV)/.dev  ## Run the tests that take minutes: faults, outages, frameworks, the laboratory
	@$(PYTEST) -m long $(ARGS)

planted: $(VENV)/.dev  ## Plant small wrong changes one at a time; a test must fail for each; ARGS="host --jobs 4"
	@$(BIN)/python -m tests.planted_changes $(ARGS)

check: $(VENV)/.dev  ## Check format, lint, strict types, and that wire contracts and reference pages are up to date
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p tamiyo.schemas -p tamiyo.models -p tamiyo.streams -p tamiyo.host -p tamiyo.integrations -p tamiyo.data -p tamiyo.evaluation -p scripts
	@$(BIN)/python -m tamiyo.schemas.avro_schema --check
	@$(BIN)/python -m tamiyo.schemas.compatibility
	@$(BIN)/python -m scripts.asyncapi --check
	@$(BIN)/python -m scripts.reference --check

format: $(VENV)/.dev  ## Rewrite the files in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Strict covers links and anchors; what griffe reports about docstrings only goes to standard error.
docs: $(VENV)/.docs  ## Write the reference pages from the code and build the documentation into site/, strictly
	@$(BIN)/python -m scripts.reference
	@$(BIN)/zensical build --clean --strict 2>&1 | tee $(VENV)/docs.log
	@grep -q "No issues found" $(VENV)/docs.log && ! grep -q "^griffe: " $(VENV)/docs.log

bench: $(VENV)/.bench  ## Measure throughput, latency and host overhead beside peers, and check the bars; ARGS="--quick"
	@$(BIN)/python -m tamiyo.evaluation.bench $(ARGS)

scale: $(VENV)/.bench  ## Measure runs, layers and workers on KAFKA_HOME's Kafka, resumable; ARGS="--quick", or "--report FILE --figure FILE"
	@$(BIN)/python -m tamiyo.evaluation.scale $(ARGS)

replay: $(VENV)/.dev  ## Record live runs on KAFKA_HOME's Kafka, replay them at 1x, 100x and full speed, compare bytes
	@$(BIN)/python -m tamiyo.evaluation.replay $(ARGS)

faults: $(VENV)/.dev  ## Inject faults into an installation on KAFKA_HOME's Kafka, check its records; ARGS="--faults 50 --seed 1"
	@$(BIN)/python -m tamiyo.evaluation.faults $(ARGS)

soak: $(VENV)/.bench  ## Run hours of load and faults on KAFKA_HOME's Kafka, sampled; ARGS="--minutes 120 --report FILE"
	@$(BIN)/python -m tamiyo.evaluation.soak $(ARGS)

evidence: $(VENV)/.dev  ## Judge the reward by twins, write docs/evidence.md and its figures; ARGS="--report FILE", or "--full": hours
	@OMP_NUM_THREADS=1 $(BIN)/python -m tamiyo.evaluation.evidence $(ARGS)

train-policy: $(VENV)/.dev  ## Train the policy that comes with the package: hours, resumable; ARGS="--passes 1 --rounds 1 --output FILE"
	@OMP_NUM_THREADS=1 $(BIN)/python -m tamiyo.evaluation.lab.training $(ARGS)

outage: $(VENV)/.dev  ## Measure how a broker outage of ten minutes slows training; ARGS="--minutes 1"
	@$(BIN)/python -m tamiyo.evaluation.outage $(ARGS)

overload: $(VENV)/.bench  ## Send ten times the sustainable rate for a minute, on KAFKA_HOME's Kafka; ARGS="--report FILE"
	@$(BIN)/python -m tamiyo.evaluation.overload $(ARGS)

# pip-audit is no dependency of the project, so it gets its own virtual environment.
audit:  ## Look up known vulnerabilities of the pinned versions; fails if the service is unreachable
	@test -x $(VENV)/audit/bin/pip-audit || \
	{ $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit; }
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt $(ARGS) || \
	{ echo "vulnerable versions are listed above, or the service was unreachable and NOTHING WAS AUDITED" >&2; exit 1; }

clean:  ## Remove the virtual environment, builds and caches
	rm -rf $(VENV) build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
