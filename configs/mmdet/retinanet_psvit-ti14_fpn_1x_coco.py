# RetinaNet with PS-ViT-Ti/14. Nobody has trained it on COCO.
_base_ = './retinanet_psvit-b14_fpn_1x_coco.py'

model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=[192] * 4))
