"""The numbers on the card of a corpus for each split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from configuration_cmkd import EMOTION_DIMENSIONS

DURATION_EDGES = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30, 60)
"""Lower limits, in seconds, of the bins of the duration histogram; the last bin has no upper limit."""

_LONGEST_BAR = 40  # characters


def label_statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Number of rated utterances, mean and standard deviation (divisor n) of each dimension.

    Args:
        rows (`list[dict]`): Rows with the columns activation, valence and dominance, NaN where not rated.

    Returns:
        `dict`: By dimension, `{"rated": int, "mean": float, "std": float}`; mean and std are None if nothing is rated.

    >>> label_statistics([{"activation": 1.0, "valence": float("nan"), "dominance": 3.0},
    ...                   {"activation": 3.0, "valence": float("nan"), "dominance": 3.0}])["activation"]
    {'rated': 2, 'mean': 2.0, 'std': 1.0}
    """
    statistics: dict[str, dict[str, float | int | None]] = {}
    for dimension in EMOTION_DIMENSIONS:
        labels = [row[dimension] for row in rows if not math.isnan(row[dimension])]
        statistics[dimension] = {
            "rated": len(labels),
            "mean": fmean(labels) if labels else None,
            "std": pstdev(labels) if labels else None,
        }
    return statistics


def duration_histogram(durations: Iterable[float]) -> dict[str, int]:
    """Number of utterances by duration in seconds, from the first bin that has any to the last.

    >>> duration_histogram([1.0, 1.5, 3.5])
    {'1-2': 2, '2-3': 0, '3-4': 1}
    >>> duration_histogram([61.0])
    {'60-': 1}
    """
    counts = [0] * len(DURATION_EDGES)
    for duration in durations:
        counts[sum(duration >= edge for edge in DURATION_EDGES) - 1] += 1
    filled = [number for number, count in enumerate(counts) if count]
    if not filled:
        return {}
    names = [f"{low}-{high}" for low, high in zip(DURATION_EDGES, [*DURATION_EDGES[1:], ""], strict=True)]
    return {names[number]: counts[number] for number in range(filled[0], filled[-1] + 1)}


def drawn_histogram(counts: dict[str, int]) -> list[str]:
    """The lines of a bar chart.

    >>> drawn_histogram({"1-2": 20, "2-3": 10})
    ['1-2 s                20 ########################################', '2-3 s                10 ####################']
    """
    highest = max(counts.values(), default=0)
    return [
        f"{f'{name} s':12} {count:10,} {'#' * math.ceil(_LONGEST_BAR * count / highest)}".rstrip()
        for name, count in counts.items()
    ]


def added(histograms: Iterable[dict[str, int]]) -> dict[str, int]:
    """Several histograms added up.

    >>> added([{"1-2": 1}, {"3-4": 2}])
    {'1-2': 1, '2-3': 0, '3-4': 2}
    """
    totals: dict[str, int] = {}
    for histogram in histograms:
        for name, count in histogram.items():
            totals[name] = totals.get(name, 0) + count
    return duration_histogram(float(name.split("-")[0]) for name, count in totals.items() for _ in range(count))
