"""Scores of many sounds: from sources to a folder of tables, which can be stopped and gone on with at any time."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute
import pyarrow.parquet

from audio_cmkd import check_channel, import_package
from cmkd.atomic import unfinished_path
from cmkd.cpus import usable_cpus
from cmkd.predict.engines import Dtype, Engine, ModelChoice, Runtime, check_choice, load_engine
from cmkd.predict.exports import Format, Labels, exports_of, write_exports
from cmkd.predict.job import Job
from cmkd.predict.pieces import Piece, score
from cmkd.predict.plan import Incoming, Plan
from cmkd.predict.progress import Progress
from cmkd.predict.readers import Readers, in_background
from cmkd.predict.reading import Ended, Heard, Reading
from cmkd.predict.rows import Shape
from cmkd.predict.sharing import Passed, Sharing
from cmkd.predict.sources import Search, find_sources, is_remote
from cmkd.predict.store import Store
from cmkd.spelling import enumerated
from windows_cmkd import cutting

PIECES_AHEAD = 1
"""Pieces that are read and wait for the network, beside the one that is scored and the one that is read."""

_FOR_TEXTGRID = ("praatio", "writes TextGrid files")

_NAMES = {"identity": "the model", "channel": "--channel", "window": "--window", "hop": "--hop", "dtype": "--dtype"}
_NAMES |= {"embeddings": "--embeddings", "runtime": "the kind of model"}


@dataclass(frozen=True)
class Prediction:
    """What was done.

    Attributes:
        output (`Path`): The folder.
        sources (`int`): All that there are.
        rows (`int`): In `scores`.
        errors (`int`): Sources that could not be scored: they are in errors.parquet.
        hours (`float`): Of sound, scored now, by this process and by those that have worked beside it.
        seconds (`float`): That this took, loading included.
        notes (`tuple[str, ...]`): What should be known of it.
        is_main (`bool`): Whether this is the process of its launch that speaks for all.
    """

    output: Path
    sources: int
    rows: int
    errors: int
    hours: float
    seconds: float
    notes: tuple[str, ...]
    is_main: bool

    def __str__(self) -> str:
        speed = f", {self.hours * 3600 / self.seconds:.1f} times real time" if self.hours else ""
        lines = [
            f"{self.output}: {self.rows:,} rows of {self.sources:,} sources; {self.hours:.2f} hours scored now in "
            f"{self.seconds:.0f} s{speed}",
            *self.notes,
        ]
        if self.errors:
            lines.append(f"{self.errors:,} sources could not be scored: {self.output / 'errors.parquet'} says why")
        return "\n".join(lines)


def predict(
    sources: Sequence[str],
    *,
    model: str,
    output: str | os.PathLike[str],
    revision: str | None = None,
    channel: str | int = "mean",
    window: float | None = None,
    hop: float | None = None,
    tiers: Sequence[str] = (),
    timeline: bool = False,
    embeddings: bool = False,
    format: Format = "parquet",
    labels: Labels | None = None,
    summary: bool = True,
    overwrite: bool = False,
    dtype: Dtype = "float32",
    device: str | None = None,
    compile: bool = False,
    runtime: Runtime = "torch",
    batch_seconds: float | None = None,
    readers: int | None = None,
    engine: Literal["plain", "ray"] = "plain",
    address: str | None = None,
    actor_cpus: int | None = None,
    progress: bool = True,
) -> Prediction:
    """Scores sources into a folder. May be stopped at any moment and called again: what is scored is not scored again.

    Several processes with the same arguments share the work: those of `accelerate launch` or `torchrun`, and others
    that are started by hand, also on other machines that see the same disk.

    Args:
        sources: Files, folders (with all that is in them), globs, "-" for a list on standard input, manifests (.csv,
            .tsv, .jsonl, .parquet with the columns audio, start, end, channel, id), segments (.rttm, .TextGrid) that
            lie beside their sound, addresses that fsspec opens, and data sets, "dataset:NAME?split=test&column=audio".
        model: The folder of a student, its name on the Hub, or an .onnx file that `cmkd export` wrote.
        output: The folder to write to.
        revision: Of the model on the Hub.
        channel: "mean", "each" or the number of a channel from 0, for sources that name none.
        window, hop: In seconds, as the pipeline has them. None: sound of up to 30 s stays whole, and longer sound is
            cut into windows of 10 s.
        tiers: Of TextGrid files; none: the only one that each has.
        timeline: Also write a row for each window.
        embeddings: Also write the embeddings.
        format: "parquet", or "csv" or "jsonl" for such files beside the Parquet ones.
        labels: "audacity", "elan" or "textgrid": also write the timeline beside each file, in a file such as
            call.wav.cmkd.TextGrid; for sources on other machines and of data sets into `output/labels`.
        summary: Whether to write summary.html.
        overwrite: Begin anew, and remove what an earlier run has written to `output`.
        dtype: "float32", "bfloat16" or "float16": of weights and activations; with ONNX Runtime "float32" or "int8".
        device: As torch calls it. None: an accelerator if there is one.
        compile: Whether torch compiles the layers of the encoder first.
        runtime: "torch", or "onnx" for ONNX Runtime, which is faster on a CPU: the model is exported when it is first
            asked for, and its scores are torch's to 1e-5.
        batch_seconds: The most sound in a batch, padding included. None: 240 s on an accelerator, one window after the
            other on a CPU.
        readers: Processes that read and decode ahead; 0: none, reading in turn with scoring. None: one for every four
            CPUs of this process, at most 8. With Ray the cluster decides.
        engine: "plain", or "ray" for a cluster.
        address: Of the Ray cluster; None: the one that this machine belongs to, or else a new one on this machine.
        actor_cpus: With Ray, the CPUs of each model where there are no GPUs, None: 1; with GPUs each model has one.
        progress: Whether to show how far it is.

    Returns:
        `Prediction`: What was done.

    Raises:
        FileNotFoundError: A source that is named is not there, or holds no sound.
        ValueError: An argument is not valid; a manifest cannot be used; or the folder is that of another model, of
            other windows or of other sources.
        OSError: There is no such model, or the disk is full.
        MemoryError: A batch is too large.
        ImportError: A package is missing.
    """
    begun = time.monotonic()
    check_channel(channel, "mean", "each")
    _check(batch_seconds, readers, engine, address, actor_cpus, output)
    joined = _join_launch()
    if engine == "ray" and joined.processes > 1:
        raise ValueError("--engine ray: is started once, not by a launcher: Ray starts the processes of its cluster.")
    if labels == "textgrid":
        import_package(*_FOR_TEXTGRID)
    choice = ModelChoice(model, revision, dtype, device, compile, runtime)
    check_choice(choice)
    with ExitStack() as stack:
        store = Store(Path(output))
        stack.callback(store.close)
        notes: list[str] = []
        incoming = None
        with _main_process_first(joined):
            if joined.is_main:
                incoming = Incoming(unfinished_path(store.journal / "incoming.sqlite"))
                stack.callback(incoming.close)
                notes += _gather(incoming, sources, Search(tiers, sys.stdin))
        network = load_engine(choice)
        cut = cutting(network.sampling_rate, window, hop, network.longest)
        settings = {
            "model": model,
            "identity": network.identity,
            "runtime": type(network).__name__,
            "dtype": dtype,
            "channel": channel,
            "window": window,
            "hop": hop,
            "embeddings": embeddings,
            "label_scale": list(network.label_scale),
            "rated_dimensions": list(network.rated_dimensions),
        }
        with _main_process_first(joined):
            if incoming is not None:
                notes += _prepare(store, settings, incoming, overwrite)
                incoming.close()
        store.join()
        export = exports_of(store, timeline, format, labels, summary)
        if "textgrid" in export.labels:
            import_package(*_FOR_TEXTGRID)
        plan = Plan(store.plan_path)
        stack.callback(plan.close)
        shape = Shape(
            dimensions=tuple(network.dimensions.index(name) for name in network.rated_dimensions),
            names=tuple(network.rated_dimensions),
            label_scale=network.label_scale,
            embeddings=embeddings,
        )
        job = Job(store, plan, shape, embeddings)
        downloads = store.downloads()
        stack.callback(store.remove_downloads, downloads)
        reading = Reading(cut, channel, network.shortest, str(downloads))
        shown = _progress(store, plan, shows=progress and joined.is_main)
        stack.callback(shown.close)
        if engine == "ray":
            from cmkd.predict.on_ray import Cluster, Work, run_on_ray

            cluster = Cluster(address, 1 if actor_cpus is None else actor_cpus)
            rate = network.sampling_rate
            run_on_ray(Work(job, choice, network.identity, reading, rate, batch_seconds, cluster, shown))
        else:
            number = _default_readers(joined.processes) if readers is None else readers
            _score(
                job, network, reading, number, network.batch_seconds if batch_seconds is None else batch_seconds, shown
            )
        shown.flush()
        _wait(joined, "score its share")
        rows = errors = 0
        with store.finishing():
            if joined.is_main:
                write_exports(store, plan, shape, export, settings)
            rows, errors, as_mean = _count(store)
        _wait(joined, "write the tables")  # a launcher that sees one process end may stop those that are still at work
        if as_mean:
            notes.append(
                f"{as_mean:,} sources with several channels are scored as the mean of these: --channel each scores "
                "each of them"
            )
        return Prediction(
            output=Path(output),
            sources=plan.count(),
            rows=rows,
            errors=errors,
            hours=shown.hours(),
            seconds=time.monotonic() - begun,
            notes=tuple(notes),
            is_main=joined.is_main,
        )


def _score(job: Job, network: Engine, reading: Reading, number: int, batch_seconds: float, shown: Progress) -> None:
    """Scores with this process whatever nobody else does, until all shards are complete."""
    readers: Readers[Any] = Readers(reading, number)
    try:
        sharing = Sharing(job.store, job.plan, network.sampling_rate)
        coming: Iterator[Piece | Passed] = sharing.pieces(readers)
        if number:
            coming = in_background(coming, PIECES_AHEAD)
        for item in coming:
            if isinstance(item, Passed):
                sharing.passed(item)
                job.assemble(job.plan.chunks[item.chunk].shard)
                continue
            job.write(item, score(item, network, batch_seconds, job.embeddings))
            job.store.release_piece(item.chunk, item.number)
            shown.add(item.seconds, sum(event.read for event in item.events if isinstance(event, (Heard, Ended))))
    finally:
        readers.close()
    while not all(job.assemble(shard) for shard in job.shards):
        time.sleep(0.1)  # another process is at one of them


def _check(
    batch_seconds: float | None,
    readers: int | None,
    engine: str,
    address: str | None,
    actor_cpus: int | None,
    output: Any,
) -> None:
    if batch_seconds is not None and not 0 <= batch_seconds < math.inf:
        raise ValueError(f"--batch_seconds {batch_seconds}: must be a number of seconds, 0 for one window at a time.")
    if readers is not None and readers < 0:
        raise ValueError(f"--readers {readers}: must be a number of processes, 0 for none.")
    if engine not in ("plain", "ray"):
        raise ValueError(f"--engine {engine}: must be plain or ray.")
    if address is not None and engine != "ray":
        raise ValueError(f"--address {address}: is for --engine ray.")
    if readers is not None and engine == "ray":
        raise ValueError(
            f"--readers {readers}: is not for --engine ray, where one task reads for every four CPUs of the cluster; "
            "leave it out."
        )
    if actor_cpus is not None and engine != "ray":
        raise ValueError(
            f"--actor_cpus {actor_cpus}: is for --engine ray; leave it out. OMP_NUM_THREADS says how many CPUs this "
            "process computes with."
        )
    if actor_cpus is not None and actor_cpus < 1:
        raise ValueError(f"--actor_cpus {actor_cpus}: must be 1 or more.")
    if is_remote(str(output)):
        raise ValueError(f"--output {output}: must be a folder on a disk; copy it there when it is complete.")


def _gather(incoming: Incoming, sources: Sequence[str], search: Search) -> list[str]:
    """Lists all sources, before anything else is done; returns what is to be told."""
    twice = incoming.gather(find_sources(sources, search))
    notes = [f"{twice:,} sources were named more than once, and count once"] if twice else []
    if search.passed_over:
        endings = sorted(search.passed_over.items(), key=lambda item: -item[1])[:5]
        listed = enumerated([f"{number:,} {ending or 'without an ending'}" for ending, number in endings])
        total = sum(search.passed_over.values())
        notes.append(f"{total:,} files of folders do not have the name of a sound and were passed over: {listed}")
    if search.own_labels:
        notes.append(f"{search.own_labels:,} label files that cmkd predict has written were passed over")
    return notes


def _prepare(store: Store, settings: dict[str, Any], incoming: Incoming, overwrite: bool) -> list[str]:
    """Makes the plan, or compares the one that is there with what is asked for now; returns what is to be told.

    Raises:
        ValueError: It does not agree, or another process is at work with it.
    """
    folder = store.folder
    alone = store.enter()
    if alone:
        shutil.rmtree(store.journal / "progress", ignore_errors=True)
    if overwrite:
        if not alone:
            raise ValueError(f"--overwrite: another process is writing to {folder}: wait for it, or stop it first.")
        store.begin_anew(keep=incoming.path)
    before = store.read_settings()
    if before is None:
        strangers = sorted(path.name for path in folder.iterdir() if path.name != "journal")
        if strangers:
            raise ValueError(
                f"--output {folder}: it holds {enumerated(strangers[:3])}, and is not an output of cmkd predict; "
                "choose another folder, or an empty one."
            )
    else:
        _check_same(before, settings, folder)
    notes = []
    if not store.plan_path.exists():
        incoming.write(store.plan_path)
    else:
        notes = _update(store, incoming, alone)
    if before is None:
        store.write_settings(settings)
    return notes


def _check_same(before: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    for key, name in _NAMES.items():
        if before.get(key) != settings[key]:
            was, now = (
                f"{values['model']} ({values[key]})" if key == "identity" else values.get(key)
                for values in (before, settings)
            )
            raise ValueError(
                f"{folder} was made with {name} {was}, but now it is {now}: go on with what it was made with, choose "
                "another --output, or begin anew with --overwrite."
            )


def _update(store: Store, incoming: Incoming, alone: bool) -> list[str]:
    """Brings the plan up to date."""
    unreachable = store.unreachable() if alone else []
    changes = incoming.compare(store.plan_path, unreachable)
    if changes.gone:
        listed = enumerated(changes.first_gone) + (" and others" if changes.gone > len(changes.first_gone) else "")
        raise ValueError(
            f"{store.folder} has {changes.gone:,} sources that are not named now ({listed}): name them too, choose "
            "another --output, or begin anew with --overwrite."
        )
    if not changes.new and not changes.changed:
        return []
    if not alone:
        raise ValueError(
            f"{store.folder}: {changes.new:,} sources are new and {len(changes.changed):,} have changed since another "
            "process began to write there: wait until that has ended, and give the same command again."
        )
    plan = Plan(store.plan_path)
    try:
        by_shard: dict[int, list[int]] = {}
        open_chunks = set()
        for number in changes.changed:
            (chunk,) = plan.chunks_of([number])
            shard = plan.chunks[chunk].shard
            by_shard.setdefault(shard, []).append(number)
            open_chunks.add(chunk)
        for shard, numbers in by_shard.items():
            if store.is_complete(shard):
                store.drop_rows(shard, numbers)
        store.forget_chunks(plan, (chunk for chunk in open_chunks if not store.is_complete(plan.chunks[chunk].shard)))
    finally:
        plan.close()
    incoming.extend(store.plan_path, changes.changed)
    notes = [f"{changes.new:,} sources are new"] if changes.new else []
    changed = len(changes.changed) - len(unreachable)
    if changed > 0:
        notes.append(f"{changed:,} sources have changed since they were scored, and are scored anew")
    if unreachable:
        notes.append(f"{len(unreachable):,} sources could not be fetched the last time, and are tried again")
    return notes


def _count(store: Store) -> tuple[int, int, int]:
    """Rows, errors, and rows that are the mean of several channels."""
    rows = errors = as_mean = 0
    for path in store.shard_paths(store.scores):
        table = pyarrow.parquet.read_table(path, columns=["channel", "channels"])
        rows += len(table)
        is_mean = pyarrow.compute.is_null(table["channel"])
        of_several = pyarrow.compute.greater(table["channels"], 1)
        as_mean += pyarrow.compute.sum(pyarrow.compute.and_(is_mean, of_several)).as_py() or 0
    for path in store.shard_paths(store.errors):
        errors += pyarrow.parquet.read_metadata(path).num_rows
    return rows, errors, as_mean


def _progress(store: Store, plan: Plan, shows: bool) -> Progress:
    total = sum(chunk.size for chunk in plan.chunks.values())
    done = sum(chunk.size for chunk in plan.chunks.values() if store.is_scored(chunk.shard, chunk.number))
    return Progress(store.journal / "progress", total, done, shows)


# ---------------------------------------------------------------------------------------------------------------------
# processes that were launched together


@dataclass(frozen=True)
class _Launch:
    is_main: bool = True
    processes: int = 1


def _join_launch() -> _Launch:
    """This process among those of `accelerate launch` or `torchrun`, without which torch is not asked."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return _Launch()
    from cmkd.processes import join_launch

    state = join_launch()
    return _Launch(state.is_main_process, state.num_processes)


@contextmanager
def _main_process_first(launch: _Launch) -> Iterator[None]:
    if launch.processes < 2:
        yield
        return
    from cmkd.processes import main_process_first

    with main_process_first("list the sources"):
        yield


def _wait(launch: _Launch, task: str) -> None:
    """Until all processes of the launch have come here."""
    if launch.processes > 1:
        from cmkd.processes import wait_for_all

        wait_for_all(task)


def _default_readers(processes: int) -> int:
    return max(1, min(8, usable_cpus() // 4 // processes))
