"""The command `cmkd`: a thin layer over the package. See `cmkd --help`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmkd.corpora import CORPORA

if TYPE_CHECKING:
    from cmkd.corpora.schema import Corpus

app = typer.Typer(
    help="Cross-modal conditional teacher-student training for speech emotion recognition.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help=f"The corpus: {', '.join(CORPORA)}.", show_default=False)]
DataDir = Annotated[Path | None, typer.Argument(help="Its folder.", show_default=False)]
OnError = Annotated[
    Literal["raise", "skip"],
    typer.Option("--on-error", help="What to do about rows with problems: list them and stop, or leave them out."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the corpus, as under `corpus:` in a recipe; the value is YAML. May be repeated.",
        show_default=False,
    ),
]


@app.callback()
def _commands() -> None:
    """Makes `prepare` a command even while it is the only one."""


@app.command()
def prepare(
    name: Name,
    data_dir: DataDir = None,
    on_error: OnError = "raise",
    settings: Settings = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Where to write the card; by default beside the data, as cmkd_NAME_card.json."),
    ] = None,
) -> None:
    """Builds a corpus, checks it, prints its card, and writes the card as JSON beside the data.

    \b
    cmkd prepare msp-podcast path/to/MSP-PODCAST-Publish-1.6
    cmkd prepare iemocap path/to/IEMOCAP_full_release --set fold=1
    cmkd prepare manifest my_corpus --set "label_scale=[1, 7]" --on-error skip
    cmkd prepare spoken-emobank emobank.csv --set max_utterances=1500
    """
    with _errors("prepare"):
        corpus = _load(name, data_dir, on_error, settings)
        print(corpus.report)
        path = card or _card_path(name, data_dir, corpus.report.config)
        if path is None:
            print("This corpus has no folder: pass --card PATH to write the card.")
            return
        try:
            corpus.report.save(path)
        except OSError as error:
            raise OSError(f"the card cannot be written to {path}: {error}. Pass --card PATH.") from error
        print(f"Card: {path}")


@app.command()
def transcribe(
    name: Name,
    model: Annotated[
        str, typer.Option(help="A Whisper or CTC model: Hub name or folder.", metavar="MODEL", show_default=False)
    ],
    data_dir: DataDir = None,
    output: Annotated[Path, typer.Option(help="The file of transcripts; what it holds stays.")] = Path(
        "transcripts.parquet"
    ),
    models_dir: Annotated[
        str | None, typer.Option("--models-dir", "--models_dir", help="Folder that holds models under their Hub names.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the speech, for a multilingual Whisper.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of weights and activations.")
    ] = "float32",
    batch_seconds: Annotated[
        float, typer.Option(help="Audio in a batch, padding included; less needs less memory.")
    ] = 240.0,
    on_error: OnError = "raise",
    settings: Settings = None,
) -> None:
    """Transcribes a corpus into one Parquet file; run it again after an interruption, or for new utterances.

    \b
    cmkd transcribe msp-podcast path/to/MSP-PODCAST-Publish-1.6 --model openai/whisper-small.en
    accelerate launch -m cmkd.cli transcribe iemocap path/to/IEMOCAP_full_release --model openai/whisper-tiny.en

    Then train with `--corpus.transcripts transcripts.parquet`.
    """
    with _errors("transcribe"):
        from transformers.utils import logging

        from cmkd.processes import join_launch, main_process_first
        from cmkd.transcription.transcribe import transcribe

        logging.disable_progress_bar()  # of loading weights; that of the transcription stays
        state = join_launch()
        with main_process_first("build the corpus"):
            corpus = _load(name, data_dir, on_error, settings)
        done = transcribe(
            corpus,
            model,
            output,
            models_dir=models_dir,
            revision=revision,
            language=language,
            precision=precision,
            batch_seconds=batch_seconds,
        )
        if state.is_main_process:
            print(done)


@app.command()
def push(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a complete run, with results.json.")],
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub; it is made if it is not there.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="For a repository that has to be made; one that is there stays.")
    ] = True,
    teacher: Annotated[bool, typer.Option("--teacher", help="The teacher in the place of the student.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files and print the card.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; by default the main one.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="For the card, as the Hub writes it; by default the data's.")
    ] = None,
) -> None:
    """Puts the student of a run on the Hub: weights, code, card, results and recipe, in one commit.

    \b
    cmkd push runs/demo user/cmkd-demo --dry-run
    cmkd push runs/demo user/cmkd-demo

    Private unless --public: a licensed corpus may forbid to pass on what was trained on it.
    """
    with _errors("push"):
        import tempfile

        from cmkd.hub.push import push_run
        from cmkd.hub.staging import stage_run

        if not dry_run:
            print(
                push_run(run_folder, repo_id, is_teacher=teacher, private=private, revision=revision, licence=licence)
            )
            return
        with tempfile.TemporaryDirectory(prefix="cmkd-push-") as folder:
            staged = stage_run(run_folder, repo_id, Path(folder), is_teacher=teacher, licence=licence)
            print(f"{staged}\n\n{staged.card}")


@app.command()
def push_corpus(
    name: Name,
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub; it is made if it is not there.")],
    data_dir: DataDir = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="For a data set that has to be made; one that is there stays.")
    ] = True,
    public_permission: Annotated[
        str | None,
        typer.Option(
            "--public-permission",
            metavar="SENTENCE",
            help="Why a licensed corpus may be public nevertheless; it stands on the card.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and print the card.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; by default the main one.")] = None,
    on_error: OnError = "raise",
    settings: Settings = None,
) -> None:
    """Puts a corpus on the Hub, its sound included, as a data set that `load_dataset` takes.

    \b
    cmkd push-corpus manifest user/my-corpus my_corpus --set "label_scale=[1, 7]" --dry-run
    cmkd push-corpus spoken-emobank user/spoken-emobank emobank.csv --public

    Private unless --public, and for a licensed corpus only as far as your agreement with its owners allows copies on a
    server of others.
    """
    with _errors("push-corpus"):
        from cmkd.corpora.schema import Corpus
        from cmkd.hub.corpus import preview
        from cmkd.hub.push import check_push
        from cmkd.hub.push import push_corpus as push

        token = None if dry_run else check_push(repo_id)
        corpus = _load(name, data_dir, on_error, settings)
        if not isinstance(corpus, Corpus):
            raise ValueError("--set streaming: a data set is pushed whole; leave it out.")
        if dry_run:
            print(preview(corpus, repo_id, private, public_permission))
            return
        print(
            push(
                corpus,
                repo_id,
                private=private,
                public_permission=public_permission,
                revision=revision,
                token=token,
            )
        )


@app.command()
def push_space(
    repo_id: Annotated[str, typer.Argument(help="user/name of the Space; it is made if it is not there.")],
    model: Annotated[str, typer.Argument(help="user/name of a student on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Of the model; by default its newest commit.")] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="For a Space that has to be made.")] = True,
) -> None:
    """Puts a page on the Hub that scores uploaded or recorded speech, as a Space.

    \b
    cmkd push-space user/cmkd-demo-page user/cmkd-demo

    The page stays with the commit of the model that it is made for. For a private model give the Space a secret
    HF_TOKEN that may read it; whoever sees the page can then use the model.
    """
    with _errors("push-space"):
        from cmkd.hub.push import push_space as push

        print(push(repo_id, model, revision=revision, private=private))


@app.command()
def push_metric(
    repo_id: Annotated[str, typer.Argument(help="user/concordance_cc on the Hub; it is made if it is not there.")],
    private: Annotated[bool, typer.Option("--private/--public", help="For a Space that has to be made.")] = True,
) -> None:
    """Puts the metric concordance_cc on the Hub, as a Space that `evaluate.load` takes.

    \b
    cmkd push-metric user/concordance_cc --public
    """
    with _errors("push-metric"):
        from cmkd.hub.push import push_metric as push

        print(push(repo_id, private=private))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def crossval(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A recipe whose corpus has folds: recipes/iemocap holds some.")],
) -> None:
    """Trains and tests on every fold of a corpus; settings of the recipe may follow, as for train_distill.py.

    \b
    cmkd crossval recipes/iemocap/t3_02_hubert_base.yaml --corpus.data_dir path/to/IEMOCAP_full_release
    accelerate launch --num_processes 4 -m cmkd.cli crossval recipes/iemocap/t3_02_hubert_base.yaml

    Complete folds are not repeated. Several processes share the folds, each on a GPU of its own.
    """
    with _errors("crossval"):
        from cmkd.runs.crossval import cross_validate, format_folds

        results = cross_validate(recipe, context.args)
        if results is not None:
            print(f"\n{format_folds(results)}")


@app.command()
def convert_cpc(
    source: Annotated[Path, typer.Argument(help="A checkpoint of CPC_audio, such as 60k_epoch4-d0f474de.pt.")],
    target: Annotated[Path, typer.Argument(help="The folder to make, such as models/cpc/60k.")],
) -> None:
    """Converts a published checkpoint of Modified CPC into a folder that recipes and AutoModel load.

    \b
    cmkd convert-cpc 60k_epoch4-d0f474de.pt models/cpc/60k
    """
    with _errors("convert-cpc"):
        from transformers.utils import logging

        from cmkd.hub.cpc_checkpoint import convert_cpc as convert

        logging.disable_progress_bar()
        model = convert(source, target)
        shape = f"{model.config.recurrent_type.upper()} x {model.config.num_hidden_layers}"
        print(f"{target}: Modified CPC, {shape}, {model.num_parameters():,} parameters")


@app.command()
def table(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, of one seed or several, and of cross-validations.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="A folder for tables.md, tables.tex, tables.json and a picture.", show_default=False),
    ] = None,
) -> None:
    """Puts runs into the tables of the paper, beside the published figures.

    \b
    cmkd table runs/msp_podcast/t2_* runs/iemocap/t3_* --output tables
    """
    with _errors("table"):
        from cmkd.reporting.tables import format_tables, gather_tables, write_tables

        tables = gather_tables(runs)
        print(format_tables(tables))
        if output is not None:
            print("\n".join(f"wrote {path}" for path in write_tables(tables, output)))


@app.command()
def cache(
    folders: Annotated[
        list[Path], typer.Argument(help="What recipes call cache_dir; a run without one has its own in RUN/cache.")
    ],
    encoder: Annotated[str | None, typer.Option(help="Only of this encoder: its name, or the end of its path.")] = None,
    unused_days: Annotated[
        float | None, typer.Option("--unused-days", help="Only what has not been used for more than so many days.")
    ] = None,
    other_code: Annotated[
        bool, typer.Option("--other-code", help="Only what another version has made, which this one cannot use.")
    ] = False,
    keep_gb: Annotated[
        float | None,
        typer.Option(
            "--keep-gb",
            min=0,
            help="Only the least recently used: so many that the others take at most this many 10^9 bytes.",
        ),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what is listed, once you have confirmed it.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="With --prune, all that is in no job's use.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="List as JSON.")] = False,
) -> None:
    """Lists the stored features of frozen encoders, and removes those that are not needed any more.

    \b
    cmkd cache runs/demo/cache
    cmkd cache /scratch/features --unused-days 30 --prune
    cmkd cache /scratch/features --other-code --prune --yes
    cmkd cache /scratch/features --keep-gb 100 --prune

    Whatever is removed is computed anew if it is needed again. What a running job uses stays; jobs of an earlier
    version of CMKD do not say what they use, so let those end first.
    """
    with _errors("cache"):
        import json

        from cmkd.features.cache import format_folders, remove, select, stored_folders

        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {str(folder)!r}.")
        if prune and as_json:
            raise ValueError("--json lists, and --prune asks: take one of the two.")
        is_some = encoder is not None or unused_days is not None or other_code or keep_gb is not None
        if prune and everything == is_some:
            raise ValueError(
                "--prune needs to know what: --encoder, --unused-days, --other-code or --keep-gb, or else --all."
            )
        there = [stored for folder in folders for stored in stored_folders(folder)]
        found = select(there, encoder=encoder, unused_days=unused_days, of_other_code=other_code, keep_gb=keep_gb)
        if as_json:
            print(json.dumps([stored.to_dict() for stored in found], indent=2))
            return
        if not found:
            print("There are no stored features" + (" of this kind." if there else "."))
            return
        print(format_folders(found))
        print(f"{sum(stored.size for stored in found) / 1e9:.2f} GB")
        if not prune or not (yes or typer.confirm("Remove them?")):
            return
        kept = [stored for stored in found if not remove(stored)]
        print(f"Removed {len(found) - len(kept)} of {len(found)} folders.")
        for stored in kept:
            print(f"In use, and kept: {stored.path}")


def _load(name: str, data_dir: Path | None, on_error: str, settings: list[str] | None) -> Corpus:
    from cmkd.corpora import load_corpus
    from cmkd.runs.recipe import parse_arguments

    for setting in settings or []:
        if "=" not in setting:
            raise ValueError(f"--set {setting!r}: expected KEY=VALUE, as in --set fold=1.")
    values: dict[str, Any] = parse_arguments([f"--{setting}" for setting in settings or []])
    for key in ("name", "data_dir", "on_error"):
        if key in values:
            raise ValueError(f"--set {key}: this is not a setting; it has an argument or option of its own.")
    return load_corpus(name, data_dir, on_error, **values)


def _card_path(name: str, data_dir: Path | None, config: dict[str, Any]) -> Path | None:
    """Beside the data, None for a corpus without any."""
    if data_dir is None and "data_dir" in config:
        data_dir = Path(config["data_dir"])
    if data_dir is None:
        return None
    return (data_dir if data_dir.is_dir() else data_dir.parent) / f"cmkd_{name.replace('-', '_')}_card.json"


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """Turns what a user can mend into a message on standard error and exit code 1."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"cmkd {command}: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
