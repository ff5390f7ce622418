"""Which licences the corpora of a run may have, and which of several is the strictest."""

from __future__ import annotations

from collections.abc import Iterable

from cmkd.spelling import did_you_mean

STRICTNESS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nothing is asked", ("cc0-1.0", "pddl", "unlicense")),
    (
        "attribution",
        (
            *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "cdla-permissive-2.0"),
            *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
        ),
    ),
    (
        "attribution, and what is derived stays under the same licence",
        ("cc-by-sa-3.0", "cc-by-sa-4.0", "odbl", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "gfdl"),
    ),
    ("no commercial use", ("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0")),
    ("no commercial use, and the same licence", ("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0")),
    ("nothing derived is passed on", ("cc-by-nd-4.0",)),
    ("nothing derived is passed on, and no commercial use", ("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")),
    ("an agreement of its own", ("other",)),
)
"""What licences ask, from the least to the most, with the Hub's names of those that ask it."""

_RANKS = {licence: rank for rank, (_, licences) in enumerate(STRICTNESS) for licence in licences}


OF_THE_EARS = "that-of-the-ears"
"""Stands in the name of a licence for that of another student's ears, whose card states none."""


def is_known(licence: str) -> bool:
    """Whether a licence is one of the Hub's whose strictness is known, and not an agreement of its own."""
    return licence in _RANKS and licence != "other"


def check_licence(licence: str) -> None:
    """Checks that a licence is one whose strictness is known.

    Raises:
        ValueError: it is none of `STRICTNESS`; the nearest is suggested.
    """
    if licence not in _RANKS:
        raise ValueError(
            f"licence is {licence!r}, but must be one of {', '.join(_RANKS)}, as the Hub calls them; 'other' stands "
            f"for an agreement of its own.{did_you_mean(licence, _RANKS)}"
        )


def strictest(licences: Iterable[str]) -> list[str]:
    """Those of several licences that ask the most; more than one if several ask the same in words of their own.

    Args:
        licences: of `STRICTNESS`.

    >>> strictest(["apache-2.0", "cc-by-sa-4.0", "cc0-1.0"]), strictest(["odbl", "cc-by-sa-4.0", "odbl"])
    (['cc-by-sa-4.0'], ['odbl', 'cc-by-sa-4.0'])
    """
    given = list(dict.fromkeys(licences))
    most = max(_RANKS[licence] for licence in given)
    return [licence for licence in given if _RANKS[licence] == most]
