# As retinanet_psvit.py, but a token goes where its point began.
_base_ = './retinanet_psvit.py'

model = dict(backbone=dict(featmap_mode='index'))
