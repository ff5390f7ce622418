"""Finds files that the repository keeps in its root and a wheel keeps inside the package (setup.py)."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def of_root(name: str) -> Path:
    """The path of a file or folder of the repository's root, such as `hub_cards`, however CMKD is installed.

    Raises:
        FileNotFoundError: it is in neither of the two places, so the installation is not complete.

    >>> of_root("hub_cards").name
    'hub_cards'
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"{name} is neither in {_PACKAGE} nor beside it: the installation is not complete. Install cmkd again."
    )
