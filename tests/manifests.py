"""Loads the manifest of a folder, and says for which problems it is refused."""

import pytest

from cmkd.corpora import load_corpus
from cmkd.corpora.report import CorpusError


def load(folder, table=None, **config):
    if table is not None:
        (folder / "manifest.csv").write_text(table, encoding="utf-8")
    return load_corpus("manifest", folder, **{"label_scale": (1, 7), **config})


def refused(folder, table=None, **config):
    """The problems for which a corpus is refused, as (row, reason)."""
    with pytest.raises(CorpusError) as caught:
        load(folder, table, **config)
    return [(problem.row, problem.reason) for problem in caught.value.report.problems]


def clash(*rows):
    return "id,audio,valence,split,speaker\n" + "".join(f"{row}\n" for row in rows)
