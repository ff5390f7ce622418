"""Agreement between predictions and labels over a whole split, and the files that predictions are kept in.

Predictions and labels are arrays of shape (n, 3), with columns in the order of `EMOTION_DIMENSIONS`, on the unit
interval: 0 is the minimum of the corpus's scale and 1 its maximum. A NaN label means "not rated".
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmkd.atomic import written_whole
from configuration_cmkd import EMOTION_DIMENSIONS

_PREDICTED = [f"predicted_{dimension}" for dimension in EMOTION_DIMENSIONS]


def evaluate_predictions(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    r"""Scores one system on one split: CCC, Pearson correlation and mean absolute error of each dimension.

    With population moments (denominator $n$, the utterances that are rated in the dimension), in fp64,

    $$\mathrm{CCC} = \frac{2\,\mathrm{cov}(p, y)}{\mathrm{var}(p) + \mathrm{var}(y) + (\bar p - \bar y)^2}.$$

    Where the predictions or the labels of a dimension are constant, as those of a single utterance are, there is no
    covariance: CCC is 0, even if both are the same constant, as with `cmkd.concordance_cc`, and Pearson is undefined.

    Args:
        predictions: (n, 3), finite in every dimension that has a rating.
        labels: (n, 3), finite or NaN for "not rated"; such a pair is left out of that dimension only.

    Returns:
        `{"n": n, "ccc": {"activation": …, …}, "pearson": {…}, "mae": {…}}`. `n` counts utterances, rated or not.
        What is undefined is None (Pearson of a constant; all three if a dimension has no rating), so that the result is
        valid JSON.

    Raises:
        ValueError: if the shapes differ or are not (n, 3) with n > 0, if a prediction is not finite, or if a label is
            infinite.

    >>> labels = np.array([[0.0, 0.2, 0.5], [0.5, 0.4, 0.5], [1.0, np.nan, 0.5]])
    >>> scores = evaluate_predictions(np.array([[0.0, 0.2, 0.1], [0.5, 0.4, 0.5], [1.0, 0.9, 0.9]]), labels)
    >>> scores["n"], scores["ccc"]
    (3, {'activation': 1.0, 'valence': 1.0, 'dominance': 0.0})
    >>> scores["pearson"]
    {'activation': 1.0, 'valence': 1.0, 'dominance': None}
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    expected = len(EMOTION_DIMENSIONS)
    if predictions.shape != labels.shape or predictions.ndim != 2 or predictions.shape[1] != expected:
        raise ValueError(
            f"predictions and labels must both have shape (n, {expected}), one column each for "
            f"{', '.join(EMOTION_DIMENSIONS)}; got {predictions.shape} and {labels.shape}"
        )
    if len(predictions) == 0:
        raise ValueError("predictions hold no utterance: a split needs at least one to be scored.")
    is_rated = ~np.isnan(labels).all(axis=0)
    _require_none(~np.isfinite(predictions) & is_rated, predictions, "predictions must be finite")
    _require_none(np.isinf(labels), labels, "labels must be finite, or NaN where an utterance is not rated")

    scores: dict[str, Any] = {"n": len(predictions), "ccc": {}, "pearson": {}, "mae": {}}
    for dimension, prediction, label in zip(EMOTION_DIMENSIONS, predictions.T, labels.T, strict=True):
        rated = ~np.isnan(label)
        ccc, pearson, mae = _agreement(prediction[rated], label[rated])
        scores["ccc"][dimension] = ccc
        scores["pearson"][dimension] = pearson
        scores["mae"][dimension] = mae
    return scores


def evaluate_by_corpus(predictions: np.ndarray, labels: np.ndarray, corpora: Sequence[str]) -> dict[str, Any]:
    """Scores one system on the utterances of each corpus.

    Args:
        predictions, labels: as for `evaluate_predictions`.
        corpora: the corpus of each utterance.

    Returns:
        By corpus, in the order in which they come, what `evaluate_predictions` returns.

    >>> values = np.array([[0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.1, 0.9, 0.5]])
    >>> {name: scores["n"] for name, scores in evaluate_by_corpus(values, values, ["a", "a", "b"]).items()}
    {'a': 2, 'b': 1}
    """
    names = np.array(corpora)
    return {
        name: evaluate_predictions(predictions[names == name], labels[names == name]) for name in dict.fromkeys(corpora)
    }


def ccc_by_which_to_choose(
    predictions: np.ndarray, labels: np.ndarray, corpora: Sequence[str] = ()
) -> dict[str, float | None]:
    """The CCC of each dimension by which checkpoints and students are chosen on the validation split.

    With several corpora it is the mean of the CCC within each that rates the dimension, so that all count alike, and
    so that to know which corpus an utterance is of, and what that corpus is rated on average, is no merit.

    Args:
        predictions, labels: as for `evaluate_predictions`.
        corpora: the corpus of each utterance; empty where there is one.
    """
    if not corpora:
        ccc: dict[str, float | None] = evaluate_predictions(predictions, labels)["ccc"]
        return ccc
    return mean_over_corpora(evaluate_by_corpus(predictions, labels, corpora))


def mean_over_corpora(by_corpus: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The mean over the corpora of their CCC in each dimension; None where none rates it.

    Args:
        by_corpus: as `evaluate_by_corpus` returns it.

    >>> scores = {name: {"ccc": {"activation": ccc, "valence": None, "dominance": ccc}} for name, ccc in
    ...           (("a", 0.5), ("b", 0.25))}
    >>> mean_over_corpora(scores)
    {'activation': 0.375, 'valence': None, 'dominance': 0.375}
    """
    means: dict[str, float | None] = {}
    for dimension in EMOTION_DIMENSIONS:
        rated = [ccc for scores in by_corpus.values() if (ccc := scores["ccc"][dimension]) is not None]
        means[dimension] = sum(rated) / len(rated) if rated else None
    return means


def _agreement(prediction: np.ndarray, label: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """CCC, Pearson and mean absolute error of two fp64 vectors without NaN; None where undefined."""
    if len(label) == 0:
        return None, None, None
    mae = float(np.abs(prediction - label).mean())
    if np.ptp(prediction) == 0 or np.ptp(label) == 0:
        return 0.0, None, mae
    covariance = np.mean((prediction - prediction.mean()) * (label - label.mean()))
    bias = prediction.mean() - label.mean()
    ccc = ccc_of_moments(covariance, prediction.var(), label.var(), bias)
    pearson = covariance / (prediction.std() * label.std())
    return float(ccc), float(pearson), mae


def ccc_of_moments(covariance: Any, variance: Any, other_variance: Any, bias: Any) -> Any:
    """Lin's CCC from moments with the same divisor, as numbers or arrays; `bias` is the difference of the means.

    This is the only place in the package with CCC in numpy. It is written three more times, each for a reason:
    `cmkd.losses` has it in torch, for training; `modeling_cmkd.py` travels to the Hub; and of the metric
    `concordance_cc`, `evaluate.load` copies one file. What to return where either is constant is up to the caller.

    >>> ccc_of_moments(covariance=0.5, variance=1.0, other_variance=1.0, bias=0.0)
    0.5
    """
    return 2 * covariance / (variance + other_variance + bias**2)


def _require_none(bad: np.ndarray, values: np.ndarray, rule: str) -> None:
    """Raises a ValueError with the first offending value if `bad` (n, 3) marks any."""
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"{rule}; got {values[row, column]} in row {row}, column {column} ({bad.sum()} such values)")


@dataclass(frozen=True)
class Predictions:
    """The answers of one system on one split, as `read_predictions` returns them.

    Attributes:
        ids: the n utterances.
        predictions: (n, 3), on the unit interval.
        labels: (n, 3), on the unit interval, NaN where not rated.
        speakers: the speaker of each utterance, "" where unknown.
        genders: the gender of each utterance's speaker, "female", "male" or "" where unknown.
        corpora: the corpus of each utterance, by the name that it has in the run; empty where there is one corpus.
    """

    ids: list[str]
    predictions: np.ndarray
    labels: np.ndarray
    speakers: list[str]
    genders: list[str]
    corpora: list[str] = field(default_factory=list)


def write_predictions(
    path: str | os.PathLike[str],
    ids: Sequence[str],
    predictions: np.ndarray,
    labels: np.ndarray,
    speakers: Sequence[str],
    genders: Sequence[str],
    corpora: Sequence[str] = (),
) -> None:
    """Writes a Parquet file with the columns id, speaker, gender, predicted_activation, …, activation, … (float64).

    With several corpora it has the column corpus, too.

    The file appears whole or not at all: it is written beside its place and renamed. Missing folders are made.

    Args:
        path: the file to write, for instance `runs/demo/predictions/teacher_test.parquet`; an existing file is
            replaced.
        ids: n utterance ids.
        predictions: (n, 3), on the unit interval.
        labels: (n, 3), on the unit interval, NaN where not rated.
        speakers: n names, "" where unknown.
        genders: n of "female", "male" and "" (unknown).
        corpora: n names; none where there is one corpus.

    Raises:
        ValueError: if these do not describe the same n utterances in three dimensions.
    """
    expected = (len(ids), len(EMOTION_DIMENSIONS))
    if predictions.shape != expected or labels.shape != expected:
        raise ValueError(
            f"predictions and labels of {len(ids)} ids must have shape {expected}; "
            f"got {predictions.shape} and {labels.shape}"
        )
    columns: dict[str, Any] = {}
    texts_by_name = {"id": ids, "speaker": speakers, "gender": genders} | ({"corpus": corpora} if len(corpora) else {})
    for name, texts in texts_by_name.items():
        if len(texts) != len(ids):
            raise ValueError(f"there must be a {name} for each of the {len(ids)} ids; got {len(texts)}")
        columns[name] = pa.array(list(texts), pa.string())
    for names, values in ((_PREDICTED, predictions), (EMOTION_DIMENSIONS, labels)):
        columns.update((name, pa.array(column, pa.float64())) for name, column in zip(names, values.T, strict=True))

    with written_whole(Path(path)) as unfinished:
        pq.write_table(pa.table(columns), unfinished)


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Reads a file that `write_predictions` wrote.

    Args:
        path: the Parquet file.

    Returns:
        What was written, in the same order. A file of an earlier version has no speakers and genders; all are unknown.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no predictions at {path}: evaluate the system again to write them")
    table = pq.read_table(path)
    names = ["id", *_PREDICTED, *EMOTION_DIMENSIONS]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(table.column_names)}")
    predictions, labels = (
        np.column_stack([table[name].to_numpy() for name in columns]) for columns in (_PREDICTED, EMOTION_DIMENSIONS)
    )
    speakers, genders = (
        table[name].to_pylist() if name in table.column_names else [""] * len(table) for name in ("speaker", "gender")
    )
    corpora = table["corpus"].to_pylist() if "corpus" in table.column_names else []
    return Predictions(table["id"].to_pylist(), predictions, labels, speakers, genders, corpora)
