#!/usr/bin/env bash
# Compile mmcv with its ops for the torch of this environment, once, and install it.
#
# Usage: tools/install_mmcv_ops.sh PYTHON WHEEL_DIR [CONSTRAINTS]
#
# CONSTRAINTS says which mmcv: a file with a line mmcv==VERSION or onedl-mmcv==VERSION.
# Without it, the constraints.txt of this repository.
#
# pip's own cache cannot tell a wheel with ops from one without, nor for which torch
# it was built. So wheels are kept in WHEEL_DIR, in a folder named after all of it.
set -euo pipefail

python=$1
wheel_dir=$2
constraints=${3:-$(dirname "$0")/../constraints.txt}
if ! command -v nvcc >/dev/null && [ -z "${CUDA_HOME:-}" ]; then
    # Without a CUDA compiler, mmcv's build must not see a GPU.
    export CUDA_VISIBLE_DEVICES=
fi
requirement=$(grep -E '^(onedl-)?mmcv==' "$constraints") || {
    echo "$constraints has no line mmcv==VERSION or onedl-mmcv==VERSION" >&2
    exit 1
}
key=$("$python" - <<'PY'
import platform
import sys

import torch

device = f'cu{torch.version.cuda}' if torch.cuda.is_available() else 'cpu'
tag = f'cp{sys.version_info.major}{sys.version_info.minor}'
print(f'{tag}-{platform.system()}-{platform.machine()}-torch{torch.__version__}-{device}')
PY
)
store="$wheel_dir/$key"
name=${requirement/==/-}
name=${name/onedl-/onedl_}

if ! compgen -G "$store/$name-*.whl" >/dev/null; then
    echo "Compiling $requirement with its ops: about 10 minutes on 2 cores, once."
    mkdir -p "$store"
    build=$(mktemp -d "$store/build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    MAX_JOBS=${MAX_JOBS:-$(nproc)} "$python" -m pip wheel --quiet --no-deps \
        --no-build-isolation --no-cache-dir -w "$build" "$requirement"
    mv "$build"/"$name"-*.whl "$store/"
fi
"$python" -m pip install --quiet --no-deps --force-reinstall "$store/$name"-*.whl
"$python" -W ignore -c 'import mmcv.ops'
