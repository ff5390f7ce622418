"""What there is to score: files, folders, globs, lists, manifests, segments and data sets, as one stream of sources.

Nothing is opened here but what lists others: a sound is told from other files of a folder by its name alone, and what
is wrong with it is found when it is read. Files of a list that are not there are sources too: their rows are errors.
"""

from __future__ import annotations

import csv
import functools
import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

import fsspec
import pyarrow.parquet
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from audio_cmkd import import_package
from cmkd.predict.labels import is_label_file
from cmkd.spelling import did_you_mean, enumerated

SOUND_NAMES = frozenset(
    f".{ending}"
    for ending in (
        *("wav", "wave", "flac", "ogg", "oga", "opus", "mp3", "mp2", "mp1", "mpga", "m4a", "m4b", "mp4", "mov", "3gp"),
        *("3g2", "aac", "webm", "mkv", "mka", "wma", "asf", "amr", "aif", "aiff", "aifc", "au", "snd", "caf", "w64"),
        *("rf64", "sph", "nist"),
    )
)
"""How names of files end that are taken from a folder, in small or capital letters."""

MANIFESTS = (".csv", ".tsv", ".jsonl", ".parquet")
SEGMENTS = (".rttm", ".textgrid")
DATASET = "dataset:"

_STAMPS = ("ETag", "etag", "md5Hash", "md5", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems of fsspec call that by which a changed file is told from what it was; the first that is there."""


@dataclass(frozen=True)
class Source:
    """A file, or a stretch or a channel of one, that gets a row.

    Attributes:
        name (`str`): As it was named: what rows and messages show.
        address (`str`): What is opened: an absolute path, an address of fsspec, or that of a data set.
        row (`int`, *optional*): Of a data set.
        start, end (`float`, *optional*): In seconds; None: where the file begins and ends.
        channel (`int`, *optional*): From 0; None: what the run asks for.
        id (`str`): As a manifest or a data set calls it, else "".
        label (`str`): The speaker or the text of a segment, else "".
        size (`int`): Bytes of the file; 0 where that is not known.
        stamp (`str`): Changes when the file does; "missing" where there is none.
    """

    name: str
    address: str
    row: int | None = None
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    id: str = ""
    label: str = ""
    size: int = 0
    stamp: str = ""


@dataclass
class Search:
    """What was found on the way through the sources, beside them.

    Attributes:
        tiers: The tiers of TextGrid files that are meant; none: the only one that each has.
        lines: What "-" stands for: a name on each line.
        passed_over: How many files of folders do not have the name of a sound, by how their names end.
        own_labels: How many label files of `cmkd predict` were named, or are in folders and globs: they lie beside the
            sounds, and so patterns such as `calls/*` find them too.
        textgrids: How many TextGrid files there are.
    """

    tiers: Sequence[str] = ()
    lines: Iterable[str] = ()
    passed_over: dict[str, int] = field(default_factory=dict)
    own_labels: int = 0
    textgrids: int = 0

    def passes_over(self, name: str) -> bool:
        """Whether a file is a label file of `cmkd predict`, which is counted and is no source."""
        is_own = is_label_file(name)
        self.own_labels += is_own
        return is_own


def find_sources(arguments: Sequence[str], search: Search) -> Iterator[Source]:
    """The sources that are named on a command line, in that order; those of a folder by their names.

    Args:
        arguments: Files, folders, globs, "-", manifests (.csv, .tsv, .jsonl, .parquet), .rttm, .TextGrid, addresses
            that fsspec opens, and data sets, `dataset:NAME?split=test&column=audio`.
        search: How they are looked for; is told what was passed over.

    Raises:
        FileNotFoundError: What is named on the command line is not there, or a folder or a glob holds no sound.
        ValueError: A manifest or a file of segments cannot be used; the message names the line. Tiers are named, but no
            TextGrid file.
        ImportError: A package is missing that opens such an address or file.
    """
    for argument in arguments:
        is_any = search.passes_over(str(argument))  # a shell writes out its patterns
        for source in () if is_any else _of_argument(str(argument), search):
            is_any = True
            yield source
        if not is_any:
            raise FileNotFoundError(f"{argument}: there is nothing in it to score.")
    if search.tiers and not search.textgrids:
        raise ValueError(
            f"--tier {' '.join(search.tiers)}: is for TextGrid files, but no source is one; name some, or leave it out."
        )


def open_dataset(address: str) -> Any:
    """The data set of an address, its column of sound renamed to `audio` and not decoded.

    Args:
        address: `dataset:NAME?split=...&column=...&config=...&revision=...`; NAME is a folder or a name on the Hub.

    Raises:
        ValueError: The address, the split or the column is wrong.
        FileNotFoundError: There is no such data set.
    """
    from datasets import Audio, Dataset, DatasetDict, load_dataset, load_from_disk

    name, _, query = address.removeprefix(DATASET).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = ("split", "column", "config", "revision")
    for key in options:
        if key not in known:
            raise ValueError(f"{address}: {key!r} is none of {enumerated(known)}.{did_you_mean(key, known)}")
    split, column = options.get("split"), options.get("column", "audio")
    if _is_saved_dataset(Path(name)):
        rows = load_from_disk(name)
    else:
        rows = load_dataset(name, options.get("config"), revision=options.get("revision"))
    if isinstance(rows, DatasetDict):
        if split is None and len(rows) == 1:
            (split,) = rows
        if split not in rows:
            have = [f"split={name}" for name in rows]
            raise ValueError(
                f"{address}: say which split, such as {DATASET}{name}?{have[0]}; it has {enumerated(have)}."
            )
        rows = rows[split]
    elif split is not None and str(rows.split) != split:
        raise ValueError(f"{address}: there is no split {split!r}; leave it out.")
    assert isinstance(rows, Dataset)
    if column not in rows.column_names:
        raise ValueError(
            f"{address}: there is no column {column!r}, but {enumerated(rows.column_names)}; say which one holds the "
            f"sound: {DATASET}{name}?column=NAME"
        )
    stamp = rows._fingerprint
    if isinstance(rows.features[column], Audio):
        rows = rows.cast_column(column, Audio(decode=False))
    wanted = {column: "audio", **{name: name for name in ("id", "start", "end", "channel") if name != column}}
    rows = rows.select_columns([name for name in wanted if name in rows.column_names])
    rows = rows if column == "audio" else rows.rename_column(column, "audio")
    rows.stamp = stamp
    return rows


def is_remote(address: str) -> bool:
    """Whether an address is that of another machine, so that a copy has to be fetched before it can be read."""
    return "://" in address and not address.startswith("file://")


def _of_argument(argument: str, search: Search) -> Iterator[Source]:
    if argument == "-":
        for line in search.lines:
            if (name := line.rstrip("\r\n")) and not search.passes_over(name):
                yield _of_file(name)
    elif argument.startswith(DATASET):
        yield from _of_dataset(argument)
    elif is_remote(argument):
        yield from _of_address(argument, search)
    else:
        path = argument.removeprefix("file://")
        if Path(path).is_dir():
            yield from _of_dataset(DATASET + path) if _is_saved_dataset(Path(path)) else _of_folder(path, search)
        elif Path(path).exists() or not glob.has_magic(path):
            if not Path(path).exists():
                raise FileNotFoundError(f"{argument}: there is no such file or folder.")
            yield from _of_named(path, search)
        else:
            for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207 (names stay as they were written)
                if Path(match).is_dir():
                    yield from _of_folder(match, search)
                elif not search.passes_over(match):
                    yield from _of_named(match, search)


def _of_named(name: str, search: Search, info: Mapping[str, Any] | None = None) -> Iterator[Source]:
    """Of a file, which may be one that lists others."""
    ending = PurePosixPath(name).suffix.lower()
    if ending in MANIFESTS:
        yield from _of_manifest(name, ending)
    elif ending == ".rttm":
        yield from _of_rttm(name)
    elif ending == ".textgrid":
        search.textgrids += 1
        yield from _of_textgrid(name, search.tiers)
    else:
        yield _of_file(name, info)


def _of_folder(folder: str, search: Search) -> Iterator[Source]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_sound(name, search):
                yield _of_file(os.path.join(here, name))  # noqa: PTH118 (as the folder was written)


def _is_sound(name: str, search: Search) -> bool:
    if name.startswith(".") or search.passes_over(name):
        return False
    ending = PurePosixPath(name).suffix.lower()
    if ending in SOUND_NAMES:
        return True
    search.passed_over[ending] = search.passed_over.get(ending, 0) + 1
    return False


def _of_address(address: str, search: Search) -> Iterator[Source]:
    """Of what is on another machine: a file, a folder or a glob."""
    system, path = file_system(address)
    try:
        info = None if glob.has_magic(path) and not system.exists(path) else system.info(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{address}: there is no such file or folder.") from None
    if info is None:
        for name, details in sorted(system.glob(path, detail=True).items()):
            if details["type"] == "file" and not search.passes_over(name):
                yield from _of_named(system.unstrip_protocol(name), search, details)
    elif info["type"] == "directory":
        for _, folders, files in system.walk(path, detail=True):
            for name in sorted(folders):
                if name.startswith("."):
                    del folders[name]
            for name, details in sorted(files.items()):
                if name and _is_sound(name, search):
                    yield _of_file(system.unstrip_protocol(details["name"]), details)
    else:
        yield from _of_named(address, search, info)


def file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and what the address is called there.

    Raises:
        ValueError: No package knows such addresses.
        ImportError: The package that does is missing.
    """
    protocol = address.split("://")[0]
    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        extra = " (pip install cmkd[s3])" if protocol in ("s3", "s3a") else ""
        raise ImportError(f"{address}: a package that opens {protocol}:// is missing{extra}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{address}: {error}") from error
    return system, path


def _of_file(name: str, info: Mapping[str, Any] | None = None, **part: Any) -> Source:
    """Of a file that holds sound, which may not be there."""
    if not is_remote(name):
        path = os.path.abspath(name.removeprefix("file://"))  # noqa: PTH100 (links stay what they are)
        try:
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):
            return Source(name, path, stamp="missing", **part)
        return Source(name, path, size=status.st_size, stamp=f"{status.st_size} {status.st_mtime_ns}", **part)
    if info is None:
        system, path = file_system(name)
        try:
            info = system.info(path)
        except FileNotFoundError:
            return Source(name, name, stamp="missing", **part)
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")
    size = info.get("size") or 0
    return Source(name, name, size=size, stamp=f"{size} {stamp}", **part)


# ---------------------------------------------------------------------------------------------------------------------
# tables


def _of_manifest(name: str, ending: str) -> Iterator[Source]:
    readers = {".csv": _csv_rows, ".tsv": _tsv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    files = _Files(name)
    for place, row in readers[ending](name):
        audio = row.get("audio")
        if isinstance(audio, Mapping):
            audio = audio.get("path")
        if not isinstance(audio, str) or not audio:
            raise ValueError(
                f"{place}: audio is {audio!r}, but must be the path or the address of a sound file, from the folder of "
                "the manifest or absolute; sound that is within a table is read as a data set (dataset:FOLDER)."
            )
        yield replace(files[audio], **_part(row, place))


class _Files(dict[str, Source]):
    """The files that a table names, from its own folder; looked at once for rows of one file that follow each other."""

    def __init__(self, table: str):
        self.folder = table.rpartition("/")[0]

    def __missing__(self, name: str) -> Source:
        is_whole = is_remote(name) or name.startswith(("/", "file://")) or not self.folder
        self.clear()
        self[name] = _of_file(name if is_whole else f"{self.folder}/{name}")
        return self[name]


def _part(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The stretch, the channel and the id of a row."""
    start, end = (_seconds(row.get(edge), f"{place}: {edge}") for edge in ("start", "end"))
    if start is not None and end is not None and start >= end:
        raise ValueError(f"{place}: start={start:g} must be before end={end:g}.")
    return {
        "start": start,
        "end": end,
        "channel": _channel(row.get("channel"), place),
        "id": "" if _is_empty(row.get("id")) else str(row["id"]),
    }


def _seconds(value: Any, what: str) -> float | None:
    if _is_empty(value):
        return None
    try:
        seconds = float(value)
        if not 0 <= seconds < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {value!r}, but must be a number of seconds from 0 on, or empty.") from None
    return seconds


def _channel(value: Any, place: str) -> int | None:
    if _is_empty(value) or value == "mean":
        return None
    try:
        number = float(value)
        if number < 0 or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{place}: channel is {value!r}, but must be a number from 0 on, or empty.") from None
    return int(number)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _csv_rows(name: str, delimiter: str = ",") -> Iterator[tuple[str, dict[str, Any]]]:
    with _text(name) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] = []
        place = f"{name}:1"
        try:
            for fields in reader:
                place = f"{name}:{reader.line_num}"
                if not fields:
                    continue
                if not header:
                    header = fields
                    _check_columns(header, name)
                elif len(fields) != len(header):
                    raise ValueError(f"{place}: it has {len(fields)} fields, but the header has {len(header)}.")
                else:
                    yield place, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise ValueError(f'{place}: {error}: quote a field by " at both ends, and double each " in it.') from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: it is not UTF-8 ({error}); save it as UTF-8.") from error


def _tsv_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return _csv_rows(name, "\t")


def _jsonl_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with _text(name) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{name}:{number}: it is not JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{name}:{number}: it is not a JSON object, but {line.strip():.60}")
                yield f"{name}:{number}", row


def _parquet_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    with fsspec.open(name, "rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{name}: it is not a Parquet file: {error}") from error
        _check_columns(table.schema_arrow.names, name)
        wanted = [column for column in ("audio", "start", "end", "channel", "id") if column in table.schema_arrow.names]
        for batch in table.iter_batches(1024, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", row


def _check_columns(names: Sequence[str], table: str) -> None:
    if "audio" not in names:
        raise ValueError(
            f"{table}: a manifest has the column audio, and start, end, channel and id where they are needed; this one "
            f"has {enumerated(names)}.{did_you_mean('audio', names)}"
        )


def _text(name: str) -> Any:
    return fsspec.open(name, "rt", encoding="utf-8-sig", newline="")


# ---------------------------------------------------------------------------------------------------------------------
# segments


class _Beside:
    """The sound files beside a file of segments, by their names without ending."""

    def __init__(self, name: str):
        self.name = name
        self.folder = name.rpartition("/")[0]
        system, path = file_system(name) if is_remote(name) else (LocalFileSystem(), os.path.abspath(name))  # noqa: PTH100
        self.found: dict[str, list[str]] = {}
        for entry in system.ls(path.rpartition("/")[0], detail=False):
            own = PurePosixPath(entry)
            if own.suffix.lower() in SOUND_NAMES:
                self.found.setdefault(own.stem, []).append(own.name)
        self.source = functools.lru_cache(maxsize=16)(self._source)

    def _source(self, stem: str) -> Source:
        names = sorted(self.found.get(stem, []))
        if len(names) > 1:
            raise ValueError(f"{self.name}: the sound of {stem!r} may be {enumerated(names)}: keep one beside it.")
        own = names[0] if names else f"{stem}.wav"
        return _of_file(f"{self.folder}/{own}" if self.folder else own)


def _of_rttm(name: str) -> Iterator[Source]:
    """The turns of speakers, `SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>`.

    Channels are counted from 1 there, and most programs write 1 whatever the file has: they count only where the file
    of segments names several.
    """
    beside = _Beside(name)
    channels: dict[str, set[str]] = {}
    for _, fields in _rttm_rows(name):
        channels.setdefault(fields[1], set()).add(fields[2])
    for place, fields in _rttm_rows(name):
        start, duration = (
            _seconds(fields[number], f"{place}: {what}") for number, what in ((3, "start"), (4, "duration"))
        )
        if start is None or not duration:
            raise ValueError(f"{place}: start and duration are {fields[3]!r} and {fields[4]!r}: a turn has a length.")
        channel = None
        if len(channels[fields[1]]) > 1:
            number = _channel(fields[2], place)
            if not number:
                raise ValueError(f"{place}: the channel is {fields[2]!r}, but RTTM counts from 1.")
            channel = number - 1
        label = "" if fields[7] == "<NA>" else fields[7]
        end = round(start + duration, 6)
        yield replace(beside.source(fields[1]), start=start, end=end, channel=channel, label=label)


def _rttm_rows(name: str) -> Iterator[tuple[str, list[str]]]:
    with _text(name) as file:
        for number, line in enumerate(file, start=1):
            fields = line.split()
            if not fields or fields[0].startswith(";;") or fields[0] != "SPEAKER":
                continue
            if len(fields) < 8:
                raise ValueError(f"{name}:{number}: a line of RTTM has 9 or 10 fields, this one {len(fields)}.")
            yield f"{name}:{number}", fields


def _of_textgrid(name: str, wanted: Sequence[str]) -> Iterator[Source]:
    import_package("praatio", "reads TextGrid files")
    from praatio import textgrid

    beside = _Beside(name)
    with tempfile.TemporaryDirectory() as folder:
        path = name
        if is_remote(name):
            path = str(Path(folder, "segments.TextGrid"))
            system, remote = file_system(name)
            system.get_file(remote, path)
        try:
            grid = textgrid.openTextgrid(path, includeEmptyIntervals=False)
        except Exception as error:  # praatio raises whatever its parser meets
            raise ValueError(f"{name}: it cannot be read as a TextGrid: {error}") from error
    tiers = {tier.name: tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)}
    if not wanted and len(tiers) != 1:
        raise ValueError(f"{name}: it has the tiers {enumerated(list(tiers)) or '(none)'}: say which, by --tier NAME.")
    for tier in wanted or tiers:
        if tier not in tiers:
            have = f"but {enumerated(list(tiers))}" if tiers else "nor any other"
            raise ValueError(f"{name}: there is no tier of intervals {tier!r}, {have}.{did_you_mean(tier, tiers)}")
        source = beside.source(PurePosixPath(name).stem)
        for start, end, text in tiers[tier].entries:
            yield replace(source, start=start, end=end, label=text)


# ---------------------------------------------------------------------------------------------------------------------
# data sets


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _of_dataset(address: str) -> Iterator[Source]:
    rows = open_dataset(address)
    others = rows.select_columns([name for name in rows.column_names if name != "audio"])
    for number in range(len(rows)):
        name = f"{address}#{number}"
        part = _part(others[number], name) if others.column_names else {}
        yield Source(name, address, number, stamp=rows.stamp, **part)
