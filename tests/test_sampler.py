"""The order of training: like lengths together, everything else random, and the same on any number of devices."""

import numpy as np
import pytest

from cmkd.training.sampler import DeviceBatchSampler, StepSampler


def podcast_durations(number: int) -> np.ndarray:
    """2 to 12 s, 5.9 s on average, as in podcasts."""
    return np.clip(np.random.default_rng(0).gamma(5, 5.9 / 5, size=number), 2, 12)


def by_length(durations: np.ndarray, seed: int = 0) -> StepSampler:
    return StepSampler(len(durations), 32, seed, durations)


def padding_waste(lengths: np.ndarray, steps: list[list[int]]) -> float:
    padded = sum(len(step) * lengths[step].max() for step in steps)
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("number", [1, 31, 32, 33, 64, 65, 1400, 5003])
def test_every_utterance_once_in_steps_of_one_size(number, with_lengths):
    steps = list(StepSampler(number, 32, 0, podcast_durations(number) if with_lengths else None))
    assert sorted(index for step in steps for index in step) == list(range(number))
    assert len(steps) == np.ceil(number / 32)
    sizes = {len(step) for step in steps}
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 32


@pytest.mark.parametrize("number", [1400, 34280])
def test_at_most_5_percent_of_a_batch_is_padding(number):
    durations = podcast_durations(number)
    assert padding_waste(durations, list(StepSampler(number, 32, 0))) > 0.4
    assert padding_waste(durations, list(by_length(durations))) < 0.05


@pytest.mark.parametrize("with_lengths", [True, False])
def test_order_differs_by_epoch_and_seed_and_is_reproducible(with_lengths):
    durations = podcast_durations(1400) if with_lengths else None
    sampler = StepSampler(1400, 32, 0, durations)
    first = list(sampler)
    assert list(sampler) == first  # an interrupted epoch goes on in the same order
    sampler.epoch = 1
    second = list(sampler)
    other_seed = list(StepSampler(1400, 32, 1, durations))
    for other in (second, other_seed):
        together = {frozenset(step) for step in first} & {frozenset(step) for step in other}
        assert len(together) <= 1  # not the same steps in another order
    sampler.epoch = 0
    assert list(sampler) == first


def test_steps_are_not_ordered_by_length():
    durations = podcast_durations(3200)
    means = np.array([durations[step].mean() for step in by_length(durations)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.25  # neighbours are as unlike as any two of 100


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_a_step_has_the_labels_of_the_corpus(correlation):
    """The variance within steps is all but the share that chance (1 / 32) and length (r^2) explain."""
    durations = podcast_durations(6400)
    noise = np.random.default_rng(2).normal(size=6400)
    standardised = (durations - durations.mean()) / durations.std()
    labels = correlation * standardised + np.sqrt(1 - correlation**2) * noise
    within = np.mean([labels[step].var() for step in by_length(durations)])
    assert within / labels.var() == pytest.approx((1 - 1 / 32) * (1 - correlation**2), abs=0.02)


@pytest.mark.parametrize(("devices", "batches"), [(1, 1), (2, 1), (1, 4), (2, 3), (4, 2)])
@pytest.mark.parametrize("number", [1000, 1003])
def test_devices_and_accumulation_share_the_same_steps(number, devices, batches):
    durations = podcast_durations(number)
    samplers = [DeviceBatchSampler(by_length(durations), batches, devices, device) for device in range(devices)]
    for sampler in samplers:
        sampler.set_epoch(3)
    one = by_length(durations)
    one.epoch = 3
    of_device = [list(sampler) for sampler in samplers]
    assert {len(found) for found in of_device} == {len(one) * batches} == {len(sampler) for sampler in samplers}
    for index, step in enumerate(one):
        shares = [batch for found in of_device for batch in found[index * batches : (index + 1) * batches]]
        assert sorted(row for share in shares for row in share) == sorted(step)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1 and min(map(len, shares)) > 0


def test_refusals():
    with pytest.raises(ValueError, match="number=10, step_size=0: both must be at least 1"):
        StepSampler(10, 0, 0)
    with pytest.raises(ValueError, match="lengths has 3 values for 10 utterances"):
        StepSampler(10, 2, 0, [1, 2, 3])
    with pytest.raises(ValueError, match="3 training utterances make steps of 3, too few for 2 devices x 2 accum"):
        DeviceBatchSampler(StepSampler(3, 32, 0), 2, 2, 0)
