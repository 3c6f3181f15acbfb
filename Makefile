# `make demo` and `make test` need nothing but Python 3.11 and a package index; everything else stands beside them.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

.PHONY: help demo test check format docs bench replay outage faults soak overload audit clean
.DEFAULT_GOAL := help

help:  ## What can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Each stamp installs once and again whenever what it was made of changes. The bench extra shares the pins.
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

# A file stays in one process, so that what its tests share is set up once; four, as half of them wait.
test: $(VENV)/.dev  ## Run the test suite, on two cores; ARGS="-k windows", or -n0 for one
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev  ## Format, lint, strict types, wire contracts and reference pages up to date
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p tamiyo.schemas -p tamiyo.models -p tamiyo.streams -p tamiyo.host -p tamiyo.evaluation -p scripts
	@$(BIN)/python -m tamiyo.schemas.avro_schema --check
	@$(BIN)/python -m tamiyo.schemas.compatibility
	@$(BIN)/python -m tamiyo.schemas.asyncapi --check
	@$(BIN)/python -m scripts.reference --check

format: $(VENV)/.dev  ## Rewrite files in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Strict covers links and anchors; what griffe reports about docstrings only goes to standard error.
docs: $(VENV)/.docs  ## Write the reference pages from the code and build the documentation into site/, strictly
	@$(BIN)/python -m scripts.reference
	@$(BIN)/zensical build --clean --strict 2>&1 | tee $(VENV)/docs.log
	@grep -q "No issues found" $(VENV)/docs.log && ! grep -q "^griffe: " $(VENV)/docs.log

bench: $(VENV)/.bench  ## Measure everything that is claimed about speed; ARGS="--quick"
	@$(BIN)/python -m tamiyo.evaluation.bench $(ARGS)

replay: $(VENV)/.dev  ## Record live runs on KAFKA_HOME's Kafka, replay them at 1x, 100x and unbounded, compare bytes
	@$(BIN)/python -m tamiyo.evaluation.replay $(ARGS)

faults: $(VENV)/.dev  ## Break an installation on KAFKA_HOME's Kafka and judge what it said; ARGS="--faults 50 --seed 1"
	@$(BIN)/python -m tamiyo.evaluation.faults $(ARGS)

soak: $(VENV)/.bench  ## Hours of load and faults on KAFKA_HOME's Kafka, sampled; ARGS="--minutes 120 --report FILE"
	@$(BIN)/python -m tamiyo.evaluation.soak $(ARGS)

outage: $(VENV)/.dev  ## What training pays for a broker that is gone for ten minutes; ARGS="--minutes 1"
	@$(BIN)/python -m tamiyo.evaluation.outage $(ARGS)

overload: $(VENV)/.bench  ## Ten times the sustainable rate for a minute, on KAFKA_HOME's Kafka; ARGS="--report FILE"
	@$(BIN)/python -m tamiyo.evaluation.overload $(ARGS)

# In a virtual environment of its own: what audits the dependencies is none of them.
audit:  ## Ask for known vulnerabilities of the pinned versions; says so where nobody answers
	@test -x $(VENV)/audit/bin/pip-audit || \
	{ $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit; }
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt $(ARGS) || \
	{ echo "either vulnerable versions are named above, or the service did not answer and NOTHING WAS AUDITED" >&2; exit 1; }

clean:  ## Remove what was installed and built
	rm -rf $(VENV) build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
