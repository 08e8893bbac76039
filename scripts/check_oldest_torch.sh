#!/usr/bin/env bash
# Builds ffmef against the oldest torch that pyproject.toml allows, in a separate virtual environment, and runs the
# tests that depend on torch's version: torch.compile, autocast, derivatives, and the Triton kernels on its Triton.
# scripts/check_oldest_torch.sh [FOLDER]     FOLDER holds the environment and the build; default: a temporary one.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
oldest=$(sed -nE 's/.*"torch>=([0-9.]+)".*/\1/p' pyproject.toml | head -1)
case $oldest in *.*.*) ;; *) oldest=$oldest.0 ;; esac
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
environment=$folder/environment tree=$folder/tree
python=$environment/bin/python
if [ ! -x "$python" ]; then
  python3 -m venv "$environment"
  # The interpreter of triton 3.6 does not work with NumPy 2.4.
  "$python" -m pip install --quiet "torch==$oldest" 'setuptools>=77,<82' cmake ninja pybind11 'numpy<2.4' \
    pytest hypothesis pillow tifffile opencv-python-headless safetensors
fi
rm -rf "$tree" && mkdir -p "$tree"
git ls-files -z | tar --null --files-from=- --create | tar --extract --directory "$tree"
cd "$tree"
PATH=$environment/bin:$PATH FFMEF_BUILD_CUDA=0 "$python" setup.py --quiet build_ext --inplace
"$python" -c 'import torch, triton, ffmef; print("torch", torch.__version__, "triton", triton.__version__)'
"$python" -m pytest -q -p no:cacheprovider tests/ops/test_compile.py tests/ops/test_pyramid_fuse.py tests/ops/test_nn.py \
  tests/gpu/test_triton_launch.py
# With the compilers of this Triton, no kernel may need the stack.
PYTHONPATH=$tree "$python" scripts/triton_budget.py --check 90
echo "$root: works with torch $oldest"
