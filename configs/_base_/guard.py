# Hooks that keep a training safe, for every config: checkpoints from which a killed one
# goes on exactly, weights that do not fit, labels and class folders, losses that are no
# number. Two files of a `_base_` list may not set the same name: take
# `default_hooks = _base_.pop('guard_hooks')`.
guard_hooks = dict(
    checkpoint=dict(type='mmpsvit.ExactCheckpointHook'),
    checkpoint_fit=dict(type='mmpsvit.CheckpointFitHook'),
    data=dict(type='mmpsvit.DataHook'),
    finite_loss=dict(type='mmpsvit.FiniteLossHook'),
)
