# PS-ViT-Ti with 10 to 18 points per side in one network, not in the paper: each batch
# of training draws its number, and testing takes the middle one or what
# `model.backbone.sampler.num_points` says.
_base_ = './ti14.py'

model = dict(backbone=dict(sampler=dict(num_points=[10, 12, 14, 16, 18])))

default_hooks = dict(elastic_points=dict(type='mmpsvit.ElasticPointsHook'))
