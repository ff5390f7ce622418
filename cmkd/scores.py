"""The scores of all systems of a run, as results.json has them: CCC with intervals, by gender, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmkd.confidence import LEVEL, RESAMPLES, SEED, bootstrap_ccc, confidence_interval, paired_p_value
from cmkd.evaluation import Predictions, evaluate_predictions
from configuration_cmkd import EMOTION_DIMENSIONS

COMPARISONS = (("ts", "finetune"), ("cts", "finetune"), ("cts", "ts"))
"""What is compared: each system with the one to beat."""

_COMPARED_SPLITS = ("validation", "test")
_GENDERS = ("female", "male")


def score_systems(
    predictions: Mapping[str, Mapping[str, Predictions]], resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Any]:
    """Scores every system on every split; see `cmkd.confidence` for what intervals and p-values are.

    Args:
        predictions: by split, by system.
        resamples: of the speakers of a split.
        seed: of the resamples.

    Returns:
        Three entries of results.json:

        - `systems`: by system, by split, what `evaluate_predictions` returns, and `interval`, by dimension [low, high]
          or None where the split has fewer than two rated speakers, and `by_gender`, by "female" and "male", as far as
          there are such, `{"n": …, "ccc": {…}}`.
        - `comparisons`: for each pair of COMPARISONS of which both were scored on validation or test
          `{"system", "baseline", "split", "difference", "interval", "p_value"}`, the last three by dimension; the
          difference is that of the CCC, system less baseline.
        - `confidence`: `level`, `resamples`, `seed`, and by split how many `speakers` were drawn, and how many
          `utterances_without_speaker` were drawn one by one.

    Raises:
        ValueError: two systems have answered other utterances of a split, or with other labels.
    """
    systems: dict[str, dict[str, Any]] = {}
    comparisons, drawn = [], {}
    for split, answers in predictions.items():
        if not answers:
            continue
        first = _same_utterances(split, answers)
        resampled = bootstrap_ccc(
            {system: answer.predictions for system, answer in answers.items()},
            first.labels,
            first.speakers,
            resamples,
            seed,
        )
        for system, answer in answers.items():
            scores = evaluate_predictions(answer.predictions, answer.labels)
            scores["interval"] = confidence_interval(resampled[system])
            scores["by_gender"] = _by_gender(answer)
            systems.setdefault(system, {})[split] = scores
        for system, baseline in COMPARISONS if split in _COMPARED_SPLITS else ():
            if system in answers and baseline in answers:
                better, worse = systems[system][split]["ccc"], systems[baseline][split]["ccc"]
                differences = resampled[system] - resampled[baseline]
                comparisons.append(
                    {
                        "system": system,
                        "baseline": baseline,
                        "split": split,
                        "difference": {
                            dimension: None if better[dimension] is None else better[dimension] - worse[dimension]
                            for dimension in EMOTION_DIMENSIONS
                        },
                        "interval": confidence_interval(differences),
                        "p_value": paired_p_value(differences),
                    }
                )
        unknown = first.speakers.count("")
        drawn[split] = {"speakers": len(set(first.speakers) - {""}), "utterances_without_speaker": unknown}
    confidence = {"level": LEVEL, "resamples": resamples, "seed": seed, "splits": drawn}
    order = [system for answers in predictions.values() for system in answers]
    return {
        "systems": {system: systems[system] for system in dict.fromkeys(order)},
        "comparisons": comparisons,
        "confidence": confidence,
    }


def _same_utterances(split: str, answers: Mapping[str, Predictions]) -> Predictions:
    """The answers of the first system, once all are known to be about the same utterances."""
    (name, first), *others = answers.items()
    for other, answer in others:
        if answer.ids != first.ids or not np.array_equal(answer.labels, first.labels, equal_nan=True):
            raise ValueError(
                f"predictions of {name} and {other} on {split} are about other utterances or labels: they come from "
                "different corpora; repeat one of the two stages with --overwrite."
            )
    return first


def _by_gender(answer: Predictions) -> dict[str, Any]:
    genders = np.array(answer.genders)
    found = {}
    for gender in _GENDERS:
        chosen = genders == gender
        if chosen.any():
            scores = evaluate_predictions(answer.predictions[chosen], answer.labels[chosen])
            found[gender] = {"n": scores["n"], "ccc": scores["ccc"]}
    return found
