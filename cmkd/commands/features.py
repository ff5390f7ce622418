"""The command that looks after stored features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

Folders = Annotated[
    list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER ...", help_behavior_hint="(one or more)")
]


def cache(
    folders: Folders,
    encoder: str | None = None,
    unused_days: float | None = None,
    other_code: bool = False,
    keep_gb: float | None = None,
    prune: bool = False,
    all: bool = False,
    yes: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Lists the stored features of frozen encoders, and removes those that are not needed any more.

        cmkd cache runs/demo/cache
        cmkd cache /scratch/features --unused_days 30 --prune
        cmkd cache /scratch/features --other_code --prune --yes
        cmkd cache /scratch/features --keep_gb 100 --prune

    Whatever is removed is computed anew if it is needed again. What a running job uses stays; jobs of an earlier
    version of CMKD do not say what they use, so let those end first.

    Args:
        folders: What recipes call cache_dir; a run without one has its own in RUN/cache.
        encoder: Lists only the features of this encoder: its name, or the end of its path.
        unused_days: Lists only what has not been used for more than this number of days.
        other_code: Lists only what another version has made, which this one cannot use.
        keep_gb: Lists only the least recently used: so many that the others take at most this many 10^9 bytes.
        prune: Removes what is listed, once you have confirmed it.
        all: With --prune, removes all that is in no job's use.
        yes: Does not ask before it removes.
        as_json: Prints the list as JSON.
    """
    from cmkd.features.cache import format_folders, remove, select, stored_folders

    if not folders:
        raise ValueError("name at least one folder of stored features, such as runs/demo/cache.")
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {str(folder)!r}.")
    if keep_gb is not None and keep_gb < 0:
        raise ValueError(f"--keep_gb is {keep_gb:g}, but must be 0 or more.")
    if prune and as_json:
        raise ValueError("--json lists, and --prune asks: take one of the two.")
    is_some = encoder is not None or unused_days is not None or other_code or keep_gb is not None
    if prune and all == is_some:
        raise ValueError(
            "--prune needs to know what: --encoder, --unused_days, --other_code or --keep_gb, or else --all."
        )
    there = [stored for folder in folders for stored in stored_folders(folder)]
    selected = select(there, encoder=encoder, unused_days=unused_days, of_other_code=other_code, keep_gb=keep_gb)
    if as_json:
        print(json.dumps([stored.to_dict() for stored in selected], indent=2))
        return
    if not selected:
        print("There are no stored features" + (" of this kind." if there else "."))
        return
    print(format_folders(selected))
    print(f"{sum(stored.size for stored in selected) / 1e9:.2f} GB")
    if not prune or not (yes or _confirmed("Remove them?")):
        return
    kept = [stored for stored in selected if not remove(stored)]
    print(f"Removed {len(selected) - len(kept)} of {len(selected)} folders.")
    for stored in kept:
        print(f"In use, and kept: {stored.path}")


def _confirmed(question: str) -> bool:
    """Whether the answer is yes; no answer, where there is no terminal, is none."""
    try:
        return input(f"{question} [y/N]: ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
