# The demo's network whose offsets have no mean over an image's points: these cannot
# drift together.
_base_ = './psvit.py'

model = dict(backbone=dict(sampler=dict(center_offsets=True)))
