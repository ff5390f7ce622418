"""Pushes a corpus to the Hub: for private use by default, with a card, and publicly only where that is allowed.

The audio is sent as bytes, under the names of the files without their folders, so that `load_dataset` gives the same
rows on any machine. If a row is a stretch or a channel of a file, only that is sent, with the same samples: nobody gets
to hear the hour around it. The card has the text of `CorpusReport.__str__` without the notes, which may describe the
local copy, and the sentence that permits a licensed corpus to be public. It is sent first, so that a data set is never
there without its terms; a tag made from the rows and their sound is set last.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from audio_cmkd import name_and_content, open_sound
from cmkd.corpora.schema import stored_features
from cmkd.hub.cards import dataset_card_text

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from cmkd.corpora.report import CorpusReport
    from cmkd.corpora.schema import Corpus

WORDS_OF_A_SENTENCE = 4
_STRETCH = ("start", "end", "channel")
_FLAC_CHANNELS = 8  # at most


def push(
    corpus: Corpus,
    repo_id: str,
    private: bool,
    public_permission: str | None,
    token: str | None,
    revision: str | None,
    **settings: Any,
) -> CommitInfo:
    """Pushes card, data and tag; a step that was done before does nothing, so that a push can be repeated.

    Args:
        corpus (`Corpus`): The corpus with its report.
        repo_id (`str`): "user/name".
        private (`bool`): Whether the data set is made private if it does not exist.
        public_permission (`str` or None): A sentence that says why a licensed corpus may be public.
        token (`str` or None): The user's token; None for the one that is stored.
        revision (`str` or None): A branch, which is made if it does not exist; None for the main one.
        settings: Further arguments of `DatasetDict.push_to_hub`.

    Returns:
        `CommitInfo`: The commit that has the data.

    Raises:
        PermissionError: As `check_permission`.
        ValueError: As `check_permission`.
    """
    tag = tag_of(corpus.report)
    check_permission(corpus.report, repo_id, private, public_permission, token)
    push_card(corpus.report, repo_id, private, public_permission, token, revision, tag)
    cut = DatasetDict({split: _cut_out(rows) for split, rows in corpus.items()})
    commit = cut.push_to_hub(repo_id, private=private, token=token, revision=revision, **settings)
    HfApi(token=token).create_tag(repo_id, tag=tag, revision=commit.oid, repo_type="dataset", exist_ok=True)
    return commit


def tag_of(report: CorpusReport) -> str:
    """The tag of a corpus on the Hub, the same for the same rows and sound.

    A corpus that CMKD speaks has no digest of its sound; its release is named after what it is spoken from.
    """
    return f"cmkd-{report.digest or report.version.replace('+', '-')}"


def preview(corpus: Corpus, repo_id: str, private: bool, public_permission: str | None) -> str:
    """Text that shows what `push` would send, and the card; does not use the network.

    Raises:
        PermissionError: A licensed corpus would be public and there is no `public_permission`.
        ValueError: `repo_id` is not a valid name, or `public_permission` is not a sentence.
    """
    validate_repo_id(repo_id)
    check_terms(corpus.report, private, public_permission)
    sizes = {split: sum(map(_bytes_of, _cut_out(rows).with_format(None)["audio"])) for split, rows in corpus.items()}
    lines = [f"{size:>15,}  bytes of sound, {len(corpus[split]):,} rows of {split}" for split, size in sizes.items()]
    columns: Iterable[str] = next(iter(corpus.values())).column_names
    lines.append(f"Columns: {', '.join(columns)}")
    lines.append(
        f"To a {'private' if private else 'public'} data set, if it has to be made; tag {tag_of(corpus.report)}"
    )
    return "\n".join([*lines, "", str(corpus_card(corpus.report, public_permission, repo_id, tag_of(corpus.report)))])


def _cut_out(rows: Dataset) -> Dataset:
    """The rows with the sound of their stretches and channels as content, instead of the whole files."""
    columns = [column for column in _STRETCH if column in rows.column_names]
    if all(value is None for column in columns for value in rows[column]):
        return rows
    stored = rows.cast(stored_features(rows.features))  # which datasets can write without torchcodec
    cut = stored.map(_with_own_sound, features=stored.features, desc="cutting out")
    return cut.cast(rows.features)


def _with_own_sound(row: dict[str, Any]) -> dict[str, Any]:
    if all(row[column] is None for column in _STRETCH):
        return row
    with open_sound(*name_and_content(row["audio"])) as sound:
        frames = np.concatenate(list(sound.blocks(row["start"], row["end"], row["channel"])))
        name, content = f"{row['id']}.flac", io.BytesIO()
        for bits in (16, 24):
            scaled = frames.astype(np.float64) * 2 ** (bits - 1)
            is_exact = np.array_equal(scaled, np.round(scaled)) and -1 <= frames.min() <= frames.max() < 1
            if is_exact and frames.shape[1] <= _FLAC_CHANNELS:
                soundfile.write(content, frames, sound.rate, format="FLAC", subtype=f"PCM_{bits}")
                break
        else:
            name = f"{row['id']}.wav"
            soundfile.write(content, frames, sound.rate, format="WAV", subtype="FLOAT")
    audio = {"bytes": content.getvalue(), "path": name.replace("/", "_")}
    return row | {"audio": audio} | dict.fromkeys(_STRETCH)


def _bytes_of(audio: dict[str, Any]) -> int:
    return Path(audio["path"]).stat().st_size if audio["bytes"] is None else len(audio["bytes"])


def check_terms(report: CorpusReport, private: bool, public_permission: str | None) -> None:
    """Refuses to make a licensed corpus public, without asking the Hub; for the arguments see `check_permission`."""
    if public_permission is not None and len(public_permission.split()) < WORDS_OF_A_SENTENCE:
        raise ValueError(
            f"public_permission is {public_permission!r}, but must be a sentence that says why this corpus may be "
            "public, for example 'The owners agreed in a letter of 3 May 2026.'"
        )
    if report.terms and public_permission is None and not private:
        raise PermissionError(
            f"private is False, but {report.name!r} is licensed: {report.terms} Leave it private, or pass "
            "public_permission with a sentence that says why you may; the card of the data set will carry it."
        )


def check_permission(
    report: CorpusReport, repo_id: str, private: bool, public_permission: str | None, token: str | None
) -> None:
    """Refuses what would make a licensed corpus public.

    Args:
        report (`CorpusReport`): The report of the corpus, whose `terms` are not empty if it is licensed.
        repo_id (`str`): Where the corpus is to go. If the data set exists, what counts is whether it is private.
        private (`bool`): Whether the data set is made private if it does not exist.
        public_permission (`str` or None): A sentence that says why it may be public in spite of its terms.
        token (`str` or None): The user's token; None for the one that is stored.

    Raises:
        PermissionError: A licensed corpus would be public and there is no `public_permission`.
        ValueError: `public_permission` is not a sentence.
    """
    check_terms(report, private, public_permission)
    if not report.terms or public_permission is not None:
        return
    try:
        existing = HfApi(token=token).dataset_info(repo_id)
    except RepositoryNotFoundError:
        return
    if not existing.private:
        raise PermissionError(
            f"repo_id is {repo_id!r}, which exists and is public, but {report.name!r} is licensed: "
            f"{report.terms} Make it private or choose another name, or pass public_permission with a sentence that "
            "says why you may."
        )


def push_card(
    report: CorpusReport,
    repo_id: str,
    private: bool,
    public_permission: str | None,
    token: str | None,
    revision: str | None,
    tag: str = "main",
) -> None:
    """Makes the data set if necessary and writes its card, to which `push_to_hub` then adds the columns and sizes."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    card = corpus_card(report, public_permission, repo_id, tag)
    try:
        existing = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision)
    except EntryNotFoundError:
        pass
    else:  # keep what it says about other configurations
        card.data = DatasetCardData(**(DatasetCard.load(existing).data.to_dict() | card.data.to_dict()))
    api.upload_file(  # `card.push_to_hub` of huggingface_hub 2.1 and before asks huggingface.co, wherever the Hub is
        path_or_fileobj=str(card).encode(),
        path_in_repo="README.md",
        repo_id=repo_id,
        repo_type="dataset",
        revision=revision,
        commit_message="Card of the corpus",
    )


def corpus_card(report: CorpusReport, public_permission: str | None, repo_id: str, tag: str = "main") -> DatasetCard:
    """The card of a data set.

    Args:
        report (`CorpusReport`): The report of the corpus.
        public_permission (`str` or None): The sentence that permits a licensed corpus to be public.
        repo_id (`str`): Where the corpus goes, for the code that the card shows.
        tag (`str`, *optional*, defaults to `"main"`): The revision that this code pins.
    """
    plain_report = str(replace(report, notes=[], warnings=[]))
    return DatasetCard(dataset_card_text(report, plain_report, public_permission, repo_id, tag))
