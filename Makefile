# SPDX-License-Identifier: Apache-2.0
# make lab    a cluster of network namespaces on this machine, with requests running through it
# make test   linters and all tests
# Both install what is missing first and say so; see scripts/setup.

PYTHON := .venv/bin/python
# Tests and lab load BPF programs and make network namespaces: as root, through sudo when not root.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help lab test lock test-kernels test-distros test-upgrades soak mutants test-vm lint bench bench-quick format clean

help:
	@echo 'make lab     set up, bring up the lab, show Services at work'
	@echo 'make test    set up, run linters and all tests (PYTEST_ARGS="-k name" for some)'
	@echo 'make lock    newest versions into requirements/ that pyproject.toml allows, then all tests with them'
	@echo 'make test-kernels  set up, packet tests and a lab on the kernels of Debian 11, 12, 13 (KERNELS="5.10" for one)'
	@echo 'make soak    set up, run the long campaigns, SOAK_SECONDS=60 each: fuzzing, kills, floods, twin, outages of the API'
	@echo '             server, over from kube-proxy and back, nodes that come and go (docs/reliability.md)'
	@echo 'make mutants set up, change lines of bpf/*.h, lb/plan and lb/datapath/sync and see whether tests notice,'
	@echo '             MUTANTS_SECONDS=600, MUTANTS_FILES="cache.h" for some (docs/mutants.md)'
	@echo 'make test-upgrades  set up, to each of the last versions and back, under traffic (REVISIONS="v0.1.0" for some)'
	@echo 'make test-distros  set up, both README commands in a Debian 13 root (DISTROS_ARGS="trixie -- tests/packet" for some)'
	@echo 'make test-vm  set up, the lab of the Vagrantfile in emulated machines (docs/vagrant.md)'
	@echo 'make lint    set up, run linters only'
	@echo 'make bench   set up, measure everything; make bench-quick does so in under three minutes'
	@echo 'make format  set up, let ruff and clang-format rewrite the sources, and the schema of the chart follow the settings'
	@echo 'make clean   remove .venv and caches (first: lbctl lab down)'

lab:
	@scripts/setup
	@$(ROOT) .venv/bin/lbctl lab demo

test: lint
	@$(ROOT) scripts/tests $(PYTEST_ARGS)

lock:
	@scripts/setup dev
	scripts/lock
	@$(MAKE) --no-print-directory test

test-kernels:
	@scripts/setup vm
	$(ROOT) $(PYTHON) -m tests.kernels $(KERNELS)

# Seconds of each campaign.
SOAK_SECONDS ?= 60

soak:
	@scripts/setup dev
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.fuzz $(SOAK_SECONDS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.kills $(SOAK_SECONDS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 SOAK_SECONDS=$(SOAK_SECONDS) $(PYTHON) -m tests.soak.floods $(FLOODS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.twin $(SOAK_SECONDS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.outages $(SOAK_SECONDS)
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.cutover
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.nodes direct 200 2

# Seconds for the sample of mutants, and its seed.
MUTANTS_SECONDS ?= 600
MUTANTS_SEED ?= 1

mutants:
	@scripts/setup dev
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.mutants $(MUTANTS_SECONDS) $(MUTANTS_SEED) $(MUTANTS_FILES)

test-upgrades:
	@scripts/setup dev
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak.upgrades $(REVISIONS)

test-distros:
	@scripts/setup vm
	$(ROOT) $(PYTHON) -m tests.distros $(DISTROS_ARGS)

test-vm:
	@scripts/setup vm
	$(ROOT) $(PYTHON) -m tests.vm

lint:
	@scripts/setup dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $$(find bpf bench -name '*.[ch]' -not -path 'bpf/include/*')
	.venv/bin/shellcheck scripts/setup scripts/tests scripts/lock vagrant/*.sh tests/deploy/boot.sh
	.venv/bin/mypy
	.venv/bin/lint-imports

bench:
	@scripts/setup dev
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m bench

bench-quick:
	@scripts/setup dev
	$(ROOT) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m bench --quick

format:
	@scripts/setup dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $$(find bpf bench -name '*.[ch]' -not -path 'bpf/include/*')
	$(PYTHON) -m tests.deploy.values_schema

clean:
	$(ROOT) rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	$(ROOT) find . -name __pycache__ -prune -exec rm -rf {} +
