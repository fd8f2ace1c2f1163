#!/usr/bin/env bash
# Does everything that needs a GPU, in one command:
#
#     benchmarks/gpu.sh [benchmarks/results/<gpu>-<date>/] [SECTION ...]      (PYTHON=python3 picks the interpreter)
#
# It builds the CUDA kernels, runs the operators' tests on the device, runs compute-sanitizer over a small driver, times
# every operator beside its peers, and times a training step of each method and the test cases beside research-style code.
# Each section writes <section>.log into the folder, and a benchmark also <section>.json. Each has its own time limit.
# `gpu.sh --list` prints the sections; named sections run without the others, so that several calls can share the work.
# A folder name holds a slash. If a section fails, the others still run, and the exit status is 1. If the build fails, or
# torch sees no GPU, no section runs. It needs a CUDA build of torch and nvcc of the same major version. The peers:
# `pip install .[bench]`, and CuPy for the same CUDA, `pip install cupy-cuda12x` or `cupy-cuda13x`. Missing peers are
# skipped with a note.
set -uo pipefail

# absolute PATH: the path, seen from the caller's folder.
absolute() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
  esac
}

OUT=
case ${1:-} in
  */*)
    OUT=$(absolute "$1")
    shift
    ;;
esac
PYTHON=${PYTHON:-python3}
case $PYTHON in */*) PYTHON=$(absolute "$PYTHON") ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${OUT:-$PWD/benchmarks/results/gpu-$(date +%F)}

mapfile -t timings < <("$PYTHON" benchmarks/bench_gpu.py --list)
all=(tests memcheck racecheck "${timings[@]}" step_{supervised,dtml,cml,dmd,ugmcl,coranet} test_cases)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "${all[@]}"
  exit
fi
for name in "$@"; do
  case " ${all[*]} " in
    *" $name "*) ;;
    *)
      echo "gpu.sh: no section $name: choose from ${all[*]}" >&2
      exit 2
      ;;
  esac
done
[ $# -gt 0 ] || set -- "${all[@]}"
mkdir -p "$OUT" || exit
failed=()

# section NAME SECONDS COMMAND...: runs the command within the time limit and keeps its output.
section() {
  local name=$1 limit=$2 status
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed+=("$name")
  return "$status"
}

section build 300 env FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace || exit 1
section check 60 "$PYTHON" benchmarks/bench_gpu.py --check || exit 1
for name in "$@"; do
  json=(--device cuda --json "$OUT/$name.json")
  case $name in
    tests)
      section tests 300 "$PYTHON" -m pytest -q tests/ops -k "cuda or not cpu"
      ;;
    memcheck | racecheck)
      sanitizer=(compute-sanitizer --tool "$name" --error-exitcode 9)
      section "$name" 120 "${sanitizer[@]}" "$PYTHON" benchmarks/bench_gpu.py drive
      ;;
    step_*)
      step=(--methods "${name#step_}" --steps 40 --warmup 10 --rounds 1)
      case $name in step_supervised | step_dtml) step+=(--compile 1) ;; esac
      section "$name" 300 "$PYTHON" benchmarks/bench_step.py "${step[@]}" "${json[@]}"
      ;;
    test_cases)
      section test_cases 240 "$PYTHON" benchmarks/bench_inference.py --cases 2 "${json[@]}"
      ;;
    *)
      section "$name" 90 "$PYTHON" benchmarks/bench_gpu.py "$name" "${json[@]}"
      ;;
  esac
done
echo "written to $OUT"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
