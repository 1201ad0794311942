# PS-ViT-Ti/14 on ImageNet. The paper: 75.6% top-1. It gives one recipe for all
# networks; the values here are the ones with which the official code reproduced that.
_base_ = './b14.py'

model = dict(
    backbone=dict(arch='tiny', drop_rate=0.0),
    head=dict(in_channels=192),
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.8),
            dict(type='CutMix', alpha=1.0),
        ],
    ),
)

train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(
        _scope_='mmpretrain',
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',  # noise in each pixel
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.bgr_mean,
        fill_std=_base_.bgr_std,
    ),
    _base_.train_pipeline[-1],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.03))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-3, end=5),
    _base_.param_scheduler[1],
]
