# What a config of MMDetection or MMSegmentation takes to stand on PS-ViT-B/14, which it
# names beside its own base. Two files of a `_base_` list may not set the same name, so
# these have names of their own, and are taken with `_base_.pop(name)`.
_base_ = './guard.py'

# To start from a classifier's weights, a config sets
#   model = dict(backbone=dict(norm_eval=True, init_cfg=dict(
#       type='Pretrained', checkpoint='psvit-b14.pth', prefix='backbone.')))
# norm_eval keeps the statistics of the stem's BatchNorms, as the bases do with their
# ResNet's: those of the few images of a GPU are noise. From scratch there are none to
# keep, and sync_bn='torch' takes those of all GPUs.
psvit_b14 = dict(
    _delete_=True,  # nothing is left of the base's ResNet
    type='mmpsvit.PSViT',
    arch='base',
    sampler=dict(type='mmpsvit.ProgressiveSampling', point_stride=16),
    out_type='featmap',
    drop_path_rate=0.1,
)

layer_decay = dict(
    _delete_=True,  # nor of its SGD, whose learning rate does not suit a transformer
    type='OptimWrapper',
    optimizer=dict(type='mmpsvit.AdamW', lr=1e-4, weight_decay=0.05),
    constructor='mmpsvit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay_rate=0.8,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'.cls_token': dict(decay_mult=0.0)},
    ),
)
