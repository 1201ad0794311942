#!/usr/bin/env bash
# Run every CUDA test and every benchmark of this project in one call, in 10 minutes.
#
# Usage: tools/benchmarks/run_on_gpu.sh [--quick] [OUT_DIR]
#
# Writes OUT_DIR/report.md (default: work_dirs/gpu) with the tables of all parts, and
# their figures and logs beside it. PYTHON names the interpreter. WHEELS names a folder
# of wheels, such as mmcv with CUDA ops, that are installed first, without a network.
# Without a GPU, all of it that runs on the CPU runs there with small settings, and the
# report begins with what was not run. --quick takes small settings on a GPU, too.
set -euo pipefail

usage() {
    echo "usage: run_on_gpu.sh [--quick] [OUT_DIR]; error: $1" >&2
    exit 2
}

small=
out=
for argument in "$@"; do
    case $argument in
    --quick) small=1 ;;
    -*) usage "unknown option $argument" ;;
    *)
        [ -z "$out" ] || usage "one OUT_DIR, got $out and $argument"
        out=$argument
        ;;
    esac
done
if [ -n "${WHEELS:-}" ]; then
    compgen -G "$WHEELS/*.whl" >/dev/null || usage "WHEELS=$WHEELS has no wheels"
    WHEELS=$(cd "$WHEELS" && pwd)
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${out:=$root/work_dirs/gpu}"
out=$(cd "$out" && pwd)
python=${PYTHON:-python}
case $python in
*/*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;;
esac
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONWARNINGS='ignore:Fail to import:UserWarning'

deadline=590 # seconds from the start of this script
summary=()
notes=()
parts=()
failed=0

# part NAME LIMIT_IN_SECONDS COMMAND...: run a command, keep its log and its status.
part() {
    local name=$1 limit=$2 status=0 start=$SECONDS words
    shift 2
    if ((limit > deadline - SECONDS)); then limit=$((deadline - SECONDS)); fi
    rm -f "$out/$name".{md,json,png,log}
    if ((limit < 1)); then
        words='not run, out of time'
    else
        echo "[$SECONDS s] $name, at most $limit s"
        timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
        case $status in
        0) words=ok ;;
        124 | 137) words="stopped after $limit s" ;;
        *) words="failed, exit status $status" ;;
        esac
    fi
    if [ "$words" != ok ]; then
        failed=1
        notes+=("$name: $words.")
    fi
    summary+=("| $name | $words | $((SECONDS - start)) |")
    parts+=("$name")
}

bench() {
    local name=$1 limit=$2 script=$3
    shift 3
    part "$name" "$limit" "$python" "tools/benchmarks/benchmark_$script.py" "$@" \
        --out "$out/$name"
}

install_wheels() {
    local status=0
    for wheel in "$WHEELS"/*.whl; do
        "$python" -m pip install --no-index --find-links "$WHEELS" --no-deps \
            "$wheel" || status=1
    done
    return $status
}

if [ -n "${WHEELS:-}" ]; then
    export -f install_wheels
    export python WHEELS
    part install 60 bash -c install_wheels
fi

# One line each: cuda or cpu, whether mmcv has CUDA ops, the machine and the versions.
# Not on stdout, where what is imported may say something as well.
if ! "$python" -c '
import sys

sys.path.insert(0, "tools/benchmarks")
import mmpsvit
import torch
from _measuring import describe

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
try:
    from mmcv.ops import get_compiling_cuda_version

    compiled = get_compiling_cuda_version()
except (ImportError, AssertionError):
    compiled = "not available"
about = describe(device)
lines = [
    device.type,
    compiled,
    "{device}, {threads} CPU threads".format(**about),
    ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
]
with open(sys.argv[1], "w") as file:
    file.write("\n".join(lines) + "\n")
' "$out/environment.txt" >"$out/environment.log" 2>&1; then
    echo "run_on_gpu.sh: error: $python cannot run the benchmarks:" \
        "$(tail -n 1 "$out/environment.log")" >&2
    exit 1
fi
{
    read -r device
    read -r compiled
    read -r machine
    read -r versions
} <"$out/environment.txt"

if [ "$device" = cpu ]; then
    small=1
    notes+=("There is no CUDA device. Not run: the tests that need one, the benchmarks \
on CUDA, mmcv's kernel, float16 autocast.")
elif [ "$compiled" = 'not available' ]; then
    notes+=('mmcv has no compiled CUDA ops. Not run: its kernel.')
fi
if [ -n "$small" ]; then
    notes+=('Small settings: a trial of the scripts, no measurement.')
fi

if [ "$device" = cuda ]; then
    part tests 150 "$python" -m pytest -q -m cuda tests
else
    part tests 150 "$python" -m pytest -q -m 'not cuda' tests/ops \
        tests/models/test_reference_figures.py tests/models/test_fsdp.py \
        tests/models/test_gradient_accumulation.py
fi
dtypes=(float32 float16 bfloat16)
ti14=configs/psvit/ti14.py
b14=configs/psvit/b14.py
if [ -n "$small" ]; then
    bench sampling 40 sampling --batch 1 --runs 2 --dtype "${dtypes[@]}"
    bench sampling_share 40 sampling --batch 1 --runs 1 --step-share $ti14
    speed=(ti14 plain-ti14 deit-s --batch-size 1 --runs 1 --channels-last
        --baseline deit-s plain-ti14)
    bench inference 50 speed "${speed[@]}" --fuse
    bench training 50 speed "${speed[@]}" --train
    scaling=($ti14 --vit deit-tiny --sizes 64 128 --points 4 8 --size 64
        --num-points 4 --runs 1)
    bench scaling 50 scaling "${scaling[@]}"
    bench scaling_training 50 scaling "${scaling[@]}" --train
    bench distributed 50 distributed $ti14 --batch-size 2 --size 64 --runs 1 --threads 2
    bench checkpointing 40 checkpointing --arch tiny --shape 160 224 --runs 1
    bench data_loading 50 data_loading --images 32 --batch-size 8 --workers 0 1 \
        --runs 1
else
    bench sampling 60 sampling --batch 128 --runs 20 --dtype "${dtypes[@]}"
    bench sampling_share 40 sampling --batch 128 --amp --step-share $b14
    speed=(ti14 b10 b14 b18 plain-b14 deit-s deit-b vit-b16-384 resnet50 resnet101
        regnety-8gf --amp --channels-last --baseline deit-b plain-b14)
    bench inference 80 speed "${speed[@]}" --fuse
    bench training 90 speed "${speed[@]}" --train --runs 20
    bench scaling 60 scaling --amp --batch-size 16
    bench scaling_training 60 scaling --amp --batch-size 4 --train --quick
    bench distributed 40 distributed $ti14
    bench checkpointing 30 checkpointing --amp --batch-size 2
    rate=$("$python" -c '
import json, sys

rows = json.load(open(sys.argv[1]))["results"]
print(round(next(r["images_per_second"] for r in rows if r["model"] == "b14")))
' "$out/training.json" 2>/dev/null || true)
    bench data_loading 60 data_loading ${rate:+--images-per-second "$rate"}
fi

{
    echo '# Tests and benchmarks in one call'
    echo
    if ((${#notes[@]})); then
        printf -- '- **%s**\n' "${notes[@]}"
        echo
    fi
    echo "$(date -u '+%F %R') UTC, $SECONDS s. $machine."
    echo
    echo "$versions"
    echo
    echo '| part | status | s |'
    echo '| --- | --- | ---: |'
    printf '%s\n' "${summary[@]}"
    for name in "${parts[@]}"; do
        echo
        echo "## $name"
        echo
        if [ -e "$out/$name.md" ]; then
            cat "$out/$name.md"
        else
            echo '```'
            tail -n 30 "$out/$name.log" 2>/dev/null || true
            echo '```'
        fi
    done
} >"$out/.report.md.$$"
mv "$out/.report.md.$$" "$out/report.md"
echo "report: $out/report.md"
exit $failed
