# PS-ViT-B/16: 16 x 16 points. In the official code only.
_base_ = './b14.py'

model = dict(backbone=dict(sampler=dict(num_points=16)))
