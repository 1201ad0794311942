# Copyright (c) mmpsvit contributors.
"""Says which tokens a decision rests on, and lays that where they were sampled.

Grad-CAM for ViTs lays each token on the cell of the grid where it began. A token of
PS-ViT has seen another place since: the point of the last iteration.
"""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from mmengine.model import BaseModel
from mmpretrain.models.heads import ClsHead
from torch import Tensor, nn

from mmpsvit.models import PSViT
from mmpsvit.models.encoder_layer import EncoderLayer
from mmpsvit.ops import splat_points

from .prediction import eval_mode
from .sampling import find_sampler

EXPLANATION_METHODS = ('gradcam', 'attention')

# In cells: the standard deviation of the triangle of bilinear interpolation.
_SPREAD = 6**-0.5


class Explanation(NamedTuple):
    """The heat of the tokens of B images, and where these were sampled.

    Attributes:
        heat (Tensor): How much each of N tokens counts, (B, N), not negative.
        trajectory (Tensor): The points of every iteration, (B, num_iters, N, 2),
            (x, y) in pixels of the network's input, counted from its left and top
            edges: ``trajectory[:, -1]`` is where the tokens were sampled,
            ``trajectory[:, 0]`` the start grid.
        grid_size (tuple[int, int]): Rows and columns (h, w) of the start grid.
    """

    heat: Tensor
    trajectory: Tensor
    grid_size: tuple[int, int]


def explain(model: BaseModel, images: Tensor, method: str = 'attention') -> Explanation:
    """Find the tokens that a decision rests on.

    The model runs in eval mode; afterwards, each of its modules is in the mode it was
    in. Gradients that its parameters hold are lost with ``'gradcam'``.

    Args:
        model (BaseModel): A model with a :class:`PSViT` as its ``backbone``.
        images (Tensor): Images (B, C, H, W) as the data preprocessor returns them.
        method (str): What the heat of a token is:

            - ``'gradcam'``: Grad-CAM (https://arxiv.org/abs/1610.02391) of the
              predicted class in the norm before the last attention, the last place
              where all tokens still count, from 0 to 1 in each image. Needs the
              package grad-cam.
            - ``'attention'``: The attention that the class token pays to it in the
              last layer, mean over the heads. With the class token's own, the sum is 1.
              Of a network that classifies the mean of the tokens, it says nothing.

            Defaults to 'attention'.

    Returns:
        Explanation: The heat and its points, detached, on the device of the images.

    Raises:
        ValueError: If the method is unknown, the model has another backbone, no class
            token to pay attention or no classification head to take a gradient from.
        ImportError: If ``'gradcam'`` finds no package grad-cam.
        RuntimeError: If ``'gradcam'`` is asked for in ``torch.inference_mode()``.
    """
    if method not in EXPLANATION_METHODS:
        raise ValueError(f'method must be one of {EXPLANATION_METHODS}, got {method!r}')
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, PSViT):
        raise ValueError(
            'model must have a PSViT as its backbone to be explained, got '
            f'{type(backbone).__name__}'
        )
    if method == 'attention' and backbone.cls_token is None:
        raise ValueError("method = 'attention' needs a class token, the model has none")
    if method == 'gradcam' and not isinstance(getattr(model, 'head', None), ClsHead):
        raise ValueError("method = 'gradcam' needs a model with a classification head")

    sampled = []
    sampler = find_sampler(backbone)
    handle = sampler.register_forward_hook(lambda _, args, out: sampled.append(out))
    compute = _grad_cam if method == 'gradcam' else _class_attention
    with handle, eval_mode(model):
        heat = compute(model, images)
    (sampled,) = sampled
    return Explanation(
        heat, sampled.trajectory * sampler.feat_stride, sampled.grid_size
    )


def heat_map(
    heat: Tensor, points: Tensor, size: tuple[int, int], grid_size: tuple[int, int]
) -> Tensor:
    """Lay the heat of tokens on the image, at their points.

    Each token is splatted bilinearly at its point and spread by a Gaussian as wide as
    the bilinear interpolation between cells of the start grid, with which Grad-CAM for
    ViTs enlarges its map: on the grid, this is about that picture. Where points are
    dense, the map is the mean of their heat, weighted by nearness: many lukewarm points
    are not hot. Where they are sparse, it fades to zero: nothing was looked at there.
    (Dividing by the weight everywhere would colour such places like the nearest point.)

    Args:
        heat (Tensor): Heat of the tokens, (B, N).
        points (Tensor): Their points, (B, N, 2), (x, y) in pixels of the image, counted
            from its edges; float32 or float64. What is outside the image is lost.
        size (tuple[int, int]): Size (H, W) of the image in pixels.
        grid_size (tuple[int, int]): Rows and columns (h, w) of the start grid.

    Returns:
        Tensor: The map, (B, H, W), nowhere hotter than the hottest token.

    Raises:
        ValueError: If shapes do not fit, see :func:`mmpsvit.splat_points`.
    """
    tokens = torch.stack((heat, torch.ones_like(heat)), dim=-1)
    # Integers are centres of pixels there. (B, N, 2) -> (B, 2, H, W)
    maps = splat_points(tokens, points - 0.5, size)
    rows, columns = (
        _gaussian(length, length / cells * _SPREAD, maps)
        for length, cells in zip(size, grid_size, strict=True)
    )
    warmth, weight = (rows @ maps @ columns).unbind(1)
    # A single point has the weight 1.
    return warmth / weight.clamp(min=1)


def blend_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colour a grey version of an image by heat.

    Args:
        image (np.ndarray): RGB image of shape (H, W, 3), uint8.
        heat (np.ndarray): Map of shape (H, W), not negative; its maximum is hot.

    Returns:
        np.ndarray: RGB image of shape (H, W, 3), uint8.
    """
    heat = heat / max(heat.max(), 1e-12)
    grey = image.mean(axis=-1, keepdims=True)
    colour = 255 * colormaps['inferno'](heat)[..., :3]
    opacity = 0.8 * heat[..., None]
    return ((1 - opacity) * grey + opacity * colour).round().astype(np.uint8)


def _grad_cam(model: BaseModel, images: Tensor) -> Tensor:
    """The Grad-CAM of the predicted class on the tokens, (B, N)."""
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise ImportError(
            'Grad-CAM needs the package grad-cam: pip install grad-cam'
        ) from error

    class TokenGradCAM(GradCAM):
        """Its map is a row of tokens, to be laid on the image later."""

        def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, int]:
            return self.activations_and_grads.activations[0].shape[-1], 1

    backbone = model.backbone
    first = 0 if backbone.cls_token is None else 1

    def to_row(tokens: Tensor) -> Tensor:
        # (B, L, C) -> (B, C, 1, N)
        return tokens[:, first:].mT.unsqueeze(2)

    # Also if all parameters are frozen, there is a gradient.
    images = images.detach().requires_grad_()
    with (
        torch.enable_grad(),
        TokenGradCAM(model, [_last_layer(model).ln1], to_row) as cam,
    ):
        heat = cam(images, targets=None)
    model.zero_grad()
    # (B, 1, N) -> (B, N)
    return torch.from_numpy(heat).squeeze(1).to(images.device)


def _last_layer(model: BaseModel) -> EncoderLayer:
    """The last layer that runs."""
    return model.backbone.layers[model.backbone.out_indices[-1]]


def _class_attention(model: BaseModel, images: Tensor) -> Tensor:
    """The attention of the class token to the others in the last layer, (B, N)."""
    attention = _last_layer(model).attn
    weights = []

    def weigh(_module: nn.Module, _args: tuple, qkv: Tensor) -> None:
        # As the layer cuts it: (B, L, 3 * C) -> 3 x (B, L, heads, d)
        query, key, _ = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        scores = torch.einsum('bhd,blhd->bhl', query[:, 0], key)
        weights.append((scores * attention.head_dims**-0.5).softmax(dim=-1))

    with attention.qkv.register_forward_hook(weigh), torch.no_grad():
        model.backbone(images)
    # (B, heads, 1 + N) -> (B, N)
    return weights[0].mean(dim=1)[:, 1:]


def _gaussian(length: int, sigma: float, like: Tensor) -> Tensor:
    """A matrix (length, length) that spreads a line by a Gaussian of height 1."""
    pixels = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.exp(-((pixels - pixels[:, None]) / sigma).square() / 2)
