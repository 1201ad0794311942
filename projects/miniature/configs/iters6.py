# Number of iterations (the paper's Table 6): N = 6, encoder layers Nv = 2.
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(num_iters=6)))
