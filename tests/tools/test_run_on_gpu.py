# Copyright (c) mmpsvit contributors.
"""What run_on_gpu.sh runs and reports, with a stand-in for the interpreter."""

import re
import shlex

import pytest

TOOL = 'tools/benchmarks/run_on_gpu.sh'
# Says that the device is $DEVICE, fails where the command has $FAILING in it.
STAND_IN = """#!/usr/bin/env bash
last=${@: -1}
if [ "$1" = -c ]; then
    case $last in
    *environment.txt)
        [ "$DEVICE" != none ] || { echo 'ImportError: no torch' >&2; exit 1; }
        printf '%s\\n' "$DEVICE" "$COMPILED" 'a machine' 'torch 0.0' >"$last"
        ;;
    *training.json) echo 1234 ;;
    esac
    exit
fi
echo "$@" >>"$LOG"
echo "output of $2"
if [ -n "$FAILING" ] && [[ "$*" == *"$FAILING"* ]]; then exit 3; fi
case $1 in *benchmark*) echo "table of $1" >"$last.md" ;; esac
"""
PARTS = [
    'tests', 'sampling', 'sampling_share', 'inference', 'training', 'scaling',
    'scaling_training', 'distributed', 'checkpointing', 'data_loading',
]  # fmt: skip


@pytest.fixture
def run(run_tool, tmp_path):
    """Run the script; return what it prints, its report and the commands it ran."""
    python = tmp_path / 'python'
    python.write_text(STAND_IN)
    python.chmod(0o755)
    log = tmp_path / 'commands'

    def run(*args, device='cuda', compiled='13.0', failing='', code=0, **env):
        output = run_tool(
            TOOL, *args, code=code, PYTHON=str(python), LOG=str(log), DEVICE=device,
            COMPILED=compiled, FAILING=failing, **env,
        )  # fmt: skip
        report = tmp_path / 'out' / 'report.md'
        return (
            output,
            report.read_text() if report.exists() else '',
            log.read_text().splitlines() if log.exists() else [],
        )

    return run


def statuses(report: str) -> dict[str, str]:
    """The status of each part."""
    rows = re.findall(r'^\| (\w+) \| (.+) \| \d+ \|$', report, re.MULTILINE)
    return dict(rows)


def test_gpu(run, tmp_path):
    output, report, commands = run('out')
    assert output.endswith(f'report: {tmp_path}/out/report.md\n')
    assert statuses(report) == dict.fromkeys(PARTS, 'ok')
    assert 'Not run' not in report and 'Small settings' not in report
    assert 'a machine.\n\ntorch 0.0\n' in report
    assert '## tests\n\n```\noutput of pytest\n```\n' in report
    assert '## sampling\n\ntable of tools/benchmarks/benchmark_sampling.py\n' in report
    assert commands[0] == '-m pytest -q -m cuda tests'
    # What one GPU eats is what was measured before.
    assert '--images-per-second 1234' in commands[-1]
    assert not [path for path in (tmp_path / 'out').iterdir() if path.name[0] == '.']


def test_without_gpu(run):
    _, report, commands = run('out', device='cpu', compiled='not available')
    title, _, first, *_ = report.splitlines()
    assert title == '# Tests and benchmarks in one call'
    assert first.startswith('- **There is no CUDA device. Not run: the tests')
    assert '- **Small settings: a trial' in report
    assert statuses(report) == dict.fromkeys(PARTS, 'ok')
    assert '-m not cuda' in commands[0]
    assert not any('--batch 128' in command for command in commands)


@pytest.mark.parametrize('options', [(), ('--quick',)])
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_options_exist(options, device, run, import_benchmark, monkeypatch, root):
    """The real benchmarks take the options that they are given."""
    *_, commands = run('out', *options, device=device)
    monkeypatch.chdir(root)
    count = 0
    for command in map(shlex.split, commands):
        if 'benchmark_' not in command[0]:
            continue
        name = command[0].removeprefix('tools/benchmarks/').removesuffix('.py')
        monkeypatch.setattr('sys.argv', command)
        module = import_benchmark(name)
        args, _ = module.parse_args()
        assert set(getattr(args, 'models', ())) <= set(getattr(module, 'ALIASES', ()))
        assert args.runs >= 1
        count += 1
    assert count == len(PARTS) - 1


def test_failures_are_reported_and_stop_nothing(run):
    _, report, commands = run(
        'out', compiled='not available', failing='scaling', code=1
    )
    assert report.splitlines()[2] == (
        '- **mmcv has no compiled CUDA ops. Not run: its kernel.**'
    )
    assert '- **scaling: failed, exit status 3.**' in report
    found = statuses(report)
    assert [name for name, status in found.items() if status != 'ok'] == [
        'scaling',
        'scaling_training',
    ]
    assert len(commands) == len(PARTS)
    # The log stands where the table is missing.
    assert '## scaling\n\n```\noutput of' in report


def test_wheels(run, tmp_path):
    wheels = tmp_path / 'wheels'
    wheels.mkdir()
    for name in ('good', 'other'):
        (wheels / f'{name}-1-py3-none-any.whl').touch()
    _, report, commands = run('out', failing='other-1', code=1, WHEELS='wheels')
    installs = [command for command in commands if command.startswith('-m pip')]
    assert len(installs) == 2
    for command in installs:
        assert f'install --no-index --find-links {wheels} --no-deps {wheels}' in command
    assert statuses(report)['install'] == 'failed, exit status 1'
    assert statuses(report)['data_loading'] == 'ok'


@pytest.mark.parametrize(
    ('args', 'env', 'message'),
    [
        (['--fast'], {}, 'unknown option --fast'),
        (['a', 'b'], {}, 'one OUT_DIR, got a and b'),
        (['out'], {'WHEELS': 'nowhere'}, 'WHEELS=nowhere has no wheels'),
    ],
)
def test_mistakes(args, env, message, run):
    output, _, commands = run(*args, code=2, **env)
    assert output.endswith(f'error: {message}\n') and output.count('\n') == 1
    assert commands == []


def test_environment_that_cannot_run(run):
    output, _, commands = run('out', device='none', code=1)
    assert output.endswith('cannot run the benchmarks: ImportError: no torch\n')
    assert commands == []
