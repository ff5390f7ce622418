"""Two rated corpora of tones on different scales, and tones that nobody has rated: a run of several sources."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from tones import write_recipe

SECOND = {"train": 12, "validation": 6, "test": 6}
"""The sizes of the second corpus; those of the first are `tones.SIZES`."""
UNRATED = 17


def write_tones(folder: Path, splits: dict[str, int], rated: bool, seed: int) -> None:
    """A manifest of tones: rated from 0 to 5 in activation and valence, or with neither ratings nor splits."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    lines = ["id,audio,transcript,activation,valence,speaker,split" if rated else "id,audio,transcript"]
    for split, size in splits.items():
        for index in range(size):
            high, long = generator.random(2)
            name = f"{split}_{index}"
            times = np.arange(int(16000 * (0.15 + 0.1 * long))) / 16000
            soundfile.write(folder / f"{name}.wav", 0.3 * np.sin(2 * np.pi * (200 + 600 * high) * times), 16000)
            words = f"{'high' if high > 0.5 else 'low'} {'long' if long > 0.5 else 'short'} {seed} {name}"
            ratings = f",{5 * long:.3f},{5 * high:.3f},{split}_{index % 3},{split}" if rated else ""
            lines.append(f"{name},{name}.wav,{words}{ratings}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def write_mixed_recipe(folder: Path, **settings: Any) -> Path:
    """The recipe of `tones`, with a second corpus and unrated speech beside it."""
    base = yaml.safe_load(write_recipe(folder).read_text())
    write_tones(folder / "second", SECOND, rated=True, seed=5)
    write_tones(folder / "unrated", {"all": UNRATED}, rated=False, seed=6)
    corpora = [
        base["corpus"] | {"alias": "first", "licence": "cc-by-4.0"},
        {"name": "manifest", "alias": "second", "data_dir": str(folder / "second"), "label_scale": [0, 5]},
    ]
    base["unlabelled"] = {"name": "manifest", "alias": "unrated", "data_dir": str(folder / "unrated")}
    path = folder / "mixed.yaml"
    path.write_text(yaml.safe_dump(base | {"corpus": corpora} | settings))
    return path
