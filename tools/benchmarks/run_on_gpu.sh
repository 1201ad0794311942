#!/usr/bin/env bash
# Run every CUDA test and benchmark of this project in one call.
#
# Usage: tools/benchmarks/run_on_gpu.sh [OUT_DIR]
# Needs an environment with mmcv's CUDA ops; PYTHON names its interpreter.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/work_dirs/gpu}
python=${PYTHON:-python}
mkdir -p "$out"
cd "$root"

"$python" -c 'import torch; assert torch.cuda.is_available(), "there is no CUDA device"'
status=0
"$python" -m pytest -m cuda tests 2>&1 | tee "$out/tests.log" || status=1
"$python" tools/benchmarks/benchmark_sampling.py --device cuda --batch 128 \
    --out "$out/sampling.json" | tee "$out/sampling.log" || status=1
for mode in inference train; do
    option=$([ $mode = train ] && echo --train || true)
    "$python" tools/benchmarks/benchmark_speed.py --amp $option --out "$out/$mode" \
        2>&1 | tee "$out/$mode.log" || status=1
done
exit $status
