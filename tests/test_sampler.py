"""The order of training: like lengths together, everything else random."""

import numpy as np
import pytest

from cmkd.sampler import LengthGroupedSampler


def podcast_durations(number: int) -> np.ndarray:
    """2 to 12 s, 5.9 s on average, as in podcasts."""
    return np.clip(np.random.default_rng(0).gamma(5, 5.9 / 5, size=number), 2, 12)


def batches(sampler: LengthGroupedSampler) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + sampler.batch_size] for start in range(0, len(order), sampler.batch_size)]


def padding_waste(lengths: np.ndarray, of_batches: list[list[int]]) -> float:
    padded = sum(len(batch) * lengths[batch].max() for batch in of_batches)
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("number", [0, 1, 31, 32, 33, 64, 1400, 5003])
def test_every_utterance_once(number):
    assert sorted(LengthGroupedSampler(podcast_durations(number), 32, 0)) == list(range(number))


@pytest.mark.parametrize("number", [4000, 34280])
def test_at_most_5_percent_of_a_batch_is_padding(number):
    durations = podcast_durations(number)
    random_order = np.random.default_rng(1).permutation(number)
    in_random_order = [list(random_order[start : start + 32]) for start in range(0, number, 32)]
    assert padding_waste(durations, in_random_order) > 0.4
    assert padding_waste(durations, batches(LengthGroupedSampler(durations, 32, 0))) < 0.05


def test_order_differs_by_epoch_and_seed_and_is_reproducible():
    durations = podcast_durations(1400)
    sampler = LengthGroupedSampler(durations, 32, 0)
    first = batches(sampler)
    assert batches(sampler) == first  # an interrupted epoch is continued in the same order
    sampler.set_epoch(1)
    second = batches(sampler)
    other_seed = batches(LengthGroupedSampler(durations, 32, 1))
    for other in (second, other_seed):
        together = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in other}
        assert len(together) <= 1  # not the same batches in another order
    sampler.set_epoch(0)
    assert batches(sampler) == first


def test_batches_are_not_ordered_by_length():
    durations = podcast_durations(3200)
    of_batches = batches(LengthGroupedSampler(durations, 32, 0))
    means = np.array([durations[batch].mean() for batch in of_batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.25  # neighbours are as unlike as any two of 100


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_a_batch_has_the_labels_of_the_corpus(correlation):
    """Within batches lies all but the share of the variance that chance (1 / 32) and length (r^2) explain."""
    durations = podcast_durations(6400)
    noise = np.random.default_rng(2).normal(size=6400)
    standardised = (durations - durations.mean()) / durations.std()
    labels = correlation * standardised + np.sqrt(1 - correlation**2) * noise
    within = np.mean([labels[batch].var() for batch in batches(LengthGroupedSampler(durations, 32, 0))])
    assert within / labels.var() == pytest.approx((1 - 1 / 32) * (1 - correlation**2), abs=0.02)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        LengthGroupedSampler([1.0], 0, 0)
