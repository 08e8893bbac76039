#!/usr/bin/env bash
# The first minutes on a GPU:  scripts/gpu_first_run.sh
#
# Builds the CUDA library if none is there, then checks everything (matrices against float64, sanitizers, tests),
# measures everything (operators, networks, rivals, ncu), and prints all numbers again at the end. No step outlasts its
# own limit or the overall one. Failures are reported, and the rest goes on. scripts/gpu_first_run.py has the steps.
#
#   OUT      folder of results.jsonl, failures.txt, logs and logs.tgz (default /tmp/ffmef-gpu)
#   LIMIT    seconds for everything (default 560)
#   PYTHON   the interpreter (default python3)
#   FFMEF_RUN_CPU=1   a rehearsal without a GPU: every step on the CPU at tiny sizes
#   STEPS    steps to run instead of all, such as "facts operator"
#   FFMEF_RUN_BACKENDS   "cuda" or "triton" instead of both
#
# A library built elsewhere can be carried:
# FFMEF_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 python setup.py build_ext --inplace
# leaves ffmef/_cpu.so and ffmef/_cuda.so, which hold no Python and need the same torch or a later one.
set -u
cd "$(dirname "$0")/.."
: "${OUT:=/tmp/ffmef-gpu}" "${LIMIT:=560}" "${STEPS:=}"
logs=$OUT/logs
mkdir -p "$logs"
export OUT PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
caches=$(mktemp -d)
export TRITON_CACHE_DIR=$caches/triton TORCHINDUCTOR_CACHE_DIR=$caches/inductor TORCHINDUCTOR_COMPILE_THREADS=4
python=${PYTHON:-python3}
step_of="$python scripts/gpu_first_run.py"

say() { printf '\n=== %4d s  %s\n' "$SECONDS" "$*"; }
wanted() { [ -z "$STEPS" ] || case " $STEPS " in *" $1 "*) true ;; *) false ;; esac; }
within() { # within SECONDS COMMAND...: no longer than that or than the time left
  local most=$1 left=$((LIMIT - SECONDS - 8))
  shift
  if [ $left -lt 5 ]; then echo "no time left for: $*"; return 1; fi
  timeout $((most < left ? most : left)) "$@"
}
step() { # step SECONDS NAME [ARGUMENTS]: print and keep what it says
  wanted "$2" || return 0
  say "$2"
  within "$1" $step_of "${@:2}" 2>&1 | tee "$logs/$2.log" | grep -v Warning
}
quietly() { step "$@" > /dev/null; say "$2 (its numbers are at the end)"; }

say machine
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit --format=csv,noheader || true
nvidia-smi -q > "$logs/nvidia-smi.txt" 2>&1 || true
nproc
command -v nvcc ncu compute-sanitizer cmake ninja g++

usable() {
  $python -c 'import sys, ffmef._loader as l; print("cpu:", l.cpu_missing, "cuda:", l.cuda_missing)
sys.exit(bool(l.cpu_missing) or bool(l.cuda_missing))'
}
if [ -z "${FFMEF_RUN_CPU:-}" ] && wanted build && ! usable; then
  say build
  FFMEF_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-native} within 240 \
    $python setup.py --quiet build_ext --inplace > "$logs/build.log" 2>&1 || tail -20 "$logs/build.log"
  usable
fi
step 40 facts
step 60 quick

beside() { # work that needs the CPU more than the GPU, all at once
  local most=$((LIMIT - SECONDS - 300)) part
  [ $most -gt 150 ] && most=150
  [ $most -lt 60 ] && most=60
  export OMP_NUM_THREADS=1
  timeout $most $step_of check cuda 0 1 $((most - 25)) > "$logs/check-cuda.log" 2>&1 &
  for part in 0 1 2 3 4 5 6 7; do
    timeout $most $step_of check triton $part 8 $((most - 40)) > "$logs/check-triton-$part.log" 2>&1 &
  done
  # Without torch's pool every tensor is a separate allocation; otherwise memcheck would not see past its end.
  (PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $most compute-sanitizer --tool memcheck --target-processes all \
    --print-limit 20 $step_of sanitize > "$logs/memcheck.log" 2>&1; echo "memcheck exit $?" >> "$logs/memcheck.log") &
  (timeout $most compute-sanitizer --tool racecheck --racecheck-report all --target-processes all --print-limit 20 \
    $step_of sanitize > "$logs/racecheck.log" 2>&1; echo "racecheck exit $?" >> "$logs/racecheck.log") &
  (timeout $most $python -m pytest -q -p no:cacheprovider -n 4 --device cuda -k cuda tests/ops/test_adaptive_fuse.py \
    tests/ops/test_adaptive_fuse_coarse.py tests/ops/test_pyramid_fuse.py tests/ops/test_predict_and_fuse.py \
    > "$logs/pytest.log" 2>&1; tail -12 "$logs/pytest.log" | cut -c1-200 > "$logs/pytest.end") &
  timeout $most $step_of warm > "$logs/warm.log" 2>&1 &
  wait
  unset OMP_NUM_THREADS
  grep -h "right and repeatable\|FAILED\|captured" "$logs"/check-*.log | cut -c1-220 | head -40
  echo memcheck: && grep -h "ERROR SUMMARY\|Invalid\|exit\|sanitize: done" "$logs/memcheck.log" | sort | uniq -c | head -8
  echo racecheck: && grep -h "RACECHECK SUMMARY\|hazard\|exit\|sanitize: done" "$logs/racecheck.log" | sort | uniq -c | head
  cat "$logs/pytest.end" "$logs/warm.log" | grep -v Warning
}
if [ -n "${FFMEF_RUN_CPU:-}" ]; then
  step 60 check cpu 0 200 20
  step 60 sanitize
elif wanted check; then
  say "matrices, sanitizers, tests and compilations, beside each other"
  beside
fi

quietly 75 operator
step 60 engine
quietly 85 networks
if [ -z "${FFMEF_RUN_CPU:-}" ] && wanted ncu; then
  say ncu
  within 70 ncu --clock-control none --target-processes all \
    -k 'regex:(fuse_tiled|_gradient|predict_and_fuse_tiled|fuse_kernel|entry_|residual_|point_|features_|heads_)' \
    --section SpeedOfLight --section Occupancy --section MemoryWorkloadAnalysis --section WarpStateStats --section SchedulerStats $step_of profiled > "$logs/ncu.log" 2>&1
  grep -E "^  [a-z].*\(|Duration|Throughput|Achieved Occupancy|Registers|No Eligible|Hit Rate|Max Bandwidth" "$logs/ncu.log" |
    sed -E 's/ +/ /g' | cut -c1-120 | head -70
else
  step 40 profiled
fi
quietly 40 others
quietly 45 rivals
step 25 capture
step 45 hazards
quietly 60 training
step 60 train
quietly 180 training_compiled
step 60 exposures
step 40 brackets
quietly 30 pictures
step 30 launches

say "all numbers"
tar -C "$logs" -czf "$OUT/logs.tgz" .
$step_of table
if [ -s "$OUT/failures.txt" ]; then
  echo failures: && grep -E "^----|Error" "$OUT/failures.txt" | cut -c1-200 | head -20
fi
nvidia-smi --query-gpu=clocks.sm,temperature.gpu,power.draw --format=csv,noheader || true
say "done: python -m benchmarks.gpu_report makes tables and charts of results.jsonl"
