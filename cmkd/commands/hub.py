"""Commands that put something on the Hub, or take something from elsewhere that belongs there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from cmkd.atomic import folder_written_whole
from cmkd.commands import CorpusName, DataDir
from cmkd.corpora import load_corpus
from cmkd.corpora.settings import CorpusSettings

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
RepoId = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO_ID")]
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Source = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Target = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]


def push(
    run_folder: RunFolder,
    repo_id: RepoId,
    public: bool = False,
    teacher: bool = False,
    half: bool = False,
    audit: Path | None = None,
    notice: Path | None = None,
    dry_run: bool = False,
    output: Path | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> None:
    """Puts the student of a run on the Hub: weights, code, card, results and recipe, in one commit.

        cmkd push runs/demo user/cmkd-demo --dry_run
        cmkd push runs/demo user/cmkd-demo
        cmkd push runs/demo user/cmkd-demo --half --output cmkd-demo

    Private unless --public: a licensed corpus may forbid you to pass on what was trained on it.

    Args:
        run_folder: The folder of a complete run, with results.json.
        repo_id: The repository, user/name on the Hub; it is made if it is not there.
        public: Whether everybody may read a repository that has to be made; one that is there stays as it is.
        teacher: Whether to push the teacher instead of the student.
        half: Whether to round the weights to 16 bits, which halves the files; they are loaded as before.
        audit: The folder of an audit of what --output wrote, whose section goes into the card.
        notice: A text with the notices that licences of the data ask for; it goes along as NOTICE.
        dry_run: Whether only to list the files and print the card.
        output: A new folder to write the repository to, in place of the Hub; null pushes it.
        revision: The branch to push to; null stands for the main one.
        license: The licence on the card, as the Hub writes it; null stands for that of the data.
    """
    from cmkd.hub.push import push_run
    from cmkd.hub.staging import stage_run

    options: dict[str, Any] = {
        "is_teacher": teacher,
        "licence": license,
        "half": half,
        "audit": audit,
        "notice": notice,
    }
    if output is not None:
        if dry_run or public or revision is not None:
            raise ValueError(
                "--output writes to a folder and not to the Hub: leave out --dry_run, --public and --revision."
            )
        if output.exists():
            raise FileExistsError(f"--output is {str(output)!r}, which exists: remove it, or name a new folder.")
        with folder_written_whole(output) as folder:
            listed = str(stage_run(run_folder, repo_id, folder, **options))
        print(f"{listed}\n\nwrote {output}")
    elif dry_run:
        with tempfile.TemporaryDirectory(prefix="cmkd-push-") as temporary:
            staged = stage_run(run_folder, repo_id, Path(temporary), **options)
            print(f"{staged}\n\n{staged.card}")
    else:
        print(push_run(run_folder, repo_id, private=not public, revision=revision, **options))


def push_corpus(
    name: CorpusName,
    repo_id: RepoId,
    corpus: CorpusSettings,
    data_dir: DataDir = None,
    public: bool = False,
    public_permission: str | None = None,
    dry_run: bool = False,
    revision: str | None = None,
) -> None:
    """Puts a corpus on the Hub, its sound included, as a data set that `load_dataset` takes.

        cmkd push-corpus manifest user/my-corpus my_corpus --corpus.label_scale 1 7 --dry_run
        cmkd push-corpus spoken-emobank user/spoken-emobank emobank.csv --public

    Private unless --public, and for a licensed corpus only as far as your agreement with its owners allows copies on a
    server of others. `cmkd push-corpus NAME --help` lists the settings of that corpus.

    Args:
        name: The corpus.
        repo_id: The data set, user/name on the Hub; it is made if it is not there.
        corpus: Settings of the corpus, as under `corpus:` in a recipe.
        data_dir: The folder of the corpus.
        public: Whether everybody may read a data set that has to be made; one that is there stays as it is.
        public_permission: A sentence that says why a licensed corpus may be public nevertheless; it stands on the card.
        dry_run: Whether only to say what would be pushed, and print the card.
        revision: The branch to push to; null stands for the main one.
    """
    from cmkd.corpora.schema import Corpus
    from cmkd.hub.corpus import preview
    from cmkd.hub.push import check_push
    from cmkd.hub.push import push_corpus as push_built

    token = None if dry_run else check_push(repo_id)
    built = load_corpus(name, data_dir, **corpus)
    if not isinstance(built, Corpus):
        raise ValueError("corpus.streaming is true, but a data set is pushed whole: leave it out.")
    if dry_run:
        print(preview(built, repo_id, not public, public_permission))
        return
    print(
        push_built(
            built,
            repo_id,
            private=not public,
            public_permission=public_permission,
            revision=revision,
            token=token,
        )
    )


def push_space(
    repo_id: RepoId,
    model: Model,
    revision: str | None = None,
    public: bool = False,
    onnxruntime_web: Path | None = None,
) -> None:
    """Puts a page on the Hub that scores uploaded or recorded speech in the browser, as a static Space.

        cmkd push-space user/cmkd-demo-page user/cmkd-demo

    It is the page of `cmkd export --page`, which needs no server, with the model of this commit in it, its weights in
    16 bits: whoever sees the page can take the model, and what is recorded there stays in the browser.

    Args:
        repo_id: The Space, user/name on the Hub; it is made if it is not there.
        model: A student on the Hub, user/name.
        revision: The branch, tag or commit of the model; null stands for its newest commit.
        public: Whether everybody may see a Space that has to be made; one that is there stays as it is. The page of a
            private model goes into one that is public only with this.
        onnxruntime_web: The file that `npm pack` fetched, for machines without npm.
    """
    from audio_cmkd import import_package
    from cmkd.hub.push import HUB_STORAGE
    from cmkd.hub.push import push_space as push_page
    from cmkd.json_files import read_json

    for package in ("onnx", "onnxruntime"):
        import_package(package, "exports the model for the page")

    def write(name: str, commit: str, folder: Path) -> str | None:
        from cmkd.export.folder import export_folder
        from cmkd.export.page import write_page

        with tempfile.TemporaryDirectory(prefix="cmkd-export-") as exported:
            _, graph = export_folder(name, Path(exported), ("fp16",), commit)
            write_page(graph.path, folder, onnxruntime_web, HUB_STORAGE)
        return read_json(folder / "student.json", "push the page again.")["licence"]

    print(push_page(repo_id, model, write, revision=revision, private=not public))


def push_metric(repo_id: RepoId, public: bool = False) -> None:
    """Puts the metric concordance_cc on the Hub, as a Space that `evaluate.load` takes.

        cmkd push-metric user/concordance_cc --public

    Args:
        repo_id: The Space, user/concordance_cc on the Hub; it is made if it is not there.
        public: Whether everybody may see a Space that has to be made; one that is there stays as it is.
    """
    from cmkd.hub.push import push_metric as push_space_of_metric

    print(push_space_of_metric(repo_id, private=not public))


def convert_cpc(source: Source, target: Target) -> None:
    """Converts a published checkpoint of Modified CPC into a folder that recipes and AutoModel load.

        cmkd convert-cpc 60k_epoch4-d0f474de.pt models/cpc/60k

    Args:
        source: A checkpoint of CPC_audio, such as 60k_epoch4-d0f474de.pt.
        target: The folder to make, such as models/cpc/60k.
    """
    from transformers.utils import logging

    from cmkd.hub.cpc_checkpoint import convert_cpc as convert

    logging.disable_progress_bar()
    model = convert(source, target)
    shape = f"{model.config.recurrent_type.upper()} x {model.config.num_hidden_layers}"
    print(f"{target}: Modified CPC, {shape}, {model.num_parameters():,} parameters")
