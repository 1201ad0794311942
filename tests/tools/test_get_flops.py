# Copyright (c) mmpsvit contributors.
"""Multiply-adds against the published networks' exact figures."""

import pytest

GMACS = {
    'ti14': 1.565,
    'b10': 3.091,
    'b12': 4.115,
    'b14': 5.380,
    'b16': 6.911,
    'b18': 8.741,
}


def test_published_networks(run_tool, root):
    configs = [root / 'configs' / 'psvit' / f'{name}.py' for name in GMACS]
    rows = run_tool('tools/analysis_tools/get_flops.py', *configs).strip().split('\n')
    rows = [row.strip('| ').split(' | ') for row in rows[-len(GMACS) :]]
    for (path, parameters, macs), (name, expected) in zip(
        rows, GMACS.items(), strict=True
    ):
        assert path.endswith(f'{name}.py')
        assert parameters == ('4,777,902' if name == 'ti14' else '21,344,302')
        assert float(macs) == pytest.approx(expected, rel=5e-3)


def test_mistakes(run_tool, root):
    config = root / 'configs' / 'psvit' / 'ti14.py'
    tool = 'tools/analysis_tools/get_flops.py'
    output = run_tool(tool, config, '--shape', 1, 2, 3, code=2)
    assert 'argument --shape: H W or one number > 0, got [1, 2, 3]' in output
    assert 'nowhere.py does not exist' in run_tool(tool, 'nowhere.py', code=2)
