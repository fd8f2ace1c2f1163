#!/usr/bin/env bash
# Everything that only a GPU can show, in one command:
#
#     benchmarks/gpu.sh [benchmarks/results/<gpu>-<date>.json]      (PYTHON=python3 picks the interpreter)
#
# builds the CUDA kernels, runs the operators' tests on the device, runs compute-sanitizer over a small driver, and times
# every operator beside its peers. Each section has a time limit of its own, and the file is written anew after each, so
# that a run cut short leaves what it had. A section that fails is recorded as failed, and the rest goes on; the exit
# status then is 1, as it is where compute-sanitizer is missing. Where the build fails, or torch sees no GPU, the rest is
# recorded as not run. Needs a CUDA build of torch and nvcc of the same major version. The peers: `pip install .[bench]`
# and CuPy for the same CUDA, `pip install cupy-cuda12x` or `cupy-cuda13x`; those that are missing are recorded as such.
set -uo pipefail

# absolute PATH: the path, from where the caller stands.
absolute() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
  esac
}

OUT=${1:+$(absolute "$1")}
PYTHON=${PYTHON:-python3}
case $PYTHON in */*) PYTHON=$(absolute "$PYTHON") ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${OUT:-$PWD/benchmarks/results/gpu-$(date +%F).json}
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
  return "$status"
}

# not_run WHY NAME...: records sections that are left out.
not_run() {
  local why=$1
  shift
  echo "== not run, $why: $*"
  "$PYTHON" benchmarks/bench_gpu.py --json "$OUT" --record "$@" --not-run "$why"
  failed=1
}

mapfile -t timings < <("$PYTHON" benchmarks/bench_gpu.py --list)
if ! section build 300 env FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace; then
  not_run "build failed" check tests memcheck racecheck "${timings[@]}"
elif ! section check 60 "$PYTHON" benchmarks/bench_gpu.py --check; then
  not_run "check failed" tests memcheck racecheck "${timings[@]}"
else
  section tests 300 "$PYTHON" -m pytest -q tests/ops -k "cuda or not cpu"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      section "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" benchmarks/bench_gpu.py drive
    done
  else
    not_run "compute-sanitizer is not installed" memcheck racecheck
  fi
  for name in "${timings[@]}"; do
    section "$name" 90 "$PYTHON" benchmarks/bench_gpu.py "$name" --json "$OUT"
  done
fi
rm -rf "$LOGS"
echo "written to $OUT"
exit "$failed"
