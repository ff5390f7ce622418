"""Collects what goes to the Hub in a folder: the files of a run that are named here, without what is private.

Only files named in `ALLOWED` or `TOKENIZER_FILES` go, and besides them the card, results.json and recipe.yaml, which
are made here. Paths of this machine are removed from the JSON files; then every file is searched for such paths and for
tokens, and any that is left stops the push. Nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_relative_imports

from cmkd.corpora.settings import SOURCES
from cmkd.formats import check_version
from cmkd.hub.cards import NOTICE, OPEN_CORPORA, model_card
from cmkd.identity import folder_digest
from cmkd.json_files import read_json, write_json
from cmkd.stages import EARS, ENCODERS
from configuration_cmkd import hub_name

ALLOWED = (
    "audio_cmkd.py",
    "config.json",
    "configuration_cmkd.py",
    "modeling_cmkd.py",
    "pipeline_cmkd.py",
    "windows_cmkd.py",
    "preprocessor_config.json",
    "speech_encoder_cmkd.py",
)
"""The files of a checkpoint that go to the Hub besides its weights."""

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
"""The files of a teacher's tokenizer that go to the Hub."""

MADE_HERE = ("README.md", "recipe.yaml", "results.json")

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")

_RECIPE_HEADER = """\
# The settings of the run. To repeat it, say where your copies of corpora and files are, and where the run is to go:
#   cmkd train recipe.yaml {places} --output_dir ...
"""
_AUDIT_BEFORE = "## Compute\n"
_NEEDED = ("config.json", "configuration_cmkd.py", "modeling_cmkd.py")
_SCRUBBED = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{16,}")
_PATH = re.compile(r"(?<![\w./:~<-])(?:~?/(?:[\w.+@-]+/)+[\w.+@-]*|[A-Za-z]:\\[^\s\"']+)")


@dataclass(frozen=True)
class Staged:
    """What a push would put on the Hub, in a folder.

    Attributes:
        folder: the folder, which holds these files and no others.
        tag: the revision that the card pins, made from the content of all files but the card.
        left_out: the names in the checkpoint's folder that stay behind.
        terms: the terms of the corpus that the model was trained on, "" if it may be passed on.
    """

    folder: Path
    tag: str
    left_out: list[str]
    terms: str

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


def stage_run(
    run: Path,
    repo_id: str,
    folder: Path,
    *,
    is_teacher: bool = False,
    licence: str | None = None,
    half: bool = False,
    audit: Path | None = None,
    notice: Path | None = None,
    token: str | None = None,
) -> Staged:
    """Puts what a push would send into a folder; does not use the network.

    Args:
        run: the run's folder.
        repo_id: "user/name", for the card.
        folder: an empty folder to put it into.
        is_teacher: take the teacher instead of the student.
        licence: the Hub's identifier of the licence on the card; None is that of the training data.
        half: whether the weights are rounded to fp16, which halves the files; config.json keeps the number format that
            they are loaded in.
        audit: the folder of an audit of these very weights, whose section goes into the card; None: there is none.
        notice: a text with the notices that licences of the data ask for, which goes along as `NOTICE`, and the card
            points there; None: there is none, and one that is in the repository stays.
        token: a token to search for in every file; None searches only for what looks like one.

    Raises:
        FileNotFoundError: the run, the checkpoint or one of its files does not exist, or there is no such notice.
        ValueError: `repo_id` is not a valid name; a file holds a token or a path of this machine; a weight is beyond
            the range of fp16; the audit is of another model; or the card cannot be made.
    """
    validate_repo_id(repo_id)
    if not (run / "results.json").is_file():
        raise FileNotFoundError(f"no file {run / 'results.json'}: {run} is not the folder of a complete run.")
    run, of_seeds = _chosen_training(run)
    checkpoint = run / ("teacher" if is_teacher else "student")
    wanted = ALLOWED + (TOKENIZER_FILES if is_teacher else ())
    names = sorted(path.name for path in checkpoint.iterdir()) if checkpoint.is_dir() else []
    going = [name for name in names if name in wanted or WEIGHTS.fullmatch(name)]
    imported = {
        f"{name}.py" for file in going if file.endswith(".py") for name in get_relative_imports(checkpoint / file)
    }
    missing = [name for name in [*_NEEDED, *sorted(imported.difference(_NEEDED))] if name not in going]
    if missing or not any(name.endswith(".safetensors") for name in going):
        lacking = ", ".join(missing or ["model.safetensors"])
        raise FileNotFoundError(f"{checkpoint} lacks {lacking}: run the stages that make it, with cmkd train.")

    results = _read(run / "results.json")
    check_version(run / "results.json", results)
    encoders = _encoder_names(results)
    for name in going:
        if name in _SCRUBBED:
            write_json(folder / name, without_paths(_read(checkpoint / name), encoders))
        elif half and name.endswith(".safetensors"):
            _write_half(checkpoint / name, folder / name)
        else:
            shutil.copyfile(checkpoint / name, folder / name)
    recorded, results = results, published_results(results) | of_seeds
    write_json(folder / "results.json", results)
    recipe = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
    header = _RECIPE_HEADER.format(places=" ".join(_places(recorded["recipe"])))
    (folder / "recipe.yaml").write_text(header + recipe, encoding="utf-8")
    if notice is not None:
        shutil.copyfile(notice, folder / NOTICE)
        going.append(NOTICE)
    tag = f"cmkd-{_digest(folder)}"
    config = _read(folder / "config.json")
    card = str(model_card(results, config, going, repo_id, tag, is_teacher, licence))
    if audit is not None:
        card = card.replace(_AUDIT_BEFORE, _section_of(audit, folder) + _AUDIT_BEFORE)
    ModelCard(card).save(folder / "README.md")
    _check_private(folder, run, _read(run / "results.json"), token)
    left_out = [name for name in names if name not in going]
    return Staged(folder, tag, left_out, results["corpus"]["terms"])


def _places(recipe: Mapping[str, Any]) -> list[str]:
    """The options that say where the corpora of a recipe are, and their other files; of several, each has its own name.

    Args:
        recipe: as the run records it, with the paths of this machine.
    """
    named = []
    for setting in SOURCES:
        given = recipe.get(setting) or []
        if isinstance(given, Mapping):
            named.append((f"--{setting}", given))
        else:
            named += [(f"--{setting}.{corpus.get('alias', corpus['name'])}", corpus) for corpus in given]
    options = []
    for option, corpus in named:
        files = [key for key, value in corpus.items() if isinstance(value, str) and Path(value).is_absolute()]
        options += [f"{option}.{key} ..." for key in dict.fromkeys(["data_dir", *files])]
    return options


def _section_of(audit: Path, folder: Path) -> str:
    """The section of an audit for the card of the model in a folder, without the metadata, which are the card's own."""
    audited, here = _read(audit / "audit.json")["model"]["identity"], folder_digest(folder)
    if audited != here:
        raise ValueError(
            f"--audit is {str(audit)!r}, an audit of the model {audited}, but what is pushed is {here}: write it with "
            "--output and the same options, audit that folder, and push again."
        )
    _, _, section = (audit / "card.md").read_text(encoding="utf-8").split("---\n", 2)
    return section.lstrip("\n") + "\n"


def _write_half(source: Path, target: Path) -> None:
    """Writes a file of weights with its fp32 tensors rounded to fp16."""
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32:
            tensors[name] = tensor.half()
            if not tensors[name].isfinite().all():
                largest, end = tensor.abs().max(), torch.finfo(torch.float16).max
                raise ValueError(
                    f"{source}: {name} holds {largest:g}, but fp16 ends at {end:g}: push it without --half."
                )
    save_file(tensors, target, metadata={"format": "pt"})


def _chosen_training(run: Path) -> tuple[Path, dict[str, Any]]:
    """The run itself, or of a run of several seeds the training whose student is best on validation, and its `seeds`.

    Raises:
        FileNotFoundError: there is no student, or its training does not exist.
    """
    results = _read(run / "results.json")
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
    """The parts of results.json that others may see.

    The corpus's folder is left out, and so are its notes, which describe the local copy and name its rows, except those
    of corpora that CMKD makes itself. Of every other path of this machine only the last part stays, or, if it is the
    path of an encoder, the encoder's name on the Hub.

    Raises:
        ValueError: a field is missing.
    """
    missing = [field for field in ("corpus", "recipe", "systems", "cost") if field not in results]
    if missing:
        raise ValueError(f"results.json lacks {', '.join(missing)}: run cmkd train again.")
    content = dict(results)
    content["corpus"] = _without_notes(content["corpus"])
    recipe = content["recipe"]
    content["recipe"] = recipe | {name: _without_folder(recipe[name]) for name in SOURCES if recipe.get(name)}
    return without_paths(content, _encoder_names(results))


def _without_notes(corpus: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a corpus, with notes only where CMKD makes it itself; and so of those that it consists of."""
    content = dict(corpus) if corpus["name"] in OPEN_CORPORA else {**corpus, "notes": []}
    if "corpora" in content:
        content["corpora"] = {name: _without_notes(one) for name, one in content["corpora"].items()}
    if "unlabelled" in content:
        parts = {name: _without_notes(one) for name, one in content["unlabelled"]["corpora"].items()}
        content["unlabelled"] = content["unlabelled"] | {"corpora": parts}
    return content


def _without_folder(source: Any) -> Any:
    """A corpus of a recipe, or a list of them, without its folder."""
    if isinstance(source, list):
        return [_without_folder(one) for one in source]
    return {key: value for key, value in source.items() if key != "data_dir"}


def _folders(recipe: Mapping[str, Any]) -> list[Path]:
    """The folders of all corpora of a recipe."""
    given = [recipe.get(name) or [] for name in SOURCES]
    sources = [one for of_field in given for one in (of_field if isinstance(of_field, list) else [of_field])]
    return [Path(source["data_dir"]).resolve() for source in sources if source.get("data_dir")]


def without_paths(content: Any, encoders: tuple[str, ...] = ()) -> Any:
    """JSON content in which every absolute path in a string is reduced to its last part.

    Args:
        content: what json.load returns.
        encoders: names on the Hub; a path, absolute or not, that ends in one of them is replaced by it.

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
    return _PATH.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], content)


def _name(name_or_path: str, encoders: tuple[str, ...]) -> str:
    """The known encoder whose folder a path ends in, or else what a checkpoint records: a Hub name or nothing."""
    place = name_or_path.replace("\\", "/")
    return next((name for name in encoders if place.endswith(f"/{name}")), hub_name(name_or_path))


def _encoder_names(results: Mapping[str, Any]) -> tuple[str, ...]:
    names = [str(results["recipe"].get(field, "")) for field in (*ENCODERS, EARS)] if "recipe" in results else []
    return tuple(name for name in names if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name))


def _check_private(folder: Path, run: Path, results: Mapping[str, Any], token: str | None) -> None:
    """Raises a ValueError if a file holds a token, a folder of this machine or, in JSON and YAML, any absolute path."""
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), run.resolve(), run.resolve().parent]
    places += _folders(results["recipe"])
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
        private = next((root for root in roots if root in text), None)
        if private is None and path.suffix in (".json", ".yaml"):
            private = (match := _PATH.search(text)) and match[0]
        if private:
            raise ValueError(f"{path.name} holds a path of this machine, {private!r}: take it out before you push.")


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


def _read(path: Path) -> Any:
    return read_json(path, "repeat the stage that writes it.")
