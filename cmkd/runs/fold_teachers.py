"""Trains the teachers of cross-fitting, see `cmkd.runs.cross_fitting`."""

from collections.abc import Callable

from accelerate import PartialState

from cmkd.corpora.schema import Corpus
from cmkd.processes import print_once, wait_for_all
from cmkd.runs.cross_fitting import fold_recipes, folds_of, keep_answers
from cmkd.runs.folder import complete_stages
from cmkd.runs.recipe import Recipe
from cmkd.stages import TEACHER

RunStage = Callable[[str, Recipe, Corpus, set[str], dict[str, str]], None]


def cross_fit(recipe: Recipe, corpus: Corpus, complete: set[str], commits: dict[str, str], run_stage: RunStage) -> None:
    """Trains the teachers of the folds, each without some of the speakers, whose utterances it then answers.

    All processes must call this. Nothing is done without `cross_fitting`, or if another run has the teachers.

    Args:
        recipe: the recipe of the run.
        corpus: that of the run.
        complete: the stages that need not be repeated.
        commits: as [`cmkd.runs.preflight.check_encoders`] returns them.
        run_stage: trains a stage of a run: its name, recipe, corpus, complete stages and commits.
    """
    recipes = fold_recipes(recipe, complete)
    folds = list(zip(recipes, folds_of(corpus, len(recipes)), strict=True)) if recipes else []
    finished = [complete_stages(training, fold.report.version, commits) for training, fold in folds]
    wait_for_all("read the folds")
    for number, (training, fold) in enumerate(folds):
        print_once(f"\nfold {number + 1} of {len(folds)}")
        run_stage(TEACHER, training, fold, finished[number], commits)
        if PartialState().is_main_process:
            keep_answers(training)
