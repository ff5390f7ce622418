"""Cross-fitting: each training utterance is judged by a teacher that has not heard its speaker.

On utterances that it was trained on a teacher is too good by memory, so that its residual (Eq. 8) says little about
what it knows. Here the speakers of the training split are dealt out to K folds, and K further teachers are trained like
the stage `teacher`, each without one fold, which it then answers. Speech without labels, and an utterance of the
training split without any rating, is answered by all of them and learned by none.

```
<run>/cross_fitting/1_of_5/teacher/stage.json      a run folder of the stage teacher for each fold, without its model
<run>/cross_fitting/1_of_5/predictions/teacher_test.parquet   its answers to what it has not learned from
```

The folds belong to the run that has the teacher: students with a `teacher_run` find them there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from cmkd.corpora.schema import Corpus
from cmkd.corpora.sources import UNLABELLED, alike, copies_of, speaker_keys
from cmkd.features.labels import unit_interval_labels
from cmkd.json_files import read_json
from cmkd.runs.recipe import Recipe
from cmkd.scoring.evaluation import read_predictions
from cmkd.stages import STUDENTS, TEACHER
from configuration_cmkd import EMOTION_DIMENSIONS


class Fold(Corpus):
    """A corpus of which a part of the training split is held out, as its split test.

    Its version is that of the corpus, and of the speech without labels that it answers, if there is any; and it says so
    if the corpus holds copies of one, which earlier versions dealt out apart.

    Args:
        corpus (`DatasetDict`): The corpus, with its report.
        whole (`Dataset`): Its training split, with its speech without labels behind it.
        learned (`np.ndarray`): Which utterances of `whole` are learned from, a truth value for each; the others are
            answered.
    """

    def __init__(self, corpus: DatasetDict, whole: Dataset, learned: np.ndarray):
        self.rows_of_whole = {
            split: np.flatnonzero(chosen).tolist() for split, chosen in (("train", learned), ("test", ~learned))
        }
        splits = {split: whole.select(rows) for split, rows in self.rows_of_whole.items()}
        report = corpus.report
        if UNLABELLED in corpus:
            report = replace(report, digest=f"{report.digest}-{report.unlabelled_version}")
        if copies_of(report):
            report = replace(report, digest=f"{report.digest}-copies_together")
        super().__init__(splits | {"validation": corpus["validation"]}, report)
        self.whole = whole


def deal_out(speakers: Sequence[str], number: int) -> np.ndarray:
    """Deals the utterances out to folds (n,), from 0, so that no speaker is in two and their sizes are as even as can.

    The speaker with the most utterances comes first, and each goes to the fold with the fewest so far; an utterance
    whose speaker is unknown counts as a speaker.

    Args:
        speakers: the speaker of each utterance, "" where unknown.
        number: of folds.

    Raises:
        ValueError: there are fewer speakers than folds.

    >>> deal_out(["anna", "anna", "ben", "carl", "anna"], 2).tolist()
    [0, 0, 1, 1, 0]
    """
    names = [(speaker, -1 if speaker else row) for row, speaker in enumerate(speakers)]
    counts = Counter(names)
    if len(counts) < number:
        raise ValueError(
            f"cross_fitting is {number}, but the training split has {len(counts)} speakers, and each fold needs one at "
            f"least: give --cross_fitting {len(counts)}, or null."
            if len(counts) > 1
            else f"cross_fitting is {number}, but the training split has one speaker, of whom nobody can be held out: "
            "give --cross_fitting null."
        )
    sizes, fold_of = [0] * number, {}
    for name, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        fold_of[name] = sizes.index(min(sizes))
        sizes[fold_of[name]] += count
    return np.array([fold_of[name] for name in names])


def folds_of(corpus: DatasetDict, number: int) -> list[Fold]:
    """The corpus once for each fold.

    Utterances without any rating, and those of the split unlabelled, are in no fold: all teachers answer them, and none
    learns from them. Speakers of copies of one corpus are one ([`cmkd.corpora.sources.copies_of`]).

    Raises:
        ValueError: there are fewer speakers than folds, or without one of the folds a dimension has fewer than two
            different ratings.
    """
    whole = alike([corpus[split] for split in ("train", UNLABELLED) if split in corpus])
    labels = unit_interval_labels(whole)
    is_rated = ~np.isnan(labels).all(axis=1)
    fold_of = np.full(len(labels), -1)
    speakers = np.array(speaker_keys(whole, copies_of(corpus.report)), dtype=object)
    fold_of[is_rated] = deal_out(list(speakers[is_rated]), number)
    learned = [is_rated & (fold_of != fold) for fold in range(number)]
    for fold in range(number):
        for name, column in zip(EMOTION_DIMENSIONS, labels.T, strict=True):
            ratings = column[learned[fold]]
            if not np.isnan(column).all() and len(np.unique(ratings[~np.isnan(ratings)])) < 2:
                raise ValueError(
                    f"cross_fitting is {number}, but without fold {fold + 1} {name} has fewer than 2 different ratings "
                    "in the training split, from which no teacher can learn: give fewer folds, or null."
                )
    return [Fold(corpus, whole, of_fold) for of_fold in learned]


def fold_recipes(recipe: Recipe, complete: Collection[str]) -> list[Recipe]:
    """The recipe of the teacher of each fold; none if nobody needs them, or another run has them.

    Args:
        recipe: the recipe of the run.
        complete: the stages that need not be repeated.
    """
    needed = TEACHER in recipe.stages or set(recipe.stages) & set(STUDENTS) - set(complete)
    if recipe.cross_fitting is None or recipe.teacher_run is not None or not needed:
        return []
    settings = {
        "stages": [TEACHER],
        "cross_fitting": None,
        "overwrite": recipe.overwrite and TEACHER in recipe.stages,
        "cache_dir": recipe.cache_dir or str(Path(recipe.output_dir, "cache")),
    }
    folders = fold_folders(Path(recipe.output_dir), recipe.cross_fitting)
    return [recipe.model_copy(update=settings | {"output_dir": str(folder)}) for folder in folders]


def fold_folders(teacher_run: Path, number: int) -> list[Path]:
    """The run folder of each fold."""
    return [teacher_run / "cross_fitting" / f"{fold}_of_{number}" for fold in range(1, number + 1)]


def keep_answers(recipe: Recipe) -> None:
    """Removes a fold's teacher once it has answered, and leaves its answers, its log and what says that it is complete.

    Nothing but the answers is ever needed of it, and five teachers can take many GB.
    """
    for path in (Path(recipe.output_dir) / TEACHER).iterdir():
        if path.is_file() and path.name not in ("stage.json", "training_log.json"):  # set-aside checkpoints stay too
            path.unlink()


@dataclass(frozen=True)
class CrossFitted:
    """What the teachers of the folds say of utterances that they have not learned from.

    Attributes:
        predictions: (n, 3), on the unit interval; the mean over the teachers that answered.
        disagreement: (n, 3), their standard deviation (divisor: their number); 0 where one answered.
        seconds: what training all of them took.
    """

    predictions: np.ndarray
    disagreement: np.ndarray
    seconds: float


def read_cross_fitted(teacher_run: Path, number: int, ids: Sequence[str]) -> CrossFitted:
    """Reads what the teachers of the folds say of these utterances.

    Raises:
        FileNotFoundError: a fold is not complete.
        ValueError: no fold has answered an utterance.
    """
    answers: dict[str, list[np.ndarray]] = {identifier: [] for identifier in ids}
    seconds = 0.0
    for folder in fold_folders(teacher_run, number):
        state = read_json(folder / TEACHER / "stage.json", "repeat the stage teacher with cross_fitting.")
        if not state["complete"]:
            raise FileNotFoundError(f"the teacher in {folder} is not complete: give the command of its run again.")
        seconds += state["seconds"]
        found = read_predictions(folder / "predictions" / f"{TEACHER}_test.parquet")
        for identifier, prediction in zip(found.ids, found.predictions, strict=True):
            if identifier in answers:
                answers[identifier].append(prediction)
    missing = [identifier for identifier, of_it in answers.items() if not of_it]
    if missing:
        raise ValueError(
            f"{teacher_run / 'cross_fitting'} has no answer to {len(missing)} utterances, such as {missing[0]!r}: it "
            "was made from another corpus, or with other speech without labels; repeat the stage teacher with the same "
            "`corpus` and `unlabelled` and --overwrite, or give --cross_fitting null."
        )
    return CrossFitted(
        np.stack([np.mean(answers[identifier], axis=0) for identifier in ids]),
        np.stack([np.std(answers[identifier], axis=0) for identifier in ids]),
        seconds,
    )
