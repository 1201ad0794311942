# Number of iterations (the paper's Table 6): N = 1, points that never move; Nv = 13.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_iters=1)))
