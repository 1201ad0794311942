# Copyright (c) mmpsvit contributors.
"""Slurm's command lines, with a stand-in for srun; what the launchers say."""


def test_slurm_command_line(run_tool, fake_srun):
    """Options reach srun and the script as they are, spaces included."""
    path = fake_srun('printf "%s\\n" "$@"\n')
    output = run_tool(
        'tools/slurm_train.sh',
        'gpus',
        'my job',
        'my config.py',
        'my work',
        '--cfg-options',
        'a="b c"',
        PATH=path,
        GPUS='4',
        SRUN_ARGS='--qos=high --time=60',
    )
    lines = output.strip().split('\n')
    assert lines[:2] == ['--partition=gpus', '--job-name=my job']
    assert {'--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4'} <= set(lines)
    assert {'--qos=high', '--time=60', '--kill-on-bad-exit=1'} <= set(lines)
    assert '' not in lines
    assert lines[-7:] == [
        'my config.py',
        '--work-dir',
        'my work',
        '--cfg-options',
        'a="b c"',
        '--launcher',
        'slurm',
    ]
    output = run_tool(
        'tools/slurm_test.sh', 'p', 'j', 'c.py', 'x.pth', PATH=path, GRES=''
    )
    assert '--gres' not in output
    assert output.strip().split('\n')[-4:] == ['c.py', 'x.pth', '--launcher', 'slurm']


def test_launchers_explain_themselves(run_tool):
    for script in ('dist_train', 'dist_test', 'slurm_train', 'slurm_test'):
        output = run_tool(f'tools/{script}.sh', code=2)
        assert f'{script}.sh' in output and output.startswith('Usage: ')
