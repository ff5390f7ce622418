"""Pushing to the Hub: the student or the teacher of a run, a corpus, the metric, and a page that scores speech.

Of a run only files that are named in `ALLOWED` or `TOKENIZER_FILES` go, beside the card, results.json and recipe.yaml,
which are made here. Paths of this machine are taken out of the JSON files; then every file is searched for such paths
and for tokens, and any that is left stops the push. A commit of the Hub is there whole or not at all: until it arrives
the old revision stays, and the same push can be repeated at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore
from huggingface_hub.utils import get_session, validate_repo_id  # type: ignore[attr-defined]

from cmkd.formats import check_version
from cmkd.hub.cards import OPEN_CORPORA, TEMPLATES, model_card, space_card
from cmkd.metrics import CONCORDANCE_CC
from configuration_cmkd import hub_name

if TYPE_CHECKING:
    from cmkd.corpora.schema import Corpus

ALLOWED = (
    "audio_cmkd.py",
    "config.json",
    "configuration_cmkd.py",
    "modeling_cmkd.py",
    "pipeline_cmkd.py",
    "preprocessor_config.json",
)
"""Files of a checkpoint, beside its weights, that go to the Hub."""

TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Those of a teacher."""

MADE_HERE = ("README.md", "recipe.yaml", "results.json")

_RECIPE_HEADER = """\
# The settings of the run. To repeat it, say where your copy of the corpus is and where the run is to go:
#   python train_distill.py recipe.yaml --corpus.data_dir ... --output_dir ...
"""
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_NEEDED = ("config.json", "configuration_cmkd.py", "modeling_cmkd.py")
_SCRUBBED = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{16,}")
_ANY_TOKEN = r"\bhf_\w+"
_PATH = re.compile(r"(?<![\w./:~<-])(?:~?/(?:[\w.+@-]+/)+[\w.+@-]*|[A-Za-z]:\\[^\s\"']+)")
ATTEMPTS = 3
FIRST_PAUSE = 1.0
"""Seconds to wait after the first attempt; doubled after each."""
TIMEOUT = 100.0
"""Seconds without a byte from the Hub after which a request has failed; huggingface_hub would wait for ever."""
COMMIT_MESSAGE = "Model, card and results, by CMKD"
METRIC_FILES = ("README.md", "app.py", "concordance_cc.py", "requirements.txt")
SPACE_REQUIREMENTS = ("av>=15.1,<20", "soundfile>=0.12,<1", "soxr>=0.5,<2", "torch>=2.6,<3", "transformers>=5.17,<6")
"""What the page of a model needs beside gradio, which the Hub installs for every such Space."""


class PushError(OSError):
    """A push that did not succeed; the message says what to do."""


@dataclass(frozen=True)
class Pushed:
    """A push that is complete.

    Attributes:
        repo_id: "user/name".
        sha: of the commit.
        tag: the revision that the card pins.
        url: of the commit.
        line: of Python that loads just this commit.
    """

    repo_id: str
    sha: str
    tag: str
    url: str
    line: str

    def __str__(self) -> str:
        return f"Pushed: {self.url}\nLoad it with\n  {self.line}"


@dataclass(frozen=True)
class Staged:
    """What a push would put on the Hub, in a folder.

    Attributes:
        folder: with these files and no other.
        tag: the revision that the card pins, made from the content of all files but the card.
        left_out: the names in the checkpoint's folder that stay behind.
    """

    folder: Path
    tag: str
    left_out: list[str]

    def __str__(self) -> str:
        files = sorted(self.folder.iterdir())
        lines = [f"{path.stat().st_size:>13,}  {path.name}" for path in files]
        lines.append(f"{sum(path.stat().st_size for path in files):>13,}  bytes in {len(files)} files, tag {self.tag}")
        if self.left_out:
            lines.append(f"Stays behind: {', '.join(self.left_out)}")
        return "\n".join(lines)

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text(encoding="utf-8")


def push_run(
    run: Path,
    repo_id: str,
    *,
    is_teacher: bool = False,
    private: bool = True,
    revision: str | None = None,
    licence: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Pushes the student of a run, or its teacher, in one commit, and tags it.

    Of what is in the repository already, files that such a push may make and this one does not are removed in the same
    commit; all others stay.

    Args:
        run: the run's folder, with results.json. Of a run of several seeds the training goes whose student has the best
            mean CCC on validation, and the card says so.
        repo_id: "user/name"; it is made if it is not there.
        is_teacher: push `teacher/` in the place of `student/`.
        private: whether it is to be private if it has to be made; one that is there stays as it is. A model of a
            licensed corpus is refused where the repository is public, unless this is False.
        revision: a branch, made if it is not there; None: the main one.
        licence: the Hub's identifier for the card; None: that of the training data.
        token: None: the stored one.

    Raises:
        PushError: the Hub refuses it or cannot be reached.
        PermissionError: the corpus is licensed and the repository public.
        ValueError: as `stage_run`.
        FileNotFoundError: as `stage_run`.
    """
    token = token or check_push(repo_id)
    with tempfile.TemporaryDirectory(prefix="cmkd-push-") as folder:
        staged = stage_run(run, repo_id, Path(folder), is_teacher=is_teacher, licence=licence, token=token)
        terms = _read_json(staged.folder / "results.json")["corpus"]["terms"]
        api = HfApi(token=token)

        def send() -> tuple[str, str]:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and terms and not api.model_info(repo_id, timeout=TIMEOUT).private:
                raise PermissionError(
                    f"repo_id is {repo_id!r}, which is there already and public, but the model was trained on a "
                    f"licensed corpus: {terms} Make it private or take another name, or pass --public if your licence "
                    "lets you."
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            sha, url = _commit(api, repo_id, staged.folder, revision)
            api.create_tag(repo_id, tag=staged.tag, revision=sha, exist_ok=True)
            return sha, url

        with _explained(repo_id):
            sha, url = _repeated(send)
        line = f"AutoModel.from_pretrained({repo_id!r}, revision={sha!r}, trust_remote_code=True)"
        return Pushed(repo_id, sha, staged.tag, url, line)


def push_metric(repo_id: str, *, private: bool = True, token: str | None = None) -> Pushed:
    """Pushes the metric `concordance_cc` as a Space, in one commit.

    Args:
        repo_id: "user/concordance_cc"; it is made if it is not there. `evaluate.load` looks for the file that is called
            as the Space is.
        private: whether it is to be private if it has to be made.
        token: None: the stored one.

    Raises:
        PushError: the Hub refuses it or cannot be reached.
        ValueError: `repo_id` is no name, or not that of the metric.
    """
    token = token or check_push(repo_id)
    folder = Path(CONCORDANCE_CC)
    if repo_id.split("/")[-1] != folder.name:
        raise ValueError(
            f"repo_id is {repo_id!r}, but must end in /{folder.name}: evaluate looks for a file of this name."
        )
    files = [CommitOperationAdd(name, folder / name) for name in METRIC_FILES]
    sha, url = _send_page(HfApi(token=token), repo_id, files, private)
    return Pushed(repo_id, sha, sha, url, f"evaluate.load({repo_id!r}, revision={sha!r})")


def push_corpus(
    corpus: Corpus,
    repo_id: str,
    *,
    private: bool = True,
    public_permission: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Pushes a corpus, its sound and its card, as a data set, and tags it: see `cmkd.hub.corpus`.

    Args:
        corpus: what `load_corpus` returns.
        repo_id: "user/name"; it is made if it is not there.
        private: whether it is to be private if it has to be made; one that is there stays as it is.
        public_permission: a sentence that says why a licensed corpus may be public nevertheless.
        revision: a branch, made if it is not there; None: the main one.
        token: None: the stored one.

    Raises:
        PushError: the Hub refuses it or cannot be reached.
        PermissionError: the corpus is licensed and the data set public, and there is no `public_permission`.
        ValueError: `repo_id` is no name, or `public_permission` no sentence.
    """
    from cmkd.hub.corpus import push, tag_of  # with datasets, which nothing else here needs

    token = token or check_push(repo_id)

    def send() -> tuple[str, str]:
        info = push(corpus, repo_id, private, public_permission, token, revision)
        return info.oid, info.commit_url

    with _explained(repo_id):
        sha, url = _repeated(send)
    return Pushed(repo_id, sha, tag_of(corpus.report), url, f"load_dataset({repo_id!r}, revision={sha!r})")


def push_space(
    repo_id: str, model: str, *, revision: str | None = None, private: bool = True, token: str | None = None
) -> Pushed:
    """Pushes a page that scores uploaded or recorded speech, as a Space, in one commit.

    Args:
        repo_id: "user/name" of the Space; it is made if it is not there.
        model: "user/name" of a student that `push_run` has pushed.
        revision: of the model; None: the newest. The page is pinned to its commit.
        private: whether the Space is to be private if it has to be made.
        token: None: the stored one.

    Raises:
        PushError: the Hub refuses it or cannot be reached, or has no such model.
        ValueError: a name is none, or the model does not score speech alone.
    """
    token = token or check_push(repo_id)
    validate_repo_id(model)
    api = HfApi(token=token)

    def find() -> tuple[str, str]:
        sha = str(api.model_info(model, revision=revision, timeout=TIMEOUT).sha)
        return sha, api.hf_hub_download(model, "config.json", revision=sha)

    with _explained(model):
        pinned, path = _repeated(find)
    config = _read_json(Path(path))
    if "custom_pipelines" not in config or config.get("text_config") is not None:
        raise ValueError(
            f"model is {model!r}, which is a {config.get('model_type')}, but must be a CMKD model that scores speech "
            "alone: name a student that `cmkd push` has pushed."
        )
    content = {
        "README.md": space_card(model, pinned).encode(),
        "app.py": (TEMPLATES / "space_app.py").read_bytes(),
        "model.json": json.dumps({"model": model, "revision": pinned}).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in SPACE_REQUIREMENTS).encode(),
    }
    files = [CommitOperationAdd(name, data) for name, data in content.items()]
    sha, url = _send_page(api, repo_id, files, private)
    return Pushed(repo_id, sha, sha, url, f"pipeline(model={model!r}, revision={pinned!r}, trust_remote_code=True)")


def _send_page(api: HfApi, repo_id: str, files: list[CommitOperationAdd], private: bool) -> tuple[str, str]:
    """Puts files into a Gradio Space, which is made if it is not there; returns the commit and its address."""

    def send() -> tuple[str, str]:
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        info = api.create_commit(repo_id, files, repo_type="space", commit_message=COMMIT_MESSAGE)
        return info.oid, info.commit_url

    with _explained(repo_id):
        return _repeated(send)


def check_push(repo_id: str) -> str:
    """The stored token, once what can be checked without the network is right: before a long training, say.

    Raises:
        ValueError: `repo_id` is no name of a repository.
        PushError: there is no token.
    """
    validate_repo_id(repo_id)
    token = get_token()
    if token is None:
        raise PushError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN. Nothing was pushed.")
    return token


def stage_run(
    run: Path,
    repo_id: str,
    folder: Path,
    *,
    is_teacher: bool = False,
    licence: str | None = None,
    token: str | None = None,
) -> Staged:
    """Puts what a push would send into a folder; does not use the network.

    Args:
        run: the run's folder.
        repo_id: "user/name", for the card.
        folder: where to; empty.
        is_teacher: the teacher in the place of the student.
        licence: the Hub's identifier for the card; None: that of the training data.
        token: is searched for in every file; None: only what looks like one.

    Raises:
        FileNotFoundError: the run, the checkpoint or one of its files is not there.
        ValueError: `repo_id` is no name; a file holds a token or a path of this machine; the card cannot be made.
    """
    validate_repo_id(repo_id)
    if not (run / "results.json").is_file():
        raise FileNotFoundError(f"no file {run / 'results.json'}: {run} is not the folder of a complete run.")
    run, of_seeds = _chosen_training(run)
    checkpoint = run / ("teacher" if is_teacher else "student")
    wanted = ALLOWED + (TOKENIZER_FILES if is_teacher else ())
    names = sorted(path.name for path in checkpoint.iterdir()) if checkpoint.is_dir() else []
    going = [name for name in names if name in wanted or _WEIGHTS.fullmatch(name)]
    missing = [name for name in _NEEDED if name not in going]
    if missing or not any(name.endswith(".safetensors") for name in going):
        lacking = ", ".join(missing or ["model.safetensors"])
        raise FileNotFoundError(f"{checkpoint} lacks {lacking}: run the stages that make it, with train_distill.py.")

    results = _read_json(run / "results.json")
    check_version(run / "results.json", results)
    encoders = _encoder_names(results)
    for name in going:
        if name in _SCRUBBED:
            _write_json(folder / name, without_paths(_read_json(checkpoint / name), encoders))
        else:
            shutil.copyfile(checkpoint / name, folder / name)
    results = published_results(results) | of_seeds
    _write_json(folder / "results.json", results)
    recipe = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(_RECIPE_HEADER + recipe, encoding="utf-8")
    tag = f"cmkd-{_digest(folder)}"
    config = _read_json(folder / "config.json")
    card = model_card(results, config, going, repo_id, tag, is_teacher, licence)
    ModelCard(str(card)).save(folder / "README.md")
    _check_private(folder, run, _read_json(run / "results.json"), token)
    return Staged(folder, tag, [name for name in names if name not in going])


def _chosen_training(run: Path) -> tuple[Path, dict[str, Any]]:
    """The run itself; of a run of several seeds the training whose student is best on validation, and its `seeds`.

    Raises:
        FileNotFoundError: it has no student, or its training is not there.
    """
    results = _read_json(run / "results.json")
    if "seeds" not in results:
        return run, {}
    if "student" not in results:
        raise FileNotFoundError(f"{run} has no student to choose a seed by: push one of its folders, such as seed_0.")
    chosen = run / f"seed_{results['student']['seed']}"
    if not (chosen / "results.json").is_file():
        raise FileNotFoundError(f"no file {chosen / 'results.json'}: {chosen} is not the folder of a complete run.")
    scores = {
        stage: {"ccc": splits["test"]["ccc"], "std": splits["test"]["std"]}
        for stage, splits in results["systems"].items()
    }
    return chosen, {"seeds": {"each": results["seeds"], "reason": results["student"]["reason"], "test": scores}}


def published_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """What of results.json may be seen by others.

    The corpus's folder is left out, and so are its notes, which speak of the local copy and name its rows, except those
    of corpora that CMKD makes itself. Of every other path of this machine the last part stays, of an encoder's its name
    on the Hub.

    Raises:
        ValueError: a field is missing.
    """
    missing = [field for field in ("corpus", "recipe", "systems", "cost") if field not in results]
    if missing:
        raise ValueError(f"results.json lacks {', '.join(missing)}: run train_distill.py again.")
    content = dict(results)
    if content["corpus"]["name"] not in OPEN_CORPORA:
        content["corpus"] = content["corpus"] | {"notes": []}
    corpus = {key: value for key, value in content["recipe"]["corpus"].items() if key != "data_dir"}
    content["recipe"] = content["recipe"] | {"corpus": corpus}
    return without_paths(content, _encoder_names(results))


def without_paths(content: Any, encoders: tuple[str, ...] = ()) -> Any:
    """JSON content in which of every absolute path in a string only the last part is left.

    Args:
        content: what json.load returns.
        encoders: Hub names; a path, absolute or not, that ends in one becomes it.

    >>> without_paths({"transcripts": "/home/me/words.parquet", "_name_or_path": "models/facebook/hubert-base-ls960"},
    ...               ("facebook/hubert-base-ls960",))
    {'transcripts': 'words.parquet', '_name_or_path': 'facebook/hubert-base-ls960'}
    """
    if isinstance(content, dict):
        return {
            key: _name(value, encoders) if key in ("_name_or_path", "name_or_path") else without_paths(value, encoders)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [without_paths(value, encoders) for value in content]
    if not isinstance(content, str):
        return content
    for name in encoders:
        if content.replace("\\", "/").endswith(f"/{name}"):
            return name
    return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], content)


def _name(name_or_path: str, encoders: tuple[str, ...]) -> str:
    """The known encoder in whose folder a path ends, else as a checkpoint has it: a name on the Hub, or nothing."""
    place = name_or_path.replace("\\", "/")
    return next((name for name in encoders if place.endswith(f"/{name}")), hub_name(name_or_path))


def _encoder_names(results: Mapping[str, Any]) -> tuple[str, ...]:
    fields = ("student_speech_encoder", "teacher_speech_encoder", "text_encoder")
    names = [str(results["recipe"].get(field, "")) for field in fields] if "recipe" in results else []
    return tuple(name for name in names if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name))


def _check_private(folder: Path, run: Path, results: Mapping[str, Any], token: str | None) -> None:
    """Raises ValueError if a file holds a token, a folder of this machine, or, as JSON or text, any absolute path."""
    data_dir = results["recipe"]["corpus"].get("data_dir")
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), run.resolve(), run.resolve().parent]
    places += [Path(data_dir).resolve()] if data_dir else []
    roots = {f"{place}/" for place in places if len(place.parts) > 1}
    for path in sorted(folder.iterdir()):
        content = _header(path) if path.suffix == ".safetensors" else path.read_bytes()
        if _TOKEN.search(content) or (token is not None and token.encode() in content):
            raise ValueError(
                f"{path.name} holds a token of the Hub: take it out (it is not shown here), and revoke it."
            )
        if path.name in TOKENIZER_FILES and path.name not in _SCRUBBED:
            continue  # words of a language, any of which may look like a path
        text = content.decode("utf-8", errors="replace")
        found = next((root for root in roots if root in text), None)
        if found is None and path.suffix in (".json", ".yaml"):
            found = (match := _PATH.search(text)) and match[0]
        if found:
            raise ValueError(f"{path.name} holds a path of this machine, {found!r}: take it out before you push.")


def _header(path: Path) -> bytes:
    """Names, shapes and notes at the start of a safetensors file; the numbers after them are not read."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:12]


def _commit(api: HfApi, repo_id: str, folder: Path, revision: str | None) -> tuple[str, str]:
    """Commits all files, and removes those that only another push would make; the SHA and address of the commit."""
    ours = sorted(path.name for path in folder.iterdir())
    known = {*ALLOWED, *TOKENIZER_FILES, *MADE_HERE}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, folder / name) for name in ours
    ]
    there = api.model_info(repo_id, revision=revision, timeout=TIMEOUT).siblings or []
    for name in (file.rfilename for file in there):
        if name not in ours and (name in known or _WEIGHTS.fullmatch(name)):
            operations.append(CommitOperationDelete(name))
    info = api.create_commit(repo_id, operations, commit_message=COMMIT_MESSAGE, revision=revision)
    return info.oid, info.commit_url


def _repeated(send: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """Calls `send` again where the trouble may pass; each of its steps does nothing if it was done before.

    huggingface_hub by itself repeats the upload of large files five times, but neither the commit nor what makes the
    repository. If a commit did arrive and only the answer was lost, the next attempt finds nothing left to commit.
    """
    pause = FIRST_PAUSE
    for _ in range(ATTEMPTS - 1):
        try:
            with _time_limit():
                return send()
        except (HTTPError, RuntimeError) as error:
            if not _may_pass(_http_cause(error)):
                raise
        time.sleep(pause)
        pause *= 2
    with _time_limit():
        return send()


@contextmanager
def _time_limit() -> Iterator[None]:
    client = get_session()
    before, client.timeout = client.timeout, TIMEOUT
    try:
        yield
    finally:
        client.timeout = before


def _http_cause(error: BaseException) -> BaseException:
    """The error of the connection that huggingface_hub has wrapped into another one, else the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    return cause or error


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, or one of the server's own troubles."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, HTTPError)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turns what goes wrong on the way to the Hub into a `PushError` that says what to do."""
    try:
        yield
    except (OfflineModeIsEnabled, HTTPError, RuntimeError) as error:
        cause = _http_cause(error)
        if isinstance(cause, RuntimeError):
            raise
        raise PushError(
            f"{_explanation(cause, repo_id)} {repo_id} holds what it held before, or all of this push; the same "
            "command can be repeated."
        ) from error


def _explanation(error: BaseException, repo_id: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to push."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated, and this token has no access: ask for it on the page of the repository."
    if not isinstance(error, HfHubHTTPError):
        return f"the Hub does not answer ({type(error).__name__}), several attempts included."
    status = error.response.status_code
    said = f" It says: {re.sub(_ANY_TOKEN, '(token)', error.server_message)}." if error.server_message else ""
    if status == 401:
        return f"the Hub does not accept the token (401): run `hf auth login`, or set HF_TOKEN to a valid one.{said}"
    if status == 403:
        return (
            f"the token may not write to {repo_id} (403): take a token with the right to write, of a user who may "
            f"write there.{said}"
        )
    if status == 404:
        return f"the Hub does not know {repo_id}, or does not show it to this token (404): check name and token.{said}"
    if status >= 500 or status == 429:
        return f"the Hub cannot serve the request now ({status}), several attempts included.{said}"
    return f"the Hub refuses the request ({status}).{said}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): repeat the stage that writes it.") from error


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
