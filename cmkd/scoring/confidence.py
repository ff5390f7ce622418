r"""How sure a CCC is, and whether two systems differ by more than chance: an interval and a test over speakers.

Utterances of one speaker are alike, so speakers are counted, not utterances. An utterance whose speaker is unknown
counts as a speaker of its own; if there are many of these, intervals are too narrow and p-values too small.

CCC depends on a split only through six sums over its rated utterances: their number, the labels, the predictions, the
squares of both and their products. These are computed once for each speaker, after the mean label has been subtracted
from all values so that nothing cancels; the score of any set of speakers is then the CCC of the sum of their sums.

**The test.** If two systems are equally good, nothing changes when their answers are swapped for some of the speakers.
So the answers of each speaker are swapped or not, in all $2^k$ ways where that is feasible, and otherwise in 9,999 ways
drawn at random besides the true one, and $p$ is the fraction of these in which

$$t = \frac{\mathrm{CCC}_1 - \mathrm{CCC}_2}{\sqrt{\sum_k (\psi_{1k} - \psi_{2k})^2}}$$

is at least as far from 0 as its true value. $\psi_{ik}$ is what speaker $k$ adds to the CCC of system $i$, to first
order: with labels $y$ and predictions $p$ of its utterances, and a bar for the mean over all,

$$\psi_k \propto 2\,(1 - \mathrm{CCC}) \sum (y - \bar y)(p - \bar p) - \mathrm{CCC} \sum (p - y)^2.$$

If the answers of the two systems are exchangeable, as those of two systems of the same kind are, the level holds
exactly for any number of speakers. If the two merely have the same CCC, for example one with a small spread and the
other with a large one, the division makes it hold approximately (Janssen 1997; Chung and Romano 2013);
`docs/results/statistics.json` shows by how much it is missed. Since swapping all speakers only reverses the sign, $p$
cannot be below $2/2^k$, where $k$ counts the speakers for whom the systems give different answers: .125 for four
speakers, whatever the difference. This bound is given beside each $p$ as `smallest_p`.

**The interval** is that of the jackknife over speakers: if $\hat\theta$ is the value over all speakers and
$\hat\theta_{-k}$ the value over all but speaker $k$,

$$\hat\theta \pm t_{.975}(\nu) \sqrt{\tfrac{k-1}{k} \sum (\hat\theta_{-k} - \hat\theta)^2}, \qquad
\nu = \max\left(1, \frac{(\sum n_k)^2}{\sum n_k^2} - 1\right).$$

The degrees of freedom are the number of speakers minus one if all have the same number of utterances, and fewer if some
have more than others. The interval of one CCC is computed for $\operatorname{artanh} \mathrm{CCC}$ and transformed
back; that of a difference is computed for the difference itself. Unlike the test, it assumes that the speakers'
contributions are approximately normally distributed, so that it may exclude 0 even where $p$ cannot fall below .05.

Both are about **these** systems and other speakers. Only several seeds can show what other initial weights would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

from cmkd.scoring.evaluation import ccc_of_moments
from configuration_cmkd import EMOTION_DIMENSIONS

LEVEL = 0.95
PERMUTATIONS = 10_000
"""The most permutations that are tried; if there are fewer, all of them are."""
SEED = 0

_AT_A_TIME = 2_000_000
_CONSTANT = 1e-12  # a variance below this fraction of the mean square is that of a constant, up to rounding
_TIE = 1e-9


def speaker_clusters(speakers: Sequence[str | int]) -> np.ndarray:
    """The number (n,) of each utterance's speaker, counted from 0; every "" has a number of its own.

    Raises:
        ValueError: a speaker is neither a name nor a whole number.

    >>> speaker_clusters(["b", "", "a", "b", ""]).tolist()
    [0, 1, 2, 0, 3]
    """
    numbers: dict[Any, int] = {}
    for index, speaker in enumerate(speakers):
        if not isinstance(speaker, str | Integral):
            raise ValueError(
                f'speakers[{index}] is {speaker!r}: must be a name or a whole number, and "" where it is not known.'
            )
    keys = [("unknown", index) if speaker == "" else str(speaker) for index, speaker in enumerate(speakers)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def ccc_interval(
    labels: np.ndarray, predictions: np.ndarray, speakers: Sequence[str | int]
) -> dict[str, list[float] | None]:
    """The 95 % interval of a system's CCC over speakers, as described at the top of this module.

    Args:
        labels: (n, 3), NaN where not rated.
        predictions: (n, 3), finite in each dimension that has a label; or (m, n, 3) of m trainings of the system, in
            which case the interval is that of the mean of their CCC, for these m trainings and other speakers.
        speakers: n names or whole numbers, "" where unknown.

    Returns:
        By dimension [low, high], between -1 and 1; None where fewer than two speakers are rated.

    Raises:
        ValueError: the shapes differ, there is no utterance, a prediction is not finite in a dimension that has labels,
            a label is infinite, or a speaker is neither a name nor a whole number.
    """
    labels, (predictions,), clusters = _checked(labels, {"predictions": predictions}, speakers)
    intervals: dict[str, list[float] | None] = {}
    for index, dimension in enumerate(EMOTION_DIMENSIONS):
        sums = _sums(labels[:, index], predictions[..., index], clusters)
        if sums.shape[1] < 2:
            intervals[dimension] = None
            continue
        total = sums.sum(1, keepdims=True)
        value, without = (_fisher_z(_ccc(part).mean(0)) for part in (total, total - sums))
        if np.isinf(value[0]):
            intervals[dimension] = [float(np.tanh(value[0]))] * 2
        else:
            intervals[dimension] = [float(np.tanh(end)) for end in _jackknife(value[0], without, sums[0, :, 0])]
    return intervals


def paired_test(
    labels: np.ndarray, predictions: np.ndarray, others: np.ndarray, speakers: Sequence[str | int]
) -> dict[str, dict[str, Any] | None]:
    """Tests whether two systems differ in CCC by more than chance on the same utterances.

    This is a permutation test over speakers, with an interval by the jackknife over speakers; the top of
    `cmkd.scoring.confidence` explains both, and what they assume. It is seeded: the same input gives the same p. The
    p-values of several dimensions or systems are not corrected for their number.

    Args:
        labels: (n, 3), activation, valence, dominance; NaN where not rated.
        predictions: (n, 3) of one system, finite in each dimension that has a label; or (m, n, 3) of m trainings of it,
            whose CCC is then the mean over them. The answers of all trainings are swapped together: the test is about
            these trainings and other speakers.
        others: those of the system to compare with, in the same shape, paired training by training if there are
            several.
        speakers: n names or whole numbers, "" where unknown; such an utterance counts as a speaker of its own.

    Returns:
        By dimension, or None where no utterance is rated:

        - `difference`: CCC of `predictions` minus that of `others`, -2 to 2.
        - `interval`: [low, high], its 95 % interval; None where fewer than two speakers are rated.
        - `p`: two-sided, of the hypothesis that the two are equally good; above 0, up to 1.
        - `smallest_p`: the value that `p` cannot fall below, however large the difference: 2 / 2**k for k speakers for
          whom the systems give different answers, or 1 / 10,000 where k is above 14 and the permutations are drawn at
          random.

    Raises:
        ValueError: the shapes differ, there is no utterance, a prediction is not finite in a dimension that has labels,
            a label is infinite, or a speaker is neither a name nor a whole number.

    >>> generator = np.random.default_rng(0)
    >>> labels = generator.uniform(size=(40, 3))
    >>> good, poor = (labels + noise * generator.normal(size=labels.shape) for noise in (0.1, 1.0))
    >>> result = paired_test(labels, good, poor, ["anna", "ben", "cleo", "dan"] * 10)["valence"]
    >>> round(result["difference"], 2), [round(end, 2) for end in result["interval"]]
    (0.73, [0.44, 1.03])
    >>> result["p"], result["smallest_p"]  # four speakers cannot say more
    (0.125, 0.125)
    """
    labels, (first, second), clusters = _checked(labels, {"predictions": predictions, "others": others}, speakers)
    return {
        dimension: _compare(
            _sums(labels[:, index], first[..., index], clusters), _sums(labels[:, index], second[..., index], clusters)
        )
        for index, dimension in enumerate(EMOTION_DIMENSIONS)
    }


def _compare(first: np.ndarray, second: np.ndarray) -> dict[str, Any] | None:
    """The result of `paired_test` for one dimension, from the sums (m, speakers, 6) of two systems."""
    speakers = first.shape[1]
    if not speakers:
        return None
    totals = [sums.sum(1, keepdims=True) for sums in (first, second)]
    difference = _difference(*totals)[0]
    interval = None
    if speakers > 1:
        without = _difference(totals[0] - first, totals[1] - second)
        ends = _jackknife(difference, without, first[0, :, 0])
        interval = [float(np.clip(end, -2, 2)) for end in ends]
    differs = (first != second).any((0, 2))  # swapping the others changes nothing
    p, smallest = _permutation(first, second, differs)
    return {"difference": float(difference), "interval": interval, "p": p, "smallest_p": smallest}


def _permutation(first: np.ndarray, second: np.ndarray, differs: np.ndarray) -> tuple[float, float]:
    """The p-value, and the smallest one possible."""
    number = int(differs.sum())
    if number == 0:
        return 1.0, 1.0
    is_exhaustive = 2 ** (number - 1) <= PERMUTATIONS
    count = 2 ** (number - 1) if is_exhaustive else PERMUTATIONS  # half of all: the other half only reverses the sign
    generator = np.random.default_rng(SEED)
    at_a_time = max(1, _AT_A_TIME // first.shape[1])
    statistics = np.empty(count)
    for start in range(0, count, at_a_time):
        rows = np.arange(start, min(start + at_a_time, count))
        if is_exhaustive:
            swapped = (rows[:, None] >> np.arange(number)) & 1  # row 0 swaps nothing, and no row the last speaker
        else:
            swapped = generator.integers(2, size=(len(rows), number))
            swapped[rows == 0] = 0
        signs = np.ones((len(rows), first.shape[1]))
        signs[:, differs] = 1 - 2 * swapped
        statistics[rows] = _studentised(first, second, signs)
    at_least = np.abs(statistics) >= np.abs(statistics[0]) * (1 - _TIE)
    return float(at_least.sum() / count), 1 / count


def _studentised(first: np.ndarray, second: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The statistic t (permutations,), where a -1 in `signs` (permutations, speakers) swaps a speaker's answers."""
    middle, half = (first + second) / 2, (first - second) / 2
    centre, shift = middle.sum(1, keepdims=True), signs @ half
    of_first, of_second = centre + shift, centre - shift
    difference = _difference(of_first, of_second)
    slopes_first, slopes_second = _influence(of_first), _influence(of_second)
    # the shares of the two are slopes * (middle +- sign * half); here their difference, the mean over the trainings
    shares = ((slopes_first - slopes_second) @ middle.transpose(0, 2, 1)).mean(0)
    shares += signs * ((slopes_first + slopes_second) @ half.transpose(0, 2, 1)).mean(0)
    error = np.sqrt((shares**2).sum(1))
    no_difference = np.abs(difference) <= _CONSTANT
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(no_difference, 0.0, difference / np.where(error > _CONSTANT, error, 0.0))


def _influence(totals: np.ndarray) -> np.ndarray:
    """The derivative of CCC with respect to each of the sums (..., 6); its product with the sums adds up to 0."""
    number, y, _, p, _, _ = np.moveaxis(totals, -1, 0)
    y_mean, p_mean = y / number, p / number
    y_variance, p_variance, _ = _moments(totals)
    spread = y_variance + p_variance + (p_mean - y_mean) ** 2
    is_constant = _is_constant(totals)
    spread = np.where(is_constant, 1.0, spread)
    ccc = _ccc(totals)
    rest = 2 * (1 - ccc)
    slopes = np.stack([rest * y_mean * p_mean, -rest * p_mean, -ccc, -rest * y_mean, -ccc, 2 + 0 * ccc], axis=-1)
    return np.where(is_constant[..., None], 0.0, slopes / (number * spread)[..., None])


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The mean over the trainings (axis 0) of the differences in CCC, from sums (m, ..., 6)."""
    return (_ccc(first) - _ccc(second)).mean(0)


def _ccc(totals: np.ndarray) -> np.ndarray:
    """CCC (...) from sums (..., 6) as `_sums` has them; 0 where labels or predictions are constant."""
    y_variance, p_variance, covariance = _moments(totals)
    bias = (totals[..., 3] - totals[..., 1]) / totals[..., 0]
    is_constant = _is_constant(totals)
    ccc = ccc_of_moments(covariance, np.where(is_constant, 1.0, y_variance), p_variance, bias)
    return np.where(is_constant, 0.0, ccc)


def _fisher_z(ccc: np.ndarray) -> np.ndarray:
    """The artanh of a CCC; infinite where it is 1 or -1, up to rounding."""
    is_perfect = np.abs(ccc) > 1 - _CONSTANT
    return np.where(is_perfect, np.copysign(np.inf, ccc), np.arctanh(np.where(is_perfect, 0.0, ccc)))


def _moments(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance of labels and of predictions, and their covariance (divisor n)."""
    number, y, yy, p, pp, py = np.moveaxis(totals, -1, 0)
    return yy / number - (y / number) ** 2, pp / number - (p / number) ** 2, py / number - y * p / number**2


def _is_constant(totals: np.ndarray) -> np.ndarray:
    number, _, yy, _, pp, _ = np.moveaxis(totals, -1, 0)
    y_variance, p_variance, _ = _moments(totals)
    return (y_variance <= _CONSTANT * yy / number) | (p_variance <= _CONSTANT * pp / number)


def _jackknife(value: float, without: np.ndarray, utterances: np.ndarray) -> tuple[float, float]:
    """The ends of the interval of `value`, from the values without each speaker and the utterances that each has."""
    speakers = len(without)
    error = np.sqrt((speakers - 1) / speakers * ((without - value) ** 2).sum())
    freedom = max(1.0, utterances.sum() ** 2 / (utterances**2).sum() - 1)
    margin = float(stdtrit(freedom, (1 + LEVEL) / 2) * error)
    return value - margin, value + margin


def _sums(labels: np.ndarray, predictions: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums by training and rated speaker (m, speakers, 6): number, labels, squares, predictions, squares, products."""
    rated = ~np.isnan(labels)
    if not rated.any():
        return np.empty((len(predictions), 0, 6))
    centre = labels[rated].mean()
    y, p = labels[rated] - centre, predictions[:, rated] - centre
    speakers, clusters = np.unique(clusters[rated], return_inverse=True)
    of_utterances = np.stack([np.broadcast_to(part, p.shape) for part in (np.ones_like(y), y, y**2, p, p**2, p * y)])
    sums = np.zeros((len(speakers), 6, len(p)))
    np.add.at(sums, clusters, of_utterances.transpose(2, 0, 1))
    return sums.transpose(2, 0, 1)


def _checked(
    labels: np.ndarray, systems: dict[str, np.ndarray], speakers: Sequence[str | int]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Labels (n, 3) and predictions (m, n, 3) in fp64, and the number of each utterance's speaker."""
    labels = np.asarray(labels, dtype=np.float64)
    answers = {name: np.asarray(values, dtype=np.float64) for name, values in systems.items()}
    expected = (len(speakers), len(EMOTION_DIMENSIONS))
    shapes = {name: values.shape for name, values in answers.items()}
    is_right = all(shape[-2:] == expected and len(shape) in (2, 3) and 0 not in shape[:-2] for shape in shapes.values())
    if labels.shape != expected or not is_right or len(set(shapes.values())) > 1:
        named = ", ".join(f"{name} {shape}" for name, shape in ({"labels": labels.shape} | shapes).items())
        raise ValueError(
            f"with {expected[0]} speakers, one for each utterance, labels must have shape {expected}, and predictions "
            f"the same, or (m, {expected[0]}, {expected[1]}) for m trainings; got {named}."
        )
    if not len(speakers):
        raise ValueError("there is no utterance: a split needs at least one.")
    is_rated = ~np.isnan(labels).all(axis=0)  # in the other dimensions models answer NaN
    for name, values in answers.items():
        wrong = ~np.isfinite(values) & is_rated
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            raise ValueError(
                f"{name}{list(place)} is {values[place]}: every prediction must be finite where a dimension has labels."
            )
    if np.isinf(labels).any():
        row, column = np.argwhere(np.isinf(labels))[0].tolist()
        raise ValueError(
            f"labels[{row}, {column}] is {labels[row, column]}: a label must be finite, or NaN where it is not rated."
        )
    return labels, [values.reshape(-1, *expected) for values in answers.values()], speaker_clusters(speakers)
