# Number of points (the paper's Table 5): 8 x 8.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_points=8)))
