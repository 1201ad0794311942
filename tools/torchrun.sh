#!/usr/bin/env bash
# Run a script of this folder in several processes; see dist_train.sh and dist_test.sh.
#
# Usage: tools/torchrun.sh SCRIPT PROCESSES [arguments of the script]
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" \
    exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$2" \
    "$root/tools/$1" "${@:3}" --launcher pytorch
