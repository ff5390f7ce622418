"""What is in the folder of a program that runs, while it writes there and removes what it has written."""

import glob
from pathlib import Path


def present(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match a pattern at this moment, in the order of their names.

    `Path.glob` of Python 3.11 and 3.12 raises `FileNotFoundError` where a folder vanishes between being found and being
    read; here such a folder has nothing in it. As in a shell, `*` stands for no name that begins with a dot.
    """
    return [folder / name for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True))]  # noqa: PTH207
