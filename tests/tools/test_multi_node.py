# Copyright (c) mmpsvit contributors.
"""Two machines, played by two launchers on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

# Stands for srun on two nodes with one task each, which do not see each other's ranks.
SRUN_ON_TWO_NODES = """
while [[ $1 == --* ]]; do
    [[ $1 != --ntasks-per-node=* ]] || [ "$1" = --ntasks-per-node=1 ] || exit 9
    shift
done
for node in 0 1; do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_LOCALID=0 SLURM_NTASKS=2 \\
        SLURM_NODELIST='node[0-1]' "$@" >"node$node.log" 2>&1 &
done
wait -n && wait -n
"""


def check(logs: list[str], *folders: Path) -> None:
    """The nodes trained together, and the first of them wrote the checkpoints."""
    assert 'GPU number: 2' in logs[0]
    steps = [re.findall(r'Iter\(train\) \[(\d)/4\]', log) for log in logs]
    assert steps == [['1', '2', '3', '4'], []]
    # PyTorch's launcher may log that the other one has ended before it.
    lines = [
        line for line in ''.join(logs).splitlines() if '/elastic/agent/' not in line
    ]
    assert 'Traceback' not in ''.join(lines)
    found = [sorted(path.name for path in folder.glob('*.pth')) for folder in folders]
    assert found == [['iter_2.pth', 'iter_4.pth'], []][: len(folders)]


def test_two_nodes_of_torchrun(small, root, tmp_path, free_port):
    """`tools/dist_train.sh` on each node, with a work dir of its own."""
    config, options, _ = small
    nodes = []
    for rank in range(2):
        environment = dict(
            PYTHON=sys.executable,
            NNODES='2',
            NODE_RANK=str(rank),
            MASTER_ADDR='127.0.0.1',
            PORT=free_port,
            CUDA_VISIBLE_DEVICES='',
        )
        command = [root / 'tools' / 'dist_train.sh', config, '1', '--work-dir']
        command += [f'node{rank}', *options, 'train_dataloader.batch_size=3']
        nodes.append(
            subprocess.Popen(
                [str(part) for part in command],
                cwd=tmp_path,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        logs = [node.communicate(timeout=900)[0] for node in nodes]
    finally:
        # The launchers end their processes.
        for node in nodes:
            node.terminate()
    assert [node.returncode for node in nodes] == [0, 0], logs
    check(logs, tmp_path / 'node0', tmp_path / 'node1')


def test_two_nodes_of_slurm(small, fake_srun, run_tool, tmp_path, free_port):
    """The address of the first node comes from Slurm's list of hosts."""
    config, options, _ = small
    path = fake_srun(SRUN_ON_TWO_NODES)
    scontrol = tmp_path / 'bin' / 'scontrol'
    scontrol.write_text(
        '#!/usr/bin/env bash\n'
        '[ "$*" = "show hostnames node[0-1]" ] || exit 9\n'
        'printf "%s\\n" 127.0.0.1 127.0.0.2\n'
    )
    scontrol.chmod(0o755)
    run_tool(
        'tools/slurm_train.sh',
        'partition',
        'job',
        config,
        'work',
        *options,
        'train_dataloader.batch_size=3',
        PATH=path,
        GPUS='2',
        GPUS_PER_NODE='1',
        MASTER_PORT=free_port,
        CUDA_VISIBLE_DEVICES='',
    )
    logs = [(tmp_path / f'node{rank}.log').read_text() for rank in range(2)]
    check(logs, tmp_path / 'work')
