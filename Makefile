# Everything here needs only GNU make and a Python >= 3.11; `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/align_demo

# Asked once, without noise where PYTHON does not run: "3.11 ok", "3.9 old", or nothing.
PYTHON_REPORT := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; \
	print("%d.%d" % v[:2], "ok" if v >= (3, 11) else "old")' 2>/dev/null)
VERSION := $(word 1,$(PYTHON_REPORT))
require_python = $(if $(filter ok,$(PYTHON_REPORT)),,$(error big_ssl needs Python >= 3.11, but \
	'$(PYTHON)' is $(or $(VERSION),not a Python that runs here); try: make PYTHON=python3.12))

LOCK := $(wildcard requirements/py$(VERSION).txt)
IN_VENV := $(VENV)/bin/python
# Twice quiet: errors only. A warning about the user's own pip settings, once a package, is noise here.
PIP := $(IN_VENV) -m pip install --quiet --quiet --disable-pip-version-check
# One stamp for each Python, so that another PYTHON builds the environment anew.
INSTALLED := $(VENV)/.installed-py$(VERSION)
INSTALLED_PARITY := $(VENV)/.installed-parity-py$(VERSION)

# One worker a core, each with whole files, so that what a file compiles is compiled once. Above 4 they would wait
# for memory. PYTEST_FLAGS is for the caller: make test PYTEST_FLAGS=--durations=15.
WORKERS := --numprocesses=auto --maxprocesses=4 --dist=loadfile
PYTEST_FLAGS ?=

# pytest exits with 5 where no test matches: fine for a set that is still empty.
NONE_YET = || { code=$$?; [ $$code -eq 5 ] && echo "no test carries this marker yet"; }

# Huge pages for large allocations: a fifth to a third off a training step on CPU (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow soak smoke parity parity-table golden lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done
	@echo "variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKDIR=$(WORKDIR)"

venv: $(INSTALLED)  ## create the virtual environment and install big_ssl in it

# With a lock for this Python every version is pinned; without one pip chooses within setup.py's bounds.
# --clear only ever touches a folder that already is a virtual environment.
$(INSTALLED): setup.py $(LOCK)
	$(require_python)@echo "installing into $(VENV) from $(or $(LOCK),setup.py: no lock for Python $(VERSION))"
	@rm -f $(VENV)/.installed-*
	@[ -x $(VENV)/bin/python$(VERSION) ] \
		|| $(PYTHON) -m venv $$([ ! -f $(VENV)/pyvenv.cfg ] || echo --clear) $(VENV)
	@$(PIP) $(if $(LOCK),--requirement $(LOCK),--editable '.[eval,dev,gcs,s3]')
	@$(if $(LOCK),$(PIP) --no-deps --editable .,true)
	@touch $@

demo: $(INSTALLED)  ## train the ALIGN demo on the embedded data (minutes on a CPU)
	$(IN_VENV) -m big_ssl.main --config=configs/align_l2.py:demo --workdir=$(WORKDIR)

test: $(INSTALLED)  ## run the fast tests
	$(IN_VENV) -m pytest $(WORKERS) $(PYTEST_FLAGS)

test-slow: $(INSTALLED)  ## run the long tests
	@$(IN_VENV) -m pytest -m slow $(WORKERS) $(PYTEST_FLAGS) $(NONE_YET)

soak: $(INSTALLED)  ## run rehearsals and fault injection (minutes each; not in CI)
	@$(IN_VENV) -m pytest -m soak $(NONE_YET)

smoke: $(INSTALLED)  ## run a minute's subset of the tests (CI: on the newest Python)
	@$(IN_VENV) -m pytest -m smoke $(NONE_YET)

parity: $(INSTALLED_PARITY)  ## compare with the public PyTorch implementations (installs PyTorch)
	@$(IN_VENV) -m pytest -m parity $(NONE_YET)

parity-table: $(INSTALLED_PARITY)  ## write the figures of the parity tests into docs/weights.md
	$(IN_VENV) -m pytest -m parity tests/parity --parity-table=docs/weights.md

$(INSTALLED_PARITY): $(INSTALLED)
	@echo "installing PyTorch, transformers and open_clip into $(VENV)"
	@$(PIP) $(if $(LOCK),--constraint $(LOCK)) 'torch==2.13.0' 'transformers>=5.23' regex
	@$(PIP) --no-deps 'open_clip_torch>=3.3' 'ftfy>=6.3' wcwidth  # its tokenizer; the rest wants torchvision
	@touch $@

golden: $(INSTALLED)  ## write the resolved recipes, after a change that is meant (tests/configs/golden)
	$(IN_VENV) -m tests.configs.golden

lint: $(INSTALLED)  ## check style, formatting and types
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m mypy

format: $(INSTALLED)  ## sort imports, apply safe fixes, format
	$(IN_VENV) -m ruff check --fix .
	$(IN_VENV) -m ruff format .

clean:  ## remove caches and build products; the environment and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find big_ssl configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
