# Two commands for a newcomer: `make demo` paints a picture, `make test` proves the rest.
# Each makes its own .venv on a machine that has only Python 3.10 or later.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
INPUTS := pyproject.toml setup.py constraints.txt

.PHONY: demo test lint types tests gpu bench install-check trust nightly fuzz clean trust-server lock locked

demo: .venv/.build
	$(BIN)/sana-export build --output out/nano
	$(BIN)/sana-export generate "a red circle above a blue square" --bundle out/nano --output out/demo.png

test: lint types tests

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

tests: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

gpu: .venv/.dev
	$(BIN)/python bench/gpu_suite.py

bench: .venv/.dev
	$(BIN)/python bench/design_table.py $(if $(MODEL),--model $(MODEL)) $(if $(RESUME),--resume)

install-check: .venv/.build
	$(BIN)/sana-export build --output out/install-check
	$(BIN)/python tests/install_check.py out/install-check

trust: .venv/.dev
	SANA_TRUST=full OMP_NUM_THREADS=1 RUST_BACKTRACE=0 $(BIN)/pytest tests/trust --durations 10

nightly: .venv/.dev
	SANA_TRUST=nightly OMP_NUM_THREADS=1 RUST_BACKTRACE=0 $(BIN)/pytest tests/trust --durations 10

fuzz: .venv/.dev
	$(PIP) atheris
	for target in manifest graph png prompt tokenizer; do $(BIN)/python bench/trust_fuzz.py $$target $(or $(SECONDS),60) || exit 1; done

trust-server: .venv/.dev
	SANA_TRUST_REQUESTS=10000 SANA_TRUST_CLIENTS=200 SANA_TRUST_SECONDS=60 $(BIN)/pytest -s tests/serve/test_trust.py

lock: .venv/.dev
	$(BIN)/python bench/trust_lock.py > .venv/lock
	mv .venv/lock requirements-dev.lock

# .venv anew, of nothing but archives with the digests in requirements-dev.lock: what builds the others from source first.
locked:
	$(PYTHON) -m venv --clear .venv
	grep ^setuptools== requirements-dev.lock > .venv/tools.lock
	$(PIP) --require-hashes --no-deps --requirement .venv/tools.lock
	$(PIP) --require-hashes --no-deps --no-build-isolation --requirement requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch .venv/.build .venv/.dev

clean:
	rm -rf .venv out build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.build: .venv/bin/python $(INPUTS)
	$(PIP) --editable ".[build]"
	touch $@

.venv/.dev: .venv/bin/python $(INPUTS)
	$(PIP) --editable ".[dev]"
	touch $@ .venv/.build
