#!/usr/bin/env bash
# Run all CUDA tests, hold speed and memory against what is aimed at, and profile: in
# nine minutes, on one GPU.
#
# Usage: tools/benchmarks/run_on_gpu.sh [--cpu] [--seconds N] [OUT_DIR]
#
# Writes OUT_DIR/report.md (default: work_dirs/gpu), with tables, logs and profiles of all
# parts beside it. PYTHON names the interpreter. Of mmcv's compiled operators only
# deformable attention is needed. After N seconds (540) the rest is skipped. --cpu
# rehearses all of it on the CPU with tiny sizes, which measures nothing.
set -euo pipefail

fail() {
    echo "run_on_gpu.sh: error: $1" >&2
    exit "${2:-1}"
}

cpu=
out=
deadline=540
longest=200 # a part, so that one that hangs leaves time for the others
while [ $# -gt 0 ]; do
    case $1 in
    --cpu)
        cpu=1 deadline=86400 longest=86400
        export CUDA_VISIBLE_DEVICES= # MMEngine would train on a GPU
        ;;
    --seconds)
        shift
        [[ ${1:-} =~ ^[0-9]+$ ]] || fail "--seconds: a number, got '${1:-}'" 2
        deadline=$1
        ;;
    -*) fail "unknown option $1" 2 ;;
    *)
        [ -z "$out" ] || fail "one OUT_DIR, got $out and $1" 2
        out=$1
        ;;
    esac
    shift
done
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${out:=$root/work_dirs/gpu}"
out=$(cd "$out" && pwd)
python=$(command -v "${PYTHON:-python}") || fail "there is no ${PYTHON:-python}"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONWARNINGS='ignore:Fail to import:UserWarning'

# Stops at the first package that cannot be imported; prints what goes without.
skipped=$("$python" - "$cpu" 2>"$out/imports.log" <<'PYTHON'
import importlib
import sys

for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmpsvit', 'pytest'):
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = ' '.join(str(error).split())
        sys.exit(f'cannot import {name} ({type(error).__name__}: {reason})')
import torch

if sys.argv[1]:
    print('- Everything on CUDA: this was a rehearsal on the CPU with tiny sizes.')
elif not torch.cuda.is_available():
    sys.exit('there is no CUDA device; --cpu rehearses without one')
else:
    try:
        from mmcv.ops import get_compiling_cuda_version

        if get_compiling_cuda_version() == 'not available':
            raise ImportError('it is compiled without CUDA')
    except Exception as error:
        print(f"- mmcv's kernel, PyTorch's operators sample instead: {error}.")
for name, what in (('mmdet', 'tests of detectors'), ('skimage', 'JPEGs')):
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f'- {what}: cannot import {name} ({error}).')
PYTHON
) || fail "$(tail -n 1 "$out/imports.log")"
skipped=$(grep '^- ' <<<"$skipped" || true) # packages print remarks of their own

names=(aims tests inference training compiled training_compiled latency sampling_share
    sampling_share_triton loop loop_compiled sampling)
for name in "${names[@]}"; do rm -f "$out/$name".{md,json,log,profile.txt}; done
parts=()
failed=0

# part NAME COMMAND...: run a command, keep its output and its status.
part() {
    local name=$1 status=0 start=$SECONDS words=ok limit=$((deadline - SECONDS))
    shift
    ((limit < longest)) || limit=$longest
    if ((limit < 1)); then
        words='not run, out of time'
        skipped+=$'\n'"- $name: $words."
    else
        echo "[$SECONDS s] $name"
        timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
        case $status in
        0) ;;
        124 | 137) words="stopped after $limit s" ;;
        *) words="failed, exit status $status" ;;
        esac
    fi
    [ "$words" = ok ] || failed=1
    parts+=("$name: $words, $((SECONDS - start)) s")
}

bench() { # NAME SCRIPT ARGUMENTS...
    local name=$1 script=$2
    shift 2
    part "$name" "$python" "tools/benchmarks/benchmark_$script.py" "$@" --out "$out/$name"
}

b14=configs/psvit/b14.py
half=(--dtype amp-bfloat16 bfloat16) bfloat16=(--dtype bfloat16) amp=(--dtype amp-bfloat16)
jpeg=(memory jpeg)
case $skipped in *skimage*) jpeg=(memory) ;; esac
if [ -n "$cpu" ]; then
    # Half precision takes minutes on CPUs that have to emulate it.
    networks=(ti14 deit-s) pair=(ti14) half=() amp=() graphs=()
    tests=(tests/tools/test_benchmark_sampling.py -k 'agree and not cuda')
    tiny=(--device cpu --runs 1 --warmup 1)
    size=("${tiny[@]}" --shape 32 --points 4) batch=(--batch-size 2)
    loop=(configs/cluttered_digits/psvit.py "${tiny[@]}" --batch-size 2 --workers 1
        --images 16)
    share=(configs/cluttered_digits/psvit.py "${tiny[@]}" --batch-size 2)
    operator=("${tiny[@]}" --batch-size 1 --channels 8 --size 8 --points 3)
else
    pair=(b14 b14+triton deit-b) small=(ti14+triton deit-s)
    networks=("${pair[@]}" ti14 "${small[@]}") graphs=(--cuda-graphs)
    tests=(tests -m cuda)
    if "$python" -c 'import xdist' 2>/dev/null; then tests+=(--numprocesses 8); fi
    size=(--channels-last --runs 20) batch=(--batch-size 128)
    loop=("$b14" --amp --batch-size 64 128 --workers "$(nproc)" --images 512 --warmup 8)
    share=("$b14" --batch-size 128)
    operator=(--batch-size 128 --dtype float32 bfloat16)
fi
# What may fail comes first; what takes longest and was measured before comes last.
part tests "$python" -m pytest -q --continue-on-collection-errors "${tests[@]}"
if [ -z "$cpu" ]; then
    bench loop_compiled training "${loop[@]}" --batch-size 128 --data memory \
        --cfg-options optim_wrapper.dtype=bfloat16 default_hooks.compile.type=mmpsvit.CompileHook \
        default_hooks.compile.mode=reduce-overhead model.backbone.sampler.kernel=triton
fi
bench loop training "${loop[@]}" --data "${jpeg[@]}"
bench sampling_share sampling --step-share "${share[@]}" "${amp[@]}"
bench sampling_share_triton sampling --step-share "${share[@]}" "${amp[@]}" \
    --kernel triton
bench training speed "${pair[@]}" --train --no-dropout "${half[@]}" "${batch[@]}" \
    "${size[@]}" "${graphs[@]}" --profile
bench inference speed "${networks[@]}" --fuse "${half[@]}" "${batch[@]}" \
    "${size[@]}" "${graphs[@]}" --profile
if [ -n "$cpu" ]; then
    bench latency speed "${pair[@]}" --fuse --batch-size 1 "${size[@]}"
    skipped+=$'\n- Half precision, compiled networks, CUDA graphs, B/14 and DeiT-B.'
else
    compile=(--compile "${graphs[@]}" "${size[@]}")
    bench latency speed b14+triton deit-b --fuse --batch-size 1 "${bfloat16[@]}" \
        "${compile[@]}"
fi
bench sampling sampling "${operator[@]}"
if [ -z "$cpu" ]; then
    bench compiled speed "${pair[@]}" "${small[@]}" --fuse "${batch[@]}" \
        "${bfloat16[@]}" "${compile[@]}"
    bench training_compiled speed b14+triton deit-b --train --no-dropout "${batch[@]}" \
        "${bfloat16[@]}" "${compile[@]}" --profile
fi
"$python" tools/benchmarks/aims.py "$out" >"$out/aims.log" 2>&1 || failed=1

{
    echo "# Tests and benchmarks of $(date -u '+%F %R') UTC, $SECONDS s"
    printf '\nSkipped:\n\n%s\n\nRun:\n\n' "${skipped:-nothing}"
    printf -- '- %s\n' "${parts[@]}"
    for name in "${names[@]}"; do
        printf '\n## %s\n\n' "$name"
        if [ -e "$out/$name.md" ]; then
            cat "$out/$name.md"
        elif [ "$name" = aims ]; then
            grep '^|' "$out/aims.log" || true
        elif [ -e "$out/$name.log" ]; then
            printf '```\n%s\n```\n' "$(tail -n 30 "$out/$name.log")"
        fi
    done
} >"$out/.report.md.$$"
mv "$out/.report.md.$$" "$out/report.md"
echo "report: $out/report.md"
exit $failed
