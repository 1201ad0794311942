#!/usr/bin/env bash
# Make the cluttered digits, train a small PS-ViT on them, test it, picture it.
#
# Usage: tools/run_demo.sh DATA_DIR WORK_DIR
# Finished steps are not redone, and an interrupted training is resumed.
set -euo pipefail

data=$1
work=$2
tools=$(dirname "$0")
config=$tools/../configs/cluttered_digits/psvit.py
python=${PYTHON:-python}
# mmcv without compiled ops warns about an operator that nothing here uses.
export PYTHONWARNINGS='ignore:Fail to import:UserWarning'

echo "[1/4] data: $data"
"$python" "$tools/dataset_converters/make_cluttered_digits.py" "$data"

# The mark holds the config it belongs to: a changed config is trained anew.
mark=$work/trained
if cmp --silent "$config" "$mark"; then
    echo "[2/4] training: already finished in $work"
else
    echo "[2/4] training: about 5 minutes on 2 cores"
    "$python" "$tools/train.py" "$config" --work-dir "$work" --resume \
        --cfg-options data_root="$data"
    cp "$config" "$mark.new" && mv "$mark.new" "$mark"
fi
checkpoint=$(cat "$work/last_checkpoint")

echo "[3/4] testing"
"$python" "$tools/test.py" "$config" "$checkpoint" --work-dir "$work" \
    --out "$work/metrics.json" --cfg-options data_root="$data"

echo "[4/4] drawing where it looks"
"$python" "$tools/visualization/vis_sampling.py" "$config" "$checkpoint" "$data/val" \
    --out "$work/points.png" --cfg-options data_root="$data"

log=$(ls -t "$work"/*/*.log | sed -n 2p)
top1=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["accuracy/top1"])' \
    "$work/metrics.json")
cat <<SUMMARY

top-1       $top1 %
log         $log
checkpoint  $checkpoint
picture     $work/points.png
SUMMARY
