# Copyright (c) mmpsvit contributors.
"""Distributed training on machines without a GPU.

MMEngine's start-up and its default wrapper both insist on CUDA. Here the process
group exists before MMEngine looks for it, and the wrapper is configured explicitly.
"""

import logging
import os
import subprocess
import sys
from datetime import timedelta

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed as dist

# Where each launcher puts rank, local rank and world size.
_RANK_VARIABLES = {
    'pytorch': ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'OMPI_COMM_WORLD_SIZE',
    ),
}


def prepare_distributed(cfg: Config) -> None:
    """Let ``cfg.launcher`` work on CPUs; elsewhere, MMEngine does nearly all.

    Args:
        cfg (Config): Config of a runner. Gets a ``model_wrapper_cfg`` for the CPU
            unless it has one.

    Raises:
        RuntimeError: If the launcher's environment variables are missing.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    if get_device() not in ('cpu', 'mps'):
        # MMEngine's start-up under MPI sets all variables but LOCAL_RANK.
        if launcher == 'mpi':
            _export_rank(launcher)
        return
    _export_rank(launcher)
    seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    # PyTorch 2.1 takes no None.
    timeout = {} if seconds is None else dict(timeout=timedelta(seconds=seconds))
    dist.init_process_group('gloo', **timeout)
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def close_distributed() -> None:
    """Leave the process group, if there is one; on the CPU this ends the process.

    A gloo group that a DDP model still refers to when the interpreter exits aborts the
    process now and then (5 of 24 runs of two processes, torch 2.11), and the launcher
    then reports a finished job as failed. So the interpreter's clean-up is left out.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_backend() != 'gloo':
        dist.destroy_process_group()
        return
    dist.barrier()
    dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _export_rank(launcher: str) -> None:
    """Set the variables that ``init_process_group`` reads."""
    variables = _RANK_VARIABLES[launcher]
    if launcher == 'mpi':
        variables += ('MASTER_ADDR',)
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise RuntimeError(
            f'launcher {launcher!r} needs the environment variables {missing}: start '
            'this script through tools/dist_train.sh, tools/slurm_train.sh, or mpirun '
            'with MASTER_ADDR set'
        )
    for name, source in zip(_RANK_VARIABLES['pytorch'], variables, strict=False):
        os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        os.environ['MASTER_ADDR'] = hosts.split()[0]
    os.environ.setdefault('MASTER_PORT', '29500')
