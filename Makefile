# `make` lists the targets. Each installs what it needs first, in .venv and with apt
# (docs/install.md); once that is done it costs a fraction of a second.

export PATH := $(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin

SOAK_MINUTES := 10
NEWCOMER := tests/docs tests/interoperation/test_foreign_restores.py tests/browser \
    tests/fit/test_man_pages.py tests/fit/test_completion.py
RESULTS := docs/benchmarks/results.json

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: machine .venv/.criu ## install what demo, test and bench need

demo: machine .venv/.criu ## checkpoint and restore a process through a mount
	scripts/demo

test: machine lint .venv/.criu programs ## lint, then run the tests (PYTEST_ARGS="-x -k mount" picks some)
	.venv/bin/python -m pytest $(PYTEST_ARGS)

test-full: .venv/.azurite
test-full: PYTEST_ARGS += -m "full or not full"
test-full: test ## the same with tests that take longer than a minute

newcomer: machine .venv/.criu programs ## try all that README and documentation show, as a newcomer would
	.venv/bin/python -m pytest -v $(NEWCOMER) $(PYTEST_ARGS)

lint: .venv/.packages ## check style, types and the order of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: machine .venv/.criu .venv/.bench ## measure dumps and restores (BENCH_ARGS=--help)
	.venv/bin/python -m benchmarks $(BENCH_ARGS)

figures: .venv/.bench ## renew the tables and plots of docs/benchmarks.md from what bench measured
	.venv/bin/python -m benchmarks.report $(RESULTS) --into docs/benchmarks.md
	.venv/bin/python -m benchmarks.plot $(RESULTS) docs/benchmarks

soak: machine .venv/.criu ## look for rare failures, SOAK_MINUTES=10 of each kind
	.venv/bin/python tests/crash/soak.py --minutes $(SOAK_MINUTES)
	.venv/bin/python tests/fuzz/soak.py --minutes $(SOAK_MINUTES)
	.venv/bin/python tests/faults/soak.py --minutes $(SOAK_MINUTES)

man: build/man/cedanafs.1 ## write the man pages into build/man

build/man/cedanafs.1: $(wildcard cedanafs/*.py cedanafs/*/*.py) scripts/man-pages .venv/.packages
	.venv/bin/python scripts/man-pages build/man

wheel: man ## build dist/*.whl, man pages included
	rm -rf build/lib build/bdist.*
	.venv/bin/python -m build --quiet --wheel --outdir dist

deb: wheel ## build dist/*.deb, for the Debian release that this is
	@scripts/setup-system dpkg-dev binutils
	scripts/build-deb dist/cedanafs-*.whl build/man dist

docs: .venv/.packages ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

clean: ## remove all that was built or installed here; system packages stay
	rm -rf .venv *.egg-info .*_cache .hypothesis build dist

# Stamps: a step that failed or was interrupted leaves none and is done again.
.venv/.criu: .venv/.packages scripts/setup-criu | machine
	@scripts/setup-criu
	@touch $@

.venv/.packages: pyproject.toml | system
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || /usr/bin/python3 -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv/.bench: .venv/.packages
	@scripts/setup-system redis-tools
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

.venv/.azurite: .venv/.packages
	@command -v npm >/dev/null || scripts/setup-system npm
	npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3
	@touch $@

system:
	@scripts/setup-system

programs: # that tests/live dumps at work, and that complete and show what we print
	@scripts/setup-system redis-server postgresql nodejs zsh fish man-db chromium

machine:
	$(if $(filter 0,$(shell id -u)),,$(error run it as root: CRIU needs it))
	$(if $(wildcard /dev/fuse),,$(error there is no /dev/fuse: load the kernel module fuse, or hand the device to the container))

.PHONY: help setup demo test test-full newcomer lint bench figures soak man wheel deb docs clean system programs machine
