# A small RetinaNet on PS-ViT that finds and names several digits among clutter. Data:
#   python tools/dataset_converters/make_cluttered_digits.py data/cluttered_coco --coco
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
]

data_root = 'data/cluttered_coco/'
num_classes = 10
batch_size = 16
max_iters = 1200
lr = 5e-4
embed_dims = 96
num_iters = 4  # sampling iterations; with 1, the points never move
featmap_mode = 'index'  # or 'splat'
neck_channels = 64

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpsvit.PSViT',
        arch=dict(
            embed_dims=embed_dims,
            num_layers=6,
            num_heads=3,
            feedforward_channels=3 * embed_dims,
            stem_base_channels=32,
            stem_channels=(embed_dims, embed_dims),
        ),
        sampler=dict(
            type='mmpsvit.ProgressiveSampling', num_iters=num_iters, point_stride=8
        ),
        out_type='featmap',
        featmap_mode=featmap_mode,
    ),
    neck=dict(
        in_channels=[embed_dims] * 4,
        out_channels=neck_channels,
        # Strides 8, 16 and 32: more would be left of no image this small.
        add_extra_convs=False,
        num_outs=3,
    ),
    bbox_head=dict(
        num_classes=num_classes,
        in_channels=neck_channels,
        feat_channels=neck_channels,
        stacked_convs=2,
        # Anchors from 24 pixels on: digits are 22 to 34 pixels high.
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Changes nothing, but tells the head how boxes map back to the image.
    dict(type='Resize', scale_factor=1.0),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
metainfo = dict(classes=tuple('0123456789'))
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox'
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', by_epoch=False, T_max=max_iters, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=400)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)

default_hooks = dict(
    # Otherwise the step of the validation's scalars would be the epoch, always 0.
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(
        type='mmpsvit.ExactCheckpointHook',
        interval=500,
        by_epoch=False,
        max_keep_ckpts=2,
    ),
    finite_loss=dict(type='mmpsvit.FiniteLossHook'),
)
log_processor = dict(by_epoch=False)
