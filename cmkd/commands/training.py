"""Commands that train."""

from __future__ import annotations

import runpy

from cmkd.places import of_root

_TRAIN = """Trains the teacher and the students of a recipe, end to end, and writes a report.

    cmkd train recipes/demo.yaml
    cmkd train recipes/demo.yaml --seeds 0 1 2 --output_dir runs/demo_seeds
    cmkd train recipes/iemocap/t3_02_hubert_base.yaml --corpus.fold 1 --stages ts cts
    accelerate launch -m cmkd train recipes/demo.yaml --seed 1 --output_dir runs/demo_1

A stage that is complete in the output folder is not repeated, and one that was interrupted goes on where it stopped.
Any setting of the recipe and of its corpus may follow the recipe; `cmkd train RECIPE --help` lists them with its
values.
"""


def train(*arguments: str) -> None:
    """Does what train_distill.py does; that file has the main path."""
    from cmkd.runs.recipe import load_recipe, split_recipe

    load_recipe(*split_recipe(arguments, "cmkd train", _TRAIN))  # help and mistakes do not wait for torch
    runpy.run_path(str(of_root("train_distill.py")))["main"](arguments, "cmkd train")


def crossval(*arguments: str) -> None:
    """Trains and tests a recipe on every fold of its corpus.

        cmkd crossval recipes/iemocap/t3_02_hubert_base.yaml --corpus.data_dir path/to/IEMOCAP_full_release
        accelerate launch --num_processes 4 -m cmkd crossval recipes/iemocap/t3_02_hubert_base.yaml

    Complete folds are not repeated. Several processes share the folds, each on a GPU of its own. The settings are those
    of `cmkd train`.
    """
    from cmkd.runs.recipe import split_recipe

    path, settings = split_recipe(arguments, "cmkd crossval", str(crossval.__doc__))

    from cmkd.runs.crossval import cross_validate, format_folds

    results = cross_validate(path, settings)
    if results is not None:
        print(f"\n{format_folds(results)}")
