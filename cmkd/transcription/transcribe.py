"""Transcribes a corpus with any number of processes; it can be interrupted and resumed.

Each finished batch is a Parquet file of its own in `<output>.parts`, which appears whole or not at all. A run that is
started again transcribes what neither the sidecar nor any part has. At the end the parts become one sidecar, see
`cmkd.corpora.transcripts`.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from cmkd.atomic import written_whole
from cmkd.corpora.transcripts import SCHEMA, read_transcripts
from cmkd.features.audio import read_audio
from cmkd.features.stretch import stretch_of
from cmkd.processes import join_launch, wait_for_all
from cmkd.transcription.recognizers import NO_SPEECH_THRESHOLD, Precision, SpeechRecognizer, load_recognizer

_TOLERANCE = 1e-3  # seconds


@dataclass(frozen=True)
class Transcription:
    """What a call of [`transcribe`] has done.

    Attributes:
        output (`Path`): The sidecar.
        utterances (`int`): The number of utterances transcribed now, by all processes.
        already (`int`): The number of utterances of the corpus that had been transcribed before.
        hours (`float`): The hours of speech transcribed now.
        seconds (`float`): The seconds that this took.
        processes (`int`): The number of processes that took part.
    """

    output: Path
    utterances: int
    already: int
    hours: float
    seconds: float
    processes: int

    def __str__(self) -> str:
        speed = f", {self.hours / self.seconds * 3600:.1f} hours of speech per hour" if self.utterances else ""
        return (
            f"{self.output}: {self.utterances:,} utterances, {self.hours:.2f} hours of speech, transcribed in "
            f"{self.seconds:.0f} s by {self.processes} process{'es' if self.processes > 1 else ''}{speed}; "
            f"{self.already:,} utterances had been before"
        )


def transcribe(
    corpus: Mapping[str, Dataset],
    model: str,
    output: str | os.PathLike[str],
    *,
    models_dir: str | None = None,
    revision: str | None = None,
    language: str | None = None,
    precision: Precision = "float32",
    batch_seconds: float = 240.0,
) -> Transcription:
    """Transcribes the utterances of a corpus that its sidecar lacks.

    It may be killed at any time and run again: nothing that was finished is repeated. Under `accelerate launch` or
    `torchrun` each process takes its share of the batches, and the main process joins the results.

    Args:
        corpus (`Corpus`): The corpus, whose splits have the columns `id`, `audio` and `duration`.
        model (`str`): Whisper-like or CTC model, a Hub name or a folder; see `cmkd.transcription.recognizers`.
        output (path): The sidecar, for example transcripts.parquet. What it already holds stays.
        models_dir (`str`, *optional*): Folder that holds models under their Hub names.
        revision (`str`, *optional*): Branch, tag or commit of the model on the Hub.
        language (`str`, *optional*): The language of the speech, for a multilingual Whisper; it is detected by default.
        precision (`str`, *optional*, defaults to `"float32"`): "float32", "bfloat16" or "float16".
        batch_seconds (`float`, *optional*, defaults to 240): The most audio that a batch may hold, including padding;
            for Whisper, which pads to 30 s, every utterance counts as 30 s. Lower it if memory is too small.

    Returns:
        `Transcription`: What was done, the same in every process.

    Raises:
        OSError: There is no such model.
        ValueError: The model does not recognise speech, or a setting does not fit; the sidecar or the parts were made
            by another model, with other settings or from other audio; an utterance cannot be read; or another run is
            writing to this sidecar.
    """
    output = Path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"output is {str(output)!r}, but must be a file whose name ends in .parquet.")
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds is {batch_seconds}, but must be more than 0.")
    started = time.monotonic()
    state = join_launch()
    parts = output.with_name(f"{output.name}.parts")
    with _only_run(parts, state.is_main_process):
        recognizer = load_recognizer(model, models_dir, revision, language, precision, state.device)
        settings = {"language": language, "precision": precision, "no_speech_threshold": NO_SPEECH_THRESHOLD}
        origin = {
            "model": recognizer.name,
            "revision": recognizer.revision,
            "settings": json.dumps(settings, sort_keys=True),
        }
        known = _known(output, parts, origin)
        missing, already = _missing(corpus, known)
        batches = _batches(missing, recognizer, batch_seconds)
        wait_for_all("load the model")  # and all have seen the same parts before any is added
        share = batches[state.process_index :: state.num_processes]
        _work(corpus, share, recognizer, origin, parts, state)
        wait_for_all("transcribe its share")
        if state.is_main_process:
            _merge(output, parts)
        wait_for_all("put the parts together")
    return Transcription(
        output=output,
        utterances=len(missing),
        already=already,
        hours=sum(utterance.seconds for utterance in missing) / 3600,
        seconds=time.monotonic() - started,
        processes=state.num_processes,
    )


@dataclass(frozen=True)
class _Utterance:
    id: str
    split: str
    index: int
    seconds: float


@contextmanager
def _only_run(parts: Path, is_main_process: bool) -> Iterator[None]:
    """Holds the lock of the parts, which the system releases when the process ends, however it ends."""
    if not is_main_process:
        yield
        return
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{parts} is being written by another run: wait for it, or choose another output."
            ) from None
        try:
            yield
        finally:
            if not _files(parts):
                shutil.rmtree(parts, ignore_errors=True)


def _known(output: Path, parts: Path, origin: Mapping[str, str]) -> dict[str, float]:
    """The utterances that the sidecar or a part has, with their durations in seconds."""
    known: dict[str, float] = {}
    for path in [*([output] if output.exists() else []), *_files(parts)]:
        table = read_transcripts(path)
        for name, value in origin.items():
            others = sorted(set(table[name].to_pylist()) - {value})
            if others:
                raise ValueError(
                    f"{path} was made with {name} {others[0]!r}, but now {name} is {value!r}: go on with the same one, "
                    f"choose another output, or remove {output.name} and {parts.name}."
                )
        known |= dict(zip(table["id"].to_pylist(), table["duration"].to_pylist(), strict=True))
    return known


def _files(parts: Path) -> list[Path]:
    return sorted(parts.glob("[0-9a-f]*.parquet"))  # not the unfinished ones, whose names begin with a dot


def _missing(corpus: Mapping[str, Dataset], known: Mapping[str, float]) -> tuple[list[_Utterance], int]:
    """The utterances to transcribe, longest first, and the number of those that need not be."""
    missing, already = [], 0
    for split, rows in corpus.items():
        for index, (identifier, seconds) in enumerate(zip(rows["id"], rows["duration"], strict=True)):
            if not seconds > 0:
                raise ValueError(
                    f"Utterance {identifier!r} has the duration {seconds}: build the corpus with its sound read."
                )
            if identifier not in known:
                missing.append(_Utterance(identifier, split, index, seconds))
            elif abs(known[identifier] - seconds) > _TOLERANCE:
                raise ValueError(
                    f"Utterance {identifier!r} lasts {seconds:.3f} s, but {known[identifier]:.3f} s when it was "
                    "transcribed: the audio has changed. Choose another output, or remove the old one."
                )
            else:
                already += 1
    return sorted(missing, key=lambda utterance: (-utterance.seconds, utterance.id)), already


def _batches(
    utterances: Sequence[_Utterance], recognizer: SpeechRecognizer, batch_seconds: float
) -> list[list[_Utterance]]:
    """Batches of utterances of similar length, of `batch_seconds` including padding, or of one utterance."""
    batches: list[list[_Utterance]] = []
    for utterance in utterances:  # the first of a batch is its longest
        if batches and recognizer.cost(batches[-1][0].seconds) * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(utterance)
        else:
            batches.append([utterance])
    return batches


def _work(
    corpus: Mapping[str, Dataset],
    batches: Sequence[Sequence[_Utterance]],
    recognizer: SpeechRecognizer,
    origin: Mapping[str, str],
    parts: Path,
    state: PartialState,
) -> None:
    """Transcribes this process's batches, each into a part; the main process shows the progress of its own share."""
    hours = sum(utterance.seconds for batch in batches for utterance in batch) / 3600
    share = f", share of 1 of {state.num_processes} processes" if state.num_processes > 1 else ""
    with tqdm(
        total=hours,
        desc=f"transcribing{share}",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.2f} of {total:.2f} hours{postfix} [{elapsed}<{remaining}]",
        disable=not (state.is_main_process and batches),
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
    ) as progress:
        started = time.monotonic()
        for batch in batches:
            waveforms = [_read(corpus[utterance.split], utterance, recognizer.sampling_rate) for utterance in batch]
            rows = [
                {
                    "id": utterance.id,
                    "text": hypothesis.text,
                    "average_log_probability": hypothesis.average_log_probability,
                    "no_speech_probability": hypothesis.no_speech_probability,
                    "duration": utterance.seconds,
                    **origin,
                }
                for utterance, hypothesis in zip(batch, recognizer.recognize(waveforms), strict=True)
            ]
            with written_whole(parts / f"{secrets.token_hex(8)}.parquet") as unfinished:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), unfinished)
            done = progress.n + sum(utterance.seconds for utterance in batch) / 3600
            speed = done * state.num_processes * 3600 / (time.monotonic() - started)
            progress.set_postfix_str(f"{speed:.1f} hours of speech per hour", refresh=False)
            progress.update(done - progress.n)


def _read(rows: Dataset, utterance: _Utterance, sampling_rate: int) -> np.ndarray:
    try:
        row = rows[utterance.index]
        return read_audio(row["audio"], sampling_rate, **stretch_of(row))
    except ValueError as error:
        raise ValueError(f"Utterance {utterance.id!r}: {error}") from error


def _merge(output: Path, parts: Path) -> None:
    """Joins the sidecar and the parts, sorted by id, and removes the parts."""
    files = _files(parts)
    if files or not output.exists():
        tables = [read_transcripts(path) for path in [*([output] if output.exists() else []), *files]]
        table = pyarrow.concat_tables([*tables, SCHEMA.empty_table()])
        rows = {identifier: row for row, identifier in reversed(list(enumerate(table["id"].to_pylist())))}
        table = table.take(
            [rows[identifier] for identifier in sorted(rows)]
        )  # a part that was merged may still be there
        with written_whole(output) as unfinished:
            pyarrow.parquet.write_table(table, unfinished)
    for path in files:
        path.unlink()
