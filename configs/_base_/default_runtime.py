# MMPretrain's defaults, with what keeps a training safe.
_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='mmpsvit.ExactCheckpointHook'),
    checkpoint_fit=dict(type='mmpsvit.CheckpointFitHook'),
    data=dict(type='mmpsvit.DataHook'),
    finite_loss=dict(type='mmpsvit.FiniteLossHook'),
)
