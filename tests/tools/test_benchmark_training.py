# Copyright (c) mmpsvit contributors.
"""The benchmark of the training loop: images, transforms, mistakes; no speeds.

What it measures is tested with run_on_gpu.sh.
"""

import pytest
from PIL import Image
from scripts import error_of


def test_images(import_tool, tmp_path):
    import_tool('benchmarks/benchmark_training.py').generate(tmp_path, count=21)
    paths = sorted(tmp_path.glob('*/*.JPEG'))
    assert len(paths) == 21
    assert len({path.parent for path in paths}) == 10
    contents = set()
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ('JPEG', (500, 375), 'RGB')
            contents.add(image.tobytes())
    assert len(contents) == 21
    # Photographs do not compress like flat colours.
    assert min(path.stat().st_size for path in paths) > 10_000


def test_processes(run_tool, root, tmp_path):
    """Under torchrun, one report for all of them."""
    tool = root / 'tools' / 'benchmarks' / 'benchmark_training.py'
    launcher = tmp_path / 'launch.py'
    launcher.write_text(
        'import sys\nfrom torch.distributed.run import main\n'
        f"main(['--standalone', '--nproc_per_node=2', {str(tool)!r}, *sys.argv[1:]])\n"
    )
    output = run_tool(
        launcher, root / 'configs/cluttered_digits/psvit.py', '--device', 'cpu',
        '--runs', 1, '--warmup', 1, '--batch-size', 2, '--workers', 0, '--out', 'loop',
        OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='',
    )  # fmt: skip
    table = (tmp_path / 'loop.md').read_text()
    assert output.count(table) == 1 and '2 processes' in table
    assert '| memory |' in table


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no.py'], 'argument config: no.py does not exist'),
        (['configs/cluttered_digits/retinanet_psvit.py'], 'trains no classifier'),
        (['--workers', '-1'], 'argument --workers: must be at least 0, got -1'),
        (['--device', 'cpu', '--amp'], 'argument --amp: mixed precision needs a CUDA'),
        (['--data', 'x'], "argument --data: invalid choice: 'x'"),
    ],
)
def test_mistakes(arguments, message, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in error_of('tools/benchmarks/benchmark_training.py', *arguments)
