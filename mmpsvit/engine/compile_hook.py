# Copyright (c) mmpsvit contributors.
"""Compiles the network of a training, rather than all of its step."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsvit.guard import unwrap
from mmpsvit.registry import HOOKS


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles a module of the model in place before a training.

    MMEngine's ``compile=True`` compiles the whole ``train_step``, with data, losses
    and optimizer. Here it is the forward of one module, and its backward. Names in
    checkpoints do not change, and ``EMAHook``'s copy, made before, is not compiled.
    Validations of the training use the compiled module, and compile it for inference.
    PyTorch leaves modules of its own, such as ``nn.Sequential``, uncompiled.

    Args:
        module (str): Name of the module in the model, below the wrappers of
            distributed trainings. Defaults to 'backbone'.
        **kwargs: As for ``torch.compile``, such as ``mode`` and ``dynamic``.
    """

    def __init__(self, module: str = 'backbone', **kwargs) -> None:
        self.module = module
        self.kwargs = kwargs

    def before_train(self, runner: Runner) -> None:
        """Compile; PyTorch does it at the first call."""
        unwrap(runner.model).get_submodule(self.module).compile(**self.kwargs)
