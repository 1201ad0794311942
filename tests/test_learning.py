# Copyright (c) mmpsvit contributors.
"""PS-ViT learns: its points move to where the object is."""

import torch
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

NUM_CLASSES = 8
GLYPH = 10  # side of an object in pixels
SIZE = 48  # side of the images of the one-object task
NEAR = 14.0  # from so far, in pixels, a point sees most of an object


def build() -> nn.Module:
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmpsvit.PSViT',
                arch=dict(
                    embed_dims=32,
                    num_layers=3,
                    num_heads=2,
                    feedforward_channels=64,
                    stem_base_channels=16,
                    stem_channels=(32,),
                ),
                sampler=dict(num_iters=2, num_points=3),
            ),
            head=dict(
                type='mmpsvit.PSViTClsHead',
                num_classes=NUM_CLASSES,
                in_channels=32,
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
    )
    model.init_weights()
    return model


def draw_objects(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with one glyph each: images, classes, and centres (x, y) in pixels."""
    glyphs = torch.randint(
        2, (NUM_CLASSES, 5, 5), generator=torch.Generator().manual_seed(5)
    )
    glyphs = glyphs.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    labels = torch.randint(NUM_CLASSES, (count,), generator=rng)
    images = 0.4 * torch.randn(count, 3, SIZE, SIZE, generator=rng)
    corners = torch.randint(SIZE - GLYPH + 1, (count, 2), generator=rng)
    for image, label, (y, x) in zip(images, labels, corners.tolist(), strict=True):
        image[:, y : y + GLYPH, x : x + GLYPH] += 2 * glyphs[label]
    return images, labels, corners.flip(1) + GLYPH / 2


def look(model: nn.Module, images: Tensor, centres: Tensor) -> dict[str, list[float]]:
    """Where a network looks, in every iteration.

    Returns:
        ``distance``: the mean distance to the object, in pixels, of those points that
        start near it; ``inside``: the share of all points inside the object's box.
    """
    backbone = model.eval().backbone
    with torch.no_grad():
        points = backbone.sampler(backbone.stem(images)).trajectory * 4
    offsets = points - centres[:, None, None]  # (B, T, N, 2)
    distances = offsets.norm(dim=-1).movedim(1, 0)  # (T, B, N)
    near = distances[0] < NEAR
    inside = (offsets.abs() < GLYPH / 2).all(dim=-1).float()
    return {
        'distance': [each[near].mean().item() for each in distances],
        'inside': inside.mean(dim=(0, 2)).tolist(),
    }


def train_on_objects(seed: int) -> tuple[dict, dict]:
    """Train on fresh images; return where the network looked before and after."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    images, _, centres = draw_objects(256, torch.Generator().manual_seed(999))
    model = build()
    before = look(model, images, centres)
    # With a short warm-up, as in the configs.
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    for _ in range(400):
        batch, labels, _ = draw_objects(64, rng)
        samples = [DataSample().set_gt_label(label) for label in labels]
        loss = model.train().loss(batch, samples)['loss']
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return before, look(model, images, centres)


def test_points_move_to_the_object():
    """400 steps on images with one object each, whose glyph is the class.

    Five seeds, measured on the CPU (torch 2.11.0), before -> after:

    - distance to the object, of the points that start near it: 8.83 px -> 4.03, 5.60,
      6.35, 6.91, 6.02 px, a way of 3.05 px with a standard deviation of 1.09;
    - share of all points inside the object's box: 5.1 % -> 19.8, 14.8, 12.2, 11.3,
      12.2 %, a gain of 9.0 points with a standard deviation of 3.5.

    The bounds are above the deviations, and below what any of the seeds does; the
    network of this test, seed 0, does three times as much.
    """
    before, after = train_on_objects(seed=0)
    # A new network does not move its points.
    assert before['distance'][1] == before['distance'][0] == after['distance'][0]
    assert before['inside'][1] == before['inside'][0] == after['inside'][0]
    assert after['distance'][1] < before['distance'][1] - 1.5
    assert after['inside'][1] > before['inside'][1] + 0.05
