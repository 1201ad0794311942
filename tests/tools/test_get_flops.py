# Copyright (c) mmpsvit contributors.
"""Multiply-adds against the published networks' exact figures."""

import pytest
import yaml

# Of the published networks: attention counted, norms not, by points per side.
TINY = 1.565
BASE = {10: 3.091, 12: 4.115, 14: 5.380, 16: 6.911, 18: 8.741}
GMACS = {
    'ti14': TINY,
    'ti14_shared': TINY,
    **{f'b{n}': macs for n, macs in BASE.items()},
    **{f'b{n}_shared': macs for n, macs in BASE.items() if n != 16},
    **{f'ablations/n{n}': macs for n, macs in BASE.items()},
    'ablations/n20': 10.9,
    **{f'ablations/iters{n}': BASE[14] for n in (1, 2, 4, 6, 8, 10)},
    **{f'transfer/b14_{data}': BASE[14] for data in ('cifar10', 'flowers102', 'cars')},
    'transfer/ti14_cifar100': TINY,
}


def rows_of(output: str, count: int) -> list[list[str]]:
    rows = output.strip().split('\n')[-count:]
    return [row.strip('| ').split(' | ') for row in rows]


def test_against_the_published_figures(run_tool, root):
    configs = [root / 'configs' / 'psvit' / f'{name}.py' for name in GMACS]
    output = run_tool('tools/analysis_tools/get_flops.py', *configs)
    rows = rows_of(output, len(GMACS))
    for (path, parameters, macs), (name, expected) in zip(
        rows, GMACS.items(), strict=True
    ):
        assert path.endswith(f'{name}.py')
        if name in ('ti14', 'b10', 'b12', 'b14', 'b16', 'b18'):
            assert parameters == ('4,777,902' if name == 'ti14' else '21,344,302')
        assert float(macs) == pytest.approx(expected, rel=5e-3), name


def test_model_index(run_tool, root):
    """Every config stands in the index, with what the tool counts."""
    index = yaml.safe_load((root / 'configs' / 'psvit' / 'metafile.yml').read_text())
    models = {root / model['Config']: model for model in index['Models']}
    assert set(models) == set((root / 'configs' / 'psvit').rglob('*.py'))
    output = run_tool('tools/analysis_tools/get_flops.py', *models)
    for row, model in zip(rows_of(output, len(models)), models.values(), strict=True):
        assert row[1] == f'{model["Metadata"]["Parameters"]:,}', model['Name']
        assert row[2] == f'{model["Metadata"]["FLOPs"] / 1e9:.3f}', model['Name']


def test_controls_against_arithmetic(run_tool, root):
    """The two ViTs: patch embedding (and stem), 14 layers on 197 tokens, classifier."""
    channels, hidden, tokens, layers = 384, 1152, 197, 14
    layer = tokens * (4 * channels**2 + 2 * channels * hidden)
    layer += 2 * tokens**2 * channels
    rest = layers * layer + 1000 * channels
    # 7 x 7 convolution, then two bottlenecks on 56 x 56 pixels
    stem = 112**2 * 49 * 3 * 64
    stem += 56**2 * (64 * 64 + 9 * 64**2 + 64 * 256 + 64 * 256)
    stem += 56**2 * (256 * 64 + 9 * 64**2 + 64 * 384 + 256 * 384)
    expected = [
        rest + 196 * 16**2 * 3 * channels,
        rest + stem + 196 * 4**2 * channels**2,
    ]
    folder = root / 'configs' / 'psvit' / 'ablations'
    configs = [folder / f'vit_same_{name}.py' for name in ('hparams', 'stem')]
    output = run_tool('tools/analysis_tools/get_flops.py', *configs)
    for (_, _, macs), exact in zip(rows_of(output, 2), expected, strict=True):
        assert float(macs) == pytest.approx(exact / 1e9, rel=5e-3)


def test_mistakes(run_tool, root):
    config = root / 'configs' / 'psvit' / 'ti14.py'
    tool = 'tools/analysis_tools/get_flops.py'
    output = run_tool(tool, config, '--shape', 1, 2, 3, code=2)
    assert 'argument --shape: H W or one number > 0, got [1, 2, 3]' in output
    assert 'nowhere.py does not exist' in run_tool(tool, 'nowhere.py', code=2)
