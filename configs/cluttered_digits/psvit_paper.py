# The demo's network with the paper's sampler, whose points may drift together.
_base_ = './psvit.py'

model = dict(backbone=dict(sampler=dict(center_offsets=False)))
