#!/usr/bin/env bash
# Looks for invalid accesses and for races in the GPU kernels, on a machine with a GPU and NVIDIA's
# compute-sanitizer. Uses the programs of tools/gpu_test pack (.gpu), or of the build in $1.
cd "$(dirname "$0")/.."
source tools/common.sh
source tools/package.sh

directory=${1:-$kPackage}
out=${OUT:-build}
program=$(find "$directory" -maxdepth 2 -name test_gpu_kernels | head -n 1)
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null ||
  find /opt/nvidia /usr/local/cuda*/ -name compute-sanitizer -type f 2>/dev/null | head -n 1)
if [[ -z $program || -z $sanitizer ]]; then
  echo "needs test_gpu_kernels in $directory (tools/gpu_test pack) and compute-sanitizer" >&2
  exit 1
fi
mkdir -p "$out"
use_package

# Every instruction is watched, so only tests with little work: each access path once.
filter='GpuStepShapes.EverySize*:GpuStepShapes.Pieces*:GpuStepValues.*:GpuSumOfSquares.Shows*:GpuNorms.*Around*'
status=0
for tool in memcheck racecheck; do
  log=$out/compute_sanitizer_$tool.log
  "$sanitizer" --tool "$tool" --error-exitcode 9 "$program" --gtest_filter="$filter" \
    >"$log" 2>&1 || status=1
  echo "$tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" || echo 'no summary'), " \
    "$(grep -E '^\[  PASSED' "$log" || echo 'tests failed'); log: $log"
done
exit "$status"
