# Number of points (the paper's Table 5): 5 x 5.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_points=5)))
