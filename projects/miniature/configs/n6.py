# Number of points (the paper's Table 5): 6 x 6.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_points=6)))
