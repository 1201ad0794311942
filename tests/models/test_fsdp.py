# Copyright (c) mmpsvit contributors.
"""PyTorch's FSDP, one unit per encoder layer, in two processes on the CPU."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import move_points, small_arch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mmpsvit import PSViT, PSViTClsHead
from mmpsvit.models.encoder_layer import EncoderLayer

device_mesh = pytest.importorskip(
    'torch.distributed.device_mesh', reason='PyTorch 2.1 has no meshes of devices'
)
fsdp = pytest.importorskip('torch.distributed.fsdp')

PROCESSES = 2
STEPS = 3


def make_network() -> nn.Module:
    """A small network whose points move, the same in every process."""
    torch.manual_seed(0)
    sampler = dict(num_points=4, num_iters=2)
    # BatchNorm's statistics would be those of each process.
    backbone = PSViT(small_arch(), sampler=sampler, norm_eval=True)
    move_points(backbone.sampler)
    return nn.Sequential(backbone, PSViTClsHead(5, 24)).train()


def make_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 64, 64, generator=generator), torch.arange(4)


def train(network: nn.Module, images: Tensor, labels: Tensor, clip) -> list[float]:
    """The losses of a few steps; ``clip`` limits the norm of the gradients."""
    # Not Adam: it makes whole steps out of the rounding of a vanishing gradient.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        clip(network)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def clip_by_torch(network: nn.Module) -> None:
    nn.utils.clip_grad_norm_(network.parameters(), 0.5)


def clip_by_fsdp(network: fsdp.FullyShardedDataParallel) -> None:
    network.clip_grad_norm_(0.5)


def shard(network: nn.Module, version: int) -> nn.Module:
    if version == 1:
        return fsdp.FullyShardedDataParallel(
            network,
            auto_wrap_policy=ModuleWrapPolicy({EncoderLayer}),
            use_orig_params=True,
            device_id=torch.device('cpu'),
        )
    mesh = device_mesh.init_device_mesh('cpu', (PROCESSES,))
    layers = [layer for layer in network.modules() if isinstance(layer, EncoderLayer)]
    for module in (*layers, network):
        fsdp.fully_shard(module, mesh=mesh)
    return network


def train_sharded(rank: int, folder: Path) -> None:
    """One of the processes, which trains on its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=PROCESSES
    )
    images, labels = (part.chunk(PROCESSES)[rank] for part in make_batch())
    results = {}
    try:
        for version, clip in ((1, clip_by_fsdp), (2, clip_by_torch)):
            network = shard(make_network(), version)
            shards = [p.to_local() if version == 2 else p for p in network.parameters()]
            kept = sum(part.numel() for part in shards)
            results[version] = dict(
                losses=train(network, images, labels, clip), kept=kept
            )
    finally:
        dist.destroy_process_group()
    torch.save(results, folder / f'{rank}.pt')


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> list[dict]:
    """What each process found. (Most of the time, they start.)"""
    folder = tmp_path_factory.mktemp('fsdp')
    torch.multiprocessing.spawn(train_sharded, (folder,), nprocs=PROCESSES)
    return [torch.load(folder / f'{rank}.pt') for rank in range(PROCESSES)]


@pytest.mark.parametrize('version', [1, 2])
def test_sharded_training_equals_plain_training(version, results):
    found = [result[version] for result in results]
    losses = torch.tensor([result['losses'] for result in found]).mean(0)
    network = make_network()
    count = sum(parameter.numel() for parameter in network.parameters())
    expected = torch.tensor(train(network, *make_batch(), clip_by_torch))
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    # The steps did something, and nobody kept all weights.
    assert (expected[0] - expected[-1]).abs() > 1e-2
    assert sum(result['kept'] for result in found) == count
    assert max(result['kept'] for result in found) < 0.6 * count
