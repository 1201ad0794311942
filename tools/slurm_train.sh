#!/usr/bin/env bash
# Train under Slurm; tools/srun.sh lists the environment variables.
#
# Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "Usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/srun.sh" train.py "$1" "$2" "$3" --work-dir "$4" "${@:5}"
