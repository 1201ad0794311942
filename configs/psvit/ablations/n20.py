# Number of points (the paper's Table 5): 20 x 20.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_points=20)))
