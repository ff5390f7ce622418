"""The checkpoints of a stage that is being trained: which one to go on from.

Trainer writes a checkpoint's trainer_state.json last, and deletes older checkpoints only after that. So one whose state
can be read is whole, unless the disk did it harm, which the checksums of its archives show. One that cannot be used may
be the work of days all the same, or that of another version: it gets another name, and is never deleted.
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
    """Those that Trainer wrote, the newest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    found = {path: int(step[1]) for path, step in steps.items() if step is not None and path.is_dir()}
    return sorted(found, key=found.__getitem__, reverse=True)


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; those that cannot be used are set aside, and named.

    A checkpoint also cannot be used without the best one until then, which is what the stage will keep.
    """
    for checkpoint in find_checkpoints(folder):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        set_aside(checkpoint, damage)
    return None


def set_aside(path: Path, reason: str) -> None:
    """Gives a checkpoint a name by which nothing will take it for one, and says so."""
    kept = path.with_name(SET_ASIDE + path.name)
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{SET_ASIDE}{path.name}-{number}")
    path.rename(kept)
    tqdm.write(f"  {path} is not used: {reason}. It is kept as {kept.name}; delete it if you do not need it.")


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint and the best one that it refers to."""
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
