# `make` lists what can be done. Everything is installed into .venv, and nothing outside this folder is touched.

VENV ?= .venv
TORCH ?= 2.13.0
TRITON ?= 3.7.1
REPORT ?= report
FRAMEWORKS ?= .venv-frameworks

# The first of these that runs, is new enough and can make an environment (a pyenv shim may exist without running).
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

GPU := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
export MAM_WITH_CUDA ?= $(if $(GPU),auto,0)

IN = $(VENV)/bin/
PIP = $(IN)python -m pip install --quiet --disable-pip-version-check
SOURCES = setup.py pyproject.toml $(shell find csrc -type f)
CPP = $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
LINTED = mam_kernels python tests benchmarks docs setup.py

.DEFAULT_GOAL := help
.PHONY: help demo demo-engine test test-frameworks gpu bench docs lint format clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 15

demo: $(VENV)/demo.stamp ## the study on 700 real cells: pretrained with and without learned masks, compared, a report to look at
	$(IN)python -m scmam demo --out $(REPORT)

demo-engine: $(VENV)/demo.stamp ## the engine on the same cells: validated, timed against the paper computation, a report
	$(IN)python -m scmam.engine_demo --out $(REPORT)-engine

test: $(VENV)/dev.stamp ## everything that needs no GPU, two groups at a time
	$(IN)python tests/run_groups.py

test-frameworks: $(FRAMEWORKS)/stamp ## the frameworks' own classes, in environments of their own: downloads about 300 MB, some minutes
	$(FRAMEWORKS)/new/bin/python -m pytest -q -p no:cacheprovider tests/frameworks
	$(FRAMEWORKS)/transformers4/bin/python -m pytest -q -p no:cacheprovider tests/frameworks tests/integrations/test_hugging_face.py

gpu: ## on a machine with an NVIDIA GPU and its own torch: build in place, test, measure; no network needed
	bash benchmarks/on_gpu.sh

bench: $(VENV)/dev.stamp ## the side-by-side study, the sweeps, masking's share of a step and the micro-benchmarks of this machine's CPU
	$(IN)python -m benchmarks.study
	$(IN)python -m benchmarks.sweeps
	$(IN)python -m benchmarks.share
	$(IN)python -m pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name -q

docs: $(VENV)/docs.stamp ## the guides and the API reference as pages in docs/_build; no network needed
	$(IN)python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "Written: docs/_build/index.html"

lint: $(VENV)/lint.stamp ## check style and formatting
	$(IN)ruff check $(LINTED)
	$(IN)ruff format --check $(LINTED)
	$(IN)clang-format --dry-run -Werror $(CPP)

format: $(VENV)/lint.stamp ## bring the code into shape
	$(IN)ruff check --fix $(LINTED)
	$(IN)ruff format $(LINTED)
	$(IN)clang-format -i $(CPP)

clean: ## remove what was built and installed here
	rm -rf $(VENV) $(FRAMEWORKS) build dist docs/_build *.egg-info mam_kernels/*.so $(REPORT) $(REPORT)-engine .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. Torch comes first and by name, so that the wheel is the one which the user's pip is set up for. The Triton is the one that
# this torch goes with.

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv found; install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.stamp: | $(VENV)/bin/python
	@echo "Installing torch $(TORCH) into $(VENV): some minutes the first time"
	$(PIP) torch==$(TORCH) numpy "setuptools>=77" wheel "pybind11>=2.12" ninja
	@touch $@

$(VENV)/engine.stamp: $(VENV)/torch.stamp $(SOURCES)
	@echo "Building mam-kernels"
	$(PIP) --no-build-isolation --editable .
	@touch $@

# The package is there already, so these add what its extras name, without building it again.
$(VENV)/demo.stamp: $(VENV)/engine.stamp
	$(PIP) "mam-kernels[scmam]"
	@touch $@

$(VENV)/docs.stamp: $(VENV)/engine.stamp
	$(PIP) "mam-kernels[docs]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/engine.stamp
	$(PIP) "mam-kernels[dev]" 'triton==$(TRITON); sys_platform == "linux"'
	@touch $@

# They see the packages of $(VENV), and add or replace what the frameworks need; their own pins contradict each other, so --no-deps.
SITE = import site; print(site.getsitepackages()[0])
$(FRAMEWORKS)/stamp: $(VENV)/dev.stamp tests/frameworks/new.txt tests/frameworks/transformers4.txt
	for name in new transformers4; do \
	  $(IN)python -m venv --without-pip $(FRAMEWORKS)/$$name && \
	  $(IN)python -c "$(SITE)" > $$($(FRAMEWORKS)/$$name/bin/python -c "$(SITE)")/shared.pth && \
	  echo "$(CURDIR)" >> $$($(FRAMEWORKS)/$$name/bin/python -c "$(SITE)")/shared.pth && \
	  echo "$(CURDIR)/python" >> $$($(FRAMEWORKS)/$$name/bin/python -c "$(SITE)")/shared.pth && \
	  $(IN)python -m pip --python $(FRAMEWORKS)/$$name/bin/python install --quiet --no-deps -r tests/frameworks/$$name.txt || exit 1; \
	done
	@touch $@

# Other versions format otherwise.
$(VENV)/lint.stamp: | $(VENV)/bin/python
	$(PIP) ruff==0.17.6 clang-format==23.1.5
	@touch $@
