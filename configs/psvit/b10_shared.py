# PS-ViT-B/10, one transformer layer and one offset layer for all sampling iterations.
_base_ = './b10.py'

model = dict(backbone=dict(sampler=dict(share_weights=True)))
