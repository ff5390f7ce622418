"""The folder of a run: which stages are complete, and results.json.

```
<run>/<stage>/                 a checkpoint that AutoModel loads, with training_log.json and stage.json
<run>/lexical/                 weights to begin with in its place, see cmkd/runs/lexical.py
<run>/student/                 the student to keep
<run>/teacher/train_embeddings.parquet
<run>/predictions/<stage>_<split>.parquet
<run>/conditioning/train.parquet  what the students take from the teacher, see cmkd/runs/conditioning.py
<run>/cross_fitting/           see cmkd/runs/cross_fitting.py
<run>/conditioning/unlabelled.parquet  the same of speech without labels, see cmkd/runs/unlabelled.py
<run>/results.json  report.md  figures/
<run>/cache/                   stored output of frozen encoders; may be deleted
```

A run whose recipe has a `teacher_run` has no teacher/ of its own and takes that run's. A run of several seeds has such
a folder for each, see cmkd/runs/seeds.py.
"""

import hashlib
import platform
import shutil
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset

from cmkd.atomic import folder_written_whole, sync, written_whole
from cmkd.corpora.schema import SPLITS
from cmkd.corpora.settings import SOURCES, STATEMENTS
from cmkd.formats import check_version, with_version
from cmkd.identity import precision
from cmkd.json_files import read_json, write_json
from cmkd.runs.checkpoints import SET_ASIDE, find_checkpoints, set_aside
from cmkd.runs.conditioning import describe_conditioning, write_conditioning
from cmkd.runs.cost import total_cost
from cmkd.runs.cross_fitting import fold_folders
from cmkd.runs.ears import stated_licence
from cmkd.runs.recipe import Recipe
from cmkd.scoring.evaluation import ccc_by_which_to_choose, mean_over_corpora, read_predictions
from cmkd.scoring.scores import score_systems
from cmkd.spelling import enumerated
from cmkd.stages import EARS, LEXICAL, STAGES, STUDENTS, TEACHER, followers

_OF_THIS_MACHINE = {"output_dir", "teacher_run", "models_dir", "cache_dir", "hub_model_id", "hub_private"}


Kind = Literal["single", "folds", "seeds"]
_KINDS = {"single": "a single run", "folds": "a cross-validation", "seeds": "a run of several seeds"}


def complete_stages(
    recipe: Recipe, corpus_version: str, commits: Mapping[str, str], unlabelled_version: str = ""
) -> set[str]:
    """The stages of a run that need not be repeated.

    Args:
        recipe, corpus_version, commits, unlabelled_version: as for [`stage_is_complete`].

    Raises:
        ValueError: a stage was finished, or begun, with other settings.
    """
    run, repeated = Path(recipe.output_dir), recipe.stages if recipe.overwrite else []
    complete = {
        stage
        for stage in STAGES
        if stage not in repeated and stage_is_complete(run, stage, recipe, corpus_version, commits, unlabelled_version)
    }
    for stage in set(recipe.stages) - complete:
        complete -= set(followers(stage))  # the students start anew with their teacher
    return complete


def stage_is_complete(
    run: Path,
    stage: str,
    recipe: Recipe,
    corpus_version: str,
    commits: Mapping[str, str] | None = None,
    unlabelled_version: str = "",
) -> bool:
    """Whether a stage need not be repeated; False if it never started or was interrupted.

    A setting that its stage.json lacks, because it did not exist when the stage was trained, counts as the default. One
    that has no effect on the stage, although stage.json has it from an earlier version, is not looked at.

    Args:
        run: the folder of the run.
        stage: the name of the stage.
        recipe: the present recipe.
        corpus_version: the version of the present corpus.
        commits: the commits of the encoders that this launch loads, by the names of `cmkd.stages.ENCODERS`, and of the
            student whose ears it takes over, by that of `cmkd.stages.EARS`.
        unlabelled_version: the version of the present speech without labels; "" if there is none.

    Raises:
        ValueError: it was finished, or begun, with other settings, or its stage.json cannot be read.
    """
    marker = run / stage / "stage.json"
    if not marker.is_file():
        return False
    state = _read_json(marker)
    check_version(marker, state)
    wanted = _stage_settings(stage, recipe, corpus_version, unlabelled_version)
    once = {name: field.get_default() for name, field in Recipe.model_fields.items() if name in wanted}
    once["precision"] = wanted["precision"] if state["complete"] else "fp32"
    without_effect = Recipe.model_fields.keys() - {"batch_size", *STAGES[stage].settings}
    then = {name: value for name, value in state["settings"].items() if name not in without_effect}
    lines = [_differences(once | then, dict.fromkeys(then) | wanted)]
    loaded = STAGES[stage].pretrained(recipe.model_dump())
    lines.append(_encoder_differences(state.get("encoders", {}), recipe, commits or {}, loaded))
    differences = "\n".join(filter(None, lines))
    if differences:
        raise ValueError(
            f"Stage {stage!r} in {str(run)!r} was made with other settings:\n{differences}\n"
            f"Choose another --output_dir, or repeat it: --overwrite --stages {stage} ..."
        )
    return state["complete"]


def check_teacher_run(recipe: Recipe, corpus_version: str) -> None:
    """Checks that students that learn from the teacher of another run find it there.

    Raises:
        FileNotFoundError: there is no teacher, or it is not complete; the message has the command that makes it.
        ValueError: it has other encoders or learned from another corpus.
    """
    folder = recipe.teacher_folder
    if not _is_complete(folder, TEACHER):
        raise FileNotFoundError(
            f"The students learn from the teacher of {str(folder)!r} (teacher_run), which has no complete teacher: "
            f"{_how_to_get_teacher(recipe)}"
        )
    if recipe.cross_fitting is not None and set(recipe.stages) & set(STUDENTS):
        number = recipe.cross_fitting
        unfinished = [fold for fold in fold_folders(folder, number) if not _is_complete(fold, TEACHER)]
        if unfinished:
            raise FileNotFoundError(
                f"cross_fitting is {number}, but the run of the teacher, {str(folder)!r}, lacks {len(unfinished)} of "
                f"those {number} folds: {_how_to_get_teacher(recipe)}, with --cross_fitting {number}"
            )
    encoders = STAGES[TEACHER].encoders
    wanted = recipe.model_dump(mode="json", include=set(encoders)) | {"corpus_version": corpus_version}
    state = _read_json(folder / TEACHER / "stage.json")
    lines = [_differences(state["settings"], wanted)]
    lines.append(_encoder_differences(state.get("encoders", {}), recipe, {}, encoders))
    differences = "\n".join(filter(None, lines))
    if differences:
        raise ValueError(
            f"The teacher of {str(folder)!r} is not the one that this recipe names:\n{differences}\n"
            "Give both recipes the same settings, or name another teacher_run."
        )


def _how_to_get_teacher(recipe: Recipe) -> str:
    folder = recipe.teacher_folder
    is_fold, is_seed = folder.name.startswith("fold_"), folder.name == f"seed_{recipe.seed}"
    output = folder.parent if is_fold or is_seed else folder
    seeds = sorted(path.parent.name for path in folder.glob("seed_*/teacher"))
    if seeds:
        return f"that run has several seeds; name one of them, {', '.join(seeds)}, or give this recipe the same seeds."
    if is_seed and _is_complete(output, TEACHER):
        return (
            f"{str(output)!r} has a teacher of a single seed, but with seeds each student learns from the teacher of "
            "its own seed. Give that recipe the same seeds, with another output_dir."
        )
    command, file = "cmkd crossval" if is_fold else "cmkd train", recipe.folder / f"{output.name}.yaml"
    if not file.is_file():
        return "run the stage teacher with that output_dir"
    seed = f", with {recipe.seed} among its --seeds" if is_seed else f" --seed {recipe.seed}" if recipe.seed else ""
    return f"make it, with the same corpus and models, by: {command} {file} --output_dir {output}{seed}"


def check_kind(run: Path, kind: Kind) -> None:
    """Checks that a folder does not hold a run of another kind.

    Raises:
        ValueError: it does.
    """
    held = _kind(run)
    if held is not None and held != kind:
        raise ValueError(
            f"{str(run)!r} holds {_KINDS[held]}, and {_KINDS[kind]} would replace it: choose another --output_dir."
        )


def _kind(run: Path) -> Kind | None:
    """The kind of run that a folder holds, judged by its results or what they are made from; None if it holds none."""
    if (run / "results.json").is_file():
        results = _read_json(run / "results.json")
        return "folds" if "folds" in results else "seeds" if "seeds" in results else "single"
    if any(run.glob("seed_*/*/stage.json")):
        return "seeds"
    if any(run.glob("fold_*/*/stage.json")):
        return "folds"
    return "single" if any((run / stage / "stage.json").is_file() for stage in STAGES) else None


def begin_stage(
    run: Path,
    stage: str,
    recipe: Recipe,
    corpus_version: str,
    commits: Mapping[str, str] | None = None,
    unlabelled_version: str = "",
) -> None:
    """Prepares a stage's folder for starting or going on, and records its settings and that a session has begun.

    Students of an earlier teacher are removed once the teacher starts again, as is what began with the weights of a
    stage that starts again, and results.json, which is made again when all is complete. Checkpoints without a
    stage.json that records the settings they began with are set aside.

    Args:
        run, stage, recipe, corpus_version, commits, unlabelled_version: as for [`stage_is_complete`].
    """
    folder = run / stage
    (run / "results.json").unlink(missing_ok=True)
    if recipe.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    for follower in followers(stage):
        shutil.rmtree(run / follower, ignore_errors=True)
    if stage == TEACHER:  # what an earlier teacher said of speech without labels
        (run / "conditioning" / "unlabelled.parquet").unlink(missing_ok=True)
    marker = folder / "stage.json"
    before = _read_json(marker) if marker.is_file() else {}
    for checkpoint in [] if before else find_checkpoints(folder):
        set_aside(checkpoint, "there is no stage.json that records the settings that it began with")
    state = {
        "stage": stage,
        "complete": False,
        "settings": _stage_settings(stage, recipe, corpus_version, unlabelled_version),
        "encoders": _encoders(stage, recipe, commits or {}),
        "sessions": [*before.get("sessions", []), None],
    }
    write_json(marker, with_version("stage.json", state))


def start_of(stage: str, recipe: Recipe) -> str | None:
    """The stage whose weights a stage begins with: one that this recipe names, or that is complete in this run."""
    start = STAGES[stage].starts_from
    if start is not None and (start in recipe.stages or _is_complete(Path(recipe.output_dir), start)):
        return start
    return None


def record_session(run: Path, stage: str, cost: Mapping[str, Any]) -> None:
    """Records what the session in progress has cost so far, see [`cmkd.runs.cost.SessionCost`]."""
    state = _read_json(run / stage / "stage.json")
    write_json(run / stage / "stage.json", state | {"sessions": [*state["sessions"][:-1], cost]})


def complete_stage(run: Path, stage: str, cost: Mapping[str, Any]) -> None:
    """Records that a stage is complete and what all of its sessions cost, and removes its checkpoints.

    Args:
        run, stage: the folder of the run, and the name of the stage.
        cost: that of the last session, which ends now, see [`cmkd.runs.cost.SessionCost`].
    """
    folder = run / stage
    sync(folder)  # the weights must be on the disk before anything says that they are
    state = _read_json(folder / "stage.json")
    sessions = [session for session in (*state["sessions"][:-1], cost) if session is not None]
    write_json(folder / "stage.json", state | {"complete": True, "sessions": sessions} | total_cost(sessions))
    remove_checkpoints(run, stage)


def remove_checkpoints(run: Path, stage: str) -> None:
    """Removes the checkpoints of a stage; one that was killed just as it became complete may still have them."""
    for checkpoint in find_checkpoints(run / stage):
        shutil.rmtree(checkpoint)


def write_embeddings(run: Path, ids: list[str], embeddings: np.ndarray) -> None:
    """Stores the teacher's embeddings (n, size) of the training split with the ids of the utterances."""
    columns = {"id": pa.array(ids), "embedding": pa.array(list(embeddings.astype(np.float32)))}
    _write_parquet(run / TEACHER / "train_embeddings.parquet", columns)


def judge_teacher(recipe: Recipe, complete: Collection[str], train: Dataset) -> None:
    """Judges the teacher on every training utterance (Eq. 8), and stores what the students take from it.

    Nothing is done if no student remains to be trained and the stages have no teacher.

    Args:
        recipe: the recipe of the run.
        complete: the stages that need not be repeated.
        train: the training split.

    Raises:
        FileNotFoundError: a student is to be trained, and the teacher, or one of the folds of `cross_fitting`, has not
            run.
    """
    run, teacher_run = Path(recipe.output_dir), recipe.teacher_folder
    untrained = set(recipe.stages) & set(STUDENTS) - set(complete)
    if not untrained and (TEACHER not in recipe.stages or not _is_complete(run, TEACHER)):
        return
    if not _is_complete(teacher_run, TEACHER):
        raise FileNotFoundError(
            f"The stages {enumerated(STUDENTS)} need a teacher, but {teacher_run} has none: add the stage teacher."
        )
    if untrained:
        (run / "results.json").unlink(missing_ok=True)  # it describes what is now judged and trained again
    write_conditioning(recipe, train)


def write_results(run: Path, corpus: dict[str, Any], recipe: Recipe, student: dict[str, str] | None) -> dict[str, Any]:
    """Gathers results.json from the predictions of the complete stages.

    Args:
        run: the folder of the run.
        corpus: the entry about the corpus.
        recipe: the recipe of the run.
        student: what [`keep_student`] returned.

    Returns:
        The content of results.json.
    """
    complete = [stage for stage in STAGES if _is_complete(run, stage)]
    predictions = {
        split: {
            system: read_predictions(run / "predictions" / f"{system}_{split}.parquet")
            for system in complete
            if (run / "predictions" / f"{system}_{split}.parquet").is_file()
        }
        for split in SPLITS
    }
    scores = score_systems(predictions)
    systems = scores["systems"]
    results: dict[str, Any] = {"corpus": corpus, "seed": recipe.seed, "versions": versions(), **scores}
    results["recipe"] = recipe.model_dump(mode="json", exclude=_OF_THIS_MACHINE)
    stages = {stage: _read_json(run / stage / "stage.json") for stage in complete}
    results["cost"] = _cost(stages)
    results["precision"] = {stage: state["settings"].get("precision") for stage, state in stages.items()}
    results["encoders"] = _encoders_of(run, recipe, stages)
    if TEACHER in systems:
        results["teacher"] = teacher_fingerprint(run)
    for name in systems.keys() & set(STUDENTS):
        if "teacher_embeddings" in stages[name]["settings"]:
            results["teacher"] = stages[name]["settings"]["teacher_embeddings"]
    starts = {stage: state["settings"].get("starts_from") for stage, state in stages.items()}
    results["starts_from"] = {stage: start for stage, start in starts.items() if start is not None}
    if LEXICAL in complete:
        results["lexical"] = _read_json(run / LEXICAL / "learned.json")
    if (run / "conditioning" / "train.parquet").is_file():
        results["conditioning"] = describe_conditioning(run, recipe.residual_threshold)
    if recipe.control is not None:
        results["control"] = recipe.control
    if "unlabelled" in corpus and (run / "conditioning" / "unlabelled.parquet").is_file():
        results["unlabelled"] = _unlabelled(run)
    if student is not None:
        results["student"] = student
    results = with_version("results.json", results)
    write_json(run / "results.json", results)
    return results


def keep_student(run: Path, kept: str) -> dict[str, str] | None:
    """Puts the student to keep into `student/`.

    Args:
        run: the folder of the run.
        kept: its stage, or "better" for the one with the better mean CCC on validation. Test is never looked at.

    Returns:
        Its `stage` and the `reason` why it is kept; None as long as it, or any student, has not been trained.
    """
    trained = [stage for stage in STUDENTS if _is_complete(run, stage)]
    if not trained or kept not in ("better", *trained):
        return None
    stage, reason = kept, "named by the recipe"
    if kept == "better":
        answers = {name: read_predictions(run / "predictions" / f"{name}_validation.parquet") for name in trained}
        scores = {
            name: mean_ccc({"ccc": ccc_by_which_to_choose(answer.predictions, answer.labels, answer.corpora)})
            for name, answer in answers.items()
        }
        listed = ", ".join(f"{STAGES[name].short_name} {score:.3f}" for name, score in scores.items())
        stage = max(scores, key=scores.__getitem__)
        reason = f"better mean CCC on validation ({listed})"
        if len(scores) == 1:
            reason = f"this run has no other student (mean CCC on validation: {listed})"
    left_out = ("stage.json", "training_log.json", "checkpoint-*", f"{SET_ASIDE}*", "*.parquet")
    with folder_written_whole(run / "student") as unfinished:
        shutil.copytree(run / stage, unfinished, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
        shutil.rmtree(run / "student", ignore_errors=True)
    return {"stage": stage, "reason": reason}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on; torch's says its build too, such as 2.13.0+cpu."""
    known = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("cmkd", "transformers", "datasets", "accelerate", "numpy"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "not installed"
    return known


def _stage_settings(stage: str, recipe: Recipe, corpus_version: str, unlabelled_version: str = "") -> dict[str, Any]:
    settings = recipe.model_dump(mode="json", include=set(STAGES[stage].settings)) | {"corpus_version": corpus_version}
    for name in settings.keys() & set(SOURCES):
        settings[name] = _without_statements(settings[name])
    if STAGES[stage].learns_unlabelled and unlabelled_version:
        settings["unlabelled_version"] = unlabelled_version
    settings["precision"] = precision(PartialState().device)
    batches = recipe.gradient_accumulation_steps * PartialState().num_processes
    settings["utterances_a_step"] = recipe.batch_size * batches
    if recipe.loss_over == "batch":
        settings["batch_size"] = recipe.batch_size
    start = start_of(stage, recipe)
    if start is not None:
        settings["starts_from"] = start
    if STAGES[stage].needs_teacher and recipe.teacher_run is not None:
        settings["teacher_embeddings"] = teacher_fingerprint(recipe.teacher_folder)
    return settings


def _without_statements(source: Any) -> Any:
    """A corpus of a recipe, or a list of them, without what the recipe only states of it."""
    if isinstance(source, list):
        return [_without_statements(one) for one in source]
    return source and {key: value for key, value in source.items() if key not in STATEMENTS}


def _encoders(stage: str, recipe: Recipe, commits: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
    """The name, revision and commit of each encoder, and of ears, that a stage loads, by the name of its setting."""
    settings = recipe.model_dump(mode="json")
    return {
        encoder: {
            "name": settings[encoder],
            "revision": settings[f"{encoder}_revision"],
            "commit": commits.get(encoder),
        }
        for encoder in STAGES[stage].pretrained(settings)
    }


def _encoder_differences(
    then: Mapping[str, Any], recipe: Recipe, commits: Mapping[str, str], encoders: Iterable[str]
) -> str:
    """A line for each encoder whose commit differs, or whose revision does if one of the commits is not known."""
    lines = []
    for encoder in encoders:
        before, commit = then.get(encoder, {}), commits.get(encoder)
        revision = recipe.model_dump()[f"{encoder}_revision"]
        if commit is not None and before.get("commit") is not None:
            if commit != before["commit"]:
                lines.append(
                    f"  commit of {encoder}: {before['commit']!r} then, {commit!r} now "
                    f"(if it is on the Hub, --{encoder}_revision COMMIT names the one to use)"
                )
        elif revision not in (None, before.get("revision"), before.get("commit")):
            lines.append(f"  {encoder}_revision: {before.get('revision')!r} then, {revision!r} now")
    return "\n".join(lines)


def _cost(stages: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The cost of all sessions of all stages; for a stage of an earlier version only the last session is known."""
    of_devices = [state["peak_device_memory_gb"] for state in stages.values() if "peak_device_memory_gb" in state]
    return {
        "seconds": {stage: state["seconds"] for stage, state in stages.items()},
        "sessions": {stage: len(state.get("sessions", [None])) for stage, state in stages.items()},
        "peak_memory_gb": max((state["peak_memory_gb"] for state in stages.values()), default=None),
        "peak_device_memory_gb": max((peak for peak in of_devices if peak is not None), default=None),
        "processes": max((state["processes"] for state in stages.values()), default=1),
        "device": ", ".join(dict.fromkeys(state["device"] for state in stages.values() if "device" in state))
        or PartialState().device.type,
    }


def _encoders_of(run: Path, recipe: Recipe, stages: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The name, revision and commit of every encoder, including those of a teacher that was trained in another run.

    And of the student whose ears were taken over, with the licence that its card states.
    """
    encoders: dict[str, Any] = {}
    if recipe.teacher_run is not None and _is_complete(recipe.teacher_folder, TEACHER):
        encoders |= _read_json(recipe.teacher_folder / TEACHER / "stage.json").get("encoders", {})
    for state in stages.values():
        encoders |= state.get("encoders", {})
    if EARS in encoders and recipe.ears == encoders[EARS]["name"]:
        encoders[EARS] = encoders[EARS] | {"licence": stated_licence(recipe, encoders[EARS]["commit"])}
    return encoders


def teacher_fingerprint(teacher_run: Path) -> str:
    """A digest that tells one training of a teacher from another."""
    embeddings = teacher_run / TEACHER / "train_embeddings.parquet"
    return hashlib.sha256(embeddings.read_bytes()).hexdigest()[:16] if embeddings.is_file() else "not there"


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A line for each of the present settings that had another value then."""
    changed = [key for key, value in now.items() if then.get(key) != value]
    return "\n".join(f"  {key}: {then.get(key)!r} then, {now[key]!r} now" for key in changed)


def _is_complete(run: Path, stage: str) -> bool:
    marker = run / stage / "stage.json"
    return marker.is_file() and _read_json(marker)["complete"]


def _read_json(path: Path) -> Any:
    return read_json(path, "it is damaged or not a file of a run. Move it away; what it describes is then made again.")


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """Writes a Parquet file that appears whole or not at all."""
    with written_whole(path) as unfinished:
        pq.write_table(pa.table(columns), unfinished)


def mean_ccc(scores: Mapping[str, Any]) -> float:
    """The mean CCC over the rated dimensions, by which students are chosen; with several corpora within each of them.

    Args:
        scores: those of a system on a split, as [`cmkd.scoring.scores.score_systems`] has them.
    """
    ccc = mean_over_corpora(scores["by_corpus"]) if "by_corpus" in scores else scores["ccc"]
    values = [value for value in ccc.values() if value is not None]
    return sum(values) / len(values)


def _unlabelled(run: Path) -> dict[str, Any]:
    table = pq.read_table(run / "conditioning" / "unlabelled.parquet", columns=["asr_confidence", "weight"])
    return {
        "utterances": len(table),
        "mean_asr_confidence": float(table["asr_confidence"].to_numpy().mean()),
        "mean_weight": float(table["weight"].to_numpy().mean()),
    }
