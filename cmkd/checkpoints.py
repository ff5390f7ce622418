"""The checkpoints of a stage that is being trained: which one to go on from.

Trainer writes a checkpoint's trainer_state.json last, and deletes older checkpoints only after that. So one whose state
can be read is whole, unless the disk did it harm, which the checksums of its archives show.
"""

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; those that cannot be used are named and removed.

    A checkpoint also cannot be used without the best one until then, which is what the stage will keep.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        tqdm.write(f"  {checkpoint} is not used: {damage}")
        shutil.rmtree(checkpoint)
    return None


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
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None
