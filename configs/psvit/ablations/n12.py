# Number of points (the paper's Table 5): 12 x 12.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_points=12)))
