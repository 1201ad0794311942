# Copyright (c) mmpsvit contributors.
"""run_on_gpu.sh: a rehearsal on the CPU, and what stops it."""

import json
import re

import pytest

TOOL = 'tools/benchmarks/run_on_gpu.sh'
PARTS = [
    'tests', 'loop', 'sampling_share', 'sampling_share_triton', 'training', 'inference',
    'latency', 'sampling',
]  # fmt: skip


def test_rehearsal(run_tool, tmp_path):
    """All of it on the CPU; the tables agree with themselves."""
    output = run_tool(TOOL, '--cpu', 'out', code=None, OMP_NUM_THREADS='1')
    report = (tmp_path / 'out' / 'report.md').read_text()
    assert output.endswith(f'report: {tmp_path}/out/report.md\n'), output
    assert re.findall(r'^- (\w+): ok, \d+ s$', report, re.MULTILINE) == PARTS, report
    assert 'Everything on CUDA: this was a rehearsal' in report
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert {'inference.profile.txt', 'training.profile.txt'} <= names

    def rows(name: str) -> list[dict]:
        return json.loads((tmp_path / 'out' / f'{name}.json').read_text())['results']

    (ours, theirs), (trained,) = rows('inference'), rows('training')
    assert (ours['model'], theirs['model']) == ('ti14', 'deit-s')
    # Counted before BatchNorms are folded.
    assert ours['parameters'] == 4_777_902
    for row in (ours, theirs):
        assert row['images_per_second'] == pytest.approx(2e3 / row['milliseconds'])
    ratio = theirs['milliseconds'] / ours['milliseconds']
    assert theirs['to ti14'] == pytest.approx(1 / ratio)
    # The gradients of 4.8 M parameters take 4 bytes each.
    assert trained['peak_MiB'] > 18
    whole, sampling = rows('sampling_share')
    percent = 100 * sampling['milliseconds'] / whole['milliseconds']
    assert sampling['percent'] == pytest.approx(percent) and whole['percent'] == 100
    bare, memory, jpeg = rows('loop')
    for row in (memory, jpeg):
        assert row['to_bare_step'] * row['milliseconds'] == pytest.approx(
            bare['milliseconds']
        )
    assert jpeg['loader_alone'] > 0
    assert {row['layout'] for row in rows('sampling')} == {'NCHW', 'channels_last'}
    aims = report.split('## aims\n\n')[1].split('\n\n')[0]
    assert f'| {ratio:.2f} (' in aims and '| not measured |' in aims


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--fast'], 'unknown option --fast'),
        (['a', 'b'], 'one OUT_DIR, got a and b'),
        (['--seconds', 'x'], "--seconds: a number, got 'x'"),
    ],
)
def test_mistakes(args, message, run_tool):
    output = run_tool(TOOL, *args, code=2)
    assert output == f'run_on_gpu.sh: error: {message}\n'


def test_first_import_that_fails_stops_it(run_tool, tmp_path):
    broken = tmp_path / 'site'
    broken.mkdir()
    for name in ('mmcv', 'mmengine'):
        (broken / f'{name}.py').write_text('raise TypeError("no such\\nthing")')
    output = run_tool(TOOL, '--cpu', 'out', code=1, PYTHONPATH=str(broken))
    assert output == (
        'run_on_gpu.sh: error: cannot import mmengine (TypeError: no such thing)\n'
    )
    assert not (tmp_path / 'out' / 'report.md').exists()
