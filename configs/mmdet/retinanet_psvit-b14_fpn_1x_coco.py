# RetinaNet with PS-ViT-B/14. Nobody has trained it on COCO.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

pretrained = None  # a classifier checkpoint of ../psvit/b14.py

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpsvit.PSViT',
        arch='base',
        sampler=dict(type='mmpsvit.ProgressiveSampling', point_stride=16),
        out_type='featmap',
        drop_path_rate=0.1,
        init_cfg=pretrained
        and dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(in_channels=[384] * 4),
)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='mmpsvit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.8,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
)

default_hooks = dict(
    checkpoint=dict(type='mmpsvit.ExactCheckpointHook'),
    finite_loss=dict(type='mmpsvit.FiniteLossHook'),
)
