# Copyright (c) mmpsvit contributors.
"""Layer-wise learning rate decay, for classifiers and detectors alike."""

from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mmpsvit.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """MMPretrain's constructor, which here asks the backbone for the depths.

    A parameter of depth d out of D gets ``layer_decay_rate ** (D - 1 - d)`` times the
    learning rate; everything outside the backbone gets the full one. The ``lr_mult`` of
    ``custom_keys`` multiplies it further. MMPretrain asks
    the model for depths, which only its own classifiers know; MMDetection's constructor
    knows the backbones that it lists. See MMPretrain's class for ``paramwise_cfg``.

    Raises:
        NotImplementedError: If the model's backbone has no ``get_layer_depth``.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs
    ) -> None:
        """Add the parameters of a module, at first those of the whole model."""
        if prefix:
            super().add_params(params, module, prefix=prefix, **kwargs)
            return
        backbone = getattr(module, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise NotImplementedError(
                'layer-wise decay needs a backbone with get_layer_depth, '
                f'{type(module).__name__} has {type(backbone).__name__}'
            )
        kwargs['get_layer_depth'] = lambda name: backbone.get_layer_depth(
            name, 'backbone.'
        )
        super().add_params(params, module, **kwargs)
        # MMPretrain's constructor takes `decay_mult` of the custom keys only.
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        for group in params:
            group.pop('lr_mult', None)
            keys = [key for key in custom_keys if key in group['param_name']]
            if keys:
                longest = max(sorted(keys), key=len)
                group['lr'] *= custom_keys[longest].get('lr_mult', 1.0)
