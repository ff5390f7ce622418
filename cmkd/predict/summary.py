"""One page that shows what was scored: the timelines over the waveforms, sortable, in a single file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from cmkd.atomic import written_whole
from cmkd.predict.labels import Track
from cmkd.predict.reading import PEAKS
from cmkd.predict.rows import Shape
from cmkd.predict.store import Store

MOST_ROWS = 400
"""Rows on the page; of more, those with the lowest and the highest scores in each dimension."""

MOST_STEPS = 240
"""Points of a timeline, and half those of a waveform."""

MOST_ERRORS = 100


def write_summary(store: Store, shape: Shape, settings: Mapping[str, Any]) -> None:
    """Writes summary.html, which needs nothing else to be looked at."""
    total, chosen = _chosen(store, shape.names)
    errors: list[dict[str, Any]] = []
    failures = 0
    for path in store.shard_paths(store.errors):
        table = pyarrow.parquet.read_table(path)
        failures += len(table)
        errors += table.slice(0, MOST_ERRORS - len(errors)).to_pylist()
    data = {
        "model": settings["model"],
        "dimensions": list(shape.names),
        "scale": list(shape.label_scale),
        "total": total,
        "failures": failures,
        "errors": [{name: row[name] for name in ("source", "kind", "message")} for row in errors],
        "rows": _pictures(store, shape, chosen),
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = files("cmkd.predict").joinpath("summary.html").read_text(encoding="utf-8")
    with written_whole(store.folder / "summary.html") as unfinished:
        unfinished.write_text(template.replace("{{DATA}}", text), encoding="utf-8", errors="replace")


def _chosen(store: Store, names: Sequence[str]) -> tuple[int, dict[str, dict[int, dict[str, Any]]]]:
    """How many rows there are, and those to show: by shard, by their place there."""
    total = sum(pyarrow.parquet.read_metadata(path).num_rows for path in store.shard_paths(store.scores))
    each = MOST_ROWS // (2 * len(names))
    ends: list[tuple[np.ndarray, list[tuple[str, int]]]] = [(np.zeros(0), []) for _ in range(2 * len(names))]
    chosen: dict[str, set[int]] = {}
    for path in store.shard_paths(store.scores):
        if total <= MOST_ROWS:
            chosen[path.name] = set(range(pyarrow.parquet.read_metadata(path).num_rows))
            continue
        table = pyarrow.parquet.read_table(path, columns=list(names))
        for number, name in enumerate(names):
            values = table[name].to_numpy()
            for sign in (0, 1):
                best, places = ends[2 * number + sign]
                every = np.concatenate([best, -values if sign else values])
                where = [*places, *((path.name, row) for row in range(len(values)))]
                kept = np.argsort(every, kind="stable")[:each]
                ends[2 * number + sign] = (every[kept], [where[index] for index in kept])
    for _, places in ends:
        for shard, row in places:
            chosen.setdefault(shard, set()).add(row)
    of_source: dict[str, dict[int, dict[str, Any]]] = {}
    for shard, rows in chosen.items():
        ordered = sorted(rows)
        table = pyarrow.parquet.read_table(store.scores / shard).take(pyarrow.array(ordered, pyarrow.int64()))
        if "embedding" in table.column_names:
            table = table.drop_columns("embedding")
        of_source[shard] = dict(zip(ordered, table.to_pylist(), strict=True))
    return total, of_source


def _pictures(store: Store, shape: Shape, chosen: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    pictures = []
    for shard, rows in sorted(chosen.items()):
        columns = ["number", "channel", "start", "end", "silent", "peaks", *shape.names]
        table = pyarrow.parquet.read_table(store.windows / shard, columns=columns)
        numbers = table["number"].to_numpy()
        channels = table["channel"].to_pylist()
        places: dict[tuple[int, int | None], list[int]] = {}
        wanted = {(row["number"], row["channel"]) for row in rows.values()}
        for index, key in enumerate(zip(numbers.tolist(), channels, strict=True)):
            if key in wanted:
                places.setdefault(key, []).append(index)
        for row in rows.values():
            own = table.take(places[row["number"], row["channel"]])
            pictures.append(_picture(row, own, shape.names))
    return pictures


def _picture(row: Mapping[str, Any], windows: pyarrow.Table, names: Sequence[str]) -> dict[str, Any]:
    start, duration = row["start"], row["duration"]
    track = Track(
        channel=row["channel"],
        starts=windows["start"].to_numpy() - start,
        ends=windows["end"].to_numpy() - start,
        silent=windows["silent"].to_numpy(zero_copy_only=False),
        scores={name: windows[name].to_numpy() for name in names},
    )
    return {
        "source": row["source"],
        "detail": ", ".join(filter(None, [row["id"], row["label"], _part(row)])),
        "start": round(start, 3),
        "duration": round(duration, 3),
        "silent": row["silent"],
        "scores": [_number(row[name]) for name in names],
        "timeline": _timeline(track, names),
        "wave": base64.b64encode(_wave(track, windows["peaks"].to_pylist(), duration)).decode(),
    }


def _part(row: Mapping[str, Any]) -> str:
    return "" if row["channel"] is None else f"channel {row['channel']}"


def _timeline(track: Track, names: Sequence[str]) -> list[list[float | None]]:
    """Start, end and scores of each stretch, None where it is silent; of many, as many as can be seen."""
    stretches = [
        [round(start, 3), round(end, 3), *(None if means is None else _number(means[name]) for name in names)]
        for start, end, means in track.stretches()
    ]
    step = math.ceil(len(stretches) / MOST_STEPS)
    if step == 1:
        return stretches
    joined = []
    for first in range(0, len(stretches), step):
        group = stretches[first : first + step]
        heard = np.array([stretch for stretch in group if stretch[2] is not None], dtype=float)
        means = heard[:, 2:].T @ (heard[:, 1] - heard[:, 0]) / np.sum(heard[:, 1] - heard[:, 0]) if len(heard) else None
        values = [None] * len(names) if means is None else [_number(value) for value in means]
        joined.append([group[0][0], group[-1][1], *values])
    return joined


def _wave(track: Track, peaks: Sequence[bytes], duration: float) -> bytes:
    """The loudest sample of each of up to 480 parts of the whole, a byte each."""
    widest = float((track.ends - track.starts).max())
    points = min(2 * MOST_STEPS, max(1, int(PEAKS * duration / widest)))
    wave = np.zeros(points, np.uint8)
    for start, end, own in zip(track.starts, track.ends, peaks, strict=True):
        values = np.frombuffer(own, np.uint8)
        middles = start + (np.arange(PEAKS) + 0.5) * (end - start) / PEAKS
        places = np.minimum((middles / duration * points).astype(int), points - 1)
        np.maximum.at(wave, places, values)
    return wave.tobytes()


def _number(value: float) -> float:
    return round(float(value), 4)
