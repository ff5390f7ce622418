"""The folder of a run: which stages are complete, and results.json.

```
<run>/<stage>/                 a checkpoint that AutoModel loads, with training_log.json and stage.json (written last)
<run>/student/                 the student to keep
<run>/predictions/<stage>_<split>.parquet
<run>/conditioning/train.parquet  what the students take from the teacher, by utterance id
<run>/results.json  report.md  figures/
```
"""

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cmkd.corpora.schema import SPLITS
from cmkd.evaluation import evaluate_predictions, read_predictions
from cmkd.quality import residual_std
from cmkd.recipe import Recipe
from configuration_cmkd import EMOTION_DIMENSIONS

SYSTEMS = ("audio", "text", "teacher", "finetune", "ts", "cts")
"""The stages, in the order in which they run and are shown."""

_FREE = {"output_dir", "stages", "overwrite", "models_dir", "kept_student", "dataloader_workers"}
"""Settings that do not change what a stage learns."""


def write_json(path: Path, content: Any) -> None:
    """Writes JSON that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def stage_is_complete(run: Path, stage: str, recipe: Recipe) -> bool:
    """Whether a stage need not be repeated.

    Raises:
        ValueError: it is complete, but was made with other settings.
    """
    marker = run / stage / "stage.json"
    if not marker.is_file():
        return False
    made_with = json.loads(marker.read_text(encoding="utf-8"))["recipe"]
    wanted = recipe.model_dump(mode="json")
    changed = [key for key in wanted if key not in _FREE and made_with.get(key) != wanted[key]]
    if changed:
        lines = [f"  {key}: {made_with.get(key)!r} then, {wanted[key]!r} now" for key in changed]
        raise ValueError(
            f"Stage {stage!r} in {str(run)!r} was made with other settings:\n"
            + "\n".join(lines)
            + "\nChoose another --output_dir, or repeat its stages with --overwrite."
        )
    return True


def mark_stage_complete(run: Path, stage: str, recipe: Recipe) -> None:
    write_json(run / stage / "stage.json", {"stage": stage, "recipe": recipe.model_dump(mode="json")})


def write_conditioning(run: Path, ids: list[str], embeddings: np.ndarray, residuals: np.ndarray, weights: np.ndarray):
    """Stores what the students take from the teacher: embeddings (n, size), residuals (n, dims), weights (n,)."""
    columns = {"id": pa.array(ids), "embedding": pa.array(list(embeddings.astype(np.float32)))}
    columns |= {f"residual_{name}": residuals[:, index] for index, name in enumerate(EMOTION_DIMENSIONS)}
    columns["weight"] = weights
    path = run / "conditioning" / "train.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.table(columns), unfinished)
    unfinished.replace(path)


def read_conditioning(run: Path, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's embeddings (n, size) and the quality weights (n,) of these utterances.

    Raises:
        FileNotFoundError: the teacher has not run.
        ValueError: an utterance was not seen by the teacher.
    """
    path = run / "conditioning" / "train.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"The stages ts and cts need the teacher, and {path} is not there: add the stage teacher.")
    table = pq.read_table(path)
    rows = {identifier: row for row, identifier in enumerate(table["id"].to_pylist())}
    missing = [identifier for identifier in ids if identifier not in rows]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} utterances, such as {missing[0]!r}: repeat the stage teacher.")
    order = np.array([rows[identifier] for identifier in ids])
    embeddings = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    return embeddings[order], table["weight"].to_numpy()[order].astype(np.float32)


def write_results(run: Path, corpus: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Gathers results.json from the predictions of the complete stages, and puts the kept student into `student/`."""
    systems = {
        system: {
            split: _scores(run / "predictions" / f"{system}_{split}.parquet")
            for split in SPLITS
            if (run / "predictions" / f"{system}_{split}.parquet").is_file()
        }
        for system in SYSTEMS
        if (run / system / "stage.json").is_file()
    }
    results: dict[str, Any] = {"corpus": corpus, "seed": recipe.seed, "versions": versions(), "systems": systems}
    results["recipe"] = recipe.model_dump(mode="json")
    if "teacher" in systems:
        results["conditioning"] = _conditioning(run, recipe.residual_threshold)
    stage, reason = choose_student(systems, recipe.kept_student)
    if stage is not None:
        results["student"] = {"stage": stage, "reason": reason}
        _keep_student(run, stage)
    write_json(run / "results.json", results)
    return results


def choose_student(systems: dict[str, Any], kept: str) -> tuple[str | None, str]:
    """The stage to keep and why; (None, ...) while there is none to choose. Looks at validation, never at test."""
    if kept != "better":
        return (kept if kept in systems else None), "named by the recipe"
    scores = {stage: _mean_ccc(systems[stage]["validation"]) for stage in ("ts", "cts") if stage in systems}
    if not scores:
        return None, "no student has been trained"
    listed = ", ".join(f"{stage} {score:.3f}" for stage, score in scores.items())
    return max(scores, key=scores.__getitem__), f"better mean CCC on validation ({listed})"


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on."""
    found = {"python": platform.python_version()}
    for package in ("cmkd", "torch", "transformers", "datasets", "accelerate", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _scores(path: Path) -> dict[str, Any]:
    found = read_predictions(path)
    return evaluate_predictions(found.predictions, found.labels)


def _mean_ccc(scores: dict[str, Any]) -> float:
    values = [value for value in scores["ccc"].values() if value is not None]
    return sum(values) / len(values)


def _conditioning(run: Path, threshold: float) -> dict[str, Any]:
    table = pq.read_table(run / "conditioning" / "train.parquet")
    residuals = np.stack([table[f"residual_{name}"].to_numpy() for name in EMOTION_DIMENSIONS], axis=1)
    spread = residual_std(torch.from_numpy(residuals)).tolist()
    return {
        "discarded_fraction": float((table["weight"].to_numpy() == 0).mean()),
        "residual_threshold": threshold,
        "residual_std": dict(zip(EMOTION_DIMENSIONS, spread, strict=True)),
    }


def _keep_student(run: Path, stage: str) -> None:
    unfinished = run / f".student.{os.getpid()}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(run / stage, unfinished, ignore=shutil.ignore_patterns("stage.json", "training_log.json", "checkpoint*"))
    shutil.rmtree(run / "student", ignore_errors=True)
    unfinished.replace(run / "student")
