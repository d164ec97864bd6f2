# One target per check; `.ci/run` calls `make test`. Everything runs inside .venv, made by `make setup`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test edges examples check coverage lint format types layers docstrings docs lock wheel-test clean

setup: $(STAMP)

# uv installs the pinned, hashed wheels several times faster than pip does.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "latentprint needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --require-hashes --requirement requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $(STAMP)

demo: setup
	$(BIN)/latentprint demo

# One process a core with one thread each: small tensors gain nothing from two.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# All mutations of everything that is read (`make test` runs two minutes of them): hours on two cores.
edges: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/edges/harness.py

# The examples and the notebook, small; `make test` runs them too.
examples: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_examples.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/pyright

layers: setup
	$(BIN)/lint-imports

# What a docstring says of arguments must be true of the function, and what it raises must be said where it has sections. Not asked:
# a list of every argument, result and yield, where the first sentence names them (DOC101, DOC103, DOC201, DOC402),
# and a match of all errors, for those of callees cannot be seen here (DOC502, DOC503).
docstrings: setup
	$(BIN)/flake8 --select=DOC001,DOC002,DOC003,DOC102,DOC104,DOC106,DOC107,DOC301,DOC302,DOC303,DOC304,DOC305,DOC403,DOC404,DOC501 --style=google \
	  --arg-type-hints-in-docstring=False --check-return-types=False --check-yield-types=False \
	  --check-class-attributes=False --skip-checking-short-docstrings=True src/latentprint

# All that is looked at without running the tests.
check: lint types layers docstrings docs

# The site, into site/; no network. What a page names and is not there is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The tests with the share of lines that they reach.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term:skip-covered

# No index address may enter the lock: it must install from whatever index the user has.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra accelerate --extra dev --extra docs --extra examples --extra dicom --extra dp --extra fid --extra lucidrains --extra medmnist --extra monai --extra nifti --extra ray --extra sign --extra text --extra torch \
	  --no-emit-index-url --no-header pyproject.toml --output-file requirements.lock

# The wheel as a stranger gets it: built, installed into fresh environments outside the tree, and run there.
wheel-test: setup
	$(BIN)/python -m tools.wheel_test --python $(PYTHON)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache
