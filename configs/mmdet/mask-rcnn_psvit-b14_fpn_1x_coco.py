# Mask R-CNN with PS-ViT-B/14. Nobody has trained it on COCO.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/dense.py']

model = dict(
    _scope_='mmdet',
    backbone=_base_.pop('psvit_b14'),
    neck=dict(in_channels=[384] * 4),
)
optim_wrapper = _base_.pop('layer_decay')
default_hooks = _base_.pop('guard_hooks')
