# Copyright (c) mmpsvit contributors.
"""MMEngine's FSDP strategy as docs/distributed.md has it."""

import re

import torch
from stack import needs_new_torch

from mmpsvit.guard import load_checkpoint


@needs_new_torch
def test_trains_as_one_process(small, root, run_tool, tmp_path, free_port):
    """Two processes, which keep half of each layer, against one that keeps all."""
    config, options, _ = small
    options = [
        *options,
        # BatchNorm's statistics are per process.
        'model.backbone.norm_eval=True',
        # Adam would blow rounding errors of small gradients up to whole steps.
        'optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.lr=0.1',
        'param_scheduler=None',
    ]
    document = (root / 'docs' / 'distributed.md').read_text()
    (settings,) = re.findall(r'```python[^\n]*\n(.*?)```', document, re.DOTALL)
    assert "_base_ = 'mmpsvit::psvit/b14.py'" in settings
    sharded = tmp_path / 'fsdp.py'
    sharded.write_text(settings.replace('mmpsvit::psvit/b14.py', str(config)))
    run_tool('tools/train.py', config, '--work-dir', 'start', *options)
    start = tmp_path / 'start' / 'iter_4.pth'
    options += ['model.init_cfg.type=Pretrained', f'model.init_cfg.checkpoint={start}']
    run_tool(
        'tools/dist_train.sh',
        sharded,
        2,
        '--work-dir',
        'two',
        *options,
        'train_dataloader.batch_size=3',
        PORT=free_port,
        CUDA_VISIBLE_DEVICES='',
    )
    options.append('optim_wrapper.clip_grad=None')
    run_tool('tools/train.py', config, '--work-dir', 'one', *options)
    two, one = (
        load_checkpoint(tmp_path / name / 'iter_4.pth')['state_dict']
        for name in ('two', 'one')
    )
    assert set(two) == set(one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
