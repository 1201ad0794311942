# PS-ViT-B/14. With `_scope_`, types without a prefix are MMPretrain's, also in a config
# that inherits this file as `mmpsvit::...` or has another default scope.

model = dict(
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(
        type='mmpsvit.PSViT',
        arch='base',
        sampler=dict(
            type='mmpsvit.ProgressiveSampling',
            num_iters=4,  # N; the encoder has the rest of the 14 layers
            num_points=14,  # points per side: "/14" is not a patch size
        ),
        # The paper gives neither rate; these are the official code's for B.
        drop_rate=0.1,
        drop_path_rate=0.1,
    ),
    head=dict(
        type='mmpsvit.PSViTClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # The paper names mixup and CutMix; alphas and odds are the official code's for B.
    train_cfg=dict(
        augments=[
            dict(type='Mixup', alpha=0.2),
            dict(type='CutMix', alpha=1.0),
        ],
        probs=[0.5, 0.5],
    ),
)
