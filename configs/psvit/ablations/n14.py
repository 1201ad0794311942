# Number of points (the paper's Table 5): 14 x 14.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_points=14)))
