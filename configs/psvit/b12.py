# PS-ViT-B/12: 12 x 12 points. Of the paper's Table 5; no accuracy is given.
_base_ = './b14.py'

model = dict(backbone=dict(sampler=dict(num_points=12)))
