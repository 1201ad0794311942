#!/usr/bin/env bash
# Run a script of this folder under Slurm; see slurm_train.sh and slurm_test.sh.
#
# Usage: tools/srun.sh SCRIPT PARTITION JOB_NAME [arguments of the script]
# Environment: GPUS (8), GPUS_PER_NODE (the smaller of GPUS and 8), CPUS_PER_TASK (5),
# GRES (gpu:GPUS_PER_NODE; empty asks for none), SRUN_ARGS (space separated options of
# srun), MASTER_PORT (29500).
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
gres=${GRES-gpu:$gpus_per_node}
read -r -a options <<<"${SRUN_ARGS:-} ${gres:+--gres=$gres}"
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" \
    exec srun --partition="$2" \
    --job-name="$3" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${options[@]+"${options[@]}"} \
    "${PYTHON:-python}" -u "$root/tools/$1" "${@:4}" --launcher slurm
