# MMPretrain's defaults, and the hooks that keep a training safe.
_base_ = ['mmpretrain::_base_/default_runtime.py', './guard.py']

default_hooks = _base_.pop('guard_hooks')
