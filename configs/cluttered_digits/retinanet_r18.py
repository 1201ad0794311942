# As retinanet_psvit.py, on MMDetection's ResNet-18, likewise from scratch.
_base_ = './retinanet_psvit.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        # From scratch, everything is trained, BatchNorm's statistics too.
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False,
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
