# A small PS-ViT that finds and names one digit among clutter. Data:
#   python tools/dataset_converters/make_cluttered_digits.py data/cluttered_digits
_base_ = '../_base_/default_runtime.py'

model = dict(
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(
        type='mmpsvit.PSViT',
        arch=dict(
            embed_dims=96,
            num_layers=6,
            num_heads=3,
            feedforward_channels=288,
            stem_base_channels=32,
            stem_channels=(96, 96),
        ),
        sampler=dict(
            type='mmpsvit.ProgressiveSampling',
            num_iters=4,
            num_points=6,  # points per side
            # Not in the paper, but its points look: docs/how_sampling_works.md
            center_offsets=True,
        ),
    ),
    head=dict(
        type='mmpsvit.PSViTClsHead',
        num_classes=10,
        in_channels=96,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
data_preprocessor = dict(
    _scope_='mmpretrain',
    type='mmpsvit.ClsDataPreprocessor',
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

pipeline = [
    dict(_scope_='mmpretrain', type='LoadImageFromFile'),
    dict(_scope_='mmpretrain', type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        _scope_='mmpretrain',
        type='CustomDataset',
        data_root='data/cluttered_digits',
        data_prefix='train',
        pipeline=pipeline,
    ),
    sampler=dict(_scope_='mmpretrain', type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        _scope_='mmpretrain',
        type='CustomDataset',
        data_root='data/cluttered_digits',
        data_prefix='val',
        pipeline=pipeline,
    ),
    sampler=dict(_scope_='mmpretrain', type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(_scope_='mmpretrain', type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='mmpsvit.AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(
        _scope_='mmpretrain', type='LinearLR', start_factor=0.01, by_epoch=False, end=50
    ),
    # Without an `end`, MMEngine takes that of the training.
    dict(_scope_='mmpretrain', type='CosineAnnealingLR', by_epoch=False),
]
train_cfg = dict(
    _scope_='mmpretrain',  # the loop builds the data set
    type='mmpsvit.ExactIterBasedTrainLoop',
    max_iters=800,
    val_interval=200,
)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)

default_hooks = dict(
    # Otherwise the step of the validation's scalars would be the epoch, always 0.
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(interval=200, by_epoch=False, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
