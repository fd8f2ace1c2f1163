#!/usr/bin/env bash
# Everything that only a GPU can show, in one command:
#
#     benchmarks/gpu.sh [benchmarks/results/<gpu>-<date>.json] [SECTION ...]      (PYTHON=python3 picks the interpreter)
#
# builds the CUDA kernels, runs the operators' tests on the device, runs compute-sanitizer over a small driver, times
# every operator beside its peers, and a training step of each method and the test cases beside research-style code. Each
# section has a time limit of its own, and the file is written anew after each, so that a run cut short leaves what it
# had. Named sections (of `gpu.sh --list`) run alone, after build and check, and those already in the file stay: so all
# can be shared out over several calls. A section that fails is recorded as failed, and the rest goes on; the exit
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

OUT=
case ${1:-} in
  *.json)
    OUT=$(absolute "$1")
    shift
    ;;
esac
PYTHON=${PYTHON:-python3}
case $PYTHON in */*) PYTHON=$(absolute "$PYTHON") ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
OUT=${OUT:-$PWD/benchmarks/results/gpu-$(date +%F).json}

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
    --seconds $((SECONDS - start)) --log "$LOGS/$name" --rows "$LOGS/$name.json" || failed=1
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

if ! section build 300 env FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace; then
  not_run "build failed" check "$@"
elif ! section check 60 "$PYTHON" benchmarks/bench_gpu.py --check; then
  not_run "check failed" "$@"
else
  for name in "$@"; do
    case $name in
      tests)
        section tests 300 "$PYTHON" -m pytest -q tests/ops -k "cuda or not cpu"
        ;;
      memcheck | racecheck)
        if command -v compute-sanitizer >/dev/null; then
          sanitizer=(compute-sanitizer --tool "$name" --error-exitcode 9)
          section "$name" 120 "${sanitizer[@]}" "$PYTHON" benchmarks/bench_gpu.py drive
        else
          not_run "compute-sanitizer is not installed" "$name"
        fi
        ;;
      step_*)
        step=(--device cuda --methods "${name#step_}" --steps 40 --warmup 10 --rounds 1 --json "$LOGS/$name.json")
        case $name in step_supervised | step_dtml) step+=(--compile 1) ;; esac
        section "$name" 300 "$PYTHON" benchmarks/bench_step.py "${step[@]}"
        ;;
      test_cases)
        cases=(--device cuda --cases 2 --json "$LOGS/$name.json")
        section test_cases 240 "$PYTHON" benchmarks/bench_inference.py "${cases[@]}"
        ;;
      *)
        section "$name" 90 "$PYTHON" benchmarks/bench_gpu.py "$name" --json "$OUT"
        ;;
    esac
  done
fi
rm -rf "$LOGS"
echo "written to $OUT"
exit "$failed"
