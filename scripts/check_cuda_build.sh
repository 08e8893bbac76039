#!/bin/sh
# Builds ffmef with its CUDA library against a CUDA build of torch, and checks that it loads: no GPU is needed.
#
#   scripts/check_cuda_build.sh [FOLDER OF AN ENVIRONMENT]
#
# The environment (default .venv-cuda) is created if missing: torch with CUDA takes about 5.5 GB. TORCH chooses the
# version (default torch==2.14.1). nvcc of the same CUDA major version is found through CUDA_HOME or the PATH.
set -eu
unset PYTHONPATH
cd "$(dirname "$0")/.."
root=$PWD
environment=${1:-.venv-cuda}
if [ ! -x "$environment/bin/python" ]; then
  python3 -m venv "$environment"
fi
environment=$(cd "$environment" && pwd)
python=$environment/bin/python
"$python" -c 'import torch; assert torch.version.cuda' 2>/dev/null ||
  "$python" -m pip install -q "${TORCH:-torch==2.14.1}"
"$python" -m pip install -q 'setuptools>=77' wheel 'numpy>=1.26' 'cmake>=3.26' ninja 'pybind11>=2.12' \
  pillow opencv-python-headless tifffile safetensors

PATH="$environment/bin:$PATH" FFMEF_BUILD_CUDA=1 "$python" -m pip install -v --no-deps --no-build-isolation \
  --force-reinstall "$root" 2>&1 | grep -E '^ *ffmef:|error|warning|Successfully' || true

# Run away from the sources, so that Python imports what was installed.
cd "$environment"
"$python" - <<'PYTHON'
import torch

import ffmef._loader as loader
import ffmef.ops  # noqa: F401

assert loader.cpu_missing is None, loader.cpu_missing
assert loader.cuda_missing is None, loader.cuda_missing
names = [f"ffmef::{name}{end}" for name in ("adaptive_fuse", "pyramid_fuse") for end in ("", "_backward")]
for name in (*names, "ffmef::predict_and_fuse", "ffmef::ffmef_forward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
    kernel = [line for line in torch._C._dispatch_dump(name).splitlines() if line.startswith("CUDA:")]
    print(name, kernel)
print(f"the CUDA library loads under torch {torch.__version__} and has registered its kernels")
PYTHON
"$environment/bin/ffmef" info
