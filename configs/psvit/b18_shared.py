# PS-ViT-B/18, one transformer layer and one offset layer for all sampling iterations.
_base_ = './b18.py'

model = dict(backbone=dict(sampler=dict(share_weights=True)))
