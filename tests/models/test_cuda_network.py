# Copyright (c) mmpsvit contributors.
"""The network on CUDA: DDP, torch.compile, mixed precision, deterministic mode."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small import move_points, small_arch
from stack import needs_new_torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmpsvit import PSViT, PSViTClsHead
from mmpsvit.models.encoder_layer import EncoderLayer
from mmpsvit.ops import KERNELS

DEVICE = 'cuda'
BACKEND = 'nccl'
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA'),
]
ARCH = small_arch(
    embed_dims=48, feedforward_channels=96, stem_base_channels=16, stem_channels=(48,)
)


def make_network(kernel: str = 'mmcv', **kwargs) -> nn.Sequential:
    """A small network whose points move."""
    torch.manual_seed(0)
    sampler = dict(num_points=7, num_iters=3, kernel=kernel)
    backbone = PSViT(ARCH, sampler=sampler, **kwargs)
    move_points(backbone.sampler)
    return nn.Sequential(backbone, PSViTClsHead(10, 48)).to(DEVICE).train()


def make_images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 96, 96, generator=generator).to(DEVICE)


def loss_of(network: nn.Module, images: Tensor) -> Tensor:
    labels = torch.arange(len(images), device=images.device)
    return F.cross_entropy(network(images), labels)


def gradients_of(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters()]


@pytest.fixture
def single_precision():
    """Without TF32, which rounds to 10 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture
def group(tmp_path):
    """A process group of this process only."""
    store = f'file://{tmp_path}/store'
    dist.init_process_group(BACKEND, init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_data_parallel(single_precision, group):
    network = make_network()
    wrapped = DistributedDataParallel(
        copy.deepcopy(network), device_ids=None, broadcast_buffers=False
    )
    images = make_images()
    loss, expected = loss_of(wrapped, images), loss_of(network, images)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(gradients_of(wrapped), gradients_of(network), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@needs_new_torch
def test_fully_sharded_data_parallel(single_precision, group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = make_network()
    sharded = copy.deepcopy(network)
    mesh = init_device_mesh(DEVICE, (1,))
    layers = [layer for layer in sharded.modules() if isinstance(layer, EncoderLayer)]
    for module in (*layers, sharded):
        fully_shard(module, mesh=mesh)
    images = make_images()
    for one in (network, sharded):
        loss_of(one, images).backward()
    for ours, theirs in zip(gradients_of(sharded), gradients_of(network), strict=True):
        torch.testing.assert_close(ours.to_local(), theirs, atol=1e-4, rtol=1e-3)


@needs_new_torch
@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize(
    ('backend', 'train'), [('aot_eager', True), ('inductor', False)]
)
def test_compiles_in_one_graph(backend, train, kernel, single_precision):
    torch._dynamo.reset()
    network = make_network(kernel, norm_eval=True).train(train)
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    images = make_images()
    results = []
    for one in (network, compiled):
        network.zero_grad()
        with torch.set_grad_enabled(train):
            loss = loss_of(one, images)
        if train:
            loss.backward()
        results.append([loss, *(g for g in gradients_of(network) if g is not None)])
    assert len(results[0]) == (1 + len(gradients_of(network)) if train else 1)
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_deployed(half, kernel):
    """Half-precision weights, fused stem, replayed as a CUDA graph on other images."""
    network = make_network(kernel=kernel).eval()
    exact = copy.deepcopy(network).cpu().double()
    network[0].switch_to_deploy()
    network.to(half)
    images = make_images()

    def error(out: Tensor) -> float:
        right = exact(images.cpu().double())
        return float((out.cpu() - right).norm() / right.norm())

    with torch.no_grad():
        assert error(network(images.to(half))) < 0.05
        static = images.to(half)
        for _ in range(3):
            network(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = network(static)
        images = images.flip(0, 3)
        static.copy_(images)
        graph.replay()
        assert error(out) < 0.05


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_step_in_mixed_precision_and_channels_last(half, kernel):
    """Finite gradients everywhere, close to those of single precision."""
    network = make_network(kernel=kernel, norm_eval=True)
    network.to(memory_format=torch.channels_last)
    images = make_images().to(memory_format=torch.channels_last)
    loss = loss_of(network, images)
    loss.backward()
    exact = [grad.clone() for grad in gradients_of(network)]
    network.zero_grad()

    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    # Not the default scale, with which the first steps overflow.
    GradScaler = getattr(torch, 'GradScaler', torch.cuda.amp.GradScaler)
    scaler = GradScaler(init_scale=2.0**10, enabled=half == torch.float16)
    with torch.autocast(DEVICE, half):
        mixed = loss_of(network, images)
    scaler.scale(mixed).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(mixed, loss, atol=0.05, rtol=0)
    for ours in gradients_of(network):
        assert ours.isfinite().all() and ours.abs().max() > 0
    ours, right = (
        torch.cat([grad.flatten() for grad in grads])
        for grads in (gradients_of(network), exact)
    )
    assert F.cosine_similarity(ours, right, dim=0) > 0.9
    scaler.step(optimizer)
    scaler.update()
    assert all(p.isfinite().all() for p in network.parameters())


def train_twice(rank: int, folder: str) -> None:
    """Train two equal networks for some steps, in deterministic mode."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    images = make_images()
    weights = []
    for _ in range(2):
        network = make_network()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(3):
            loss_of(network, images).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([parameter.detach().cpu() for parameter in network.parameters()])
    torch.save(weights, f'{folder}/weights.pt')


def test_deterministic_mode(tmp_path, monkeypatch):
    """What `randomness=dict(deterministic=True)` asks for: the same bits again."""
    # Read when CUDA starts, so in a new process.
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.multiprocessing.spawn(train_twice, (str(tmp_path),), nprocs=1)
    one, other = torch.load(tmp_path / 'weights.pt')
    assert all(map(torch.equal, one, other))
