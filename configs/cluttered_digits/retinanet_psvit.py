# A small RetinaNet on PS-ViT that finds and names several digits among clutter. Data:
#   python tools/dataset_converters/make_cluttered_digits.py data/cluttered_coco --coco
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/guard.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
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
            num_iters=4,  # with 1, the points never move
            point_stride=8,
        ),
        out_type='featmap',
    ),
    neck=dict(
        in_channels=[96] * 4,
        out_channels=64,
        # Strides 8, 16 and 32: more would be left of no image this small.
        add_extra_convs=False,
        num_outs=3,
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        # Anchors from 24 pixels on: digits are 22 to 34 pixels high.
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)

# `_scope_` lets a config take this over that inherits it as `mmpsvit::...`.
train_pipeline = [
    dict(_scope_='mmdet', type='LoadImageFromFile'),
    dict(_scope_='mmdet', type='LoadAnnotations', with_bbox=True),
    dict(_scope_='mmdet', type='PackDetInputs'),
]
test_pipeline = [
    dict(_scope_='mmdet', type='LoadImageFromFile'),
    # Changes nothing, but tells the head how boxes map back to the image.
    dict(_scope_='mmdet', type='Resize', scale_factor=1.0),
    dict(
        _scope_='mmdet',
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        _scope_='mmdet',
        type='CocoDataset',
        data_root='data/cluttered_coco/',
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=tuple('0123456789')),
        pipeline=train_pipeline,
    ),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        _scope_='mmdet',
        type='CocoDataset',
        data_root='data/cluttered_coco/',
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=tuple('0123456789')),
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(
    _scope_='mmdet',
    type='CocoMetric',
    ann_file='data/cluttered_coco/annotations/val.json',
    metric='bbox',
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='mmpsvit.AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False),
]
train_cfg = dict(
    _scope_='mmdet',  # the loop builds the data set
    type='mmpsvit.ExactIterBasedTrainLoop',
    max_iters=1200,
    val_interval=400,
)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)

default_hooks = _base_.pop('guard_hooks')
default_hooks.checkpoint.update(interval=500, by_epoch=False, max_keep_ckpts=2)
# Otherwise the step of the validation's scalars would be the epoch, always 0.
default_hooks.logger = dict(interval=50, log_metric_by_epoch=False)
log_processor = dict(by_epoch=False)
