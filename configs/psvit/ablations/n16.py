# Number of points (the paper's Table 5): 16 x 16.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_points=16)))
