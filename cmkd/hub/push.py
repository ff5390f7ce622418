"""Pushes to the Hub: the student or the teacher of a run, a corpus, the metric, and a page that scores speech.

`cmkd.hub.staging` and `cmkd.hub.corpus` decide what is sent, and `cmkd.hub.attempts` how often it is tried. A commit of
the Hub appears whole or not at all: until it arrives the old revision stays, and the same push can be repeated at any
time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from cmkd.hub import attempts
from cmkd.hub.attempts import PushError, explained, repeated
from cmkd.hub.cards import space_card
from cmkd.hub.staging import ALLOWED, MADE_HERE, TOKENIZER_FILES, WEIGHTS, stage_run
from cmkd.json_files import read_json
from cmkd.metrics import CONCORDANCE_CC

if TYPE_CHECKING:
    from cmkd.corpora.schema import Corpus

COMMIT_MESSAGE = "Model, card and results, by CMKD"
METRIC_FILES = ("README.md", "app.py", "concordance_cc.py", "requirements.txt")
HUB_STORAGE = ("https://huggingface.co", "https://*.huggingface.co", "https://*.hf.co")
"""Where the Hub may keep the large files of a static Space."""

OLD_SPACE_FILES = ("app.py", "model.json", "requirements.txt")
"""Of the page on a server of its own that earlier versions pushed."""


@dataclass(frozen=True)
class Pushed:
    """A push that is complete.

    Attributes:
        repo_id: "user/name".
        sha: the SHA of the commit.
        tag: the revision that the card pins.
        url: the address of the commit.
        line: a line of Python that loads exactly this commit.
    """

    repo_id: str
    sha: str
    tag: str
    url: str
    line: str

    def __str__(self) -> str:
        return f"Pushed: {self.url}\nLoad it with\n  {self.line}"


def push_run(
    run: Path,
    repo_id: str,
    *,
    is_teacher: bool = False,
    private: bool = True,
    revision: str | None = None,
    licence: str | None = None,
    half: bool = False,
    audit: Path | None = None,
    notice: Path | None = None,
    token: str | None = None,
) -> Pushed:
    """Pushes the student of a run, or its teacher, in one commit, and tags it.

    Files of an earlier push that this one does not have are removed from the repository in the same commit; all other
    files stay.

    Args:
        run: the run's folder, with results.json. Of a run of several seeds, the training is pushed whose student has
            the best mean CCC on validation, and the card says so.
        repo_id: "user/name"; the repository is made if it does not exist.
        is_teacher: push `teacher/` instead of `student/`.
        private: whether the repository is made private if it does not exist; an existing one stays as it is. A model
            trained on a licensed corpus is refused if the repository is public, unless this is False.
        revision: a branch, which is made if it does not exist; None is the main one.
        licence: the Hub's identifier of the licence on the card; None is that of the training data.
        half: whether the weights are rounded to fp16, which halves the files.
        audit: the folder of an audit of these very weights, whose section goes into the card; None: there is none.
        notice: a text with the notices that licences of the data ask for, which goes along as `NOTICE`; None: there is
            none, and one that is in the repository stays.
        token: the user's token; None is the stored one.

    Raises:
        PushError: the Hub refuses the push or cannot be reached.
        PermissionError: the corpus is licensed and the repository public.
        ValueError: as `stage_run`.
        FileNotFoundError: as `stage_run`.
    """
    token = token or check_push(repo_id)
    with tempfile.TemporaryDirectory(prefix="cmkd-push-") as folder:
        options: dict[str, Any] = {"licence": licence, "half": half, "audit": audit, "notice": notice}
        staged = stage_run(run, repo_id, Path(folder), is_teacher=is_teacher, token=token, **options)
        terms = staged.terms
        api = HfApi(token=token)

        def send() -> tuple[str, str]:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and terms and not api.model_info(repo_id, timeout=attempts.TIMEOUT).private:
                raise PermissionError(
                    f"repo_id is {repo_id!r}, which exists and is public, but the model was trained on a licensed "
                    f"corpus: {terms} Make it private or choose another name, or pass --public if your licence allows "
                    "it."
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            sha, url = _commit(api, repo_id, staged.folder, revision)
            api.create_tag(repo_id, tag=staged.tag, revision=sha, exist_ok=True)
            return sha, url

        with explained(repo_id):
            sha, url = repeated(send)
        line = f"AutoModel.from_pretrained({repo_id!r}, revision={sha!r}, trust_remote_code=True)"
        return Pushed(repo_id, sha, staged.tag, url, line)


def push_metric(repo_id: str, *, private: bool = True, token: str | None = None) -> Pushed:
    """Pushes the metric `concordance_cc` as a Space, in one commit.

    Args:
        repo_id: "user/concordance_cc"; the Space is made if it does not exist. `evaluate.load` looks for the file that
            has the name of the Space.
        private: whether the Space is made private if it does not exist.
        token: the user's token; None is the stored one.

    Raises:
        PushError: the Hub refuses the push or cannot be reached.
        ValueError: `repo_id` is not a valid name, or not that of the metric.
    """
    token = token or check_push(repo_id)
    folder = Path(CONCORDANCE_CC)
    if repo_id.split("/")[-1] != folder.name:
        raise ValueError(
            f"repo_id is {repo_id!r}, but must end in /{folder.name}: evaluate looks for a file of this name."
        )
    files = [CommitOperationAdd(name, folder / name) for name in METRIC_FILES]
    sha, url = _send_page(HfApi(token=token), repo_id, files, private, sdk="gradio")
    return Pushed(repo_id, sha, sha, url, f"evaluate.load({repo_id!r}, revision={sha!r})")


def push_corpus(
    corpus: Corpus,
    repo_id: str,
    *,
    private: bool = True,
    public_permission: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    config_name: str = "default",
    commit_message: str | None = None,
    max_shard_size: int | str | None = None,
    num_proc: int | None = None,
) -> Pushed:
    """Pushes a corpus, its sound and its card, as a data set, and tags it: see `cmkd.hub.corpus`.

    Args:
        corpus: what `load_corpus` returns.
        repo_id: "user/name"; the data set is made if it does not exist.
        private: whether the data set is made private if it does not exist; an existing one stays as it is.
        public_permission: a sentence that says why a licensed corpus may nevertheless be public. It is shown on the
            card.
        revision: a branch, which is made if it does not exist; None is the main one.
        token: the user's token; None is the stored one.
        config_name: a name that tells several corpora in one data set apart.
        commit_message: the message of the commit with the data.
        max_shard_size: the largest size of a file on the Hub, and of what is in memory at a time; None is 500 MB.
        num_proc: the number of processes that prepare the files.

    Raises:
        PushError: the Hub refuses the push or cannot be reached.
        PermissionError: the corpus is licensed and the data set public, and there is no `public_permission`.
        ValueError: `repo_id` is not a valid name, or `public_permission` is not a sentence.
    """
    from cmkd.hub.corpus import push, tag_of  # with datasets, which nothing else here needs

    token = token or check_push(repo_id)

    def send() -> tuple[str, str]:
        info = push(
            corpus,
            repo_id,
            private,
            public_permission,
            token,
            revision,
            config_name=config_name,
            commit_message=commit_message,
            max_shard_size=max_shard_size,
            num_proc=num_proc,
        )
        return info.oid, info.commit_url

    with explained(repo_id):
        sha, url = repeated(send)
    return Pushed(repo_id, sha, tag_of(corpus.report), url, f"load_dataset({repo_id!r}, revision={sha!r})")


def push_space(
    repo_id: str,
    model: str,
    write_page: Callable[[str, str, Path], str | None],
    *,
    revision: str | None = None,
    private: bool = True,
    token: str | None = None,
) -> Pushed:
    """Pushes a page that scores uploaded or recorded speech in the browser, as a static Space, in one commit.

    Args:
        repo_id: "user/name" of the Space, which is made if it does not exist.
        model: "user/name" of a student that `push_run` has pushed.
        write_page: takes the model, its commit and a folder, writes the page there with the model in it, and returns
            the licence of the model as its card has it.
        revision: the revision of the model; None is the newest. The page has the model of this commit.
        private: whether the Space is made private if it does not exist; an existing one stays as it is. The page of a
            private model is refused if the Space is public, unless this is False.
        token: the user's token; None is the stored one.

    Raises:
        PushError: the Hub refuses the push or cannot be reached, or has no such model.
        PermissionError: the model is private and the Space public.
        ValueError: a name is not valid, or the model does not score speech alone.
    """
    token = token or check_push(repo_id)
    validate_repo_id(model)
    api = HfApi(token=token)

    def find() -> tuple[str, bool, str]:
        info = api.model_info(model, revision=revision, timeout=attempts.TIMEOUT)
        return str(info.sha), bool(info.private), api.hf_hub_download(model, "config.json", revision=info.sha)

    with explained(model):
        pinned, is_private, path = repeated(find)
    config = read_json(Path(path), f"push {model} again.")
    if "custom_pipelines" not in config or config.get("text_config") is not None:
        raise ValueError(
            f"model is {model!r}, which is a {config.get('model_type')}, but must be a CMKD model that scores speech "
            "alone: name a student that `cmkd push` has pushed."
        )
    with tempfile.TemporaryDirectory(prefix="cmkd-space-") as name:
        folder = Path(name)
        licence = write_page(model, pinned, folder)
        files = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        files.append(CommitOperationAdd("README.md", space_card(model, pinned, licence).encode()))
        sha, url = _send_page(api, repo_id, files, private, sdk="static", keeps_private=private and is_private)
    return Pushed(repo_id, sha, sha, url, f"pipeline(model={model!r}, revision={pinned!r}, trust_remote_code=True)")


def _send_page(
    api: HfApi, repo_id: str, files: list[CommitOperationAdd], private: bool, sdk: str, keeps_private: bool = False
) -> tuple[str, str]:
    """Puts files into a Space, which is made if it does not exist; returns the commit and its address.

    What a page on a server had is removed from a static Space. With `keeps_private` a public Space is refused.
    """

    def send() -> tuple[str, str]:
        api.create_repo(repo_id, repo_type="space", space_sdk=sdk, private=private, exist_ok=True)
        there = api.space_info(repo_id, timeout=attempts.TIMEOUT)
        if keeps_private and not there.private:
            raise PermissionError(
                f"repo_id is {repo_id!r}, which exists and is public, but the model is private, and its weights are in "
                "the page. Make the Space private or choose another name, or pass --public if everybody may have them."
            )
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*files]
        if sdk == "static":
            names = {file.rfilename for file in there.siblings or []}
            operations += [CommitOperationDelete(name) for name in OLD_SPACE_FILES if name in names]
        info = api.create_commit(repo_id, operations, repo_type="space", commit_message=COMMIT_MESSAGE)
        return info.oid, info.commit_url

    with explained(repo_id):
        return repeated(send)


def check_push(repo_id: str) -> str:
    """Checks what can be checked without the network, for example before a long training; returns the stored token.

    Raises:
        ValueError: `repo_id` is not a valid name of a repository.
        PushError: there is no token.
    """
    validate_repo_id(repo_id)
    token = get_token()
    if token is None:
        raise PushError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN. Nothing was pushed.")
    return token


def _commit(api: HfApi, repo_id: str, folder: Path, revision: str | None) -> tuple[str, str]:
    """Commits all files and removes those that only another push makes; returns the commit's SHA and address."""
    ours = sorted(path.name for path in folder.iterdir())
    known = {*ALLOWED, *TOKENIZER_FILES, *MADE_HERE}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, folder / name) for name in ours
    ]
    there = api.model_info(repo_id, revision=revision, timeout=attempts.TIMEOUT).siblings or []
    for name in (file.rfilename for file in there):
        if name not in ours and (name in known or WEIGHTS.fullmatch(name)):
            operations.append(CommitOperationDelete(name))
    info = api.create_commit(repo_id, operations, commit_message=COMMIT_MESSAGE, revision=revision)
    return info.oid, info.commit_url
