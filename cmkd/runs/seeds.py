"""Several trainings of one recipe that differ in their seed, and their results together.

```
<output_dir>/seed_0/ …         a run folder for each seed, see cmkd/runs/folder.py
<output_dir>/results.json      see `gather_seeds`
<output_dir>/report.md  figures/  see cmkd/reporting/seeds_report.py
<output_dir>/cache/            stored output of frozen encoders, the same for all
```

A seed determines initial weights, dropout and the order of the batches. The corpus is the same for all, so that they
answer the same utterances. Two kinds of chance are kept apart: the standard deviation over the seeds shows how much
another training could differ; the interval and the p-value, which are those of the mean over the seeds, show how much
other speakers could, for these trainings. Three seeds are too few for an interval over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from cmkd.corpora.schema import SPLITS
from cmkd.formats import with_version
from cmkd.json_files import read_json, write_json
from cmkd.runs.folder import mean_ccc
from cmkd.scoring.evaluation import Predictions, read_predictions
from cmkd.scoring.scores import (
    by_corpus,
    compare,
    compare_by_corpus,
    describe_confidence,
    interval_of,
    pairs_to_compare,
)
from cmkd.stages import STAGES
from configuration_cmkd import EMOTION_DIMENSIONS

Values = Mapping[str, float | None]
"""Values by dimension; None for one that nobody rated."""


def seed_folder(run: Path, seed: int) -> Path:
    """The run folder of the training with this seed."""
    return run / f"seed_{seed}"


def read_answers(run: Path, seeds: Sequence[int], stage: str, split: str) -> Predictions:
    """The answers of all trainings of one stage, stacked: `predictions` is (seeds, n, 3).

    Raises:
        FileNotFoundError: a training has no predictions.
        ValueError: two trainings have answered different utterances, or with different labels.
    """
    each = [read_predictions(seed_folder(run, seed) / "predictions" / f"{stage}_{split}.parquet") for seed in seeds]
    for seed, answer in zip(seeds, each, strict=True):
        if answer.ids != each[0].ids or not np.array_equal(answer.labels, each[0].labels, equal_nan=True):
            raise ValueError(
                f"the seeds {seeds[0]} and {seed} in {str(run)!r} have answered different utterances of {split}, or "
                "with different labels: repeat one of them on the corpus of the other, with --overwrite."
            )
    first = each[0]
    stacked = np.stack([answer.predictions for answer in each])
    return Predictions(first.ids, stacked, first.labels, first.speakers, first.genders, first.corpora)


def gather_seeds(run: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Summarises the trainings of a run of several seeds, and writes results.json.

    Args:
        run: the folder that holds seed_0 and so on, each complete.
        seeds: the seeds to summarise.

    Returns:
        The content of results.json, which has the keys of a run's results.json, with these differences. `seeds` is the
        list of seeds, and there is no `seed`. In `systems`, by stage and split, `ccc`, `pearson` and `mae` are means
        over the seeds; beside them are `std` (divisor number of seeds - 1) and `each`, a list by seed, of the CCC, and
        `interval` is that of the mean CCC over speakers. `comparisons` are those of the mean differences and have `std`
        and `each` too. `conditioning` has `discarded_fraction`, a list by seed. `student` has the `seed` and the
        `stage` of the best one by mean CCC on validation among those that each training keeps. What only some of the
        trainings have is left out.

    Raises:
        FileNotFoundError: a training is not complete.
        ValueError: two were trained on different corpora, or answered different utterances.
    """
    runs = [_read_results(seed_folder(run, seed)) for seed in seeds]
    for seed, other in zip(seeds, runs, strict=True):
        if other["corpus"]["version"] != runs[0]["corpus"]["version"]:
            raise ValueError(
                f"seed {seeds[0]} in {str(run)!r} was trained on version {runs[0]['corpus']['version']} of the corpus, "
                f"seed {seed} on {other['corpus']['version']}: repeat one of them with --overwrite."
            )
    stages: list[str] = [stage for stage in STAGES if all(stage in other["systems"] for other in runs)]
    systems: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    comparisons, speakers = [], {}
    for split in SPLITS:
        answers = {
            stage: read_answers(run, seeds, stage, split)
            for stage in stages
            if all(split in other["systems"][stage] for other in runs)
        }
        for stage, answer in answers.items():
            each = [other["systems"][stage][split] for other in runs]
            systems[stage][split] = _over_seeds(each) | {"interval": interval_of(answer)}
            if answer.corpora:
                systems[stage][split]["by_corpus"] = {
                    name: _over_seeds([one["by_corpus"][name] for one in each]) | {"interval": interval_of(part)}
                    for name, part in by_corpus(answer).items()
                }
            speakers[split] = answer.speakers
        for system, baseline in pairs_to_compare(split, answers):
            differences = [
                _difference(*(other["systems"][name][split]["ccc"] for name in (system, baseline))) for other in runs
            ]
            pair = answers[system], answers[baseline]
            comparison = compare(*pair) | compare_by_corpus(*pair)
            names = {"system": system, "baseline": baseline, "split": split}
            comparisons.append(names | comparison | {"std": _summary(stdev, differences), "each": differences})
    results: dict[str, Any] = {
        "corpus": runs[0]["corpus"],
        "seeds": list(seeds),
        "versions": {
            name: ", ".join(dict.fromkeys(other["versions"].get(name, "not recorded") for other in runs))
            for name in dict.fromkeys(name for other in runs for name in other["versions"])
        },
        "systems": systems,
        "comparisons": comparisons,
        "confidence": describe_confidence(speakers),
        "recipe": {key: value for key, value in runs[0]["recipe"].items() if key != "seed"} | {"seeds": list(seeds)},
        "cost": {
            "seconds": {stage: sum(other["cost"]["seconds"][stage] for other in runs) for stage in _timed(runs)},
            "peak_memory_gb": max((other["cost"]["peak_memory_gb"] or 0.0 for other in runs), default=None),
            "processes": max(other["cost"]["processes"] for other in runs),
            "device": runs[0]["cost"]["device"],
        },
    }
    for entry in ("starts_from", "lexical"):  # the first is the same for all; the second is a list by seed
        if all(other.get(entry) for other in runs):
            results[entry] = runs[0][entry] if entry == "starts_from" else [other[entry] for other in runs]
    if all("teacher" in other for other in runs):
        results["teacher"] = " ".join(other["teacher"] for other in runs)
    if all("conditioning" in other for other in runs):
        fractions = [other["conditioning"]["discarded_fraction"] for other in runs]
        results["conditioning"] = {"discarded_fraction": fractions}
    if "control" in runs[0]:
        results["control"] = runs[0]["control"]
    if all("student" in other for other in runs):
        results["student"] = _best_student(seeds, runs)
    results = with_version("results.json", results)
    write_json(run / "results.json", results)
    return results


def _timed(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The stages that all trainings have, those among them that rate nothing too."""
    return [stage for stage in STAGES if all(stage in other["cost"]["seconds"] for other in runs)]


def _over_seeds(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores: dict[str, Any] = {"n": each[0]["n"]}
    scores |= {metric: _summary(mean, [one[metric] for one in each]) for metric in ("ccc", "pearson", "mae")}
    ccc = [one["ccc"] for one in each]
    return scores | {"std": _summary(stdev, ccc), "each": ccc}


def _summary(statistic: Any, each: Sequence[Values]) -> dict[str, float | None]:
    """A statistic of the values of all seeds, by dimension; None if one of the values is None."""
    columns = {name: [one[name] for one in each] for name in EMOTION_DIMENSIONS}
    return {name: None if None in values else float(statistic(values)) for name, values in columns.items()}


def _difference(scores: Values, others: Values) -> dict[str, float | None]:
    pairs = {name: (scores[name], others[name]) for name in EMOTION_DIMENSIONS}
    return {name: None if ours is None or theirs is None else ours - theirs for name, (ours, theirs) in pairs.items()}


def _best_student(seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [other["student"]["stage"] for other in runs]
    scores = [mean_ccc(other["systems"][stage]["validation"]) for other, stage in zip(runs, kept, strict=True)]
    best = max(range(len(seeds)), key=scores.__getitem__)
    listed = ", ".join(f"{score:.3f} with seed {seed}" for seed, score in zip(seeds, scores, strict=True))
    reason = f"best mean CCC on validation of those that the trainings keep ({listed})"
    return {"seed": seeds[best], "stage": kept[best], "reason": reason}


def _read_results(folder: Path) -> dict[str, Any]:
    return read_json(folder / "results.json", "the training in this folder is not complete.")
