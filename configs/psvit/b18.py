# PS-ViT-B/18: 18 x 18 points. The paper: 82.3% top-1.
_base_ = './b14.py'

model = dict(backbone=dict(sampler=dict(num_points=18)))
