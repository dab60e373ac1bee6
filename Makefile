# Everything runs in .venv, which the first target that needs it sets up from requirements.lock.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first Python 3.11 or 3.12 that runs here; `make PYTHON=/path/to/python3.12 ...` names another.
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$python && break; done)
# Tests wait for processes and servers much of the time; a file's tests stay together and share what they set up.
TWO_PROCESSES := -n 2 --dist loadfile
# A machine without a network goes on without what apt-get would fetch.
APT_PATIENCE := -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=120
DEMO := demo
RECIPE := jobs/recipes/quickstart.yaml
CUDA_LOCK := infra/docker/cuda.lock

.PHONY: help setup demo test test-all bench bench-input bench-memory bench-step bench-report bench-survival bench-scaling chromium lint types contracts format docs lock clean

help:
	@echo 'make demo       draw cars, train on them through Ray, score them: five to seven minutes on 2 cores'
	@echo 'make test       the tests, without those marked slow or gpu'
	@echo 'make test-all   all tests'
	@echo 'make bench      the benchmarks of the loop, with their figures'
	@echo 'make bench-input bench-memory   how fast pictures come in beside other readers; whether memory stays flat'
	@echo 'make bench-step   memory and time of a step at full resolution; predicted memory beside measured'
	@echo 'make bench-report   size of the report of 200 trials, and how soon it is open'
	@echo 'make bench-survival   what checkpoints, watchdog and goodput record cost while nothing goes wrong'
	@echo 'make bench-scaling   a model of step times on 1 to 512 GPUs, beside published figures'
	@echo 'make chromium   the browser that tests of the report open, where root and apt-get are there'
	@echo 'make lint types contracts   ruff and links in Markdown, mypy, import-linter'
	@echo 'make format     let ruff mend what it can'
	@echo 'make docs       write docs/settings.md from the docstrings of the settings'
	@echo 'make lock       resolve requirements.lock again, keeping what still fits'
	@echo 'make clean      remove .venv, caches and the demo'

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or 3.12 is needed; install one or run make PYTHON=/path/to/python3.12' >&2; exit 2; }
	@echo 'setup 1/3: $(VENV) with $(PYTHON)'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo 'setup 2/3: installing requirements.lock (about 3 GB, some minutes the first time)'
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --require-hashes -r requirements.lock
	@echo 'setup 3/3: installing segtrain'
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	@rm -rf $(DEMO)
	@echo 'demo 1/2: drawing cars and packing them into shards'
	$(BIN)/python jobs/prepare.py $(RECIPE) $(DEMO)/data
	@echo 'demo 2/2: training a U-Net on embedded Ray'
	$(BIN)/python jobs/train.py $(RECIPE) data.root=$(DEMO)/data run.storage=$(DEMO)/runs

# Without it those tests are skipped, and pytest says so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo 'installing chromium for the tests of reports' && \
	  export DEBIAN_FRONTEND=noninteractive && apt-get $(APT_PATIENCE) update -qq && \
	  apt-get $(APT_PATIENCE) install -y -qq --no-install-recommends chromium >/dev/null; } || \
	echo 'no chromium here: the tests that open reports will be skipped'

test: $(READY) chromium
	$(BIN)/python -m pytest $(TWO_PROCESSES)

test-all: $(READY) chromium
	$(BIN)/python -m pytest $(TWO_PROCESSES) -m ''

bench: $(READY)
	$(BIN)/python -m pytest -m '' -s tests/bench

bench-input: $(READY)
	$(BIN)/python -m tests.bench.input

bench-memory: $(READY)
	$(BIN)/python -m tests.bench.memory_growth

bench-report: $(READY) chromium
	$(BIN)/python -m tests.bench.report_page

bench-survival: $(READY)
	$(BIN)/python -m tests.bench.machinery_share

bench-scaling: $(READY)
	$(BIN)/python -m tests.bench.scaling

bench-step: $(READY)
	$(BIN)/python -m tests.bench.full_resolution
	$(BIN)/python -m tests.bench.memory_prediction

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/rumdl check .

types: $(READY)
	$(BIN)/mypy segtrain jobs tests

contracts: $(READY)
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python docs/write_settings.py

lock: $(READY)
	$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev --no-header \
		--no-emit-find-links pyproject.toml --output-file requirements.lock
	@head -n 3 $(CUDA_LOCK) > $(CUDA_LOCK).new
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-find-links --extra gpu -c requirements.lock pyproject.toml | \
		awk '/^[a-z]/ { nvidia = /^nvidia-/ } nvidia' >> $(CUDA_LOCK).new
	@mv $(CUDA_LOCK).new $(CUDA_LOCK)

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find segtrain jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
