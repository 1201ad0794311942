# Number of points (the paper's Table 5): 18 x 18.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_points=18)))
