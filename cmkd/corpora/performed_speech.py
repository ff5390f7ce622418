"""Corpora that any synthesiser speaks: spoken once and kept, then acted, in processes that may be stopped at any time.

What a synthesiser speaks is kept neutral, as it came, in a folder that corpora share, one FLAC file for each text in
each voice:

    speech_dir/kokoro-cae40c85b7131b35/af_heart/9f86d081884c7d659a2feaa0c55ad015.flac

The first part is the synthesiser with its digest, the second the voice, and the third the first 32 hexadecimal digits
of the SHA-256 of the text in UTF-8. A file appears complete or not at all, and one that is there is not spoken again,
so that a corpus can be spoken in parts, on several machines, or before it is asked for.

Acting (`cmkd.corpora.expression`) comes on top of it. What is acted waits in a folder of the cache until the corpus is
complete, and is then in its Arrow files only. So whenever this is interrupted, only the utterances at work are lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cmkd.atomic import written_whole
from cmkd.corpora import expression, speech_synthesis, synthesisers
from cmkd.corpora.acted_speech import ActedUtterance, Prosody
from cmkd.corpora.expression import express, expression_of
from cmkd.corpora.speech_synthesis import SAMPLING_RATE, Voice
from cmkd.corpora.synthesisers import Synthesiser, make_synthesiser
from configuration_cmkd import EMOTION_DIMENSIONS

if TYPE_CHECKING:
    import numpy as np

    from cmkd.corpora.report import CorpusReport
    from cmkd.corpora.schema import Corpus

_logger = logging.getLogger(__name__)

_ROWS_A_BATCH = 64
_DIGEST = "digest.txt"
_ERRORS: dict[str, type[Exception]] = {"ImportError": ImportError, "ValueError": ValueError}


@dataclasses.dataclass(frozen=True)
class SpeechStore:
    """What a synthesiser has spoken, on the disk.

    Args:
        folder (`Path`): The folder for all synthesisers.
        synthesiser (`Synthesiser`): Who speaks what is not there yet.
    """

    folder: Path
    synthesiser: Synthesiser

    def path(self, text: str, voice: Voice) -> Path:
        """The file of a text in a voice, whether it is there or not."""
        spoken_by = f"{self.synthesiser.name}-{self.synthesiser.digest}"
        return self.folder / spoken_by / voice.name / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.flac"

    def speech(self, text: str, voice: Voice) -> tuple[np.ndarray, int]:
        """The samples (n,), float32 in [-1, 1], and their number per second; spoken and kept if need be.

        Raises:
            ValueError, ImportError: See [`Synthesiser.speak`].
        """
        import soundfile

        path = self.path(text, voice)
        if not path.is_file():
            samples, sampling_rate = self.synthesiser.speak(text, voice)
            with written_whole(path) as unfinished:
                soundfile.write(unfinished, samples, sampling_rate, format="FLAC", subtype="PCM_16")
        return soundfile.read(path, dtype="float32")


def performed_corpus(
    splits: Mapping[str, Sequence[ActedUtterance]],
    report: CorpusReport,
    *,
    voices: str,
    models_dir: str | os.PathLike[str] | None,
    speech_dir: str | os.PathLike[str] | None,
    num_proc: int,
    acted: bool = True,
) -> Corpus:
    """Speaks a corpus, or takes it from the disk if exactly the same one was spoken before.

    It is kept as [`cmkd.corpora.acted_speech.spoken_corpus`] keeps one, and has a digest of all sounds. So its version
    changes with what is said, by whom and how it sounds, and not with code of ours that changes none of it.

    Args:
        splits (`dict[str, list[ActedUtterance]]`): The utterances by split, in voices of the synthesiser.
        report (`CorpusReport`): The report, which gets the key as its release, a digest of the sounds, and the counts.
        voices (`str`): The synthesiser, one of `cmkd.corpora.synthesisers.SYNTHESISERS`.
        models_dir (path or None): The folder of the synthesiser's files.
        speech_dir (path or None): Where speech is kept as it was spoken; None for the folder `speech` of the cache.
        num_proc (`int`): The number of processes. It does not change what is spoken.
        acted (`bool`, *optional*, defaults to `True`): Whether the prosody of the utterances is laid on the speech.

    Raises:
        ValueError: `num_proc` is less than 1, or a text has nothing to speak.
        ImportError: The synthesiser or pyworld is not installed.
        RuntimeError: One of the processes died.
    """
    import datasets

    from cmkd.corpora.schema import Corpus

    if num_proc < 1:
        raise ValueError(f"num_proc is {num_proc}, but must be at least 1.")
    splits = {split: utterances for split, utterances in splits.items() if utterances}
    synthesiser = make_synthesiser(voices, models_dir)
    report.release = _key(splits, report.label_scale, synthesiser, acted)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "cmkd"
    folder = cache / f"{report.name}-{report.release}-{_code()}"
    if not folder.exists():
        job = {
            "voices": voices,
            "models_dir": None if models_dir is None else str(Path(models_dir).absolute()),
            "speech_dir": str((cache / "speech" if speech_dir is None else Path(speech_dir)).absolute()),
            "acted": acted,
        }
        with _alone(folder, report.name):
            if not folder.exists():  # another process has not made it meanwhile
                _make(folder, splits, job, report, num_proc)
    corpus = Corpus({split: datasets.Dataset.from_file(str(folder / f"{split}.arrow")) for split in splits}, report)
    report.digest = (folder / _DIGEST).read_text(encoding="utf-8")
    columns = ["speaker", "duration", *EMOTION_DIMENSIONS]
    report.count({split: list(rows.select_columns(columns)) for split, rows in corpus.items()})
    return corpus


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Waits until no other process makes the same corpus, whose parts are in one folder, so that it is made once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.warning("%s: another process is speaking it; waiting until it is done", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(
    folder: Path,
    splits: Mapping[str, Sequence[ActedUtterance]],
    job: Mapping[str, Any],
    report: CorpusReport,
    num_proc: int,
) -> None:
    """Speaks what has not been spoken yet, and collects it in a folder, which appears whole or not at all."""
    parts = folder.with_name(f".{folder.name}.parts")
    parts.mkdir(exist_ok=True)
    utterances = [utterance for of_split in splits.values() for utterance in of_split]
    _perform(utterances, job, parts, report.name, num_proc)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{report.name}-") as unfinished:
        spoken = Path(unfinished) / "spoken"
        spoken.mkdir()
        _write(spoken, splits, parts, report)
        spoken.rename(folder)
    shutil.rmtree(parts, ignore_errors=True)


def _key(
    splits: Mapping[str, Sequence[ActedUtterance]],
    label_scale: tuple[float, float],
    synthesiser: Synthesiser,
    acted: bool,
) -> str:
    """Stands for what is said, by whom and how."""
    world = _pyworld_version() if acted else ""
    key = hashlib.sha256(repr((synthesiser.name, synthesiser.digest, world, label_scale, splits)).encode())
    return key.hexdigest()[:12]


def _code() -> str:
    """Stands for this code, for which a corpus is made anew; if it sounds the same, its version stays."""
    key = hashlib.sha256()
    for module in (__file__, expression.__file__, synthesisers.__file__, speech_synthesis.__file__):
        key.update(Path(module).read_bytes())
    return key.hexdigest()[:8]


def _pyworld_version() -> str:
    for name in ("pyworld-prebuilt", "pyworld"):  # the same module, of which the first needs no compiler
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise ImportError('Acting on synthetic speech needs pyworld: pip install "cmkd[kokoro]"')


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06}.flac"


def _perform(
    utterances: Sequence[ActedUtterance], job: Mapping[str, Any], parts: Path, name: str, num_proc: int
) -> None:
    """Writes a FLAC file for each utterance that has none, in `num_proc` fresh interpreters.

    These are neither forks of this one nor runs of its main module, so that threads and a GPU here do not affect them,
    and a script needs no `if __name__ == "__main__":`.
    """
    from datasets.utils import tqdm

    missing = [number for number in range(len(utterances)) if not _part(parts, number).is_file()]
    if not missing:
        return
    awaited = {_part(parts, number).name for number in missing}
    with tempfile.TemporaryDirectory(prefix="cmkd-") as folder:
        path = Path(folder, "job.json")
        lines = {number: dataclasses.asdict(utterances[number]) for number in missing}
        path.write_text(json.dumps({**job, "parts": str(parts), "utterances": lines}), encoding="utf-8")
        command = [sys.executable, "-c", f"from {__name__} import _main; _main()", str(path), str(num_proc)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        workers = [
            subprocess.Popen([*command, str(share)], stdout=subprocess.DEVNULL, env=environment)
            for share in range(min(num_proc, len(missing)))
        ]
        try:
            with tqdm(total=len(missing), desc=f"speaking {name}", unit=" utterances", disable=None) as progress:
                while running := [worker for worker in workers if worker.poll() is None]:
                    _raise_failures(workers, path)
                    progress.update(len(awaited & {entry.name for entry in os.scandir(parts)}) - progress.n)
                    with suppress(subprocess.TimeoutExpired):
                        running[0].wait(timeout=1)
            _raise_failures(workers, path)
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()


def _raise_failures(workers: Sequence[subprocess.Popen[bytes]], job: Path) -> None:
    for share, worker in enumerate(workers):
        if worker.poll():
            said = _failure(job, share)
            if not said.is_file():
                raise RuntimeError(
                    f"A process that speaks ended with exit code {worker.returncode}; its own output is above. What "
                    "was spoken is kept: load the corpus again to go on."
                )
            error = json.loads(said.read_text(encoding="utf-8"))
            raise _ERRORS.get(error["type"], RuntimeError)(error["message"])


def _failure(job: Path, share: int) -> Path:
    """Where a process writes what went wrong."""
    return job.with_name(f"failure-{share}.json")


def _main() -> None:
    """What a process does: `python -c ... job.json NUMBER_OF_SHARES SHARE`."""
    path, number_of_shares, share = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    job = json.loads(path.read_text(encoding="utf-8"))
    parent = os.getppid()
    try:
        store = SpeechStore(Path(job["speech_dir"]), make_synthesiser(job["voices"], job["models_dir"]))
        for number, fields in list(job["utterances"].items())[share::number_of_shares]:
            if os.getppid() != parent:  # which was killed
                return
            fields |= {"voice": Voice(**fields["voice"]), "prosody": Prosody(**fields["prosody"])}
            _write_part(_part(Path(job["parts"]), int(number)), ActedUtterance(**fields), store, job["acted"])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        with written_whole(_failure(path, share)) as unfinished:
            content = {"type": type(error).__name__, "message": str(error)}
            unfinished.write_text(json.dumps(content), encoding="utf-8")
        sys.exit(1)


def _write_part(path: Path, utterance: ActedUtterance, store: SpeechStore, acted: bool) -> None:
    import soundfile

    waveform = perform_speech(utterance, store, acted)
    with written_whole(path) as unfinished:
        soundfile.write(unfinished, waveform, SAMPLING_RATE, format="FLAC", subtype="PCM_16")


def perform_speech(utterance: ActedUtterance, store: SpeechStore, acted: bool = True) -> np.ndarray:
    """An utterance as the corpus has it: samples (n,), float32 in [-1, 1], 16 kHz.

    Args:
        utterance (`ActedUtterance`): What is said, in a voice of the store's synthesiser, and how.
        store (`SpeechStore`): Where its neutral speech is, or will be.
        acted (`bool`, *optional*, defaults to `True`): Whether the prosody is laid on it.
    """
    import numpy as np
    import soxr

    samples, sampling_rate = store.speech(utterance.transcript, utterance.voice)
    if acted:
        samples = express(samples, sampling_rate, expression_of(utterance.prosody))
    return np.clip(soxr.resample(samples, sampling_rate, SAMPLING_RATE), -1, 1)


def _write(folder: Path, splits: Mapping[str, Sequence[ActedUtterance]], parts: Path, report: CorpusReport) -> None:
    """Collects each split in an Arrow file, and writes the digest of all sounds."""
    import pyarrow

    from cmkd.corpora.schema import FEATURES

    schema = FEATURES.arrow_schema
    digest = hashlib.sha256()
    numbers = iter(range(sum(map(len, splits.values()))))
    for split, utterances in splits.items():
        with pyarrow.ipc.new_stream(str(folder / f"{split}.arrow"), schema) as writer:
            for batch in _batches(utterances):
                rows = [_row(utterance, split, _part(parts, next(numbers)), report.label_scale) for utterance in batch]
                for row in rows:
                    digest.update(hashlib.sha256(row["audio"]["bytes"]).digest())
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
    (folder / _DIGEST).write_text(digest.hexdigest()[:12], encoding="utf-8")


def _batches(utterances: Sequence[ActedUtterance]) -> Iterator[Sequence[ActedUtterance]]:
    for start in range(0, len(utterances), _ROWS_A_BATCH):
        yield utterances[start : start + _ROWS_A_BATCH]


def _row(utterance: ActedUtterance, split: str, part: Path, label_scale: tuple[float, float]) -> dict[str, Any]:
    import soundfile

    return {
        "id": utterance.id,
        "audio": {"bytes": part.read_bytes(), "path": None},
        "transcript": utterance.transcript,
        "activation": utterance.activation,
        "valence": utterance.valence,
        "dominance": utterance.dominance,
        "speaker": utterance.voice.name,
        "gender": utterance.voice.gender,
        "split": split,
        "duration": soundfile.info(part).duration,
        "label_scale": label_scale,
    }
