"""The command that audits a model, whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from cmkd.commands import DataDir
from cmkd.corpora import CORPORA, load_corpus
from cmkd.corpora.settings import CorpusSettings

Model = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")]
Name = Annotated[
    str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help=f"The corpus: {', '.join(CORPORA)}.")
]


def audit(
    model: Model = None,
    name: Name = None,
    data_dir: DataDir = None,
    *,
    corpus: CorpusSettings,
    output: Path | None = None,
    split: str = "test",
    by: tuple[str, ...] = ("gender",),
    groups: Path | None = None,
    disturbances: tuple[str, ...] | None = None,
    acted: str | None = None,
    words: Path | None = None,
    words_voices: str = "espeak",
    words_models_dir: Path | None = None,
    words_speech_dir: Path | None = None,
    quick: bool = False,
    revision: str | None = None,
    compare: tuple[Path, Path] | None = None,
) -> None:
    """Audits a model of activation, valence and dominance: is it right, robust, steady and fair, and at what cost.

        cmkd audit runs/demo spoken-demo --output audits/demo
        cmkd audit exported/ manifest my_corpus --corpus.label_scale 1 7 --output audits/graph --quick
        cmkd audit my_model.py:score manifest my_corpus --corpus.label_scale 1 7 --output audits/mine
        cmkd audit --compare audits/demo audits/mine --output audits/both

    An audit that was interrupted goes on where it stopped when it is started again. It writes audit.json, audit.md, a
    page, audit.html, a section for a model card, card.md, and figures. docs/audit.md lists the tests.

    Args:
        model: The model: a checkpoint or a run of CMKD, a checkpoint of audEERING's kind, of the Odyssey-2024 baseline
            or of Vox-Profile (folders or names on the Hub), a folder or .onnx file of `cmkd export`, or a function, as
            module:function or file.py:function, that takes a waveform and its rate and returns a dict of scores.
        name: The corpus.
        data_dir: The folder of the corpus; null is for one that needs none.
        corpus: Settings of the corpus, as under `corpus:` in a recipe.
        output: The folder to write to; it may hold an audit of the same model and clips that was interrupted.
        split: The split to audit on.
        by: Columns of the corpus whose groups of speakers are compared; of a column of numbers, such as age, those
            above its median and the others.
        groups: A CSV file with a column id or speaker, and further columns whose groups are compared too.
        disturbances: The disturbances to try, such as gain_+20db; null stands for all, which needs cmkd[audit].
        acted: The column of the corpus, or of the table of groups, with the emotion that was acted, for corpora where
            the same words are said in several; null takes it from the names of the clips of CREMA-D.
        words: EmoBank's file emobank.csv, to ask also about sentences whose words were rated, in speech without
            expression; null leaves that test out.
        words_voices: Who speaks these sentences, espeak (cmkd[demo]) or kokoro (cmkd[kokoro]).
        words_models_dir: The folder of Kokoro's files; null takes them from the Hub.
        words_speech_dir: The folder where that speech is kept; null stands for one in the cache of datasets.
        quick: Whether to ask about 64 clips only, of as many speakers as possible.
        revision: The branch, tag or commit of a model on the Hub; null stands for its newest commit.
        compare: The folders of two audits of the same clips to put side by side; no model and no corpus is then named.
    """
    if compare is not None:
        _compare(compare, model, output)
        return
    from transformers.utils import logging

    from cmkd.audit.report import format_summary
    from cmkd.audit.run import Settings, check_audit, check_output
    from cmkd.audit.run import audit as run_audit
    from cmkd.audit.subjects import load_subject

    if model is None or name is None:
        raise ValueError("name a model and a corpus, such as `cmkd audit runs/demo spoken-demo --output audit`.")
    if output is None:
        raise ValueError("--output is missing: name a folder to write the audit to, such as --output audit.")
    settings = Settings(
        split, by, groups, quick, disturbances, acted, words, words_voices, words_models_dir, words_speech_dir
    )
    check_output(output)
    logging.disable_progress_bar()  # of loading weights
    subject = load_subject(model, revision)
    built = load_corpus(name, data_dir, **corpus)
    check_audit(built, settings, subject.dimensions)
    print(format_summary(run_audit(subject, built, output, settings)))
    print(f"\nAudit: {output}")


def _compare(folders: tuple[Path, Path], model: str | None, output: Path | None) -> None:
    from cmkd.audit.comparison import compare_audits, format_comparison, write_comparison

    if model is not None:
        raise ValueError(f"--compare takes two folders of audits, and no model: leave out {model!r}.")
    comparison = compare_audits(*folders)
    print(format_comparison(comparison))
    if output is not None:
        write_comparison(comparison, output)
        print(f"Comparison: {output}")
