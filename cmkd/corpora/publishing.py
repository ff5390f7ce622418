"""Pushing a corpus to the Hub: for private use by default, with a card, and in public only where that is allowed.

The audio goes along as bytes, under the names of the files without their folders, so that `load_dataset` of what was
pushed gives the same rows on any machine. The card says what `CorpusReport.__str__` says, but for the notes, which may
speak of the local copy, and carries the sentence by which a licensed corpus was made public.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from cmkd.cards import dataset_card_text

if TYPE_CHECKING:
    from cmkd.corpora.checks import CorpusReport

WORDS_OF_A_SENTENCE = 4


def check_permission(
    report: CorpusReport, repo_id: str, private: bool, public_permission: str | None, token: str | None
) -> None:
    """Refuses what would make a licensed corpus public.

    Args:
        report (`CorpusReport`): Whose `terms` tell a licensed corpus.
        repo_id (`str`): Where the corpus is to go. If it is there already, what counts is whether it is private.
        private (`bool`): Whether it is to be private if it has to be made.
        public_permission (`str` or None): Why it may be public in spite of its terms.
        token (`str` or None): Of the user; None for the one that is stored.

    Raises:
        PermissionError: A licensed corpus would be public and there is no `public_permission`.
        ValueError: `public_permission` is no sentence.
    """
    if public_permission is not None and len(public_permission.split()) < WORDS_OF_A_SENTENCE:
        raise ValueError(
            f"public_permission is {public_permission!r}, but must be a sentence that says why this corpus may be "
            "public, for example 'The owners agreed in a letter of 3 May 2026.'"
        )
    if not report.terms or public_permission is not None:
        return
    if not private:
        raise PermissionError(
            f"private is False, but {report.name!r} is licensed: {report.terms} Leave private out, or pass "
            "public_permission= with a sentence that says why you may; the card of the data set will carry it."
        )
    try:
        existing = HfApi(token=token).dataset_info(repo_id)
    except RepositoryNotFoundError:
        return
    if not existing.private:
        raise PermissionError(
            f"repo_id is {repo_id!r}, which is there already and public, but {report.name!r} is licensed: "
            f"{report.terms} Make it private or take another name, or pass public_permission= with a sentence that "
            "says why you may."
        )


def push_card(
    report: CorpusReport,
    repo_id: str,
    private: bool,
    public_permission: str | None,
    token: str | None,
    revision: str | None,
) -> None:
    """Makes the data set unless it is there, and writes its card, to which `push_to_hub` adds the columns and sizes.

    Goes before the data, so that a data set never stands there without its terms.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    card = corpus_card(report, public_permission, repo_id)
    try:
        existing = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=revision)
    except EntryNotFoundError:
        pass
    else:  # keep what it says about other configurations
        card.data = DatasetCardData(**(DatasetCard.load(existing).data.to_dict() | card.data.to_dict()))
    card.push_to_hub(repo_id, token=token, revision=revision, commit_message="Card of the corpus")


def corpus_card(report: CorpusReport, public_permission: str | None, repo_id: str) -> DatasetCard:
    """The card of a data set.

    Args:
        report (`CorpusReport`): Of the corpus.
        public_permission (`str` or None): The sentence by which a licensed corpus is public.
        repo_id (`str`): Where it goes, for the code that the card shows.
    """
    plain_report = str(replace(report, notes=[], warnings=[]))
    return DatasetCard(dataset_card_text(report, plain_report, public_permission, repo_id))
