"""The checkpoints of a stage that is being trained, and which of them training continues from.

Trainer writes a checkpoint's trainer_state.json last, and deletes older checkpoints only after that. So one whose state
can be read is whole, unless the disk damaged it, which the checksums of its archives show. One that cannot be used may
still be the work of days, or of another version: it is renamed and never deleted.
"""

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

SET_ASIDE = "unused-"
"""What the name of a checkpoint that cannot be used begins with."""


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that Trainer wrote into a folder, the newest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    steps_of_paths = {path: int(step[1]) for path, step in steps.items() if step is not None and path.is_dir()}
    return sorted(steps_of_paths, key=steps_of_paths.__getitem__, reverse=True)


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; those that cannot be used are set aside and reported.

    A checkpoint is of no use either without the best one so far, which is what the stage will keep.
    """
    for checkpoint in find_checkpoints(folder):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        set_aside(checkpoint, damage)
    return None


def set_aside(path: Path, reason: str) -> None:
    """Renames a checkpoint so that nothing will take it for one, and reports it."""
    kept = path.with_name(SET_ASIDE + path.name)
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{SET_ASIDE}{path.name}-{number}")
    path.rename(kept)
    tqdm.write(f"  {path} is not used: {reason}. It is kept as {kept.name}; delete it if you do not need it.")


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint or with the best one that it refers to; None if nothing is."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        best = state["best_model_checkpoint"]
        for path in checkpoint.iterdir():
            if path.suffix in (".pt", ".pth", ".bin") and path.name != "training_args.bin":
                with zipfile.ZipFile(path) as archive:
                    broken = archive.testzip()
                    if broken:
                        return f"{path.name} has a wrong checksum at {broken}"
        for folder in {checkpoint, checkpoint.parent / Path(best or checkpoint).name}:
            with safe_open(folder / "model.safetensors", "pt"):
                pass
    except FileNotFoundError as error:
        return f"it lacks {Path(error.filename or str(error)).name}"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None
