# A tiny network that trains by epochs with everything random that there is: dropout,
# drop path, mixup, random crops, and an average of the weights.
_base_ = '../../configs/cluttered_digits/psvit.py'

num_classes = 3
max_epochs = 8
embed_dims = 24

model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=embed_dims,
            num_layers=3,
            num_heads=2,
            feedforward_channels=2 * embed_dims,
            stem_base_channels=8,
            stem_channels=(embed_dims, embed_dims),
        ),
        sampler=dict(num_iters=2, num_points=3),
        drop_rate=0.1,
        drop_path_rate=0.1,
    ),
    head=dict(num_classes=num_classes, in_channels=embed_dims),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.5)),
)
data_preprocessor = dict(num_classes=num_classes)

train_pipeline = [
    _base_.pipeline[0],
    dict(_scope_='mmpretrain', type='RandomResizedCrop', scale=32),
    dict(_scope_='mmpretrain', type='RandomFlip', prob=0.5),
    _base_.pipeline[1],
]
train_dataloader = dict(
    batch_size=3,
    num_workers=0,
    dataset=dict(pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler'),
)
val_dataloader = dict(num_workers=0)

param_scheduler = [
    dict(_base_.param_scheduler[0], end=5),
    dict(
        type='mmpsvit.CosineFactorLR',
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=max_epochs, val_interval=2)

custom_hooks = [
    dict(
        _scope_='mmpretrain',
        type='EMAHook',
        momentum=0.1,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    )
]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=1, by_epoch=True, save_best='auto'),
)
