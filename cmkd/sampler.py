"""The order in which utterances are trained on: those of a batch are of like length, and all else is random."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL_BATCHES = 32


class LengthGroupedSampler(Sampler[int]):
    """Every utterance once an epoch, in an order whose consecutive `batch_size` are of like length.

    A random order is cut into pools of at most `POOL_BATCHES` batches and at most half of the data, each pool is sorted
    by length and cut into batches, and the batches are shuffled; what does not fill a batch comes last. Which
    utterances meet is drawn anew every epoch, from `seed` and the epoch alone, so that an interrupted epoch goes on.

    Args:
        lengths (sequence of `float`): Of the utterances, in any unit.
        batch_size (`int`): Utterances a training step, over all devices and accumulation steps.
        seed (`int`): Of the order.

    Raises:
        ValueError: `batch_size` is less than 1.
    """

    def __init__(self, lengths: Sequence[float], batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1.")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self))
        num_batches = len(order) // self.batch_size
        whole, rest = np.split(order, [num_batches * self.batch_size])
        pool = self.batch_size * max(1, min(POOL_BATCHES, (num_batches + 1) // 2))
        pools = [whole[start : start + pool] for start in range(0, len(whole), pool)]
        by_length = [part[np.argsort(self.lengths[part], kind="stable")] for part in pools]
        batches = np.concatenate([*by_length, whole[:0]]).reshape(-1, self.batch_size)
        yield from np.concatenate([rng.permutation(batches).flatten(), rest]).tolist()
