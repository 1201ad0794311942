# Number of iterations (the paper's Table 6): N = 6, encoder layers Nv = 8.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_iters=6)))
