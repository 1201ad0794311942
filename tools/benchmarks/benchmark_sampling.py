# Copyright (c) mmpsvit contributors.
"""Time the ways to sample a map at points: one map of B/14, forward and backward.

    python tools/benchmarks/benchmark_sampling.py --out results.json

The implementations run interleaved, one call of each per round, so that whatever
else the machine does slows all of them. Figures are medians over the rounds, and
ratios to ``grid_sample`` on an NCHW map.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mmpsvit.ops import sample_points


def grid_sample(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with PyTorch's own operator."""
    height, width = feat.shape[-2:]
    x, y = points.unbind(-1)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    # (B, C, 1, N) -> (B, N, C)
    return F.grid_sample(feat, grid[:, None], align_corners=False)[:, :, 0].mT


def gather(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with one gather per corner of the stencil, then a weighted sum."""
    batch, channels, height, width = feat.shape
    table = feat.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    low = points.detach().floor()
    out = torch.zeros((), device=feat.device)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = (1 - (points[..., 0] - x).abs()) * (1 - (points[..., 1] - y).abs())
            index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
            index = index.long()[..., None].expand(-1, -1, channels)
            out = out + table.gather(1, index) * (weight * inside)[..., None]
    return out


IMPLEMENTATIONS: dict[str, tuple[Callable, torch.memory_format]] = {
    'grid_sample, NCHW': (grid_sample, torch.contiguous_format),
    'grid_sample, channels_last': (grid_sample, torch.channels_last),
    'gather, channels_last': (gather, torch.channels_last),
    'sample_points, NCHW': (sample_points, torch.contiguous_format),
    'sample_points, channels_last': (sample_points, torch.channels_last),
}


def timed(function: Callable, device: torch.device) -> float:
    """Seconds that one call takes, the device's work included."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median milliseconds of forward and backward, for every implementation."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    feat = torch.randn(args.batch, args.channels, args.size, args.size, device=device)
    points = torch.rand(args.batch, args.points**2, 2, device=device) * args.size
    grad = torch.randn(args.batch, args.points**2, args.channels, device=device)
    times = {name: ([], []) for name in IMPLEMENTATIONS}
    for round_ in tqdm(range(args.runs + 3), disable=None):
        for name, (sample, memory_format) in IMPLEMENTATIONS.items():
            inputs = (
                feat.contiguous(memory_format=memory_format).requires_grad_(),
                points.clone().requires_grad_(),
            )
            outputs = []
            forward = timed(lambda: outputs.append(sample(*inputs)), device)  # noqa: B023
            (out,) = outputs
            backward = timed(lambda: out.backward(grad), device)  # noqa: B023
            if round_ >= 3:  # the first rounds warm up
                times[name][0].append(forward)
                times[name][1].append(backward)
    return {
        name: {
            'forward_ms': 1e3 * statistics.median(forward),
            'backward_ms': 1e3 * statistics.median(backward),
        }
        for name, (forward, backward) in times.items()
    }


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--channels', type=int, default=384)
    parser.add_argument('--size', type=int, default=56, help='side of the map')
    parser.add_argument('--points', type=int, default=14, help='points per side')
    parser.add_argument('--runs', type=int, default=30)
    parser.add_argument('--out', help='file for the figures as JSON')
    args = parser.parse_args()

    results = measure(args)
    device = platform.processor() or platform.machine()
    if args.device != 'cpu':
        device = torch.cuda.get_device_name(args.device)
    print(
        f'torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, map '
        f'({args.batch}, {args.channels}, {args.size}, {args.size}), '
        f'{args.points**2} points, medians of {args.runs}'
    )
    base = results['grid_sample, NCHW']
    print(f'{"":30} {"forward":>17} {"backward":>17}')
    for name, row in results.items():
        cells = [
            f'{row[key]:8.2f} ms {base[key] / row[key]:4.1f}x'
            for key in ('forward_ms', 'backward_ms')
        ]
        print(f'{name:30} {cells[0]:>17} {cells[1]:>17}')
    if args.out:
        with open(args.out, 'w', encoding='utf-8') as file:
            json.dump(dict(vars(args), torch=torch.__version__, results=results), file)


if __name__ == '__main__':
    main()
