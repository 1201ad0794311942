_base_ = './psvit.py'

model = dict(backbone=dict(sampler=dict(num_points=[3, 4, 5, 6, 8])))

default_hooks = dict(elastic_points=dict(type='mmpsvit.ElasticPointsHook'))
