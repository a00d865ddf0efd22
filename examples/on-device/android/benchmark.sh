#!/usr/bin/env bash
# Time a bundle's LiteRT and ExecuTorch programs on the connected Android device; keeps one log per program, backend
# and number of threads, named PROGRAM@TOOL@BACKEND@THREADS.log, which collect.py reads.
#
#   benchmark.sh UNPACKED_BUNDLE LOGS
#
# BENCHMARK_MODEL  LiteRT's benchmark_model for the device's ABI (not run for .tflite if unset)
# EXECUTOR_RUNNER  ExecuTorch's executor_runner with XNNPACK for the device's ABI (not run for .pte if unset)
# THREADS          numbers of threads, default "1 4";  RUNS  measured runs, default 50
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
bundle=$1 logs=$2 remote=/data/local/tmp/mobileclip
command -v adb >/dev/null || { echo "error: adb is missing, install the Android platform tools." >&2; exit 2; }
[ -f "$bundle/contract.json" ] || { echo "error: no contract.json in '$bundle', want an unpacked bundle." >&2; exit 2; }
adb get-state >/dev/null || { echo "error: no device answers to adb." >&2; exit 2; }
mkdir -p "$logs"
adb shell "rm -rf $remote && mkdir -p $remote"
trap 'adb shell "rm -rf $remote"' EXIT

push() { adb push "$1" "$remote/$2" >/dev/null && adb shell "chmod 755 $remote/$2"; }
# A failed run leaves its log, too: collect.py then says which one.
run() { echo "$1"; adb shell "cd $remote && $2" >"$logs/$1.log" 2>&1 || true; }

if [ -n "${BENCHMARK_MODEL:-}" ]; then
  push "$BENCHMARK_MODEL" benchmark_model
  for program in "$bundle"/*.tflite; do
    [ -e "$program" ] || continue
    name=$(basename "$program"); push "$program" "$name"
    for threads in ${THREADS:-1 4}; do
      run "$name@litert@xnnpack@$threads" "./benchmark_model --graph=$name --num_threads=$threads --num_runs=${RUNS:-50} --use_xnnpack=true"
    done
    # A program that the GPU takes in part would be timed with the rest on the CPU: it fails here, and its log says why.
    run "$name@litert@gpu@1" "./benchmark_model --graph=$name --num_runs=${RUNS:-50} --use_gpu=true --require_full_delegation=true"
    adb shell "rm $remote/$name"
  done
fi
if [ -n "${EXECUTOR_RUNNER:-}" ]; then
  push "$EXECUTOR_RUNNER" executor_runner
  for program in "$bundle"/*.pte; do
    [ -e "$program" ] || continue
    [[ $program != *.coreml.pte ]] || continue  # of Apple's devices
    name=$(basename "$program"); push "$program" "$name"
    for threads in ${THREADS:-1 4}; do
      # The runner writes its log to logcat on Android and to standard error elsewhere.
      run "$name@executorch@xnnpack@$threads" "logcat -c; ./executor_runner --model_path=$name --num_executions=${RUNS:-50} --cpu_threads=$threads --print_output=none; logcat -d"
    done
    adb shell "rm $remote/$name"
  done
fi
adb shell "getprop ro.product.model; getprop ro.build.version.release; getprop ro.soc.model; dumpsys battery; dumpsys thermalservice" >"$logs/device.txt"
echo "logs: $logs; next: python examples/on-device/collect.py $bundle/contract.json $logs --out NAME.device.json"
