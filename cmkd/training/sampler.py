"""Which utterances are trained on together: those of a step are of similar length, and all else is random.

With several corpora every step has its share of each, and with unlabelled speech its share of that, too ([`Mixture`]).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch.utils.data import Sampler

POOL_STEPS = 32

Sampling = Literal["proportional", "equal"]
"""How often the corpora occur: by their size, or equally."""


@dataclass(frozen=True)
class Mixture:
    """What the utterances are that are trained on, if they are not all of one kind.

    The labelled ones come first, numbered from 0, and behind them those without labels.

    Attributes:
        corpora: the number of the corpus, counted from 0, of each labelled utterance.
        sampling: "proportional": every labelled utterance occurs once per epoch, and each step has the corpora in
            proportion to their sizes. "equal": each step has equally many utterances of every corpus; those of the
            largest corpus occur once per epoch, and those of the others again and again, each time all of them in a
            new order before any occurs again.
        unlabelled: how many utterances have no labels.
        unlabelled_ratio: how many of these a step has for each labelled one. They go round like the smaller corpora
            of "equal", from one epoch into the next: none occurs again before all others have.

    Raises:
        ValueError: there is no labelled utterance, a corpus has none, or the ratio does not fit the number.
    """

    corpora: Sequence[int]
    sampling: Sampling = "proportional"
    unlabelled: int = 0
    unlabelled_ratio: float = 0.0

    def __post_init__(self) -> None:
        sizes = np.bincount(np.asarray(self.corpora, dtype=int)) if len(self.corpora) else np.zeros(1, dtype=int)
        if not sizes.all():
            raise ValueError(f"corpora has {sizes.tolist()} utterances of each corpus: each needs at least one.")
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling={self.sampling!r}: must be one of {', '.join(get_args(Sampling))}.")
        if self.unlabelled < 0 or self.unlabelled_ratio < 0 or (self.unlabelled > 0) != (self.unlabelled_ratio > 0):
            raise ValueError(
                f"unlabelled={self.unlabelled}, unlabelled_ratio={self.unlabelled_ratio}: both must be 0, or both "
                "above 0."
            )

    def __len__(self) -> int:
        return len(self.corpora) + self.unlabelled


class StepSampler(Sampler[list[int]]):
    """The utterances of each training step, over all devices and accumulation steps; each occurs once per epoch.

    The steps of an epoch differ by at most one utterance in size, so that the last one is not left with very few
    utterances for its CCC. A random order is cut into pools of at most `POOL_STEPS` steps and at most half of the data,
    each pool is sorted by length and cut into steps, and the steps are shuffled. Which utterances meet is drawn anew in
    every epoch, from `seed` and the epoch alone, so that it is the same on any number of devices and an interrupted
    epoch can go on.

    With a [`Mixture`] each corpus is dealt out to the steps like this, and so is the unlabelled speech: the shares of
    each that a step gets differ by at most one from step to step, and are alike in their place among the lengths.

    Args:
        number (`int`): Number of utterances.
        step_size (`int`): The most labelled utterances that a step may have; unlabelled ones come on top.
        seed (`int`): Seed of the order.
        lengths (sequence of `float`, *optional*): Lengths of the utterances, in any unit. Without them the order is
            random.
        mixture ([`Mixture`], *optional*): What the utterances are; by default all are labelled and of one corpus.

    Raises:
        ValueError: A number is less than 1, there is not exactly one length per utterance, or a step is too small to
            have one utterance of every corpus.
    """

    def __init__(
        self,
        number: int,
        step_size: int,
        seed: int,
        lengths: Sequence[float] | None = None,
        mixture: Mixture | None = None,
    ):
        if number < 1 or step_size < 1:
            raise ValueError(f"number={number}, step_size={step_size}: both must be at least 1.")
        if lengths is not None and len(lengths) != number:
            raise ValueError(f"lengths has {len(lengths)} values for {number} utterances: give one per utterance.")
        mixture = Mixture(np.zeros(number, dtype=int)) if mixture is None else mixture  # type: ignore[arg-type]
        if len(mixture) != number:
            raise ValueError(f"mixture has {len(mixture)} utterances, but there are {number}: give one per utterance.")
        self.number = number
        self.seed = seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.mixture = mixture
        self.epoch = 0
        self._corpora = np.asarray(mixture.corpora, dtype=int)
        sizes = np.bincount(self._corpora)
        if mixture.sampling == "equal":
            self._drawn = np.full(len(sizes), sizes.max())
            most = step_size // len(sizes)
            self.num_steps = -(-int(sizes.max()) // most) if most else 0
        else:
            self._drawn = sizes
            self.num_steps = -(-len(self._corpora) // step_size)
            while np.ceil(sizes / self.num_steps).sum() > step_size and self.num_steps < sizes.min():
                self.num_steps += 1
        fits = 0 < self.num_steps <= self._drawn.min()
        if not fits or np.ceil(self._drawn / self.num_steps).sum() > step_size:
            raise ValueError(
                f"step_size={step_size} is too small for corpora of {sizes.tolist()} utterances, "
                f"sampling={mixture.sampling!r}: some steps would have none of a corpus. Use larger steps"
                + (', or sampling="equal".' if mixture.sampling == "proportional" else ".")
            )
        self._unlabelled_drawn = 0
        if mixture.unlabelled:
            self._unlabelled_drawn = max(1, round(mixture.unlabelled_ratio * int(self._drawn.sum())))

    def __len__(self) -> int:
        return self.num_steps

    @property
    def smallest(self) -> int:
        """How many utterances a step has at least."""
        return int((self._drawn // self.num_steps).sum()) + self._unlabelled_drawn // self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self._corpora))
        sources = []
        for corpus, drawn in enumerate(self._drawn):
            if self.mixture.sampling == "proportional":
                sources.append(order[self._corpora[order] == corpus])
            else:
                sources.append(self._going_round(np.flatnonzero(self._corpora == corpus), int(drawn), corpus + 1))
        if self._unlabelled_drawn:
            sources.append(self._going_round(np.arange(len(self._corpora), self.number), self._unlabelled_drawn, 0))
        shares = [self._dealt(source) for source in sources]
        for index in rng.permutation(self.num_steps):
            yield np.concatenate([share[index] for share in shares]).tolist()

    def _going_round(self, members: np.ndarray, drawn: int, stream: int) -> np.ndarray:
        """Those of this epoch from an endless stream, in which all members come in a new order, again and again."""
        start, passes = self.epoch * drawn, []
        first, last = start // len(members), (start + drawn - 1) // len(members)
        for number in range(first, last + 1):
            passes.append(np.random.default_rng((self.seed, number, stream)).permutation(members))
        return np.concatenate(passes)[start - first * len(members) :][:drawn]

    def _dealt(self, order: np.ndarray) -> list[np.ndarray]:
        """The share of each step: those of a pool of steps have like lengths, in the order of their lengths."""
        if self.lengths is None:
            return np.array_split(order, self.num_steps)
        num_pools = max(-(-self.num_steps // POOL_STEPS), min(2, self.num_steps))
        steps = []
        bounds = len(order) * np.arange(self.num_steps + 1) // self.num_steps
        for pool in np.array_split(np.arange(self.num_steps), num_pools):
            start, end = bounds[pool[0]], bounds[pool[-1] + 1]
            members = order[start:end]
            by_length = members[np.argsort(self.lengths[members], kind="stable")]
            steps += np.split(by_length, bounds[pool[1:]] - start)
        return steps


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
        if steps.smallest < self.shares:
            raise ValueError(
                f"{steps.number} training utterances make steps of {steps.smallest}, too few for "
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
