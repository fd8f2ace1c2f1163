#!/usr/bin/env bash
# Everything that only a GPU can show, in one command:
#
#     benchmarks/gpu.sh [benchmarks/results/<gpu>-<date>.json]      (PYTHON=python3 picks the interpreter)
#
# builds the CUDA kernels, runs the operators' tests on the device, runs compute-sanitizer over a small driver, and times
# every operator beside its peers. Each section has a time limit of its own, and the file is written anew after each, so
# that a run cut short leaves what it had. A section that fails is recorded as failed, and the rest goes on; the exit
# status then is 1. Needs a CUDA build of torch and nvcc of the same major version.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${1:-benchmarks/results/gpu-$(date +%F).json}
LOGS=$(mktemp -d)
failed=0

# section NAME SECONDS COMMAND...: runs the command and records how it ended, with the end of what it printed.
section() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$LOGS/$name"
  status=${PIPESTATUS[0]}
  "$PYTHON" benchmarks/bench_gpu.py --json "$OUT" --record "$name" --status "$status" \
    --seconds $((SECONDS - start)) --log "$LOGS/$name" || failed=1
  [ "$status" -eq 0 ] || failed=1
}

section build 300 env FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace
section tests 300 "$PYTHON" -m pytest -q tests/ops -k "cuda or not cpu"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    section "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" benchmarks/bench_gpu.py drive
  done
else
  echo "== compute-sanitizer is not installed: memcheck and racecheck are left out"
fi
for name in $("$PYTHON" benchmarks/bench_gpu.py --list); do
  section "$name" 60 "$PYTHON" benchmarks/bench_gpu.py "$name" --json "$OUT"
done
rm -rf "$LOGS"
echo "written to $OUT"
exit "$failed"
