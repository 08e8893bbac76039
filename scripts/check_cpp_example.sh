#!/bin/sh
# Installs ffmef for C++ users into a temporary folder, builds examples/cpp against it, and runs it.
# Needs an environment with torch, cmake and a C++ compiler; PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
generator=$(command -v ninja >/dev/null && echo Ninja || echo 'Unix Makefiles')
cmake -S . -B "$work/build" -G "$generator" -DFFMEF_BUILD_INFO=OFF -DFFMEF_INSTALL_DEVELOPMENT=ON \
  -DFFMEF_TORCH_INCLUDE_DIRS="$("$python" -c 'import torch.utils.cpp_extension as c; print(";".join(c.include_paths()))')" \
  -DFFMEF_TORCH_LIBRARY_DIR="$("$python" -c 'import torch.utils.cpp_extension as c; print(c.library_paths()[0])')" >/dev/null
cmake --build "$work/build" --parallel
cmake --install "$work/build" --prefix "$work/installed"
cmake -S examples/cpp -B "$work/example" -G "$generator" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$work/installed;$("$python" -c 'import torch; print(torch.utils.cmake_prefix_path)')"
cmake --build "$work/example"
"$work/example/fuse"
# The package of a network needs ffmef itself in the environment.
if "$python" -c 'import ffmef.ops' 2>/dev/null; then
  "$python" -m ffmef.cli export --aot --weights mef -o "$work/mef.pt2"
  "$work/example/packaged" "$work/mef.pt2"
else
  echo "packaged: not run, ffmef is not installed for $python"
fi
