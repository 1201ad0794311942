# Copyright (c) mmpsvit contributors.
"""MMEngine's FSDP strategy as docs/distributed.md has it."""

import torch
from stack import needs_new_torch

from mmpsvit.guard import load_checkpoint


@needs_new_torch
def test_trains_as_one_process(
    small, trained, block, run_here, run_tool, tmp_path, free_port
):
    """Two processes, which keep half of each layer, against one that keeps all.

    Both start from the same weights, by `load_from` and by `init_cfg`.
    """
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
    base, sharded = 'mmpsvit::psvit/b14.py', tmp_path / 'fsdp.py'
    settings = block('docs/distributed.md', f'_base_ = {base!r}')
    sharded.write_text(settings.replace(base, str(config)))
    run_tool(
        'tools/dist_train.sh',
        sharded,
        2,
        '--work-dir',
        'two',
        *options,
        'train_dataloader.batch_size=3',
        f'load_from={trained}',
        PORT=free_port,
        CUDA_VISIBLE_DEVICES='',
    )
    options += [
        'optim_wrapper.clip_grad=None',
        'model.init_cfg.type=Pretrained',
        f'model.init_cfg.checkpoint={trained}',
    ]
    run_here('tools/train.py', config, '--work-dir', 'one', *options)
    two, one = (
        load_checkpoint(tmp_path / name / 'iter_4.pth')['state_dict']
        for name in ('two', 'one')
    )
    assert set(two) == set(one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
