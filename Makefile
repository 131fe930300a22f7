# Everything from a bare checkout: needs Python 3.11 to 3.13 and make.
COHORT  ?=
BIDS    ?=
PROFILE ?= tiny
RUNS    ?= runs

BIN := .venv/bin
# The first of these that starts, is of a version we support, and can make virtual environments.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c \
	'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $(name))))

.PHONY: help setup reproduce test test-slurm test-browser book lab lint sync
.DELETE_ON_ERROR:

help:
	@echo "make reproduce   run every notebook (PROFILE=tiny COHORT=atlas, or BIDS=FOLDER for your scans), build that book"
	@echo "make test        run the tests"
	@echo "make test-slurm  run the smoke profile on a Slurm of two nodes that is started for it; needs slurm-wlm and munge"
	@echo "make test-browser  try the live explorer in a JupyterLab and a browser of its own; needs Chromium"
	@echo "make setup       virtual environment in .venv, with the brainldm command"
	@echo "make book        published book from committed outputs, into _build/html"
	@echo "make lab         JupyterLab on the notebooks"
	@echo "make lint        check the style of the code"
	@echo "make sync        bring notebooks/*.ipynb in step with the .py files, the ones that are edited"

setup: .venv/.ready

# A setup that was cut off starts afresh; a changed list of packages only adds what changed.
.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 with venv found; install one (on Debian: python3-venv)," \
		"or name it: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@test ! -e .venv/.unfinished || rm -rf .venv
	@$(PYTHON) -m venv .venv
	@touch .venv/.unfinished
	@echo "Installing packages into .venv (a few minutes, a few GB at most) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[book,dev,live]" -c constraints.txt
	@rm .venv/.unfinished
	@touch $@

reproduce: setup
	@$(BIN)/brainldm run all --profile "$(PROFILE)" --runs "$(RUNS)" \
		$(if $(COHORT),--cohort "$(COHORT)") $(if $(BIDS),--bids "$(BIDS)")

test: setup
	@$(BIN)/python -m pytest

# Without Slurm on this machine it says so and is done.
test-slurm: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[slurm]" -c constraints.txt
	@tests/slurm.sh $(BIN)/python -m pytest tests/test_slurm.py

# Without Chromium on this machine it says so and is done.
test-browser: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser]" -c constraints.txt
	@BRAINLDM_TEST_BROWSER=1 $(BIN)/python -m pytest -rs tests/test_browser.py

book: setup
	@$(BIN)/brainldm book --published

lab: setup
	@$(BIN)/jupyter lab --notebook-dir=notebooks

lint: setup
	@$(BIN)/ruff check .

sync: setup
	@$(BIN)/brainldm sync
