# Weights of the sampler shared by all iterations (the paper's Table 8).
_base_ = './psvit.py'
model = dict(backbone=dict(sampler=dict(share_weights=True)))
