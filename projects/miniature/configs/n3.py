# Number of points (the paper's Table 5): 3 x 3.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_points=3)))
