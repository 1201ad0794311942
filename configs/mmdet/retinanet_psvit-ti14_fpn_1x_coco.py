# RetinaNet with PS-ViT-Ti/14. Nobody has trained it on COCO.
_base_ = './retinanet_psvit-b14_fpn_1x_coco.py'

pretrained = None  # a classifier checkpoint of ../psvit/ti14.py

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=pretrained
        and dict(
            _delete_=True, type='Pretrained', checkpoint=pretrained, prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=[192] * 4),
)
