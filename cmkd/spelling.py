"""Names in sentences: suggestions for those that do not exist, and enumerations."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with the nearest of `names`, with a space before it, or "" if none is near.

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    " Did you mean 'learning_rate'?"
    """
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def enumerated(names: Sequence[str]) -> str:
    """Names joined as in a sentence, with commas and "and".

    >>> enumerated(["A"]), enumerated(["A", "B"]), enumerated(["A", "B", "C"])
    ('A', 'A and B', 'A, B and C')
    """
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]])
