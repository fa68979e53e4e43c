# make demo   the main job, end to end, in two small worlds that it draws itself
# make test   every notebook and every test
# make test-portable  the numeric tests with the kernels of other processors (ONLY=Haswell/avx2/1,Prescott: some of them)
# make mutants  a test of the tests: the library with one line made wrong at a time (ONLY=PATTERN: some of them)
# make results  RESULTS.md, rendered by the reports; trains what is not finished of three sweeps (an hour on two cores)
# make book   the book as a site, in _docs/html
# make lab    JupyterLab on the book
# make index  the map of the book and the links from chapter to chapter, after a chapter was added or moved
# make setup  only the environment (demo, test and lab do it when it is missing)
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
BIN  := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo results index test test-portable mutants book lab clean-nbs lock
help:
	@sed -n 's/^# make/make/p' Makefile

$(VENV)/.installed: requirements.lock pyproject.toml
	@PY=$${PYTHON:-$$(for p in python3 python3.12 python3.13 python3.11; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' 2>/dev/null && echo $$p && break; done)}; \
	 [ -n "$$PY" ] || { echo "setup: Python 3.11, 3.12 or 3.13 is needed and was not found; install one, or set PYTHON=/path/to/python3.12"; exit 1; }; \
	 command -v git >/dev/null || { echo "setup: git is needed; install it"; exit 1; }; \
	 echo "setup: $$($$PY --version) -> $(VENV) (about 6 GB, a few minutes the first time)"; \
	 [ -x $(BIN)/python ] || $$PY -m venv $(VENV) || { echo "setup: no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/.installed
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	  git config diff.jupytext.textconv '"$(abspath $(BIN))/jupytext" --quiet --to py:percent --output -'; \
	  git config diff.jupytext.cachetextconv true; fi

demo: setup
	@$(BIN)/vfassoc demo

results: setup
	@$(BIN)/vfassoc results -o RESULTS.md

test: setup
	@PATH="$(abspath $(BIN)):$$PATH" bash tests/run.sh

mutants: setup
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/mutants.py $(if $(ONLY),--only '$(ONLY)')

book: setup
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python book/build.py

test-portable: setup
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/portable.py --only "$(ONLY)"

lab: setup
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jupyter lab --notebook-dir=nbs --LabApp.default_url=/lab/tree/index.ipynb $$([ "$$(id -u)" = 0 ] && echo --allow-root)

index: setup
	@$(BIN)/python tests/book_map.py

lock:
	uv pip compile pyproject.toml --extra dev -c pins.txt --universal --python-version 3.11 -o requirements.lock
