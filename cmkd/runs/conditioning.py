"""What the students take from the teacher: its outputs for each utterance, and how far it is trusted there.

`<run>/conditioning/train.parquet` has a row per training utterance: `id`, `embedding` and `predicted_activation`, … of
the teacher; `residual_activation`, … (Eq. 8), which with `cross_fitting` are those of a teacher that has not heard the
speaker; `weight_activation`, … from `cmkd.dimension_weights`, and `weight` from `cmkd.quality_weights`. Its metadata
say by which settings, in JSON under `cmkd`. Speech without labels is in `unlabelled.parquet` beside it
(`cmkd.runs.unlabelled`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from cmkd.atomic import written_whole
from cmkd.features.labels import label_variance
from cmkd.quality import Quality, dimension_weights, fit_residuals, quality_weights, residual_std
from cmkd.runs.cross_fitting import read_cross_fitted
from cmkd.runs.recipe import Recipe
from cmkd.scoring.evaluation import read_predictions
from cmkd.stages import TEACHER
from configuration_cmkd import EMOTION_DIMENSIONS


@dataclass(frozen=True)
class Conditioning:
    """What students take from the teacher, by utterance.

    Attributes:
        embeddings: (n, size).
        predictions: (n, 3), on the unit interval; NaN in a dimension that nobody rated.
        weights: (n,) in [0, 1], of the embedding.
        dimension_weights: (n, 3) in [0, 1], of the predictions.
    """

    embeddings: np.ndarray
    predictions: np.ndarray
    weights: np.ndarray
    dimension_weights: np.ndarray

    def controlled(self, control: str | None, seed: int) -> Conditioning:
        """The same, less what a control takes away (`cmkd.stages.CONTROLS`).

        Args:
            control: `"shuffled_teacher"`: each utterance gets all that belongs to another, in one cycle through all of
                them. `"random_quality"`: the weights are dealt out anew, so that as many as before are left out and
                their mean is what it was. Anything else leaves all as it is.
            seed: of what is drawn.
        """
        order = np.random.default_rng(seed).permutation(len(self.weights))
        if control == "shuffled_teacher":
            other = np.empty_like(order)
            other[order] = np.roll(order, 1)  # the one before, in the order that was drawn: never itself
            return Conditioning(*(values[other] for values in vars(self).values()))
        if control == "random_quality":
            return replace(self, weights=self.weights[order], dimension_weights=self.dimension_weights[order])
        return self


def write_conditioning(recipe: Recipe, train: Dataset) -> None:
    """Judges the teacher on every training utterance (Eq. 8), and stores what the students take from it.

    Args:
        recipe: the recipe of the run.
        train: the training split, whose annotators `label_noise` asks.

    Raises:
        FileNotFoundError: there are no answers of the teacher, or of the teachers of the folds.
        ValueError: they cannot be judged.
    """
    run, teacher_run = Path(recipe.output_dir), recipe.teacher_folder
    answers = read_predictions(teacher_run / "predictions" / f"{TEACHER}_train.parquet")
    embeddings = pq.read_table(teacher_run / TEACHER / "train_embeddings.parquet")
    judged, folds = answers.predictions, None
    if recipe.cross_fitting is not None:
        cross_fitted = read_cross_fitted(teacher_run, recipe.cross_fitting, answers.ids)
        judged, folds = cross_fitted.predictions, {"folds": recipe.cross_fitting, "seconds": cross_fitted.seconds}
    residuals = fit_residuals(torch.from_numpy(judged), torch.from_numpy(answers.labels))
    quality: Quality = recipe.quality
    variance = None
    if quality == "label_noise":
        row_of = {identifier: row for row, identifier in enumerate(train["id"])}
        variance = torch.from_numpy(label_variance(train)[[row_of[identifier] for identifier in answers.ids]])
    of_dimensions = dimension_weights(residuals, recipe.residual_threshold, quality, variance)
    weights = quality_weights(residuals, recipe.residual_threshold, quality, variance)
    columns = {"id": embeddings["id"], "embedding": embeddings["embedding"]}
    values = {"predicted": answers.predictions, "residual": residuals.numpy(), "weight": of_dimensions.numpy()}
    for kind, of_kind in values.items():
        columns |= {f"{kind}_{name}": column for name, column in zip(EMOTION_DIMENSIONS, of_kind.T, strict=True)}
    settings = {"quality": quality, "cross_fitting": folds, "residual_threshold": recipe.residual_threshold}
    table = pa.table(columns | {"weight": weights.numpy()}).replace_schema_metadata({"cmkd": json.dumps(settings)})
    with written_whole(run / "conditioning" / "train.parquet") as unfinished:
        pq.write_table(table, unfinished)


def read_conditioning(run: Path, ids: Sequence[str], unlabelled: Sequence[str] = ()) -> Conditioning:
    """What students take from the teacher about these utterances, first those with labels and then those without.

    Each is looked up in the file of its kind alone, and `unlabelled.parquet` is opened only if it is asked for: what
    lies there may be of an earlier run in the same folder, with another teacher.

    Args:
        run: the folder of the run.
        ids: the utterances of the training split.
        unlabelled: those of the speech without labels.

    Raises:
        FileNotFoundError: the teacher has not been judged, or has not judged the speech without labels.
        ValueError: the teacher has not seen an utterance, or one is in both files.
    """
    tables: list[pa.Table] = []
    rows: dict[str, int] = {}
    for name, wanted in (("train.parquet", ids), ("unlabelled.parquet", unlabelled)):
        if not len(wanted):
            continue
        path = run / "conditioning" / name
        table = pq.read_table(path)
        known = {identifier: row for row, identifier in enumerate(table["id"].to_pylist(), start=sum(map(len, tables)))}
        missing = [identifier for identifier in wanted if identifier not in known]
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing)} utterances, such as {missing[0]!r}: repeat the stage teacher."
            )
        both = sorted(known.keys() & rows.keys())
        if both:
            raise ValueError(
                f"{path} and train.parquet beside it both have {len(both)} utterances, such as {both[0]!r}, but each "
                "either has labels or has none: remove the folder, which is written anew, and repeat the command."
            )
        tables.append(table)
        rows |= known
    order = np.array([rows[identifier] for identifier in [*ids, *unlabelled]])
    values = (
        [np.stack(table["embedding"].to_numpy(zero_copy_only=False)) for table in tables],
        [by_dimension(table, "predicted").astype(np.float32) for table in tables],
        [table["weight"].to_numpy() for table in tables],
        [by_dimension(table, "weight") for table in tables],
    )
    return Conditioning(*(np.concatenate(of_tables)[order] for of_tables in values))


def describe_conditioning(run: Path, threshold: float) -> dict[str, Any]:
    """The entry `conditioning` of results.json.

    Args:
        run: the folder of the run.
        threshold: the `residual_threshold` of a file of before its settings were written down.

    Returns:
        `discarded_fraction`, the share of the utterances of weight 0; `mean_weight` of all utterances; the settings
        `quality` and `residual_threshold`; `residual_std` by dimension, None if nobody rated it; and `cross_fitting`,
        None or the number of `folds` and the `seconds` that their teachers took.
    """
    table = pq.read_table(run / "conditioning" / "train.parquet")
    once = {"quality": "hard", "cross_fitting": None, "residual_threshold": threshold}
    settings = json.loads((table.schema.metadata or {}).get(b"cmkd", json.dumps(once)))
    spread = residual_std(torch.from_numpy(by_dimension(table, "residual"))).tolist()
    weights = table["weight"].to_numpy()
    return {
        **settings,
        "discarded_fraction": float((weights == 0).mean()),
        "mean_weight": float(weights.mean()),
        "residual_std": {
            name: None if np.isnan(value) else value for name, value in zip(EMOTION_DIMENSIONS, spread, strict=True)
        },
    }


def by_dimension(table: pa.Table, kind: str) -> np.ndarray:
    """(n, 3), the columns `<kind>_activation`, `<kind>_valence` and `<kind>_dominance` of a table."""
    return np.stack([table[f"{kind}_{name}"].to_numpy() for name in EMOTION_DIMENSIONS], axis=1)
