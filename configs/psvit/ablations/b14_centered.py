# PS-ViT-B/14 whose offsets have no mean over an image's points, not in the paper: the
# points cannot drift together. Same parameters.
_base_ = '../b14.py'

model = dict(backbone=dict(sampler=dict(center_offsets=True)))
