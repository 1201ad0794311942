# Copyright (c) mmpsvit contributors.
"""Triton's kernels, in Triton's interpreter, which wants a process of its own."""

import copy
import itertools
import os
import subprocess
import sys

import pytest
import torch
from references import by_map, gradients, inputs
from stack import needs_new_torch
from torch import Tensor, nn

from mmpsvit.models import ProgressiveSampling
from mmpsvit.ops import SampledMap, sample_points
from mmpsvit.ops import sampled_map as module_of_map


@needs_new_torch  # whose Triton has an interpreter that knows all of it
def test_kernels():
    """Against the operators in float64, also at borders, NaN and infinity."""
    pytest.importorskip('triton', reason="comes with PyTorch's builds for CUDA")
    # Triton reads it when it is imported.
    path = os.pathsep.join(sys.path)
    env = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': path}
    subprocess.run([sys.executable, __file__], check=True, env=env)


@needs_new_torch  # whose Triton compiles for a device that is not there
@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
@pytest.mark.parametrize('absent', ['tokens', 'moved', 'nothing'])
def test_kernels_compile_for_hopper(absent, dtype, tmp_path, monkeypatch):
    """The interpreter takes what the compiler does not."""
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget

    from mmpsvit.ops import triton_kernels

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    constants = dict(BLOCK=512)
    if absent != 'nothing':
        constants |= dict.fromkeys(('tokens', 'to_tokens', 'offset_weight'))
    if absent == 'moved':
        constants |= dict.fromkeys(('moved', 'position_weight', 'position_bias'))
    single = ('points', 'moved', 'to_table', 'to_points')
    for kernel in (triton_kernels._forward, triton_kernels._backward):
        names = kernel.arg_names
        types = dict.fromkeys(names, f'*{dtype}')
        types.update(dict.fromkeys(single, '*fp32'), scale='fp32')
        types.update(dict.fromkeys(('count', 'height', 'width', 'channels'), 'i32'))
        types.update(dict.fromkeys(constants, 'constexpr'))
        source = triton.compiler.ASTSource(
            kernel,
            {name: types[name] for name in names},
            {(names.index(key),): constants[key] for key in names if key in constants},
        )
        compiled = triton.compile(source, target=GPUTarget('cuda', 90, 32))
        assert compiled.asm['cubin']


def check_samplings() -> None:
    module_of_map._has_kernel = lambda feat, _: feat.dtype != torch.float64
    _, points = inputs(dtype=torch.float32)
    points = points.detach()
    points[0, 0, 0] = torch.nan
    points[0, 0, 1, 0] = torch.inf
    points[1, 0, 2] = torch.tensor([-1.0, 2.0])
    points[1, 0, 3] = torch.tensor([-0.5, 4.5])
    points.requires_grad_()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels in (3, 1100):  # more than one block
            feat = torch.randn(2, channels, 5, 4).to(dtype).requires_grad_()
            run = lambda f, p: by_map(f, p, 'triton')  # noqa: E731
            ours = gradients(run, feat, points)
            exact = gradients(by_map, feat.double(), points.double())
            assert ours[-2].dtype == dtype
            for one, other in zip(ours, exact, strict=True):
                tolerance = dict(atol=1e-4, rtol=1e-5)
                if one.dtype != torch.float32:
                    tolerance = dict(atol=1e-2, rtol=1e-2)
                torch.testing.assert_close(one.double(), other, **tolerance)


def advance_by_parts(feat, start, tokens, offset_layer, scale, position_layer) -> list:
    """Two iterations without what is between them, in the operators' own dtype."""
    size = torch.tensor(feat.shape[:1:-1], dtype=start.dtype)
    moved, inputs = start, 0
    for given in (None, tokens):
        if given is not None:
            moved = moved.detach() + scale * offset_layer(given)
            inputs = inputs + given
        inputs = inputs + sample_points(feat, moved)
        inputs = inputs + position_layer(moved.detach() / size)
    return [inputs, moved.detach()]


def advance_by_kernel(
    feat, start, tokens, offset_layer, scale, position_layer
) -> list[Tensor]:
    sampled_map = SampledMap.of(feat, 'triton')
    assert sampled_map.advances
    first, moved, sampled_map = sampled_map.advance(
        start, None, None, scale, position_layer
    )
    assert torch.equal(moved, start)
    layers = offset_layer, scale, position_layer
    slot = sampled_map.slot
    _, _, sampled_map = sampled_map.advance(moved, tokens, *layers)  # nobody uses it
    assert sampled_map.slot is not slot  # one gradient of the map, passed on
    second, moved, _ = sampled_map.advance(moved, tokens, *layers)
    assert not moved.requires_grad and first.dtype == position_layer.weight.dtype
    return [first.float() + second.float(), moved]


def check_advance() -> None:
    """An iteration in one kernel against its parts in float64, with all gradients."""
    half = torch.bfloat16
    for channels, (of_map, dtype) in itertools.product(
        (3, 1100), [(torch.float32,) * 2, (half, half), (half, torch.float32)]
    ):
        feat = torch.randn(2, channels, 5, 4).to(of_map).requires_grad_()
        tokens = torch.randn(2, channels, 6).mT.to(dtype).requires_grad_()
        start = (5 * torch.rand(2, 6, 2) - 0.5).requires_grad_()
        layers = nn.Linear(channels, 2).to(dtype), nn.Linear(2, channels).to(dtype)
        exact = copy.deepcopy(layers)
        for layer in layers:  # values of another layout
            layer.weight = nn.Parameter(layer.weight.detach().mT.contiguous().mT)
            layer.bias = nn.Parameter(layer.bias.detach().repeat_interleave(2)[::2])
        results = []
        for run, tensors, (offset_layer, position_layer) in (
            (advance_by_kernel, (feat, start, tokens), layers),
            (
                advance_by_parts,
                [tensor.double() for tensor in (feat, start, tokens)],
                [layer.double() for layer in exact],
            ),
        ):
            outs = run(*tensors, offset_layer, 0.7, position_layer)
            wrt = [*tensors, *offset_layer.parameters(), *position_layer.parameters()]
            loss = outs[0] * torch.linspace(-1, 1, outs[0].numel()).view_as(outs[0])
            results.append([*outs, *torch.autograd.grad(loss.sum(), wrt)])
        for ours, right in zip(*results, strict=True):
            error = (ours.double() - right).norm() / right.norm()
            assert error < (1e-5 if of_map == torch.float32 else 1e-2), error


def check_iterations() -> None:
    """A sampler with and without that kernel, also behind a frozen stem."""
    for kwargs, trains_map in itertools.product(
        ({}, dict(share_weights=True), dict(with_cp=True, num_iters=3)), (True, False)
    ):
        sampler = ProgressiveSampling(12, 3, 24, num_points=(3, 2), **kwargs)
        sampler.kernel, sampler.offset_scale = 'triton', 0.6
        for layer in sampler.offset_layers:
            nn.init.normal_(layer.weight)
        feat = torch.randn(2, 12, 9, 7, requires_grad=trains_map)
        results = []
        for advances in (True, False):
            if not advances:
                sampler._advances = lambda _: False
            assert sampler._advances(SampledMap.of(feat, 'triton')) == advances
            outs = sampler(feat)
            wrt = [*sampler.parameters(), *[feat] * trains_map]
            grads = torch.autograd.grad(outs.tokens.square().sum(), wrt)
            with torch.no_grad():
                trajectory = sampler(feat).trajectory
            results.append([outs.tokens, outs.trajectory, trajectory, *grads])
        for one, other in zip(*results, strict=True):
            assert (one - other).norm() <= 1e-4 * other.norm(), kwargs
        assert torch.equal(outs.points, outs.trajectory[:, -1])


def check_compiled_without_gradients() -> None:
    """A frozen sampler, whose autograd functions torch.compile takes apart."""
    sampler = ProgressiveSampling(12, 3, 24, num_points=(3, 2), kernel='triton')
    sampler.requires_grad_(False)
    feat = torch.randn(2, 12, 9, 7)
    compiled = torch.compile(sampler, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(feat).tokens, sampler(feat).tokens)


if __name__ == '__main__':
    torch.manual_seed(0)
    check_samplings()
    check_advance()
    check_iterations()
    check_compiled_without_gradients()
