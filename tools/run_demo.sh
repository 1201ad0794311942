#!/usr/bin/env bash
# Make the cluttered digits, train a small PS-ViT on them, test it, picture it.
#
# Usage: tools/run_demo.sh
# Finished steps are not redone, and an interrupted training is resumed.
set -euo pipefail

cd "$(dirname "$0")/.."
data=data/cluttered_digits
work=work_dirs/demo
config=configs/cluttered_digits/psvit.py
python=${PYTHON:-python}
# mmcv without compiled operators warns of one that nothing here uses.
export PYTHONWARNINGS='ignore:Fail to import:UserWarning'

echo "[1/4] data: $data"
"$python" tools/dataset_converters/make_cluttered_digits.py "$data"

# A work dir belongs to the config that it was begun with.
begun=$work/begun_with.py
if [ ! -e "$begun" ]; then
    mkdir -p "$work"
    cp "$config" "$begun.new"
    mv "$begun.new" "$begun"
elif ! cmp --silent "$config" "$begun"; then
    echo "error: $config has changed since $work was begun: move $work away" >&2
    exit 1
fi
if [ -e "$work/finished" ]; then
    echo "[2/4] training: already finished in $work"
else
    echo "[2/4] training: about 5 minutes on 2 cores"
    "$python" tools/train.py "$config" --work-dir "$work" --resume
    touch "$work/finished"
fi
checkpoint=$(cat "$work/last_checkpoint")
log=$(ls -t "$work"/[0-9]*/*.log | head -n 1)

echo "[3/4] testing"
"$python" tools/test.py "$config" "$checkpoint" --work-dir "$work/test" \
    --out "$work/metrics.json"

echo "[4/4] drawing where it looks"
"$python" tools/visualization/vis_sampling.py "$config" "$checkpoint" "$data/val" \
    --out "$work/points.png"

read_top1='import json, sys; print(round(json.load(sys.stdin)["accuracy/top1"], 1))'
top1=$("$python" -c "$read_top1" <"$work/metrics.json")
cat <<SUMMARY

top-1       $top1 %
log         $log
checkpoint  $checkpoint
picture     $work/points.png
SUMMARY
