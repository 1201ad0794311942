# PS-ViT-B/12, one transformer layer and one offset layer for all sampling iterations.
_base_ = './b12.py'

model = dict(backbone=dict(sampler=dict(share_weights=True)))
