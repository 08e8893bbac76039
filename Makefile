# make demo   environment, installation, and one fused picture
# make test   the same environment with what tests need, and the tests
#
# PYTHON       interpreter that makes the environment; its torch is used if it has one
# VENV         where the environment goes
# TORCH_FLAGS  options of the pip call that installs torch, such as another index for a CPU-only build
PYTHON ?= python3
VENV ?= .venv
TORCH_FLAGS ?=
PYTEST_FLAGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install -q --no-build-isolation
SOURCES = setup.py pyproject.toml CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)

.PHONY: demo test build clean

demo: $(VENV)/installed
	$(BIN)/ffmef info
	$(BIN)/ffmef fuse examples/courtyard_under.jpg examples/courtyard_over.jpg -o demo-fused.png
	@echo "Look at demo-fused.png: the fusion of examples/courtyard_under.jpg and examples/courtyard_over.jpg"

test: $(VENV)/installed-tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# Rebuilds the native libraries in place, for work on csrc/ with an environment that is already active.
build:
	python setup.py -q build_ext --inplace

$(VENV)/environment:
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install -q -c constraints.txt $(TORCH_FLAGS) torch
	$(PIP) install -q -c constraints.txt 'setuptools>=77' wheel 'numpy>=1.26' 'cmake>=3.26' ninja 'pybind11>=2.12'
	touch $@

$(VENV)/installed: $(VENV)/environment $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(INSTALL) -c constraints.txt -e .
	touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(PIP) install -q -c constraints.txt 'ffmef[test]'  # already installed: only what its extra names
	touch $@

clean:
	rm -rf build $(VENV) ffmef/*.so ffmef.egg-info
