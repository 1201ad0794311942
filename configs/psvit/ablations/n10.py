# Number of points (the paper's Table 5): 10 x 10.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_points=10)))
