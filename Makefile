# Two commands for a newcomer: `make demo` and `make test`.  Both set up everything they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
# A file's tests stay in one process, so that what its fixtures make is made once; `loadgroup` marks are not seen by pytest 9.2.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo install-dev test test-all check format mutants mutants-random golden generated clean

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("sartor needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say which to use: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/run.stamp  ## set up, fine-tune the embedded base model, talk to it
	$(BIN)/sartor demo

install-dev: $(VENV)/dev.stamp  ## set up everything that tests and benchmarks need

test: $(VENV)/dev.stamp  ## all tests but the slow ones
	$(PYTEST) -m "not slow" tests

test-all: $(VENV)/dev.stamp  ## all tests
	$(PYTEST) tests

check: $(VENV)/dev.stamp  ## format, lint, strict types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generated: $(VENV)/dev.stamp  ## command line flags and docs/options.md, from SFTConfig and its table
	$(BIN)/python -m sartor.cli.generate > build-flags.tmp && mv build-flags.tmp src/sartor/cli/field_flags.json
	$(BIN)/python -m sartor.config.page > build-options.tmp && mv build-options.tmp docs/options.md

mutants: $(VENV)/dev.stamp  ## break the code on purpose; every break must fail a test
	$(BIN)/python -m tests.mutants

mutants-random: $(VENV)/dev.stamp  ## random mutations of engine, batching, optim and checkpoints: N=100 SEED=1
	$(BIN)/python -m tests.mutants.by_chance --n $(or $(N),100) --seed $(or $(SEED),1)

golden: $(VENV)/dev.stamp  ## what users see, compared with another commit: make golden BASE=HEAD~1
	$(BIN)/python -m tests.golden --base $(or $(BASE),HEAD)

clean:
	rm -rf $(VENV) build dist src/*.egg-info
