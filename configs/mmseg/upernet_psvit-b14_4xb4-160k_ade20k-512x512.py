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
# That of MMSegmentation's Swin. The base's ends at 1e-4, its SGD's hundredth part: with
# this optimizer the rates of most layers would rise to it.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1500),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=1500, end=160000),
]
default_hooks = _base_.pop('guard_hooks')
