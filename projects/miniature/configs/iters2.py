# Number of iterations (the paper's Table 6): N = 2, encoder layers Nv = 6.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_iters=2)))
