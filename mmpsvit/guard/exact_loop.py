# Copyright (c) mmpsvit contributors.
"""A training by iterations whose data workers do not notice an interruption."""

import itertools
from collections import deque
from collections.abc import Iterator
from functools import partial

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from mmpsvit.registry import LOOPS


@LOOPS.register_module()
class ExactIterBasedTrainLoop(IterBasedTrainLoop):
    """MMEngine's loop by iterations, made for :class:`ExactCheckpointHook`.

    A training that resumes finds back to the images whose turn it is, but its data
    workers, and with them the random numbers of augmentations, start anew. Here they
    start anew at each checkpoint too, unless they are persistent, so that nothing
    differs. This needs an ``InfiniteSampler`` and batches of one size; with other
    samplers, this is MMEngine's loop.

    Args:
        *args: As for ``mmengine.runner.IterBasedTrainLoop``.
        **kwargs: Likewise.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # A loader need not be PyTorch's.
        loader = self.dataloader
        self.is_exact = (
            isinstance(loader, DataLoader)
            # Those that inherit from it may draw in another way.
            and type(loader.sampler) is InfiniteSampler
            and type(loader.batch_sampler) is BatchSampler
        )
        if self.is_exact:
            # MMEngine's newer iterators skip batches, older ones load them to do so.
            skips = hasattr(self.dataloader_iterator, 'skip_iter')
            self.dataloader_iterator = _Batches(self, skips)

    def restart_workers(self) -> None:
        """Let new data workers make the next batch, unless they are persistent."""
        if self.is_exact:
            self.dataloader_iterator.restart()


class _Batches:
    """The endless batches of a loop, from its iteration on.

    Args:
        loop (ExactIterBasedTrainLoop): The loop.
        skips (bool): Whether the loop calls ``skip_iter`` when it resumes; else it
            takes the batches of all iterations before.
    """

    def __init__(self, loop: ExactIterBasedTrainLoop, skips: bool) -> None:
        self._loop = loop
        self._loader = loop.dataloader
        self._init_worker = self._loader.worker_init_fn
        self._skips = skips
        self._unused: int | None = None
        # The images whose batches were not given yet.
        self._ahead: Iterator[int] | None = None
        self._batches: Iterator | None = None

    def restart(self) -> None:
        if not self._loader.persistent_workers:
            self._batches = None

    def skip_iter(self, num_iters: int) -> None:
        """Nothing to do: the first batch is that of the loop's iteration."""

    def __next__(self):
        if self._unused is None:
            self._unused = 0 if self._skips else self._loop.iter
        if self._unused:
            self._unused -= 1
            return None
        if self._batches is None:
            self._start()
        batch = next(self._batches)
        deque(itertools.islice(self._ahead, self._loader.batch_size), maxlen=0)
        return batch

    def _start(self) -> None:
        sampler, iteration = self._loader.sampler, self._loop.iter
        if self._ahead is None:
            start = iteration * self._loader.batch_size
            # From the first on: older loops have taken from the sampler already.
            self._ahead = itertools.islice(sampler._indices_of_rank(), start, None)
        # The loader takes images long before it gives their batches.
        sampler.indices, self._ahead = itertools.tee(self._ahead)
        seed = getattr(self._init_worker, 'keywords', {}).get('seed')
        if seed is not None:
            # Else the workers would draw the same numbers after each checkpoint.
            seed += iteration * self._loader.num_workers * get_world_size()
            self._loader.worker_init_fn = partial(self._init_worker, seed=seed % 2**32)
        self._batches = iter(self._loader)
