# PS-ViT-B/10: 10 x 10 points. The paper: 80.6% top-1.
_base_ = './b14.py'

model = dict(backbone=dict(sampler=dict(num_points=10)))
