# Copyright (c) mmpsvit contributors.
"""MMEngine's gradient accumulation with PS-ViT."""

import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

CLASSES = 5


def make_model() -> ImageClassifier:
    """A small classifier without anything that depends on the batch's size."""
    torch.manual_seed(0)
    arch = dict(
        embed_dims=24,
        num_layers=4,
        num_heads=3,
        feedforward_channels=48,
        stem_base_channels=8,
        stem_channels=(24,),
    )
    sampler = dict(num_points=4, num_iters=2)
    model = ImageClassifier(
        backbone=dict(type='mmpsvit.PSViT', arch=arch, sampler=sampler, norm_eval=True),
        head=dict(type='mmpsvit.PSViTClsHead', num_classes=CLASSES, in_channels=24),
        data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    )
    model.init_weights()
    for layer in model.backbone.sampler.offset_layers:
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model.train()


def train(counts: int, batches: list[dict]) -> list[dict]:
    """The weights after each batch."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts)
    wrapper.initialize_count_status(model, 0, len(batches))
    weights = []
    for batch in batches:
        model.train_step(batch, wrapper)
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
    return weights


def test_two_halves_equal_the_whole():
    """Batches of 3, two per step, against batches of 6; and what is left at the end."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (15, 3, 64, 64), generator=generator).float()
    samples = [DataSample().set_gt_label(i % CLASSES) for i in range(len(images))]

    def batches(*sizes: int) -> list[dict]:
        parts = images.split(sizes)
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [
            dict(inputs=list(part), data_samples=samples[end - len(part) : end])
            for part, end in zip(parts, ends, strict=True)
        ]

    start = make_model().state_dict()
    halves = train(2, batches(3, 3, 3, 3, 3))
    wholes = train(1, batches(6, 6, 3))
    for name, value in start.items():
        for half, before in ((0, value), (2, halves[1][name])):
            assert torch.equal(halves[half][name], before), name
        for half, whole in ((1, 0), (3, 1), (4, 2)):
            torch.testing.assert_close(
                halves[half][name], wholes[whole][name], atol=1e-5, rtol=1e-4, msg=name
            )
    key = 'backbone.layers.0.ffn.layers.1.weight'
    assert (wholes[0][key] - start[key]).abs().max() > 1e-4
