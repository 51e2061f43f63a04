# Everything a clone can do. `make run` and `make test` are the two that a newcomer needs; `make` alone lists all.
#
# What `make run` keeps is in .run/ below the clone and in /run/reconciler-<hash of the clone's path>: a unix socket's path
# may have 107 bytes at most, and clones are found in deep directories. `make clean-run` removes both.

PYTHON ?= /usr/bin/python3
RUN_DIR := /run/reconciler-$(shell printf %s '$(CURDIR)' | sha256sum | cut -c1-8)
WHERE := --state $(CURDIR)/.run/state --run $(RUN_DIR) --device $(CURDIR)/.run/device.yaml
RECONCILER := .venv/bin/reconciler

# A stamp is named after what it was made from, so that it is found again exactly as long as it is true.
PROJECT := $(shell sha256sum pyproject.toml | cut -c1-12)
RUN_STAMP := .venv/installed-$(PROJECT)
TEST_STAMP := .venv/installed-$(PROJECT)-test

# A caller's wish for no bytecode would have every verb and every agent compile the whole program: twice the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run clean-run test check test-vm bench fuzz format docs

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## run the apps in specs/ on this machine (Debian, root), in the foreground
	@deploy/preflight.sh
	@deploy/packages.sh run
	@$(MAKE) --no-print-directory $(RUN_STAMP)
	@mkdir -p .run && sed 's|@CLONE@|$(CURDIR)|' examples/device.yaml >.run/device.yaml
	@$(RECONCILER) doctor --quick $(WHERE)
	@echo 'The apps of specs/ will answer here:'
	@echo '  pages      http://localhost:8080/  http://localhost:8081/  http://localhost:8082/'
	@echo '  metrics    http://127.0.0.1:9470/metrics'
	@echo '  logs       $(RECONCILER) logs -f web/page $(WHERE)'
	@echo '  status     $(RECONCILER) status $(WHERE)'
	@echo 'Ctrl-C ends the agent and leaves the containers running; `make clean-run` removes everything.'
	@echo
	@exec $(RECONCILER) agent specs $(WHERE)

clean-run: ## remove all that `make run` made: containers, volumes, networks, cgroups, files
	@if [ ! -e .run ] && [ ! -e $(RUN_DIR) ]; then echo 'nothing to remove'; \
	elif [ ! -x $(RECONCILER) ]; then echo 'clean-run: .venv is gone, and with it the program; `make run` makes it again' >&2; exit 1; \
	else $(RECONCILER) uninstall --yes $(WHERE) && rm -rf .run; fi

test: ## run every test; without root, those that can run, and a list of the others
	@deploy/packages.sh test
	@$(MAKE) --no-print-directory $(TEST_STAMP)
	.venv/bin/python -m pytest -n 2 --dist worksteal

check: $(TEST_STAMP) ## formatting, lint, types, layers and unit tests: no root, no network
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -q -n 2 tests/unit tests/scenarios

test-vm: ## run the tests marked cgroup or quota in a virtual machine with cgroup version 2
	@deploy/packages.sh test
	@$(MAKE) --no-print-directory $(TEST_STAMP)
	.venv/bin/python -m pytest -m vm tests/vm

bench: ## measure beside crun, runc, docker and podman, as far as they are installed
	@deploy/packages.sh bench
	@$(MAKE) --no-print-directory $(TEST_STAMP)
	.venv/bin/python bench/run.py

fuzz: $(TEST_STAMP) ## feed the parsers that strangers reach for SECONDS (60) each, with atheris
	@.venv/bin/python -c 'import atheris' 2>/dev/null || .venv/bin/pip install -q atheris
	@for target in $$(.venv/bin/python -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)'); do \
		echo "$$target"; .venv/bin/python -m tests.fuzz.run $$target $(or $(SECONDS),60) || exit 1; done

format: $(TEST_STAMP) ## put the sources into their one form
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: $(TEST_STAMP) ## write the generated parts of docs/ again
	.venv/bin/python docs/generate.py

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON): Python 3.11 or newer is needed; another one: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv .venv

# A path that Python looks into, instead of a finder that every verb would have to load first.
EDITABLE := --config-settings editable_mode=compat

$(RUN_STAMP): .venv/bin/pip
	@if [ ! -e $(TEST_STAMP) ]; then set -x; .venv/bin/pip install -q --disable-pip-version-check $(EDITABLE) -e .; fi
	@rm -f .venv/installed-????????????
	@touch $@

$(TEST_STAMP): .venv/bin/pip
	.venv/bin/pip install -q --disable-pip-version-check $(EDITABLE) -e '.[test]'
	@rm -f .venv/installed-*
	@touch $@ $(RUN_STAMP)
