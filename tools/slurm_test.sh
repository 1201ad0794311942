#!/usr/bin/env bash
# Test under Slurm; tools/srun.sh lists the environment variables.
#
# Usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "Usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/srun.sh" test.py "$1" "$2" "$3" "$4" "${@:5}"
