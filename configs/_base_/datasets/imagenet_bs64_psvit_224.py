# ImageNet as PS-ViT trains on it. The test pipeline is the inherited one: resize to
# 256 (bicubic) and centre crop of 224, as in the paper; the official code has 248.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

data_preprocessor = dict(_scope_='mmpretrain', type='mmpsvit.ClsDataPreprocessor')

# The paper names random resized crops and RandAugment; their settings are the
# official code's, which picks one of the two interpolations per image; it does so in
# RandAugment too, which is always bicubic here, as in MMPretrain's configs.
# `_scope_` lets a config take this list over that inherits it as `mmpsvit::...`.
train_pipeline = [
    dict(_scope_='mmpretrain', type='LoadImageFromFile'),
    dict(
        _scope_='mmpretrain',
        type='RandomChoice',
        transforms=[
            [
                dict(
                    type='RandomResizedCrop',
                    scale=224,
                    crop_ratio_range=(0.08, 1.0),
                    aspect_ratio_range=(3 / 4, 4 / 3),
                    backend='pillow',
                    interpolation=interpolation,
                )
            ]
            for interpolation in ('bilinear', 'bicubic')
        ],
    ),
    dict(_scope_='mmpretrain', type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        _scope_='mmpretrain',
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(
            pad_val=[round(x) for x in _base_.bgr_mean], interpolation='bicubic'
        ),
    ),
    dict(_scope_='mmpretrain', type='PackInputs'),
]

# 8 GPUs of 64 make the paper's batch of 512.
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
