# As retinanet_psvit.py, but the points never move: all six layers are the encoder's.
_base_ = './retinanet_psvit.py'

model = dict(backbone=dict(sampler=dict(num_iters=1)))
