# Deformable DETR with PS-ViT-B/14. Nobody has trained it on COCO.
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../_base_/dense.py',
]

model = dict(
    _scope_='mmdet',
    backbone=dict(_base_.pop('psvit_b14'), out_strides=(8, 16, 32)),
    neck=dict(in_channels=[384] * 3),
)
optim_wrapper = _base_.pop('layer_decay')
optim_wrapper.optimizer.lr = 2e-4
optim_wrapper.clip_grad = dict(max_norm=0.1, norm_type=2)
# Slowly, as in the base. A key of its own for a bias, or it would decay.
optim_wrapper.paramwise_cfg.custom_keys.update(
    {
        'sampling_offsets': dict(lr_mult=0.1),
        'sampling_offsets.bias': dict(lr_mult=0.1, decay_mult=0.0),
        'reference_points': dict(lr_mult=0.1),
        'reference_points_fc.bias': dict(lr_mult=0.1, decay_mult=0.0),
    }
)
default_hooks = _base_.pop('guard_hooks')
