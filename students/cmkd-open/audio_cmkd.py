"""Reads sound files of any kind, whole or not at all; training and scoring use the same reader.

This file travels to the Hub with every checkpoint, together with `pipeline_cmkd.py`. It imports numpy; soundfile, to
read wav, flac, ogg, mp3 and whatever else libsndfile knows; and av (PyAV), only for what libsndfile does not read (m4a,
aac, mp4, mov, 3gp, webm, wma, amr) or whose length it does not know. Files are told apart by their content, not by
their names. What a file says about its own length is always checked: pages, boxes and frames are walked through, and
files that are cut off or damaged are refused.
"""

import importlib
import io
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

BLOCK = 2**16
"""The number of frames that are read at a time."""

END_TOLERANCE = 0.1
"""How far, in seconds, the end of a stretch may lie beyond the end of its file, which is then taken for it: annotations
are rounded, and files of lossy formats are some milliseconds longer or shorter than what was recorded."""

SILENCE_LEVEL = 1e-3
"""Root mean square, full scale being 1 (-60 dB), below which sound counts as silent."""

_WHOLE_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "SVX", "CAF", "NIST", "FLAC", "OGG")
"""Formats of libsndfile whose files tell whether they are complete."""

_ALSO_BY_FFMPEG = {b"OggS": "ogg", b"caff": "caf", b"RIFF": "wav"}
"""FFmpeg's names of containers that libsndfile opens, by their first bytes; it does not know all codecs in them."""

_NOT_SEEKABLE = ("GSM610", "MPEG_LAYER_III")  # codecs in wav in which libsndfile cannot seek reliably

_SHORT_CHUNK = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)$", re.MULTILINE
)  # in libsndfile's log
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_LEFT_OPEN = (range(2**31 - 2**12, 2**31), range(2**32 - 2**12, 2**32))  # sizes of a writer that cannot go back
_HEAD = 2**16  # bytes, in which sound must begin
_PREROLL = 1.0  # seconds before a stretch from which a lossy decoder is started, so that it has settled
_LONGEST_GAP = 0.1  # seconds; if two packets are further apart, sound is missing between them
_DECODER_DELAY = 529  # samples by which every MPEG decoder is late
_CANCELLED = 0.01  # the power of the mean, relative to that of the mean of unrelated channels


class AudioError(ValueError):
    """Audio that cannot be used.

    Attributes:
        name (`str`): The file, or "audio" if only its content is known.
        reason (`str`): "missing file", "unreadable audio", "truncated audio", "empty audio", "non-finite audio",
            "channels cancel out", "no such channel", "empty stretch" or "stretch outside the audio".
        detail (`str`): The particulars.
    """

    def __init__(self, name: str, reason: str, detail: str):
        super().__init__(name, reason, detail)
        self.name = name
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}: {self.detail}"


@dataclass
class Sound:
    """An open sound file.

    Attributes:
        name (`str`): Its name, for messages.
        rate (`int`): Its rate, in Hz.
        channels (`int`): The number of its channels.
        frames (`int`, *optional*): The number of its frames; None if only decoding can tell.
        may_be_infinite (`bool`): Whether its samples are stored as floating point numbers.
        read (`Callable`): A function that returns the frames from a position on, in blocks (frames, channels) of
            float32.
    """

    name: str
    rate: int
    channels: int
    frames: int | None
    may_be_infinite: bool
    read: Callable[[int], Iterator[np.ndarray]]

    def blocks(
        self, start: float | None = None, end: float | None = None, channel: int | None = None
    ) -> Iterator[np.ndarray]:
        """The sound, or a stretch or a channel of it, in blocks (frames, channels) of float32, checked.

        Args:
            start, end (`float`, *optional*): Where the stretch begins and ends, in seconds; None stands for the
                beginning and the end of the sound.
            channel (`int`, *optional*): The number of a channel, counted from 0; None for all.

        Raises:
            AudioError: The sound turns out to be truncated, damaged, empty or non-finite, has no such channel or does
                not have this stretch.
        """
        columns = slice(None) if channel is None else slice(self.channel(channel), channel + 1)
        first, stop = self.span(start, end)
        position = first
        for block in self.read(first):
            if stop is not None:
                block = block[: stop - position]
            if len(block):
                block = block[:, columns]
                if self.may_be_infinite and not np.isfinite(block).all():
                    after = position / self.rate
                    raise AudioError(
                        self.name, "non-finite audio", f"it has samples that are NaN or infinite after {after:.2f} s"
                    )
                position += len(block)
                yield block
            if position == stop:
                return
        if position == first == 0:
            raise AudioError(self.name, "empty audio", "it has no samples")
        self._check_inside(first, stop, position, end)

    def channel(self, number: int) -> int:
        """The number of a channel, after checking that it exists."""
        if number >= self.channels:
            have = "1 channel" if self.channels == 1 else f"{self.channels} channels"
            raise AudioError(self.name, "no such channel", f"channel {number} of {have}; the first is 0")
        return number

    def span(self, start: float | None, end: float | None) -> tuple[int, int | None]:
        """The first frame of a stretch and the one after its last; None for the end of a sound of unknown length."""
        for label, value in (("start", start), ("end", end)):
            if value is not None and not 0 <= value < math.inf:
                raise AudioError(self.name, "empty stretch", f"{label}={value!r} must be in seconds from 0 on")
        first = 0 if start is None else round(start * self.rate)
        stop = self.frames if end is None else round(end * self.rate)
        if stop is not None and start is not None and end is not None and first >= stop:
            raise AudioError(self.name, "empty stretch", f"start={start:g} must be before end={end:g}")
        if self.frames is not None:
            self._check_inside(first, stop, self.frames, end)
            stop = self.frames if stop is None else min(stop, self.frames)
        return first, stop

    def _check_inside(self, first: int, stop: int | None, frames: int, end: float | None) -> None:
        """Checks that a stretch lies within the frames of the sound."""
        if first > 0 and first >= frames:
            raise _outside(self.name, f"start={first / self.rate:g}", frames / self.rate)
        if stop is not None and end is not None and stop - frames > END_TOLERANCE * self.rate:
            raise _outside(self.name, f"end={end:g}", frames / self.rate)


def _outside(name: str, argument: str, seconds: float) -> AudioError:
    return AudioError(name, "stretch outside the audio", f"{argument}, but it is {seconds:.3f} s long")


class ChannelPowers:
    """The power of a sound's channels and of their mean, which shows whether they cancel each other out.

    >>> powers = ChannelPowers()
    >>> powers.add(np.array([[0.5, -0.5], [-0.25, 0.25]]))
    >>> powers.cancel_out()
    True
    """

    def __init__(self) -> None:
        self.frames = 0
        self.products = np.zeros((1, 1))  # of each channel with each, summed over time

    def add(self, block: np.ndarray) -> None:
        """Adds a block (frames, channels)."""
        if block.shape[1] > 1:  # one alone has nothing to cancel out with
            self.frames += len(block)
            self.products = self.products + block.T @ block

    def cancel_out(self) -> bool:
        """Whether a channel is not silent and the mean has less than a hundredth of the power that it would have if
        the channels were unrelated."""
        powers = np.diagonal(self.products)
        is_audible = powers.max() > 0 and powers.max() >= SILENCE_LEVEL**2 * self.frames
        return bool(is_audible and self.products.sum() < _CANCELLED * powers.sum())


CANCELLED_ADVICE = "so that their mean is silent though they are not; choose one of them, such as channel=0"


def check_channel(channel: Any, *words: str) -> None:
    """Refuses anything that does not name a channel: it must be a number, counted from 0, or one of certain words.

    Raises:
        ValueError: It names no channel.
    """
    if isinstance(channel, str) and channel in words:
        return
    if isinstance(channel, bool) or not isinstance(channel, (int, np.integer)) or channel < 0:
        known = " or ".join(f'"{word}"' for word in words)
        raise ValueError(f"channel={channel!r}: must be {known} or the number of a channel, of which the first is 0.")


def name_and_content(audio: Any, name: str = "audio", also: str = "") -> tuple[str, str | bytes]:
    """A name for messages, and the path or the content of a sound file.

    Args:
        audio (`str`, path, `bytes` or `dict`): A file, its content, or `{"bytes": ..., "path": ...}`, of which the
            bytes are used unless they are None.
        name (`str`, *optional*, defaults to `"audio"`): A name for sound without a path.
        also (`str`, *optional*): What else the caller accepts, for the message.

    Raises:
        TypeError: It is something else.
    """
    content = audio
    if isinstance(audio, dict):
        if audio.get("path") is not None:
            name = str(audio["path"])
        content = audio.get("path") if audio.get("bytes") is None else audio["bytes"]
    if isinstance(content, (bytes, bytearray, memoryview)):
        return name, bytes(content)
    if isinstance(content, (str, os.PathLike)):
        path = os.fspath(content)
        return path, path
    wanted = f"a path, the bytes of a file, {also + ', ' if also else ''}or a dict with 'path' or 'bytes'"
    wanted += " or with 'array' and 'sampling_rate'" if also else ""
    if not isinstance(audio, dict):
        raise TypeError(f"{name} is {audio!r:.80}, but must be {wanted}.")
    keys = ", ".join(map(repr, audio)) or "nothing"
    advice = " Of a row of a data set, pass the sound alone: row['audio']." if "audio" in audio else ""
    raise TypeError(f"{name} is a dict with {keys}, but must be {wanted}, not all of them None.{advice}")


@contextmanager
def open_sound(name: str, content: str | bytes) -> Iterator[Sound]:
    """Opens a sound file and checks that its structure is as its header says.

    Args:
        name (`str`): A name for messages.
        content (`str` or `bytes`): A path, or the content of a file.

    Raises:
        AudioError: The file is missing, empty, truncated or unreadable.
        ImportError: soundfile or av is needed and missing.
    """
    with _opened_file(name, content) as file:
        kind = _kind(file)
        if kind in _STRUCTURES:
            _STRUCTURES[kind](name, file)
            opened = _opened_by_ffmpeg(name, file, kind)
        elif kind == "mpeg":
            opened = _opened_mpeg(name, content, file)
        else:
            opened = _opened_by_libsndfile(name, content, file)
        with opened as sound:
            yield sound


@contextmanager
def _opened_file(name: str, content: str | bytes) -> Iterator[BinaryIO]:
    if isinstance(content, str) and content.startswith(("http://", "https://")):
        raise AudioError(name, "missing file", "addresses are not fetched: download the file and pass its path")
    try:
        size = len(content) if isinstance(content, bytes) else Path(content).stat().st_size
    except (OSError, ValueError) as error:
        raise AudioError(name, "missing file", str(error)) from error
    if size == 0:
        raise AudioError(name, "empty audio", "the file has no bytes")
    if isinstance(content, bytes):
        yield io.BytesIO(content)
        return
    try:
        file = Path(content).open("rb")  # noqa: SIM115 (its use is not in the try)
    except OSError as error:
        raise AudioError(name, "unreadable audio", str(error)) from error
    with file:
        yield file


def import_package(package: str, purpose: str) -> Any:
    """A package that is needed only now.

    Raises:
        ImportError: It is missing; the message says what it is for and how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"The package {package}, which {purpose}, is missing: pip install {package}") from error


def _kind(file: BinaryIO) -> str:
    """The kind of a file, by its first bytes: a key of `_STRUCTURES`, "mpeg", or "" for libsndfile to determine."""
    head = file.read(16)
    start = _id3_size(head)
    if start == 0:
        if head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
            return "mov"
        for magic, kind in ((b"\x1aE\xdf\xa3", "matroska"), (_ASF_HEADER, "asf"), (b"#!AMR", "amr")):
            if head.startswith(magic):
                return kind
        if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b".snd", b"caff", b"NIST"):
            return ""
    file.seek(start)
    head = file.read(_HEAD)
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # the sync word of ADTS, whose layer is 0
        return "aac"
    return "mpeg" if _first_frame(head) >= 0 else ""


# ---------------------------------------------------------------------------------------------------------------------
# libsndfile


@contextmanager
def _opened_by_libsndfile(name: str, content: str | bytes, file: BinaryIO) -> Iterator[Sound]:
    links = _links(name, file)
    if len(links) > 1:
        yield _chained(name, file, links)
        return
    try:
        opened = _sound_file(name, content)
    except AudioError:
        file.seek(0)
        head = file.read(12)
        kind = _ALSO_BY_FFMPEG.get(head[:4])
        if kind is None or (kind == "wav" and head[8:] != b"WAVE"):
            raise
        _check_outer_size(name, file)
        with _opened_by_ffmpeg(name, file, kind) as decoded:
            yield decoded
        return
    with opened as sound:
        if sound.format not in _WHOLE_FORMATS:
            detail = f"nothing in a file of the format {sound.format} tells whether it is complete; convert it to wav"
            raise AudioError(name, "unreadable audio", detail)
        _check_promise(name, sound, file)
        if sound.frames > 2**62:  # a FLAC file of unknown length
            with _opened_by_ffmpeg(name, file, "flac") as decoded:
                yield decoded
        elif sound.format in ("WAV", "WAVEX") and (
            sound.subtype in _NOT_SEEKABLE or (sound.frames == 0 and _is_left_open(file))
        ):
            with _opened_by_ffmpeg(name, file, "wav") as decoded:
                yield decoded
        elif sound.frames == 0:
            raise AudioError(name, "empty audio", "it has no samples")
        else:
            yield _of_libsndfile(name, sound)


def _check_promise(name: str, sound: Any, file: BinaryIO) -> None:
    """Refuses a file that is shorter than its header says, which libsndfile only notes in its log."""
    short = _SHORT_CHUNK.search(sound.extra_info)
    if short and int(short[2]) < int(short[1]) and not any(int(short[1]) in sizes for sizes in _LEFT_OPEN):
        detail = f"the header promises {short[1]} bytes of sound, but {short[2]} are there"
        raise AudioError(name, "truncated audio", detail)
    if sound.format == "NIST" and sound.frames < _nist_frames(file):
        detail = f"the header promises {_nist_frames(file)} frames, but there are {sound.frames}"
        raise AudioError(name, "truncated audio", detail)


def _sound_file(name: str, content: "str | bytes | _Part") -> Any:
    soundfile = import_package("soundfile", "reads audio files")
    try:
        return soundfile.SoundFile(io.BytesIO(content) if isinstance(content, bytes) else content)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a name that ends in ".raw"
        # libsndfile's whole message would show the representation of an object in memory.
        why = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        detail = f"neither libsndfile nor this reader knows what it is ({why}); convert it to wav or flac"
        raise AudioError(name, "unreadable audio", detail) from error


def _of_libsndfile(name: str, sound: Any, preroll: int = 0) -> Sound:
    may_be_infinite = sound.subtype in ("FLOAT", "DOUBLE")
    return Sound(
        name,
        sound.samplerate,
        sound.channels,
        sound.frames,
        may_be_infinite,
        lambda first: _read_by_libsndfile(name, sound, first, preroll),
    )


def _read_by_libsndfile(name: str, sound: Any, first: int, preroll: int) -> Iterator[np.ndarray]:
    soundfile = import_package("soundfile", "reads audio files")
    promise = f"the header promises {sound.frames} frames"
    block_size = max(BLOCK, 16 * preroll)
    position = first
    try:
        while position < sound.frames:
            # soundfile seeks after each block, which an MPEG decoder needs some time to recover from.
            start = max(0, position - preroll)
            if start != sound.tell():
                sound.seek(start)
            size = min(block_size, sound.frames - position) + position - start
            block = sound.read(size, dtype="float32", always_2d=True)
            if len(block) < size:
                raise AudioError(name, "truncated audio", f"{promise}, but there are {start + len(block)}")
            yield block[position - start :]
            position = start + size
    except soundfile.SoundFileError as error:
        raise AudioError(name, "truncated audio", f"{promise}, but not all can be read: {error}") from error


def _check_outer_size(name: str, file: BinaryIO) -> None:
    """Checks that a wav file is as long as its beginning says; Ogg pages and CAF chunks have already been checked."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic, length = file.read(4), int.from_bytes(file.read(4), "little")
    if magic == b"RIFF" and size < 8 + length and not any(length in sizes for sizes in _LEFT_OPEN):
        raise AudioError(name, "truncated audio", f"the header promises {8 + length} bytes, but {size} are there")


def _is_left_open(file: BinaryIO) -> bool:
    """Whether a wav file without a size of its sound continues beyond its outer size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 < size


def _nist_frames(file: BinaryIO) -> int:
    file.seek(0)
    count = re.search(rb"^sample_count -i (\d+)\s*$", file.read(1024), re.MULTILINE)
    return int(count[1]) if count else 0


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self._file, self._start, self._end, self._position = file, start, end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end - self._start}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._position)
        content = self._file.read(min(len(buffer), max(0, self._end - self._start - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _links(name: str, file: BinaryIO) -> list[tuple[int, int]]:
    """Where each of the sounds that are joined in a file begins and ends, in bytes; most files hold one.

    Ogg files are chained by design, others with `cat`; libsndfile reads only the first one.
    """
    file.seek(0)
    magic = file.read(4)
    if magic == b"OggS":
        starts = _ogg_starts(name, file)
    elif magic == b"fLaC":
        starts = _flac_starts(file)
    elif magic in (b"RIFF", b"FORM"):
        starts = _riff_starts(name, file, "big" if magic == b"FORM" else "little")
    elif magic == b"caff":
        starts = _caf_starts(name, file)
    elif magic in (b".snd", b"riff"):
        starts = _sized_starts(file)
    else:
        starts = [0]
    return list(zip(starts, [*starts[1:], file.seek(0, os.SEEK_END)], strict=True))


def _ogg_starts(name: str, file: BinaryIO) -> list[int]:
    size = file.seek(0, os.SEEK_END)
    starts: list[int] = []
    position, is_first = 0, False  # is_first: the page before began a stream
    while position < size:
        file.seek(position)
        header = file.read(27)
        table = file.read(header[26]) if len(header) == 27 else b""
        end = position + 27 + len(table) + sum(table)
        if not b"OggS".startswith(header[:4]):
            raise AudioError(name, "unreadable audio", f"what begins at byte {position} is not an Ogg page")
        if len(header) < 27 or len(table) < header[26] or end > size:
            raise AudioError(name, "truncated audio", "the last Ogg page is incomplete")
        begins = bool(header[5] & 2)
        if begins and not is_first:
            starts.append(position)
        position, is_first = end, begins
    return starts


def _flac_starts(file: BinaryIO) -> list[int]:
    starts = []
    position, overlap = 0, b""
    file.seek(0)
    while block := overlap + file.read(2**20):
        starts += [position + match.start() for match in _FLAC_START.finditer(block)]
        if len(block) < 2**20:
            break
        overlap = block[-7:]  # a byte less than what is looked for
        position += len(block) - len(overlap)
    return starts


def _riff_starts(name: str, file: BinaryIO, order: Literal["little", "big"]) -> list[int]:
    """Where RIFF or FORM chunks begin, one after the other, with chunks of other names, such as tags, at the end."""
    size = file.seek(0, os.SEEK_END)
    starts = [0]
    position = 0
    while True:
        file.seek(position)
        header = file.read(8)
        length = int.from_bytes(header[4:], order)
        if length == 0 or any(length in sizes for sizes in _LEFT_OPEN):
            return starts
        position += 8 + length + length % 2
        if position + 8 > size:
            return starts
        file.seek(position)
        name_of_next = file.read(4)
        if name_of_next in (b"RIFF", b"FORM"):
            starts.append(position)
        elif not name_of_next.strip(b"\0"):
            return starts  # zeros
        elif name_of_next[:3] in (b"TAG", b"ID3"):
            return starts
        elif not name_of_next.isalnum() and not name_of_next.strip().isalnum():
            detail = f"its header does not account for the {size - position} bytes at its end; make it again"
            raise AudioError(name, "unreadable audio", detail)


def _caf_starts(name: str, file: BinaryIO) -> list[int]:
    """Where CAF files begin; their chunks are checked for completeness, but the size of the last may be left open."""
    size = file.seek(0, os.SEEK_END)
    starts = [0]
    position = 8
    while position < size:
        file.seek(position)
        header = file.read(12)
        if header[:4] == b"caff":
            starts.append(position)
            position += 8
            continue
        length = int.from_bytes(header[4:], "big", signed=True)
        if length == -1 and header[:4] == b"data":
            break
        if len(header) < 12 or not 0 <= length <= size - position - 12:
            detail = f"the part {header[:4]!r} promises {length} bytes, but {size - position - len(header)} are there"
            raise AudioError(name, "truncated audio", detail)
        position += 12 + length
    return starts


def _sized_starts(file: BinaryIO) -> list[int]:
    """Where au and w64 files begin, whose size is given at their beginning."""
    starts: list[int] = []
    position = 0
    while True:
        file.seek(position)
        header = file.read(24)
        if header[:4] == b".snd":
            length = int.from_bytes(header[4:8], "big") + int.from_bytes(header[8:12], "big")
        elif header[:4] == b"riff":
            length = int.from_bytes(header[16:], "little")
        else:
            return starts
        starts.append(position)
        if length == 0:
            return starts
        position += length


def _chained(name: str, file: BinaryIO, links: list[tuple[int, int]]) -> Sound:
    """The sounds of a file that was joined from several, one after the other."""
    lengths = []
    forms = set()
    for start, end in links:
        try:
            opened = _sound_file(name, _Part(file, start, end))
        except AudioError:
            raise _joined(name, len(links)) from None
        with opened as part:
            _check_promise(name, part, file)
            if part.subtype in _NOT_SEEKABLE:
                raise _joined(name, len(links))
            lengths.append(part.frames)
            forms.add((part.samplerate, part.channels))
    rate, channels = _the_only(name, forms)

    def read(first: int) -> Iterator[np.ndarray]:
        for (start, end), length in zip(links, lengths, strict=True):
            if first < length:
                with _sound_file(name, _Part(file, start, end)) as part:
                    yield from _read_by_libsndfile(name, part, first, 0)
            first = max(0, first - length)

    return Sound(name, rate, channels, sum(lengths), False, read)


def _joined(name: str, number: int) -> AudioError:
    detail = f"it is {number} files joined to one, of which only the first would be heard; split it, or convert each"
    return AudioError(name, "unreadable audio", detail)


def _the_only(name: str, forms: set[tuple[int, int]]) -> tuple[int, int]:
    if len(forms) > 1:
        shown = " and ".join(f"{rate} Hz with {channels} channels" for rate, channels in sorted(forms))
        raise AudioError(name, "unreadable audio", f"its parts differ: {shown}; convert them to one form first")
    (form,) = forms
    return form


# ---------------------------------------------------------------------------------------------------------------------
# MPEG audio: mp3, mp2, mp1


@dataclass
class _Frame:
    """The contents of the header of an MPEG frame."""

    size: int  # bytes
    samples: int
    layer: int
    rate: int
    channels: int
    info: int  # where the name of an information frame stands


@dataclass
class _Link:
    """One of the MPEG streams that are joined in a file, without the information frame that may come first."""

    start: int  # in bytes
    frame: _Frame  # the first one
    promised: int = 0  # frames, if there is an information frame
    promised_bytes: int = 0
    delay: int = 0  # samples that the encoder put in front
    padding: int = 0  # and behind

    def __post_init__(self) -> None:
        self.offsets = array("q")  # of each frame

    @property
    def trim(self) -> tuple[int, int]:
        """The number of samples at the beginning and at the end that do not belong to the sound."""
        if self.delay == self.padding == 0:
            return 0, 0
        is_whole = len(self.offsets) == self.promised
        return self.delay + _DECODER_DELAY, max(0, self.padding - _DECODER_DELAY) if is_whole else 0

    @property
    def length(self) -> int:
        """Samples."""
        return max(0, len(self.offsets) * self.frame.samples - sum(self.trim))


_BIT_RATES = {  # kbit/s by layer, of MPEG 1 and of MPEG 2 and 2.5
    (True, 1): range(0, 449, 32),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _frame(header: bytes) -> _Frame | None:
    """Reads the four bytes at the start of an MPEG frame (ISO 11172-3, 2.4.1.3); None if they are something else."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bit_rate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_first, channels = version == 3, 1 if header[3] >> 6 == 3 else 2
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * _BIT_RATES[is_first, layer][bit_rate]
    padding = header[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and not is_first else 1152
    size = 4 * (12 * bits // hertz + padding) if layer == 1 else samples // 8 * bits // hertz + padding
    side = (32, 17) if is_first else (17, 9)
    return _Frame(size, samples, layer, hertz, channels, 4 + side[channels == 1])


def _first_frame(head: bytes) -> int:
    """Where three MPEG frames of the same form first follow each other; -1 if nowhere."""
    position = head.find(0xFF)
    while position >= 0:
        frames: list[tuple[int, int, int]] = []
        at = position
        while len(frames) < 3 and (frame := _frame(head[at : at + 4])):
            frames.append((frame.layer, frame.rate, frame.channels))
            at += frame.size
        if len(set(frames)) == 1 and (len(frames) == 3 or (position == 0 and at >= len(head))):
            return position
        position = head.find(0xFF, position + 1)
    return -1


def _id3_size(data: bytes) -> int:
    """The size in bytes of the ID3v2 tag at the start of the data."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if data[5] & 0x10 else 0)


def _tag_size(data: bytes) -> int:
    """The size in bytes of the tag at the start of the data, 0 if there is none."""
    if data[:3] == b"TAG":
        return 227 if data[:4] == b"TAG+" else 128
    if data[:8] == b"APETAGEX" and len(data) >= 32:
        is_header = data[23] & 0x20
        return 32 + (int.from_bytes(data[12:16], "little") if is_header else 0)
    return _id3_size(data)


def _sound_end(file: BinaryIO) -> int:
    """Where the tags at the end of a file begin that can only be read backwards: APE and Lyrics3."""
    end = file.seek(0, os.SEEK_END)
    while True:
        file.seek(max(0, end - 160))
        tail = file.read(end - file.tell())
        if tail[-32:-24] == b"APETAGEX":
            has_header = tail[-9] & 0x80
            size = max(32, int.from_bytes(tail[-20:-16], "little")) + (32 if has_header else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            size = int(tail[-15:-9]) + 15
        elif tail[-128:-125] == b"TAG" and len(tail) >= 128:
            size = 128
        else:
            return end
        end = max(0, end - size)


def _mpeg_links(name: str, file: BinaryIO) -> list[_Link]:
    """The streams of a file, found by going through it frame by frame."""
    end = _sound_end(file)
    file.seek(0)
    head = file.read(10)
    position = _id3_size(head)
    file.seek(position)
    first_frame = _first_frame(file.read(_HEAD))
    if first_frame < 0:
        raise AudioError(name, "unreadable audio", "it has no MPEG frames")
    position += first_frame
    links: list[_Link] = []
    while position < end:
        file.seek(position)
        data = file.read(44)
        frame = _frame(data)
        if frame is None:
            tag = _tag_size(data)
            if not tag:
                _check_rest(name, file, position, end)
                break
            position += tag
            continue
        if position + frame.size > end:
            raise AudioError(
                name, "truncated audio", f"its last frame has {frame.size} bytes, but {end - position} are there"
            )
        if _is_information(data, frame):
            file.seek(position)
            links.append(_informed(position, frame, file.read(frame.size)))
        else:
            if not links:
                links.append(_Link(position, frame))
            links[-1].offsets.append(position)
        position += frame.size
    for link, behind in zip(links, [*(link.start for link in links[1:]), end], strict=True):
        missing = link.promised - len(link.offsets)
        if missing > 1 or (missing == 1 and link.promised_bytes > behind - link.start):
            detail = f"its header promises {link.promised} frames, but there are {len(link.offsets)}"
            raise AudioError(name, "truncated audio", detail)
    if not any(link.length for link in links):
        raise AudioError(name, "empty audio", "it has no samples")
    return links


def _is_information(data: bytes, frame: _Frame) -> bool:
    return frame.layer == 3 and (data[frame.info : frame.info + 4] in (b"Xing", b"Info") or data[36:40] == b"VBRI")


def _informed(start: int, frame: _Frame, data: bytes) -> _Link:
    """Begins a stream with the contents of its information frame (Xing, LAME; VBRI by Fraunhofer)."""
    if data[36:40] == b"VBRI":
        return _Link(start, frame, int.from_bytes(data[50:54], "big"), int.from_bytes(data[46:50], "big"))
    flags, position = data[frame.info + 7], frame.info + 8
    fields = []
    for flag, size in ((1, 4), (2, 4), (4, 100), (8, 4)):
        size = size if flags & flag else 0
        fields.append(int.from_bytes(data[position : position + size], "big"))
        position += size
    gaps = int.from_bytes(data[position + 21 : position + 24], "big")
    return _Link(start, frame, fields[0], fields[1], gaps >> 12, gaps & 0xFFF)


def _check_rest(name: str, file: BinaryIO, position: int, end: int) -> None:
    """Refuses a file that continues with anything but frames, tags and zeros."""
    file.seek(position)
    while file.tell() < end:
        if any(file.read(min(BLOCK, end - file.tell()))):
            raise AudioError(
                name,
                "unreadable audio",
                f"it is damaged: what begins at byte {position} is not an MPEG frame; make it again",
            )


@contextmanager
def _opened_mpeg(name: str, content: str | bytes, file: BinaryIO) -> Iterator[Sound]:
    links = _mpeg_links(name, file)
    rate, channels = _the_only(name, {(link.frame.rate, link.frame.channels) for link in links})
    length = sum(link.length for link in links)
    if len(links) == 1:
        try:
            sound = _sound_file(name, content)
        except AudioError:  # libsndfile wants a frame or a tag at the very beginning
            sound = None
        if sound is not None:
            with sound:
                if (sound.frames, sound.samplerate, sound.channels) == (length, rate, channels):
                    yield _of_libsndfile(name, sound, preroll=round(_PREROLL * rate))
                    return
    av = import_package("av", "reads what libsndfile does not, such as joined mp3 files and those without a header")
    yield Sound(name, rate, channels, length, False, lambda first: _read_frames(av, name, file, links, first))


def _read_frames(av: Any, name: str, file: BinaryIO, links: list[_Link], first: int) -> Iterator[np.ndarray]:
    """Decodes MPEG frames one by one, in blocks."""
    for link in links:
        if first >= link.length:
            first -= link.length
            continue
        samples = link.frame.samples
        begin, behind = link.trim
        stop = len(link.offsets) * samples - behind
        wanted = begin + first
        number = max(0, (wanted - round(_PREROLL * link.frame.rate)) // samples)
        decoder = av.CodecContext.create(f"mp{link.frame.layer}float", "r")
        gathered: list[np.ndarray] = []
        for index in range(number, len(link.offsets)):
            file.seek(link.offsets[index])
            header = file.read(4)
            frame = _frame(header)
            assert frame is not None  # it was one when the file was opened
            try:
                decoded = decoder.decode(av.Packet(header + file.read(frame.size - 4)))
            except av.FFmpegError as error:
                raise AudioError(name, "unreadable audio", f"frame {index} is damaged: {error}") from error
            position = index * samples
            for piece in decoded:
                block = _samples(piece)[max(0, wanted - position) : max(0, stop - position)]
                position += piece.samples
                gathered.append(block)
            if sum(map(len, gathered)) >= BLOCK:
                yield np.concatenate(gathered)
                gathered = []
        if gathered:
            yield np.concatenate(gathered)
        first = 0


# ---------------------------------------------------------------------------------------------------------------------
# FFmpeg


_EBML, _SEGMENT, _CLUSTER = "1a45dfa3", "18538067", "1f43b675"
_ELEMENTS = {
    *(_EBML, _SEGMENT, _CLUSTER, "ec", "bf"),  # Void, CRC-32
    *("114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1941a469", "1043a770", "1254c367"),  # within a segment
    *("e7", "a7", "ab", "a3", "a0", "af", "5854"),  # within a cluster
}


def _check_single(name: str, headers: int) -> None:
    if headers > 1:
        raise _joined(name, headers)


def _check_boxes(name: str, file: BinaryIO) -> None:
    """Checks that all boxes of an mp4, m4a, mov or 3gp file (ISO 14496-12) are complete and the index is there."""
    size = file.seek(0, os.SEEK_END)
    position = 0
    kinds: list[bytes] = []
    while position < size:
        file.seek(position)
        header = file.read(16)
        length, begin = int.from_bytes(header[:4], "big"), 8
        kinds.append(header[4:8])
        if length == 1:
            length, begin = int.from_bytes(header[8:16], "big"), 16
        elif length == 0:
            length = size - position
        if length < begin or position + length > size:
            raise AudioError(
                name,
                "truncated audio",
                f"the part {header[4:8]!r} has {length} bytes, but {size - position} are there",
            )
        position += length
    _check_single(name, kinds.count(b"moov"))
    if b"moov" not in kinds:
        raise AudioError(name, "truncated audio", "it lacks its index, which is written last: it was cut off")


def _check_elements(name: str, file: BinaryIO) -> None:
    """Checks that a webm or mkv file (RFC 8794, RFC 9559) is complete down to each packet.

    A recorder that writes to a stream leaves the sizes of the segment and its clusters open; all other sizes count."""
    size = file.seek(0, os.SEEK_END)
    position = headers = 0
    while position < size:
        file.seek(position)
        header = file.read(12)
        id_length = 9 - header[0].bit_length()
        element = header[:id_length].hex()
        if element not in _ELEMENTS:
            what = f"what begins at byte {position} is not a part of a webm or mkv file"
            raise AudioError(name, "unreadable audio", f"it is damaged: {what}")
        marker = header[id_length] if id_length < len(header) else 0
        size_length = 9 - marker.bit_length()
        begin = id_length + size_length
        length = int.from_bytes(header[id_length:begin], "big") & ~(1 << 7 * size_length)
        is_open = length == (1 << 7 * size_length) - 1
        if begin > size - position or (not is_open and position + begin + length > size):
            detail = f"the part at byte {position} has {length} bytes, but {max(0, size - position - begin)} are there"
            raise AudioError(name, "truncated audio", detail)
        headers += element == _EBML
        position += begin + (0 if element in (_SEGMENT, _CLUSTER) else length)
    _check_single(name, headers)


def _check_objects(name: str, file: BinaryIO) -> None:
    """Checks that all objects of a wma or asf file are complete."""
    size = file.seek(0, os.SEEK_END)
    position = headers = 0
    while position < size:
        file.seek(position)
        headers += file.read(16) == _ASF_HEADER
        length = int.from_bytes(file.read(8), "little") or size - position
        if length < 24 or position + length > size:
            raise AudioError(
                name, "truncated audio", f"an object of {length} bytes begins {size - position} before the end"
            )
        position += length
    _check_single(name, headers)


def _check_nothing(name: str, file: BinaryIO) -> None:
    """Checks nothing, for formats that are a series of frames: the decoder notices one that is cut off."""


_STRUCTURES = {
    "mov": _check_boxes,
    "matroska": _check_elements,
    "asf": _check_objects,
    "amr": _check_nothing,
    "aac": _check_nothing,
}
"""The checks of files before FFmpeg reads them, by FFmpeg's name of their format."""


@contextmanager
def _opened_by_ffmpeg(name: str, file: BinaryIO, kind: str) -> Iterator[Sound]:
    av = import_package("av", f"reads {kind} files")
    file.seek(0)
    # Before 19.0 av refuses a file with a title that is not UTF-8, unless told not to.
    arguments = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        # The format is given, so that nothing in the file can make FFmpeg take it for a playlist and open other files.
        container = av.open(file, format=kind, **arguments)
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(name, "unreadable audio", str(error)) from error
    with container:
        tracks = container.streams.audio
        if len(tracks) != 1:
            present = f"{len(tracks)} tracks of sound; keep one of them" if tracks else "no track of sound"
            raise AudioError(name, "unreadable audio", f"it has {present}")
        decoded = _decoded(av, name, container, tracks[0], kind)
        start = next(decoded, None)
        if start is None:
            raise AudioError(name, "empty audio", "it has no samples")
        _, block, rate = start

        def read(first: int) -> Iterator[np.ndarray]:
            return _read_by_ffmpeg(av, name, container, tracks[0], chain([start], decoded), kind, first)

        yield Sound(name, rate, block.shape[1], None, True, read)


def _decoded(av: Any, name: str, container: Any, stream: Any, kind: str) -> Iterator[tuple[Any, np.ndarray, int]]:
    """Frames, each with its time in seconds, if the file gives it, and its rate."""
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                after = "" if packet.pts is None else f" after {float(packet.pts * packet.time_base):.2f} s"
                if packet.pos is not None and packet.pos + packet.size >= container.size:
                    raise AudioError(name, "truncated audio", f"its last packet is incomplete{after}") from error
                raise AudioError(name, "unreadable audio", f"it is damaged{after}: {error.strerror}") from error
            for frame in frames:
                if frame.is_corrupt and kind != "wav":  # whose last packet is marked where it is shorter
                    raise AudioError(name, "unreadable audio", f"it is damaged after {frame.time:.2f} s")
                if frame.samples:
                    time = None if frame.pts is None else frame.pts * frame.time_base
                    yield time, _samples(frame), frame.sample_rate
    except av.FFmpegError as error:
        raise AudioError(name, "truncated audio", f"not all of it can be read: {error.strerror}") from error


def _read_by_ffmpeg(
    av: Any, name: str, container: Any, stream: Any, decoded: Iterator, kind: str, first: int
) -> Iterator[np.ndarray]:
    start = next(decoded)
    time, block, rate = start
    form = (rate, block.shape[1])
    decoded = chain([start], decoded)
    position = 0
    origin = time
    promised = None
    if kind == "mov" and stream.duration is not None and stream.time_base:
        promised = round(stream.duration * stream.time_base * rate)
        if first >= promised:
            raise _outside(name, f"start={first / rate:g}", promised / rate)
        early = first - round(_PREROLL * rate)
        codec = stream.codec_context.name
        if early > 0 and (1 / stream.time_base) % rate == 0 and codec.startswith(("aac", "alac", "pcm")):
            container.seek(int(early / rate / stream.time_base), stream=stream)
            decoded = _decoded(av, name, container, stream, kind)
            start = next(decoded, None)
            if start is not None:
                position = round((start[0] - origin) * rate)
                decoded = chain([start], decoded)
    gathered: list[np.ndarray] = []
    for time, block, rate in decoded:
        if (rate, block.shape[1]) != form:
            _the_only(name, {form, (rate, block.shape[1])})
        if time is not None and origin is not None:
            gap = round((time - origin) * rate) - position
            if gap > _LONGEST_GAP * rate:
                here = position / rate
                if stream.codec_context.name not in ("opus", "libopus"):
                    raise AudioError(
                        name, "unreadable audio", f"it lacks {gap / rate:.2f} s of sound after {here:.2f} s"
                    )
                for begin in range(0, gap, BLOCK):  # Opus need not send silence
                    gathered.append(
                        np.zeros((min(BLOCK, gap - begin), form[1]), np.float32)[max(0, first - position) :]
                    )
                    position += min(BLOCK, gap - begin)
                    if sum(map(len, gathered)) >= BLOCK:
                        yield np.concatenate(gathered)
                        gathered = []
        if promised is not None and 0 < position + len(block) - promised < len(block):
            block = block[: promised - position]  # an encoder's padding
        gathered.append(block[max(0, first - position) :])
        position += len(block)
        if sum(map(len, gathered)) >= BLOCK:
            yield np.concatenate(gathered)
            gathered = []
    if gathered:
        yield np.concatenate(gathered)
    if first > 0 and position <= first:
        raise _outside(name, f"start={first / form[0]:g}", position / form[0])
    if promised is not None and position < promised:
        detail = f"it promises {promised / form[0]:.3f} s of sound, but has {position / form[0]:.3f}"
        raise AudioError(name, "truncated audio", detail)


def _samples(frame: Any) -> np.ndarray:
    """A decoded frame as (samples, channels), float32."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    full = np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32) / full - (1 if samples.dtype.kind == "u" else 0)
