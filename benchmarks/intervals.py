"""Simulates whether tests keep their level and intervals cover with few speakers, and compares them with the bootstrap.

    python benchmarks/intervals.py --output docs/results/statistics.json      # minutes

Speakers have a mean of their own in the labels, and systems err by speaker and by utterance, in part alike, since they
hear the same. Sizes are those of a demo (every speaker has as many utterances) or those of MSP-Podcast (a few speakers
have most of them: log-normal with a standard deviation of 0.9). Pairs of systems, all but the last with equal CCC:

- `same`: both of one kind, so that their answers are exchangeable.
- `squeezed`: one has too small a spread, the other noise.
- `biased`: one answers too high, the other has noise.
- `by_speaker`: one errs by speaker, the other by utterance: the hardest case.
- `unequal`: one is better, for how often that is found.

Beside `cmkd.paired_test` stand the percentile bootstrap over speakers ("before"), and the same permutation test of the
plain difference in CCC, which is not divided by its error ("plain"). 1,000 permutations and 400 resamples.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmkd.json_files import write_json
from cmkd.scoring import confidence
from configuration_cmkd import EMOTION_DIMENSIONS

SPEAKERS = (4, 6, 10, 20, 60)
UTTERANCES = 30
PERMUTATIONS = 1_000
RESAMPLES = 400
BY_SPEAKER, SHARED_BY_SPEAKER, SHARED = 0.6, 0.2, 0.3
"""Standard deviations: of speakers' mean labels, where one utterance's is 1; and of what both systems get wrong."""


@dataclass(frozen=True)
class System:
    """Prediction = slope * label + bias + what both get wrong + own error by speaker and by utterance (std)."""

    slope: float
    bias: float
    by_speaker: float
    by_utterance: float

    @property
    def ccc(self) -> float:
        """The CCC over all speakers that there could be."""
        of_labels = BY_SPEAKER**2 + 1
        errors = self.by_speaker**2 + self.by_utterance**2 + SHARED_BY_SPEAKER**2 + SHARED**2
        return 2 * self.slope * of_labels / (of_labels * (1 + self.slope**2) + errors + self.bias**2)


def as_good_as(system: System, slope: float, by_speaker: float) -> System:
    """An unbiased system of the same CCC, by its error by utterance."""
    of_labels = BY_SPEAKER**2 + 1
    wanted = 2 * slope * of_labels / system.ccc - of_labels * (1 + slope**2)
    return System(slope, 0.0, by_speaker, float(np.sqrt(wanted - by_speaker**2 - SHARED_BY_SPEAKER**2 - SHARED**2)))


USUAL, SQUEEZED, BIASED = System(0.5, 0.2, 0.3, 0.4), System(0.35, 0.0, 0.1, 0.05), System(0.6, 0.6, 0.1, 0.2)
BY_SPEAKER_ONLY = System(0.6, 0.0, 0.8, 0.2)
PAIRS = {
    "same": (USUAL, USUAL),
    "squeezed": (SQUEEZED, as_good_as(SQUEEZED, 1.0, 0.1)),
    "biased": (BIASED, as_good_as(BIASED, 0.6, 0.1)),
    "by_speaker": (BY_SPEAKER_ONLY, as_good_as(BY_SPEAKER_ONLY, 0.6, 0.0)),
    "unequal": (System(0.7, 0.2, 0.3, 0.4), USUAL),
}


def simulate(
    generator: np.random.Generator, speakers: int, has_equal_sizes: bool, pair: tuple[System, System]
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Labels (n, 3), the answers of both systems, and the speakers; the three dimensions are drawn independently."""
    sizes = np.full(speakers, UTTERANCES)
    if not has_equal_sizes:
        sizes = np.maximum(3, UTTERANCES * np.exp(generator.normal(-(0.9**2) / 2, 0.9, speakers))).astype(int)
    of = np.repeat(np.arange(speakers), sizes)

    def draw(by_speaker: float, by_utterance: float) -> np.ndarray:
        means = by_speaker * generator.standard_normal((speakers, 3))
        return means[of] + by_utterance * generator.standard_normal((len(of), 3))

    labels, shared = draw(BY_SPEAKER, 1.0), draw(SHARED_BY_SPEAKER, SHARED)
    answers = [
        slope * labels + bias + shared + draw(by_speaker, by_utterance)
        for slope, bias, by_speaker, by_utterance in map(astuple, pair)
    ]
    return labels, answers, [f"speaker {number}" for number in of]


def bootstrap(labels: np.ndarray, answers: list[np.ndarray], speakers: list[str], seed: int) -> np.ndarray:
    """CCC (systems, resamples, 3) of whole speakers drawn with replacement: what stood in results.json before."""
    clusters = confidence.speaker_clusters(speakers)
    number = clusters.max() + 1
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    found = np.empty((len(answers), RESAMPLES, 3))
    for system, answer in enumerate(answers):
        for index in range(3):
            y, p = labels[:, index], answer[:, index]
            sums = np.zeros((number, 6))
            np.add.at(sums, clusters, np.stack([np.ones_like(y), y, p, y * y, p * p, y * p], axis=1))
            found[system, :, index] = _ccc(draws @ sums)
    return found


def plain_p(labels: np.ndarray, answers: list[np.ndarray], speakers: list[str], seed: int) -> list[float]:
    """The permutation test of the plain difference in CCC, by dimension, with answers that are really swapped."""
    clusters = confidence.speaker_clusters(speakers)
    number = clusters.max() + 1
    if 2**number <= PERMUTATIONS:
        swapped = (np.arange(2**number)[:, None] >> np.arange(number)) & 1
    else:
        swapped = np.random.default_rng(seed).integers(2, size=(PERMUTATIONS, number))
        swapped[0] = 0
    found = []
    for index in range(3):
        y = labels[:, index]
        sums = np.zeros((2, number, 6))
        for system, answer in enumerate(answers):
            p = answer[:, index]
            np.add.at(sums[system], clusters, np.stack([np.ones_like(y), y, p, y * y, p * p, y * p], axis=1))
        stays = swapped @ sums[1] + (1 - swapped) @ sums[0], swapped @ sums[0] + (1 - swapped) @ sums[1]
        difference = np.subtract(*(_ccc(total) for total in stays))
        found.append(float(np.mean(np.abs(difference) >= abs(difference[0]) * (1 - 1e-9))))
    return found


def _ccc(sums: np.ndarray) -> np.ndarray:
    y, p, yy, pp, py = (sums[:, column] / sums[:, 0] for column in range(1, 6))
    return 2 * (py - y * p) / (yy - y**2 + pp - p**2 + (y - p) ** 2)


def measure(repeats: int, speakers: int, has_equal_sizes: bool, name: str) -> dict[str, Any]:
    """How often p is below .05, and how often intervals cover the true value."""
    pair = PAIRS[name]
    truth = [system.ccc for system in pair]
    generator = np.random.default_rng([speakers, has_equal_sizes, *name.encode()])
    hits: dict[str, list[bool]] = {}
    widths, smallest = [], 0.0

    def count(key: str, values: list[bool]) -> None:
        hits.setdefault(key, []).extend(values)

    for repeat in range(repeats):
        labels, answers, names = simulate(generator, speakers, has_equal_sizes, pair)
        found = confidence.paired_test(labels, *answers, names)
        tests = [found[dimension] for dimension in EMOTION_DIMENSIONS]
        smallest = tests[0]["smallest_p"]
        count("below_.05", [test["p"] <= 0.05 for test in tests])
        count("plain_below_.05", [p <= 0.05 for p in plain_p(labels, answers, names, repeat)])
        gap = truth[0] - truth[1]
        count("covers_difference", [test["interval"][0] <= gap <= test["interval"][1] for test in tests])
        intervals = list(confidence.ccc_interval(labels, answers[0], names).values())
        count("covers_ccc", [low <= truth[0] <= high for low, high in intervals])
        widths += [high - low for low, high in intervals]
        drawn = bootstrap(labels, answers, names, repeat)
        differences = drawn[0] - drawn[1]
        rarer = np.minimum((differences <= 0).sum(0), (differences >= 0).sum(0))
        count("before_below_.05", list(2 * (1 + rarer) / (RESAMPLES + 1) <= 0.05))
        for key, values, true in (
            ("before_covers_ccc", drawn[0], truth[0]),
            ("before_covers_difference", differences, gap),
        ):
            low, high = np.quantile(values, [0.025, 0.975], axis=0)
            count(key, list((low <= true) & (true <= high)))
    shares = {key: round(float(np.mean(values)), 4) for key, values in hits.items()}
    return {"smallest_p": smallest, "median_width_of_interval": round(float(np.median(widths)), 3)} | shares


def to_markdown(content: dict[str, Any]) -> str:
    """A row for each pair and number of speakers; in each cell equal sizes, then unequal ones."""
    columns = {
        "smallest p": "smallest_p",
        "p <= .05: before": "before_below_.05",
        "plain": "plain_below_.05",
        "now": "below_.05",
        "CCC covered: before": "before_covers_ccc",
        "now ": "covers_ccc",
        "difference covered: before": "before_covers_difference",
        "now  ": "covers_difference",
        "width of interval": "median_width_of_interval",
    }
    rows = [["pair", "speakers", *columns], ["---", *["---:"] * (1 + len(columns))]]
    cases = {(case["pair"], case["speakers"], case["sizes"]): case for case in content["cases"]}
    for name in PAIRS:
        for speakers in SPEAKERS:
            both = [cases[name, speakers, sizes] for sizes in ("equal", "unequal")]
            cells = [" / ".join(f"{case[key]:.3f}" for case in both) for key in columns.values()]
            cells[0] = f"{both[0]['smallest_p']:.3g}"
            rows.append([f"`{name}`", str(speakers), *cells])
    return "\n".join(f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=700, help="simulated test sets of three dimensions per case")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file; a table goes beside it as .md")
    arguments = parser.parse_args()
    confidence.PERMUTATIONS = PERMUTATIONS
    started, cases = time.monotonic(), []
    for name, pair in PAIRS.items():
        for has_equal_sizes in (True, False):
            for speakers in SPEAKERS:
                case = {"pair": name, "sizes": "equal" if has_equal_sizes else "unequal", "speakers": speakers}
                case |= {"ccc": [round(system.ccc, 4) for system in pair]}
                case |= measure(arguments.repeats, speakers, has_equal_sizes, name)
                cases.append(case)
                print(case, flush=True)
    samples = 3 * arguments.repeats
    content = {
        "nominal": {"level": 0.05, "coverage": 0.95},
        "samples_of_a_case": samples,
        "monte_carlo_error": round(float(np.sqrt(0.05 * 0.95 / samples)), 4),
        "permutations": PERMUTATIONS,
        "resamples_before": RESAMPLES,
        "utterances_a_speaker": UTTERANCES,
        "seconds": round(time.monotonic() - started),
        "cases": cases,
    }
    write_json(arguments.output, content)
    arguments.output.with_suffix(".md").write_text(to_markdown(content), encoding="utf-8")


if __name__ == "__main__":
    main()
