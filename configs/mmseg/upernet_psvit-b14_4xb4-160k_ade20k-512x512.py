# UPerNet with PS-ViT-B/14. Nobody has trained it on ADE20K.
_base_ = [
    'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
    '../_base_/dense.py',
]

model = dict(
    _scope_='mmseg',
    # The base's own key, for weights of its ResNet.
    pretrained=None,
    backbone=_base_.pop('psvit_b14'),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = _base_.pop('layer_decay')
default_hooks = _base_.pop('guard_hooks')
