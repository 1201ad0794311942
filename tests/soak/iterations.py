# The tiny network of epochs.py, trained by iterations.
_base_ = './epochs.py'

max_iters = 40

train_dataloader = dict(sampler=dict(type='InfiniteSampler'))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(
        type='mmpsvit.CosineFactorLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        T_max=max_iters,
    ),
]
train_cfg = dict(
    _delete_=True,
    type='mmpsvit.ExactIterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=6,
)

default_hooks = dict(checkpoint=dict(interval=4, by_epoch=False))
