# FCOS with PS-ViT-B/14. Nobody has trained it on COCO.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', '../_base_/dense.py']

model = dict(
    _scope_='mmdet',
    # The base is caffe-style (BGR, std 1); PS-ViT is trained on normalised RGB.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=_base_.pop('psvit_b14'),
    neck=dict(in_channels=[384] * 4),
)
optim_wrapper = _base_.pop('layer_decay')
default_hooks = _base_.pop('guard_hooks')
