"""Cross-validation: one run of train_distill.py for each fold of a corpus, and the results of all folds together.

```
<output_dir>/fold_1/ ...               a run folder for each fold, see cmkd/runs/folder.py
<output_dir>/predictions/<stage>_test.parquet   of all folds, with every utterance once
<output_dir>/results.json              see `gather_folds`
```
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from cmkd.corpora.iemocap import NUM_FOLDS
from cmkd.formats import with_version
from cmkd.json_files import read_json, write_json
from cmkd.places import of_root
from cmkd.processes import join_launch, wait_for_all
from cmkd.runs.folder import check_kind
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.scoring.evaluation import Predictions, read_predictions, write_predictions
from cmkd.scoring.scores import score_systems
from configuration_cmkd import EMOTION_DIMENSIONS

MAIN = of_root("train_distill.py")
PROTOCOL = "leave-one-session-out"
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


def cross_validate(path: Path, arguments: Sequence[str] = ()) -> dict[str, Any] | None:
    """Trains and tests on every fold, and gathers the results.

    Folds run one after the other; if several processes were launched, each takes its share, on a GPU of its own if
    there are GPUs. A fold that is complete is not repeated, and one that was interrupted goes on where it stopped.

    Args:
        path: a recipe whose corpus has folds.
        arguments: settings that override the recipe's, as for `cmkd train`, except `--corpus.fold`.

    Returns:
        The content of results.json; None in all processes but the main one.

    Raises:
        ValueError: the corpus has no folds, or a fold is given.
        ChildProcessError: a fold did not run to its end.
    """
    recipe = load_recipe(path, arguments)
    number = number_of_folds(recipe)
    check_kind(Path(recipe.output_dir), "folds")
    state = join_launch()
    for fold in range(state.process_index + 1, number + 1, state.num_processes):
        print(f"\nfold {fold} of {number}", flush=True)
        run_fold([str(path), *arguments, *_fold_arguments(recipe, fold)], Path(recipe.output_dir, f"fold_{fold}.log"))
    wait_for_all("run its folds")
    return gather_folds(Path(recipe.output_dir), number) if state.is_main_process else None


def number_of_folds(recipe: Recipe) -> int:
    """How many folds the protocol of a recipe's corpus has.

    Raises:
        ValueError: the corpus has none, or the recipe asks for one of them, for several seeds, or for a push.
    """
    if not isinstance(recipe.corpus, dict):
        raise ValueError(f"corpus is a list of {len(recipe.corpus)}: folds are those of one corpus. Use cmkd train.")
    if recipe.unlabelled is not None:
        raise ValueError("unlabelled is given, but folds have none: leave it out, or use cmkd train.")
    if recipe.corpus["name"] != "iemocap":
        raise ValueError(f"the corpus {recipe.corpus['name']!r} has no folds; iemocap has. Use cmkd train.")
    if "fold" in recipe.corpus:
        raise ValueError(
            f"corpus.fold is {recipe.corpus['fold']!r}, but cross-validation runs all folds: leave it out, or run "
            "one with cmkd train."
        )
    if recipe.seeds is not None:
        raise ValueError(
            f"seeds is {recipe.seeds!r}, but a cross-validation takes one seed, for all folds: give --seed, and an "
            "--output_dir for each."
        )
    if recipe.hub_model_id is not None:
        raise ValueError(
            f"hub_model_id is {recipe.hub_model_id!r}, but every fold has a model of its own: leave it out, and push "
            "one of the models with `cmkd push`."
        )
    protocol = recipe.corpus.get("protocol", PROTOCOL)
    if protocol not in NUM_FOLDS:
        raise ValueError(f"corpus.protocol is {protocol!r}, but must be one of {', '.join(NUM_FOLDS)}.")
    return NUM_FOLDS[protocol]


def run_fold(arguments: Sequence[str], log: Path) -> None:
    """Runs train_distill.py in a process of its own; if several folds run side by side, its output goes to `log`."""
    state = PartialState()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCH)}
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[state.local_process_index]
    command = [
        sys.executable,
        "-c",
        f"from {__name__} import _run_with_parent; _run_with_parent()",
        str(MAIN),
        *arguments,
    ]
    with ExitStack() as stack:
        stack.enter_context(_terminated_by_exception())  # so that the fold stops too
        shown, output = "above", None
        if state.num_processes > 1:
            log.parent.mkdir(parents=True, exist_ok=True)
            shown, output = f"in {log}", stack.enter_context(log.open("a", encoding="utf-8"))
        fold = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output)
        try:
            code = fold.wait()  # for days perhaps; it ends when this process does
        finally:
            fold.kill()
            fold.wait()
    if code:
        raise ChildProcessError(
            f"{' '.join(arguments)} ended with exit code {code}; its output is {shown}. The same command, without "
            "--overwrite, goes on where it stopped."
        )


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Turns SIGTERM into `SystemExit` within the block, in the main thread only; no child process may inherit this."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is None:  # None: not set by Python
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_with_parent() -> None:
    """Runs `MAIN` in a process that ends when its parent does, however that ends, because its input is then closed."""

    def end() -> None:
        os.read(0, 1)  # without the lock of sys.stdin, which would get in the way when this process ends
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


def gather_folds(output_dir: Path, number: int) -> dict[str, Any]:
    """Pools the test predictions of all folds, and writes them and results.json.

    Returns:
        The content of results.json, which has the keys of a run's results.json, with these differences. `systems` has
        only the split test, with scores over the pooled predictions of all folds; the intervals and comparisons are of
        these too. `corpus` is that of fold 1 without its fold, with the sizes of the pooled test splits. `folds` has
        `number` and, for the test CCC by stage and dimension, `mean`, `std` (divisor number - 1) and `each`, a list by
        fold; the first two are None if a fold has no CCC because nobody rated the dimension there, or all ratings are
        equal.

    Raises:
        FileNotFoundError: a fold has not been run.
        ValueError: an utterance is tested in two folds, or an encoder is not the same commit in all of them.
    """
    folders = [output_dir / f"fold_{fold}" for fold in range(1, number + 1)]
    runs = [read_json(folder / "results.json", "this fold has not been run.") for folder in folders]
    _check_encoders(runs)
    stages = [stage for stage in runs[0]["systems"] if all(stage in run["systems"] for run in runs)]
    pooled = {}
    for stage in stages:
        file = f"predictions/{stage}_test.parquet"
        of_stage = _pool(read_predictions(folder / file) for folder in folders)
        order = (of_stage.ids, of_stage.predictions, of_stage.labels, of_stage.speakers, of_stage.genders)
        write_predictions(output_dir / file, *order)
        pooled[stage] = of_stage
    scores = score_systems({"test": pooled})
    each = [{stage: run["systems"][stage]["test"]["ccc"] for stage in stages} for run in runs]

    def over_folds(summary: Any) -> dict[str, dict[str, float | None]]:
        values = {
            stage: {name: [fold[stage][name] for fold in each] for name in EMOTION_DIMENSIONS} for stage in stages
        }
        return {
            stage: {name: None if None in column else float(summary(column)) for name, column in of.items()}
            for stage, of in values.items()
        }

    corpus, recipe = runs[0]["corpus"], runs[0]["recipe"]
    for size in ("utterances", "hours", "speakers"):
        corpus[size] = {"test": sum(run["corpus"][size]["test"] for run in runs)}
    corpus["speakers"]["test"] = len(set(next(iter(pooled.values())).speakers) - {""})
    recipe["corpus"] = {key: value for key, value in recipe["corpus"].items() if key != "fold"}
    results = {
        "corpus": corpus,
        "seed": runs[0]["seed"],
        "versions": runs[0]["versions"],
        **scores,
        "recipe": recipe,
        "folds": {
            "number": number,
            "mean": over_folds(np.mean),
            "std": over_folds(lambda column: np.std(column, ddof=1)),
            "each": each,
        },
        "cost": {
            "seconds": {stage: sum(run["cost"]["seconds"][stage] for run in runs) for stage in stages},
            "peak_memory_gb": max(run["cost"]["peak_memory_gb"] for run in runs),
            "peak_device_memory_gb": max(
                filter(None, (run["cost"].get("peak_device_memory_gb") for run in runs)), default=None
            ),
            "processes": max(run["cost"]["processes"] for run in runs),  # of a fold
        },
        "precision": {stage: value for run in runs for stage, value in run.get("precision", {}).items()},
        "encoders": {field: encoder for run in runs for field, encoder in run.get("encoders", {}).items()},
    }
    if all(run.get("starts_from") for run in runs):
        results["starts_from"] = runs[0]["starts_from"]
    if "control" in runs[0]:
        results["control"] = runs[0]["control"]
    if all("teacher" in run for run in runs):
        results["teacher"] = " ".join(run["teacher"] for run in runs)
    results = with_version("results.json", results)
    write_json(output_dir / "results.json", results)
    return results


def format_folds(results: dict[str, Any]) -> str:
    """CCC on test as plain text: the mean over the folds with its spread, and the pooled CCC with its interval."""
    lines = [f"{'CCC on test':24}" + "".join(f"{name:>22}" for name in EMOTION_DIMENSIONS)]
    for stage, splits in results["systems"].items():
        means, pooled = results["folds"]["mean"][stage], splits["test"]
        spread = results["folds"]["std"][stage]
        cells = [
            "n/a" if means[name] is None else f"{means[name]:.3f} ± {spread[name]:.3f}" for name in EMOTION_DIMENSIONS
        ]
        lines.append(f"{stage + ', mean ± std':24}" + "".join(f"{cell:>22}" for cell in cells))
        cells = [_pooled_cell(pooled["ccc"][name], pooled["interval"][name]) for name in EMOTION_DIMENSIONS]
        lines.append(f"{stage + ', pooled':24}" + "".join(f"{cell:>22}" for cell in cells))
    if None in (value for means in results["folds"]["mean"].values() for value in means.values()):
        lines.append("n/a: a fold, or all of them together, has fewer than two different ratings of the dimension.")
    lines.append("The mean is over the folds. Pooled is one CCC over the test utterances of all folds, with its")
    lines.append(f"{results['confidence']['level']:.0%} interval over speakers in brackets.")
    return "\n".join(lines)


def _check_encoders(runs: Sequence[dict[str, Any]]) -> None:
    first_seen: dict[str, tuple[int, str]] = {}
    for fold, run in enumerate(runs, start=1):
        for field, encoder in run.get("encoders", {}).items():  # a fold of an earlier version has none
            first, commit = first_seen.setdefault(field, (fold, encoder["commit"]))
            if encoder["commit"] != commit:
                raise ValueError(
                    f"{field} is {commit!r} in fold {first} and {encoder['commit']!r} in fold {fold}: it has changed "
                    f"in between. Name one for all with --{field}_revision, and repeat the folds of the other with "
                    "--overwrite."
                )


def _pooled_cell(ccc: float | None, interval: Sequence[float] | None) -> str:
    if ccc is None:
        return "n/a"
    return f"{ccc:.3f}" if interval is None else f"{ccc:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _fold_arguments(recipe: Recipe, fold: int) -> list[str]:
    folder = Path(recipe.output_dir, f"fold_{fold}")
    cache = recipe.cache_dir or str(Path(recipe.output_dir, "cache"))  # every fold has every utterance
    arguments = ["--corpus.fold", str(fold), "--output_dir", str(folder), "--cache_dir", cache]
    if recipe.teacher_run is not None:
        arguments += ["--teacher_run", os.path.relpath(recipe.teacher_folder / f"fold_{fold}", folder)]
    return arguments


def _pool(folds: Iterable[Predictions]) -> Predictions:
    parts = list(folds)
    ids = [identifier for part in parts for identifier in part.ids]
    if len(set(ids)) != len(ids):
        twice = next(identifier for identifier in ids if ids.count(identifier) > 1)
        raise ValueError(f"the utterance {twice!r} is tested in two folds: the folds have different protocols.")
    return Predictions(
        ids,
        np.concatenate([part.predictions for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [speaker for part in parts for speaker in part.speakers],
        [gender for part in parts for gender in part.genders],
    )
