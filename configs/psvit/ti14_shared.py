# PS-ViT-Ti/14, one transformer layer and one offset layer for all sampling iterations.
_base_ = './ti14.py'

model = dict(backbone=dict(sampler=dict(share_weights=True)))
