# Copyright (c) mmpsvit contributors.
"""Trains small networks on images in memory, on a GPU many at once; run.py uses it.

The steps are those of ``tools/train.py``: model, initial weights, optimizer, schedule,
clipping and order of the images come from the config, through MMEngine's own classes.
There is no loader and no hook. On a GPU a step is a CUDA graph, which takes the host a
single call, and each training has a stream of its own.
"""

import contextlib
import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import set_random_seed
from plan import ROOT
from points import draw_points, where_points_are
from torch import Tensor, nn

from mmpsvit.models import ProgressiveSampling
from mmpsvit.visualization import record_sampling, spread_indices
from mmpsvit.visualization.sampling import find_sampler

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / 'tools' / 'dataset_converters'))
from digit_scenes import NUM_CLASSES, SPLITS, Settings, draw_scene, load_sources

import projects.miniature.stem  # noqa: F401  Registers itself.

EAGER_STEPS = 2  # of each kind, before it is captured: libraries choose their kernels


@dataclass
class Images:
    """A split of a data set in memory.

    Attributes:
        pixels (Tensor): RGB images (N, H, W, 3), uint8.
        labels (Tensor): Classes (N,).
        boxes (np.ndarray): Box of each digit, (N, 4), (x1, y1, x2, y2) in pixels.
    """

    pixels: Tensor
    labels: Tensor
    boxes: np.ndarray

    def to(self, device: torch.device) -> 'Images':
        """The same on a device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.boxes)


def draw_images(
    split: str, settings: Settings, indices: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, labels and boxes of images, as make_cluttered_digits.py draws them."""
    sources = load_sources(split)
    pixels, digits = [], []
    for index in indices:
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
        image, found = draw_scene([index % NUM_CLASSES], sources, settings, rng)
        pixels.append(image)
        digits += found
    labels, boxes = ([getattr(d, key) for d in digits] for key in ('label', 'box'))
    return np.stack(pixels), np.array(labels), np.array(boxes)


def make_images(settings: Settings, jobs: int = 1) -> dict[str, Images]:
    """The images of both splits, in the order of their class folders.

    Args:
        settings (Settings): What decides their content.
        jobs (int): Processes that draw them. Defaults to 1, which means this one.
    """
    images = {}
    with ProcessPoolExecutor(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        for split, count in zip(
            SPLITS, (settings.num_train, settings.num_val), strict=True
        ):
            order = sorted(range(count), key=lambda index: index % NUM_CLASSES)
            parts = np.array_split(order, min(count, 4 * jobs))
            draw = partial(draw_images, split, settings)
            drawn = pool.map(draw, parts) if pool else map(draw, parts)
            pixels, labels, boxes = map(np.concatenate, zip(*drawn, strict=True))
            images[split] = Images(
                torch.from_numpy(pixels), torch.from_numpy(labels), boxes
            )
    return images


def learning_rates(cfg: Config, steps: int) -> list[float]:
    """The factor of the learning rate in each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build({'end': steps, **scheduler, 'optimizer': optimizer})
        for scheduler in cfg.param_scheduler
    ]
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return factors


class Trainer:
    """A network in training.

    Parameters whose learning rate is zero are fixed: they have no gradient, which
    would count when gradients are clipped.

    Args:
        cfg (Config): Config of a classifier of the cluttered digits, which trains for
            ``cfg.train_cfg.max_iters`` steps.
        seed (int): Of weights, order of the images, and numbers of points.
        images (dict[str, Images]): The data set, on the device of the training.
    """

    def __init__(self, cfg: Config, seed: int, images: dict[str, Images]) -> None:
        self.seed = seed
        self.train_images, self.val_images = images['train'], images['val']
        self.device = self.val_images.pixels.device
        self.steps = cfg.train_cfg.max_iters
        self.done = 0
        init_default_scope('mmpretrain')
        set_random_seed(seed)
        self.model = MODELS.build({**cfg.model, 'data_preprocessor': None})
        self.model.init_weights()
        self.model.to(self.device)
        self.stream = contextlib.nullcontext()
        self.graphs = {}
        if self.device.type == 'cuda':
            self.stream = torch.cuda.stream(torch.cuda.Stream(self.device))
        self._prepare_images(cfg)
        self._prepare_optimizer(cfg)
        self.elastic = [
            module
            for module in self.model.modules()
            if isinstance(module, ProgressiveSampling) and module.choices
        ]
        if self.device.type == 'cuda':
            torch.cuda.synchronize()  # what was made here is used in another stream

    def _prepare_images(self, cfg: Config) -> None:
        """The statistics of the images, and which ones each step takes."""
        processor, batch = cfg.data_preprocessor, cfg.train_dataloader.batch_size
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (processor.mean, processor.std)
        )
        sampler = InfiniteSampler(range(len(self.train_images.labels)), seed=self.seed)
        order = [*itertools.islice(sampler, self.steps * batch)]
        self.order = torch.tensor(order, device=self.device).view(self.steps, batch)

    def _prepare_optimizer(self, cfg: Config) -> None:
        """The optimizer, whose learning rates are tensors that a graph can change."""
        settings = cfg.optim_wrapper.copy()
        self.clip_grad = settings.pop('clip_grad')
        if self.device.type == 'cuda':
            settings.optimizer = dict(settings.optimizer, capturable=True, fused=True)
        self.optimizer = build_optim_wrapper(self.model, settings).optimizer
        self.rates = {}  # by their value after the warm-up
        for group in self.optimizer.param_groups:
            rate = group['lr']
            for parameter in group['params']:
                parameter.requires_grad_(rate > 0)
            self.rates.setdefault(rate, torch.tensor(rate, device=self.device))
            group['lr'] = self.rates[rate]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # In double precision, as MMEngine has them
        factors = learning_rates(cfg, self.steps)
        self.factors = torch.tensor(factors, dtype=torch.double, device=self.device)
        self.count = torch.zeros(1, dtype=torch.long, device=self.device)

    def _normalise(self, pixels: Tensor) -> Tensor:
        # (B, H, W, 3) -> (B, 3, H, W)
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def _step_once(self) -> None:
        """One step, without any word from the host that would differ between steps."""
        factor = self.factors.index_select(0, self.count)[0]
        for value, rate in self.rates.items():
            rate.copy_(factor * value)
        batch = self.order.index_select(0, self.count)[0]
        images = self._normalise(self.train_images.pixels.index_select(0, batch))
        labels = self.train_images.labels.index_select(0, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(images, mode='tensor'), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, **self.clip_grad)
        self.optimizer.step()
        self.count += 1

    def step(self) -> None:
        """Take the next step; on a GPU, ask for it."""
        kind = None
        for sampler in self.elastic:
            sampler.draw_points(f'{self.seed} {self.done}')
            kind = sampler.grid_size(())
        self.done += 1
        with self.stream:
            if self.device.type != 'cuda':
                self._step_once()
                return
            taken = self.graphs.get(kind, 0)
            if isinstance(taken, int):
                if taken < EAGER_STEPS:
                    self.graphs[kind] = taken + 1
                    self._step_once()
                    return
                torch.cuda.synchronize()
                self.graphs[kind] = taken = torch.cuda.CUDAGraph()
                with torch.cuda.graph(taken, stream=torch.cuda.current_stream()):
                    self._step_once()
            taken.replay()

    @torch.no_grad()
    def measure(self) -> dict:
        """Accuracy on the validation images, and where the points are.

        Returns:
            dict: ``step``; ``accuracy`` in percent; of networks with points, what
            :func:`where_points_are` returns.
        """
        images, correct = self.val_images, 0
        moves = any(isinstance(m, ProgressiveSampling) for m in self.model.modules())
        recorded = record_sampling(self.model) if moves else contextlib.nullcontext()
        self.model.eval()
        with self.stream, recorded as found:
            parts = images.pixels.split(500), images.labels.split(500)
            for pixels, labels in zip(*parts, strict=True):
                logits = self.model(self._normalise(pixels), mode='tensor')
                correct += int((logits.argmax(dim=1) == labels).sum())
        self.model.train()
        accuracy = round(100 * correct / len(images.labels), 3)
        result = {'step': self.done, 'accuracy': accuracy}
        if moves:
            result.update(where_points_are(np.stack(found), images.boxes))
        return result

    @torch.no_grad()
    def draw_points(self) -> Figure:
        """Where the network looks on six validation images."""
        images = self.val_images
        chosen = spread_indices(len(images.labels), 6)
        self.model.eval()
        with self.stream, record_sampling(self.model) as trajectories:
            pixels = images.pixels[chosen]
            logits = self.model(self._normalise(pixels), mode='tensor')
            predicted = logits.argmax(dim=1).tolist()
        self.model.train()
        labels = images.labels[chosen].tolist()
        titles = [
            f'{label}, predicted: {found}'
            for label, found in zip(labels, predicted, strict=True)
        ]
        return draw_points(
            pixels.cpu().numpy(), trajectories, images.boxes[chosen], titles
        )

    def measure_points(self, choices: Sequence[int]) -> dict[int, float]:
        """The accuracy at several numbers of points per side."""
        sampler = find_sampler(self.model)
        trained, accuracies = sampler.num_points, {}
        for count in choices:
            sampler.num_points = count
            accuracies[count] = self.measure()['accuracy']
        sampler.num_points = trained
        return accuracies


def train_together(trainers: Sequence[Trainer], measures: int) -> list[list[dict]]:
    """Train networks side by side.

    Args:
        trainers (Sequence[Trainer]): The networks.
        measures (int): How often each is measured, at equal distances.

    Returns:
        list[list[dict]]: Of each network, what :meth:`Trainer.measure` returned.
    """
    curves = [[] for _ in trainers]
    for _ in range(max(trainer.steps for trainer in trainers)):
        for trainer, curve in zip(trainers, curves, strict=True):
            if trainer.done == trainer.steps:
                continue
            trainer.step()
            if trainer.done * measures % trainer.steps < measures:
                curve.append(trainer.measure())
    return curves
