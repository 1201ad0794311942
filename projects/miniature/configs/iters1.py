# Number of iterations (the paper's Table 6): N = 1, points that never move; Nv = 7.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_iters=1)))
