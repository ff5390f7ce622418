"""Suggestions for names that do not exist."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with the nearest of `names`, with a space before it, or "" if none is near.

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    " Did you mean 'learning_rate'?"
    """
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""
