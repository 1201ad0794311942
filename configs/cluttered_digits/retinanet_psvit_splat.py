# As retinanet_psvit.py, but a token goes where its point ended.
_base_ = './retinanet_psvit.py'

model = dict(backbone=dict(featmap_mode='splat'))
