# Copyright (c) mmpsvit contributors.
"""What the launchers' environments become for PyTorch."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmpsvit.cli import launch

SLURM = dict(SLURM_PROCID='5', SLURM_LOCALID='1', SLURM_NTASKS='8')
MPI = dict(
    OMPI_COMM_WORLD_RANK='5', OMPI_COMM_WORLD_LOCAL_RANK='1', OMPI_COMM_WORLD_SIZE='8'
)


@pytest.fixture
def environ(monkeypatch) -> dict:
    """An empty environment."""
    environ = {}
    monkeypatch.setattr(launch, 'os', SimpleNamespace(environ=environ))
    return environ


@pytest.mark.parametrize(('launcher', 'given'), [('slurm', SLURM), ('mpi', MPI)])
def test_variables_of_pytorch(launcher, given, environ):
    environ.update(given, MASTER_ADDR='host')
    launch._export_rank(launcher)
    ranks = dict(RANK='5', LOCAL_RANK='1', WORLD_SIZE='8')
    address = dict(MASTER_ADDR='host', MASTER_PORT='29500')
    assert environ == given | ranks | address
    # Of somebody who wants another port.
    environ['MASTER_PORT'] = '1234'
    launch._export_rank(launcher)
    assert environ['MASTER_PORT'] == '1234'


@pytest.mark.parametrize(
    ('launcher', 'given', 'missing'),
    [
        ('pytorch', dict(RANK='0'), "['LOCAL_RANK', 'WORLD_SIZE']"),
        ('slurm', MPI, "['SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS']"),
        ('mpi', MPI, "['MASTER_ADDR']"),
    ],
)
def test_missing_variables(launcher, given, missing, environ, monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    environ.update(given)
    with pytest.raises(RuntimeError) as caught:
        launch.prepare_distributed(Config(dict(launcher=launcher)))
    message = f'launcher {launcher!r} needs the environment variables {missing}: start'
    assert message in str(caught.value)


@pytest.mark.parametrize('device', ['cuda', 'npu'])
def test_on_other_devices(device, environ, monkeypatch):
    """MMEngine's start-up does the rest, except for what it leaves out under MPI."""
    monkeypatch.setattr(launch, 'get_device', lambda: device)
    for launcher in ('none', 'pytorch', 'slurm'):
        launch.prepare_distributed(Config(dict(launcher=launcher)))
    assert environ == {}
    environ.update(MPI, MASTER_ADDR='host')
    cfg = Config(dict(launcher='mpi'))
    launch.prepare_distributed(cfg)
    assert environ['LOCAL_RANK'] == '1'
    assert not torch.distributed.is_initialized()
    assert 'model_wrapper_cfg' not in cfg
