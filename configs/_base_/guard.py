# Hooks that keep a training safe, for every config: checkpoints from which a killed one
# goes on exactly, and an end where the loss is no number. Two files of a `_base_` list
# may not set the same name: take `default_hooks = _base_.pop('guard_hooks')`.
guard_hooks = dict(
    checkpoint=dict(type='mmpsvit.ExactCheckpointHook'),
    finite_loss=dict(type='mmpsvit.FiniteLossHook'),
)
