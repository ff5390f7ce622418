"""The same work as a Ray Data pipeline, where one machine is not enough: chunks -> pieces -> models -> tables.

Every machine reads and decodes; the pieces, which are the same as without Ray, go to actors that hold the model; what
they have scored comes back to this process, which writes it as always. Should a machine be lost, Ray does again what
was lost with it. The sources and the model have to be what every machine can open: a disk that all see, or addresses.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from audio_cmkd import import_package
from cmkd.predict import pieces
from cmkd.predict.engines import ModelChoice, load_engine
from cmkd.predict.job import Job
from cmkd.predict.pieces import Piece, cut_into_pieces, pack, score, unpack
from cmkd.predict.progress import Progress
from cmkd.predict.readers import Readers
from cmkd.predict.reading import Ended, Event, Heard, Reading
from cmkd.predict.sharing import groups_of
from cmkd.predict.sources import Source

WAVE = 1024
"""Chunks that are handed to the cluster at once: their lists of sources lie in its memory."""

BLOCK_BYTES = 2**24
"""What Ray Data puts together at most; a full piece is more, and so is on its own."""

CPUS_PER_READER = 4
"""For so many CPUs of the cluster one task reads and decodes. It counts none of them for itself: the models may hold
all, and what a lost machine had read could then never be read again."""


@dataclass(frozen=True)
class Cluster:
    """Where the work is done.

    Attributes:
        address (`str`, *optional*): Of a running cluster; None: that of this machine, or else a new one on it.
        actor_cpus (`int`): CPUs for each model, where there are no GPUs; with GPUs each model has one.
    """

    address: str | None
    actor_cpus: int


@dataclass(frozen=True)
class Work:
    """What is done on a cluster.

    Attributes:
        job (`Job`): What is scored, and where it is written.
        choice (`ModelChoice`): The model; every machine has to be able to load it.
        identity (`str`): Of the model, which is compared on every machine.
        reading (`Reading`): How files are read.
        rate (`int`): Hz of what the model hears.
        batch_seconds (`float`, *optional*): As for `predict`.
        cluster (`Cluster`): Where.
        shown (`Progress`): Counts what is done.
    """

    job: Job
    choice: ModelChoice
    identity: str
    reading: Reading
    rate: int
    batch_seconds: float | None
    cluster: Cluster
    shown: Progress


def run_on_ray(work: Work) -> None:
    """Scores all chunks that are not scored, and assembles their shards.

    Raises:
        ImportError: ray is missing.
        ConnectionError: There is no cluster at the address.
        ValueError: No machine of the cluster has as many CPUs as a model is to have.
        RuntimeError: The cluster could not do the work.
    """
    ray = import_package("ray", "runs --engine ray")
    import_package("ray.data", "runs --engine ray")
    job = work.job
    is_own = _connect(ray, work.cluster.address)
    try:
        chunks = (chunk for chunk in job.plan.chunks if not job.is_scored(chunk))
        while wave := list(islice(chunks, WAVE)):
            _run_wave(ray, work, wave)
    finally:
        if is_own:
            ray.shutdown()
    for shard in job.plan.shards():
        if not job.assemble(shard):
            raise RuntimeError(f"shard {shard} is not complete, though the cluster has done all its work.")


def _connect(ray: Any, address: str | None) -> bool:
    """Joins or starts a cluster; returns whether this process has to leave it again."""
    if ray.is_initialized():
        return False
    options = {"log_to_driver": False, "logging_level": "WARNING"}
    if address is not None:
        ray.init(address, **options)
        return True
    try:
        ray.init("auto", **options)
    except ConnectionError:
        ray.init(**options)
    return True


def _run_wave(ray: Any, work: Work, wave: list[int]) -> None:
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    job = work.job
    items = [
        {
            "chunk": chunk,
            "sources": json.dumps([[number, asdict(source)] for number, source in job.plan.sources(chunk)]),
            "done": sorted(job.scored_pieces(chunk)),
        }
        for chunk in wave
    ]
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources, models, readers = _room(machines, work.cluster.actor_cpus)
    read = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
        _read_chunk,
        fn_args=(replace(work.reading, downloads=None), pieces.PIECE_SECONDS * work.rate),
        compute=ray.data.TaskPoolStrategy(size=readers),
        num_cpus=0,
    )
    scored = read.map_batches(
        _Scorer,
        fn_constructor_args=(work.choice, work.identity, work.batch_seconds, job.embeddings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=models),
        **resources,
    )
    for row in scored.iter_rows():
        piece = Piece(row["chunk"], row["number"], bool(row["is_last"]))
        job.write(piece, pyarrow.parquet.read_table(io.BytesIO(row["table"])))
        work.shown.add(row["seconds"], row["read"])
        if job.is_scored(piece.chunk):
            job.assemble(job.plan.chunks[piece.chunk].shard)


def _room(machines: Sequence[Mapping[str, float]], actor_cpus: int) -> tuple[dict[str, float], int, int]:
    """What a model needs, how many of them there may be, and how many tasks that read.

    >>> _room([{"CPU": 64.0, "GPU": 8.0}], 4)
    ({'num_gpus': 1}, 8, 16)
    >>> _room([{"CPU": 6.0}, {"CPU": 6.0}, {"memory": 1e9}], 4)
    ({'num_cpus': 4}, 2, 3)
    """
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    readers = max(1, sum(cpus) // CPUS_PER_READER)
    if gpus := sum(int(machine.get("GPU", 0)) for machine in machines):
        return {"num_gpus": 1}, gpus, readers
    if max(cpus) < actor_cpus:
        raise ValueError(
            f"actor_cpus is {actor_cpus}, but the machines of the cluster have {max(cpus)} CPUs at most: a model is on "
            "one machine, so choose no more than that."
        )
    return {"num_cpus": actor_cpus}, sum(count // actor_cpus for count in cpus), readers


def _read_chunk(row: dict[str, Any], reading: Reading, most: float) -> Iterator[dict[str, Any]]:
    """The pieces of a chunk that are not scored yet; files are read by a process of their own, which one may crash."""
    sources = [(number, Source(**values)) for number, values in json.loads(row["sources"])]
    readers: Readers[None] = Readers(reading, 1)
    try:
        events = readers.events((None, group) for group in groups_of(sources))
        for piece in cut_into_pieces(int(row["chunk"]), _events(events), most):
            if piece.number not in row["done"]:
                yield {"piece": pack(piece)}
    finally:
        readers.close()


def _events(events: Iterator[tuple[None, Event | None]]) -> Iterator[Event]:
    for _, event in events:
        assert event is not None  # there are no marks here
        yield event


class _Scorer:
    """An actor: a model that scores one piece after the other."""

    def __init__(self, choice: ModelChoice, identity: str, batch_seconds: float | None, embeddings: bool):
        self.network = load_engine(choice)
        if self.network.identity != identity:
            raise ValueError(
                f"--model {choice.model} is {self.network.identity} here, but {identity} where the run was started: "
                "give every machine of the cluster the same, or name a model on the Hub with its --revision."
            )
        self.batch_seconds = self.network.batch_seconds if batch_seconds is None else batch_seconds
        self.embeddings = embeddings

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        (content,) = batch["piece"]
        piece = unpack(content)
        file = io.BytesIO()
        pyarrow.parquet.write_table(score(piece, self.network, self.batch_seconds, self.embeddings), file)
        read = sum(event.read for event in piece.events if isinstance(event, (Heard, Ended)))
        row = {"chunk": piece.chunk, "number": piece.number, "is_last": piece.is_last, "table": file.getvalue()}
        return {name: [value] for name, value in (row | {"seconds": piece.seconds, "read": read}).items()}
