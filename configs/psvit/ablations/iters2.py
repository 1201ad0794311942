# Number of iterations (the paper's Table 6): N = 2, encoder layers Nv = 12.
_base_ = '../b14.py'
model = dict(backbone=dict(sampler=dict(num_iters=2)))
