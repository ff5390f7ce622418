"""Corpora of rated speech behind one function, `load_corpus`.

A corpus is a module with a function `build(data_dir, on_error, *, ...) -> Corpus`, whose keyword-only parameters are
the corpus's settings, and a line in `CORPORA`. `cmkd.corpora.building` says how it is kept on the disk.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from cmkd.spelling import did_you_mean

if TYPE_CHECKING:
    from cmkd.corpora.schema import Corpus, StreamedCorpus

CORPORA = {
    "manifest": "cmkd.corpora.manifest",
    "dataset": "cmkd.corpora.dataset",
    "msp-podcast": "cmkd.corpora.msp_podcast",
    "iemocap": "cmkd.corpora.iemocap",
    "crema-d": "cmkd.corpora.crema_d",
    "spoken-emobank": "cmkd.corpora.spoken_emobank",
    "spoken-sentences": "cmkd.corpora.spoken_sentences",
    "spoken-demo": "cmkd.corpora.spoken_demo",
}
"""The corpora by name, each with the module that builds it."""

ON_ERROR = ("raise", "skip")

Preference = Literal["manual", "asr"]
"""Which transcript counts where an utterance has one of its own and one by a recogniser."""


@overload
def load_corpus(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
    *,
    streaming: Literal[True],
    **config: Any,
) -> StreamedCorpus: ...


@overload
def load_corpus(
    name: str, data_dir: str | os.PathLike[str] | None = None, on_error: str = "raise", **config: Any
) -> Corpus: ...


def load_corpus(
    name: str, data_dir: str | os.PathLike[str] | None = None, on_error: str = "raise", **config: Any
) -> Corpus | StreamedCorpus:
    """Loads and checks a corpus.

    Every corpus has the columns of `cmkd.corpora.schema.FEATURES` and those of the splits train, validation and test
    that it has rows for; "dev", "development", "val" and the like are called validation, and other splits keep their
    names.

    Args:
        name (`str`): One of "manifest" (your own table), "dataset" (a data set of the Hub or the disk), "msp-podcast",
            "iemocap", "crema-d", "spoken-emobank", "spoken-sentences", "spoken-demo".
        data_dir (`str` or path, *optional*): The folder of the corpus.
        on_error (`str`, *optional*, defaults to `"raise"`): What to do about rows that would corrupt results (missing,
            unreadable, truncated or empty audio, labels outside the scale, duplicate ids, a speaker in two splits and
            the like). `"raise"` raises an error that lists them all, `"skip"` leaves them out and counts them in the
            report; see `cmkd.corpora.checks` for which rows are left out when rows clash. In both cases all problems
            are written to a CSV file in the folder `cmkd/problems` of `HF_DATASETS_CACHE`, which the error or a note of
            the report names.
        **config: The settings of that corpus, which are the keyword parameters of its module's `build`. The licensed
            corpora, manifests and data sets have `num_proc`, the processes that write the cache, and `streaming`.

    Returns:
        `Corpus`: A `DatasetDict` with the attribute `report`, a `CorpusReport`; `cmkd.push_corpus` puts it on the Hub.
        `StreamedCorpus`: With `streaming=True`, an `IterableDatasetDict` with that attribute; its docstring says what
        such a report cannot know.

    Raises:
        CorpusError: A `ValueError`: there are such rows, or nothing usable was found. `.report` has all cases.
        FileNotFoundError: There is no such folder or file.
        ValueError: There is no such corpus, setting or `on_error`, or a setting is missing or not valid.

    Example:

    ```py
    corpus = load_corpus("manifest", data_dir="my_corpus", label_scale=(1, 7))
    print(corpus.report)
    print(corpus["train"][0]["valence"])
    ```
    """
    check_name(name)
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error is {on_error!r}, but must be one of {_listed(ON_ERROR)}.")
    build = importlib.import_module(CORPORA[name]).build
    from cmkd.corpora.report import CorpusError, write_problems

    settings = {
        parameter.name: parameter.default is parameter.empty
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for key in config:
        if key not in settings:
            raise ValueError(
                f"the corpus {name!r} has no setting {key!r}; it has {_listed(settings)}.{did_you_mean(key, settings)}"
            )
    missing = [key for key, required in settings.items() if required and key not in config]
    if missing:
        raise ValueError(f"the corpus {name!r} needs {_listed(missing)}: see `{CORPORA[name]}.build`.")
    try:
        corpus = build(data_dir, on_error, **config)
    except CorpusError as error:
        error.problems_file = write_problems(error.report)
        raise
    if corpus.report.problems:
        corpus.report.notes.append(f"the table of all problems that were skipped: {write_problems(corpus.report)}")
    return corpus


def check_name(name: str) -> None:
    """Checks that there is a corpus of this name.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    if name not in CORPORA:
        raise ValueError(f"name is {name!r}, but must be one of {_listed(CORPORA)}.{did_you_mean(name, CORPORA)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
