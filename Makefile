# `make` lists the targets. Each one works in a fresh clone: it makes .venv and installs first.
PYTHON ?= python3
VENV   ?= .venv
NEWEST ?= .venv-newest
BIN     = $(VENV)/bin
DEMO   ?= .demo

# Python 3.12 reads the path of an editable installation in the locale's encoding, and does not start
# where it cannot: in a folder with an umlaut, say, under LC_ALL=C.
ifneq ($(shell printf %s "$(CURDIR)" | LC_ALL=C tr -d '\000-\177'),)
export LC_ALL := C.UTF-8
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-quick test-deploy test-newest check format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Install what a run needs into .venv (pip install -e '.[server,dashboard]')

demo: $(VENV)/.installed ## FedDGM against FedAvg on real, very skewed digits, with pictures
	PATH="$(abspath $(BIN)):$$PATH" bash deploy/demo.sh "$(abspath $(DEMO))"

test: $(VENV)/.installed-dev ## Every test but the drills, with a real simulation and a deployment over gRPC
	$(BIN)/python -m pytest -m "not deploy"

# One after the other, as each starts a dozen processes.
test-deploy: $(VENV)/.installed-dev ## Fault drills and refusals on a real deployment (docs/deploy.md)
	$(BIN)/python -m pytest -m deploy -o addopts=--strict-markers --durations=0

# Without the type checks of `make test`, which take a third of the time.
test-quick: $(VENV)/.installed-dev ## The unit tests, in a minute on 2 cores
	$(BIN)/python -m pytest -m "not slow" -n auto -o addopts=--strict-markers

# Everything but Flower and what it needs is that of $(VENV); pip says that the pin is passed over.
test-newest: $(VENV)/.installed-dev ## What touches Flower, on its newest release (docs/deploy.md)
	$(PYTHON) -m venv --clear $(NEWEST)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  >"$$($(NEWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/the-rest.pth"
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'flwr[simulation]'
	$(NEWEST)/bin/python -m pip show flwr | head -2
	$(NEWEST)/bin/python -m pytest -m "not slow" -n auto -o addopts=--strict-markers \
	  tests/federation tests/methods tests/watched tests/deploy tests/test_apps.py tests/test_resume.py \
	  tests/test_run_events.py tests/test_merge_config.py
	$(NEWEST)/bin/python -m pytest -o addopts=--strict-markers tests/test_simulation.py

check: $(VENV)/.installed-dev ## Formatting, lint (ruff) and types (mypy --strict)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what the targets made
	rm -rf $(VENV) $(NEWEST) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV): 3 GB to download, 6.5 GB on the disk; minutes, and pip says nothing meanwhile"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,dashboard]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,dashboard,dev]'
	@touch $@
