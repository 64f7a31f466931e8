# `make` alone lists the targets. The first target that needs it makes .venv, once.
#
# Settings, as in `make demo PYTHON=python3.12`:
#   PYTHON           interpreter that .venv is made from (3.11 or newer)
#   TORCH            exact torch to install, for example torch==2.14.1
#   OMP_NUM_THREADS  CPU threads of one process
#   WORKERS          processes that run tests
#   SYSTEM_PYTHON    interpreter that every account of the machine may run, for bundle-check
#   MEDFL_REAL_DATA  folder of real cases; tests that need it are skipped without it

PYTHON ?= python3
TORCH ?= torch==2.13.0
OMP_NUM_THREADS ?= 2
WORKERS ?= 2
SYSTEM_PYTHON ?= /usr/bin/python3

export OMP_NUM_THREADS
# Threads that wait for each other sleep, so that they leave shared cores to whoever has work.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -qq -c .venv/constraints.txt
# One thread in each of two processes uses two cores better than two threads in one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
STAGES := lint types contracts test-unit test-federation test-deployment test-e2e test-notebooks
FEDERATION_TESTS := $(addprefix tests/,hostile preflight protocol server site study)
DEPLOYMENT_TESTS := $(addprefix tests/,deployment rehearsal)
NOTEBOOK_TESTS := tests/test_notebooks.py
# Text notebooks where there are any, else the .ipynb files themselves.
NOTEBOOKS = $(or $(wildcard notebooks/*.py),$(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check bench notebooks docs bundle bundle-check clean FORCE $(STAGES)

# $(call stage,NAME,COMMAND) prints the name, runs the command, prints outcome and time.
define stage
	@printf '\n== %s\n' '$(1)'; began=$$(date +%s); outcome=passed; \
	{ $(2); } || outcome=FAILED; \
	printf '== %s: %s in %s s\n' '$(1)' "$$outcome" "$$(( $$(date +%s) - began ))"; \
	[ "$$outcome" = passed ]
endef

help: ## list the targets
	@echo 'medfl: patient-level differentially private federated learning for medical imaging'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'Settings: PYTHON=$(PYTHON) TORCH=$(TORCH) OMP_NUM_THREADS=$(OMP_NUM_THREADS)'

demo: .venv/.installed-run ## a private federation of synthetic hospitals, results in runs/demo
	@$(BIN)/python pipelines/demo.py

test: .venv/.installed-all ## everything: lint, types, contracts and all groups of tests
	@rm -rf build/tests; failed=; \
	for stage in $(STAGES); do $(MAKE) --no-print-directory $$stage || failed="$$failed $$stage"; done; \
	echo; [ -z "$$failed" ] || echo "failed:$$failed"; \
	$(BIN)/python .ci/totals.py build/tests && [ -z "$$failed" ]

check: lint types contracts test-unit ## what to run before every commit, under two minutes

lint: .venv/.installed-all ## ruff: rules and formatting
	$(call stage,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: .venv/.installed-all ## mypy, strict
	$(call stage,types,$(BIN)/mypy)

contracts: .venv/.installed-all ## import-linter: who may import whom
	$(call stage,contracts,$(BIN)/lint-imports --no-logo)

test-unit: .venv/.installed-all ## all tests that take seconds
	$(call stage,test-unit,$(PYTEST) -m 'not slow' --junitxml=build/tests/unit.xml)

test-federation: .venv/.installed-all ## slow tests of the federation in a process or two: crashes, resumption
	$(call stage,test-federation,$(PYTEST) -m slow --junitxml=build/tests/federation.xml \
		$(FEDERATION_TESTS))

test-deployment: .venv/.installed-all ## slow tests of a server and hospitals as real processes
	$(call stage,test-deployment,$(PYTEST) -m slow --junitxml=build/tests/deployment.xml \
		--no-loadscope-reorder $(DEPLOYMENT_TESTS))

test-e2e: .venv/.installed-all ## all other slow tests: whole studies, audits
	$(call stage,test-e2e,$(PYTEST) -m slow --junitxml=build/tests/e2e.xml \
		$(addprefix --ignore=,$(FEDERATION_TESTS) $(DEPLOYMENT_TESTS) $(NOTEBOOK_TESTS)))

test-notebooks: .venv/.installed-all ## execute the notebooks at small size
	$(call stage,test-notebooks,OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow \
		--junitxml=build/tests/notebooks.xml $(NOTEBOOK_TESTS))

bench: .venv/.installed-all ## time and memory of a private step, beside its rivals
	@$(BIN)/python pipelines/benchmark.py

notebooks: .venv/.installed-all ## execute the notebooks, results in runs/notebooks
	@mkdir -p runs/notebooks
	@for notebook in $(NOTEBOOKS); do \
		name=$$(basename $${notebook%.*}); echo "executing $$notebook"; \
		$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --execute \
			--output runs/notebooks/$$name.ipynb $$notebook || exit 1; \
	done

# Quiet but for warnings, which fail it. Pages of removed documents would stay, hence the first line.
docs: .venv/.installed-docs ## the guides with references of commands and Python, in build/docs; no network
	@rm -rf build/docs
	@$(BIN)/python -m sphinx -q -W --keep-going -c .ci/docs -d build/doctrees . build/docs
	@echo "build/docs/index.html: $$(find build/docs -name '*.html' | wc -l) pages, $$(du -sh build/docs | cut -f1)"

# The wheel of medfl is built from a fresh copy: setuptools would keep removed modules in build/lib.
bundle: .venv/.torch docs ## everything that a machine without network installs from, in build/bundle
	@rm -rf build/bundle build/lib build/bdist.*; mkdir -p build/bundle
	@$(PIP) wheel -qq --no-build-isolation -c .venv/constraints.txt --wheel-dir build/bundle/wheels .
	@rm -rf build/lib build/bdist.*
	@cp -r site_configs README.md SECURITY.md DECISIONS.md CONTRIBUTING.md LICENSE build/bundle
	@mkdir build/bundle/notebooks && cp -r notebooks/guides notebooks/images build/bundle/notebooks
	@cp -r build/docs build/bundle/docs
	@$(BIN)/python .ci/bundle.py build/bundle
	@echo "build/bundle: $$(ls build/bundle/wheels | wc -l) wheels, $$(du -sh build/bundle | cut -f1)," \
		"for $$($(BIN)/python --version) on $$(uname -sm). On the other machine, in that folder:"
	@echo '  sha256sum --quiet --check SHA256SUMS && python3 -m venv /opt/medfl'
	@echo '  /opt/medfl/bin/pip install --no-index --find-links wheels --require-hashes -r requirements.txt'

bundle-check: ## as root: install the bundle as its image does, and rehearse a deployment with it
	@$(BIN)/python .ci/image_check.py build/bundle $(SYSTEM_PYTHON)

clean: ## remove caches and build output; .venv and runs stay
	rm -rf build dist medfl.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . \( -name .venv -o -name .git \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Setting up. A stamp is written only when its phase is complete, so an interrupted one runs again.

.venv/.created:
	@command -v '$(PYTHON)' >/dev/null || { \
		echo "medfl needs Python 3.11 or newer, and there is no '$(PYTHON)' here." >&2; \
		echo 'Choose an interpreter, for example: make PYTHON=python3.12 demo' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "medfl needs Python 3.11 or newer, found: $$('$(PYTHON)' --version 2>&1)" >&2; \
		echo 'Choose another interpreter, for example: make PYTHON=python3.12 demo' >&2; exit 1; }
	@echo "[1/3] creating .venv with $$('$(PYTHON)' --version)"
	@'$(PYTHON)' -m venv .venv
	@touch $@

# Another TORCH than the installed one replaces it. The constraints that the other packages are
# installed under name the torch that is really there.
.venv/.torch: .venv/.created constraints.txt \
		$(if $(filter-out $(TORCH),$(shell cat .venv/.torch 2>/dev/null)),FORCE)
	@echo '[2/3] installing $(TORCH)'
	@grep -v '^torch==' constraints.txt > .venv/constraints.txt
	@began=$$(date +%s) && $(INSTALL) setuptools '$(TORCH)' \
		&& echo "      done in $$(( $$(date +%s) - began )) s"
	@$(PIP) freeze | grep '^torch==' >> .venv/constraints.txt
	@echo '$(TORCH)' > $@

.venv/.installed-run: .venv/.torch pyproject.toml
	@echo '[3/3] installing medfl and what it needs to run'
	@began=$$(date +%s) && $(INSTALL) --no-build-isolation -e . \
		&& echo "      done in $$(( $$(date +%s) - began )) s"
	@touch $@

.venv/.installed-docs: .venv/.torch pyproject.toml
	@echo '[3/3] installing medfl and what its documents are built with'
	@began=$$(date +%s) && $(INSTALL) --no-build-isolation -e '.[docs]' \
		&& echo "      done in $$(( $$(date +%s) - began )) s"
	@touch .venv/.installed-run $@

.venv/.installed-all: .venv/.torch pyproject.toml
	@echo '[3/3] installing medfl with all extras: sim, notebooks, pdf, crate, tables, docs, dev'
	@began=$$(date +%s) && $(INSTALL) --no-build-isolation -e '.[sim,notebooks,pdf,crate,tables,docs,dev]' \
		&& echo "      done in $$(( $$(date +%s) - began )) s"
	@touch .venv/.installed-run .venv/.installed-docs $@
