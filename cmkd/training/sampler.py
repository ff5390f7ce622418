"""Which utterances are trained on together: those of a step are of similar length, and all else is random."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL_STEPS = 32


class StepSampler(Sampler[list[int]]):
    """The utterances of each training step, over all devices and accumulation steps; each occurs once per epoch.

    The steps of an epoch differ by at most one utterance in size, so that the last one is not left with very few
    utterances for its CCC. A random order is cut into pools of at most `POOL_STEPS` steps and at most half of the data,
    each pool is sorted by length and cut into steps, and the steps are shuffled. Which utterances meet is drawn anew in
    every epoch, from `seed` and the epoch alone, so that it is the same on any number of devices and an interrupted
    epoch can go on.

    Args:
        number (`int`): Number of utterances.
        step_size (`int`): The most utterances that a step may have.
        seed (`int`): Seed of the order.
        lengths (sequence of `float`, *optional*): Lengths of the utterances, in any unit. Without them the order is
            random.

    Raises:
        ValueError: A number is less than 1, or there is not exactly one length per utterance.
    """

    def __init__(self, number: int, step_size: int, seed: int, lengths: Sequence[float] | None = None):
        if number < 1 or step_size < 1:
            raise ValueError(f"number={number}, step_size={step_size}: both must be at least 1.")
        if lengths is not None and len(lengths) != number:
            raise ValueError(f"lengths has {len(lengths)} values for {number} utterances: give one per utterance.")
        self.number = number
        self.num_steps = -(-number // step_size)
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.number)
        if self.lengths is None:
            steps = np.array_split(order, self.num_steps)
        else:
            num_pools = max(-(-self.num_steps // POOL_STEPS), min(2, self.num_steps))
            steps = []
            bounds = self.number * np.arange(self.num_steps + 1) // self.num_steps
            for pool in np.array_split(np.arange(self.num_steps), num_pools):
                start, end = bounds[pool[0]], bounds[pool[-1] + 1]
                members = order[start:end]
                by_length = members[np.argsort(self.lengths[members], kind="stable")]
                steps += np.split(by_length, bounds[pool[1:]] - start)
        for index in rng.permutation(self.num_steps):
            yield steps[index].tolist()


class DeviceBatchSampler(Sampler[list[int]]):
    """The batches of one device: its share of every step, cut into as many batches as there are accumulation steps.

    A step is dealt out like cards, so that the batches of all devices take equally long. They differ by at most one in
    size; none is empty, filled up by repetition, or dropped.

    Args:
        steps ([`StepSampler`]): The steps, the same on all devices.
        num_batches (`int`): Number of accumulation steps.
        num_devices (`int`): Number of devices.
        device (`int`): This device's number, from 0.

    Raises:
        ValueError: A step has fewer utterances than batches.
    """

    def __init__(self, steps: StepSampler, num_batches: int, num_devices: int, device: int):
        self.shares = num_batches * num_devices
        if steps.number // steps.num_steps < self.shares:
            raise ValueError(
                f"{steps.number} training utterances make steps of {steps.number // steps.num_steps}, too few for "
                f"{num_devices} devices x {num_batches} accumulation steps: use fewer of them."
            )
        self.steps = steps
        self.num_batches = num_batches
        self.num_devices = num_devices
        self.device = device

    def __len__(self) -> int:
        return len(self.steps) * self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            for batch in range(self.num_batches):
                yield step[batch * self.num_devices + self.device :: self.shares]

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch begins; must be called at the start of every one."""
        self.steps.epoch = epoch
