# make demo   environment, installation, and one fused picture
# make test   the same environment plus what tests need, and all tests
# make test-quick   the heart of every operator, in under two minutes on two cores
# make lint   style and types: ruff, clang-format and mypy; make types: mypy alone
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

# What make test-quick runs, in float32: every operator's values and gradients, the models, the command.
QUICK = tests/ops/test_adaptive_fuse.py tests/ops/test_adaptive_fuse_coarse.py tests/ops/test_predict_and_fuse.py \
        tests/ops/test_pyramid_fuse.py tests/ops/test_ffmef_forward.py \
        tests/ops/test_thin_convolution.py tests/ops/test_norm_activation.py tests/ops/test_nn.py \
        tests/models/test_registry.py tests/cli/test_file_writing.py
NATIVE = $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.* tests/support/cuda_emulator/* examples/cpp/*.cpp)

.PHONY: demo test test-quick lint types build clean

demo: $(VENV)/installed
	$(BIN)/ffmef info
	$(BIN)/ffmef fuse examples/courtyard_under.jpg examples/courtyard_over.jpg -o demo-fused.png
	@echo "Look at demo-fused.png: the fusion of examples/courtyard_under.jpg and examples/courtyard_over.jpg"

test: $(VENV)/installed-tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-quick: $(VENV)/installed-tests
	$(BIN)/python -m pytest -q -n 2 --dtype float32 -m "not slow" $(PYTEST_FLAGS) $(QUICK)

lint: $(VENV)/installed-lint types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! LC_ALL=C.UTF-8 grep -nE '.{121}' $(NATIVE)  # comments, which clang-format leaves alone
	$(BIN)/clang-format --dry-run -Werror $(filter %.cpp %.h %.hpp %.cu %.cuh,$(NATIVE))

types: $(VENV)/installed-lint
	$(BIN)/mypy

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

$(VENV)/installed-lint: $(VENV)/environment
	$(PIP) install -q -c constraints.txt 'ruff>=0.14' 'clang-format>=20' 'mypy>=1.18' numpy safetensors pillow \
		opencv-python-headless
	touch $@

clean:
	rm -rf build $(VENV) ffmef/*.so ffmef.egg-info
