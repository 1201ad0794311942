# MMPretrain's defaults, with checkpoints from which a killed training goes on exactly.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='mmpsvit.ExactCheckpointHook'),
    finite_loss=dict(type='mmpsvit.FiniteLossHook'),
)
