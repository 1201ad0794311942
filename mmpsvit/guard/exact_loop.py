# Copyright (c) mmpsvit contributors.
"""Batches of an iteration-based training, from any iteration on."""

import itertools
from collections import deque
from collections.abc import Iterator
from functools import partial

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler

from mmpsvit.compat import can_skip_batches


class BatchStream:
    """The endless batches of an ``IterBasedTrainLoop``, instead of its own iterator.

    When a training resumes, MMEngine finds back to the images whose turn it is, but the
    data workers, and with them the random numbers of augmentations, start anew. Here
    they start anew at each checkpoint too, unless they are persistent.

    Args:
        loop (IterBasedTrainLoop): A loop for which :meth:`supports` holds. It takes its
            batches from here, the first one being that of the loop's iteration.
    """

    def __init__(self, loop: IterBasedTrainLoop) -> None:
        self._loader = loop.dataloader
        self._init_worker = self._loader.worker_init_fn
        # Indices that the loader has taken, but whose batches it has not given yet.
        self._taken: deque[int] = deque()
        # What MMEngine takes and throws away until it is where the training resumes.
        self._unused = 0 if can_skip_batches(loop.dataloader_iterator) else loop.iter
        self._seek(loop.iter)
        loop.dataloader_iterator = self

    @staticmethod
    def supports(loop: IterBasedTrainLoop) -> bool:
        """Whether the images of an iteration follow from its number alone."""
        return (
            isinstance(loop.dataloader.sampler, InfiniteSampler)
            and type(loop.dataloader.batch_sampler) is BatchSampler
        )

    def _seek(self, iteration: int) -> None:
        start = iteration * self._loader.batch_size
        indices = self._loader.sampler._indices_of_rank()
        self._untaken = itertools.islice(indices, start, None)
        self._iteration = iteration
        self._start()

    def restart(self) -> None:
        """Give the next batch by new workers, unless they are persistent."""
        if not self._loader.persistent_workers:
            self._start()

    def _start(self) -> None:
        self._batches: Iterator | None = None
        self._loader.sampler.indices = self._take(tuple(self._taken))
        seed = getattr(self._init_worker, 'keywords', {}).get('seed')
        if seed is not None:
            # Else the workers would draw the same numbers after each checkpoint.
            seed += self._iteration * self._loader.num_workers * get_world_size()
            self._loader.worker_init_fn = partial(self._init_worker, seed=seed % 2**32)

    def _take(self, again: tuple[int, ...]) -> Iterator[int]:
        """The indices for the loader: first those of batches that it did not give."""
        yield from again
        for index in self._untaken:
            self._taken.append(index)
            yield index

    def skip_iter(self, num_iters: int) -> None:
        """What MMEngine calls when it resumes; the right batch is next already."""

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        if self._unused:
            self._unused -= 1
            return None
        if self._batches is None:
            self._batches = iter(self._loader)
        batch = next(self._batches)
        self._iteration += 1
        for _ in range(self._loader.batch_size):
            self._taken.popleft()
        return batch
