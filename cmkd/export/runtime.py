"""Scores speech with a student that `cmkd export` wrote, without torch and without transformers.

    python onnx_cmkd.py model.onnx speech.wav

`cmkd export` puts this file beside the graph, as `onnx_cmkd.py`, with `windows_cmkd.py` and `audio_cmkd.py`. The three
need numpy and onnxruntime, and for files soundfile, soxr and av; the graph says everything else about itself.
"""

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from logging import getLogger
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from windows_cmkd import Window, cutting, whole_answer, windows_of

FORMAT = 1
"""The version of the graph's inputs, outputs and metadata that this file reads."""

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor can do."""

logger = getLogger(__name__)


class OnnxStudent:
    """A student in ONNX Runtime.

    An utterance scores the same alone, in any batch and in any order, to 1e-5, as it does in torch: the mask is part of
    the graph. Make one in each process; a session does not survive a fork.

    Args:
        path (`str` or path): The file, such as `model.onnx`.
        num_threads (`int`, *optional*): That work on one batch; None: one for each core.
        batch_size (`int`, *optional*, defaults to 1): Windows of one audio that are scored together when the student is
            called with audio.
        providers (`list[str]`, *optional*, defaults to `["CPUExecutionProvider"]`): Of ONNX Runtime, the first that is
            there is used for what it can do.

    Attributes:
        metadata (`dict`): All that the graph says about itself.
        sampling_rate (`int`): Hz.
        minimum_samples, maximum_samples (`int`, the second *optional*): Shorter or longer utterances are refused; None:
            there is no limit.
        dimensions, rated_dimensions (`tuple[str, ...]`): The order of the scores; those of them that were learnt.
        label_scale (`tuple[float, float]`): Minimum and maximum of the rating scale.
        identity (`str`): Of the weights and the precision: two graphs with the same give the same scores.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a graph of `cmkd export`, or is one that a newer release wrote.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        num_threads: int | None = None,
        batch_size: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ):
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {fspath(path)!r}: pass the .onnx file that `cmkd export` wrote.")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads={num_threads!r}: must be at least 1, or None for one per core.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: must be at least 1.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        options.log_severity_level = 3  # errors only; its warnings are about optimisations
        options.enable_mem_pattern = False  # it would keep a plan of its memory for every length that it ever meets
        try:
            self.session = onnxruntime.InferenceSession(fspath(path), options, providers=list(providers))
        except Exception as error:  # ONNX Runtime has no class of its own for a file that it cannot read
            raise ValueError(
                f"{fspath(path)} cannot be opened by ONNX Runtime {onnxruntime.__version__}: {error}"
            ) from error
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, fspath(path))
        self.batch_size = batch_size
        self.sampling_rate: int = self.metadata["sampling_rate"]
        self.minimum_samples: int = self.metadata["minimum_samples"]
        self.maximum_samples: int | None = self.metadata["maximum_samples"]
        self.dimensions: tuple[str, ...] = tuple(self.metadata["dimensions"])
        self.rated_dimensions: tuple[str, ...] = tuple(self.metadata["rated_dimensions"])
        self.label_scale: tuple[float, float] = tuple(self.metadata["label_scale"])
        self.identity: str = f"{self.metadata['identity']}/{self.metadata['precision']}"
        self._takes_one = self.session.get_inputs()[0].shape[0] == 1  # rounds activations, by what is in the batch
        self._log_mel = None if self.metadata["log_mel"] is None else LogMel(**self.metadata["log_mel"])
        if self.metadata["precision"] == "int8-activations" and _saturates():
            logger.warning(
                "%s: this processor has no VNNI, so that sums of whole numbers saturate: scores will be further from "
                "those in fp32 than on a processor that has it. Take the graph in fp32 or int8 on this machine.",
                fspath(path),
            )

    def run(self, waves: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores a batch of utterances.

        Args:
            waves (`np.ndarray` of shape `(batch, samples)`): float32, at the student's rate, nominally from -1 to 1,
                one utterance per row; what follows its end does not matter.
            lengths (`np.ndarray` of shape `(batch,)`): How many samples of each row are real.

        Returns:
            Scores (batch, 3) on the unit interval, not clipped, NaN in a dimension that was not learnt; and embeddings
            (batch, size). Both float32.

        Raises:
            ValueError: an utterance is too short, too long or longer than its row, or not all of it is finite; the
                arrays have other shapes or types.
        """
        waves, lengths = self._checked(np.asarray(waves), np.asarray(lengths))
        if not self._takes_one:
            return self._run(waves, lengths)
        rows = [self._run(waves[row : row + 1, :length], lengths[row : row + 1]) for row, length in enumerate(lengths)]
        return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])

    def __call__(
        self,
        audio: Any,
        window: float | None = None,
        hop: float | None = None,
        channel: str | int = "mean",
        sampling_rate: float | None = None,
        return_embeddings: bool = False,
    ) -> Any:
        """What `SpeechEmotionPipeline` answers, for the same inputs and arguments but tensors of torch.

        Args:
            audio: A path, the bytes of a file, an array, a dict, or a list of these.
            window, hop: Seconds; None: audio of up to 30 s is one utterance, longer audio is cut every 10 s.
            channel: "mean", "each", or the number of one channel, from 0.
            sampling_rate: Hz of an array that is given without a dict.
            return_embeddings: Also return the utterance embedding.

        Raises:
            ValueError: The audio or an argument is not usable: see the pipeline.
            FileNotFoundError: There is no such file.
            TypeError: The audio is something else.
        """
        if isinstance(audio, Sequence) and not isinstance(audio, (str, bytes, bytearray, memoryview)):
            named = [(f"inputs[{index}]", one) for index, one in enumerate(audio)]
            return [
                self._answer(one, name, window, hop, channel, sampling_rate, return_embeddings) for name, one in named
            ]
        return self._answer(audio, "audio", window, hop, channel, sampling_rate, return_embeddings)

    def to_label_scale(self, scores: Any) -> Any:
        """A number or array of scores, from the unit interval to the rating scale."""
        minimum, maximum = self.label_scale
        return scores * (maximum - minimum) + minimum

    def _answer(
        self,
        audio: Any,
        name: str,
        window: float | None,
        hop: float | None,
        channel: str | int,
        sampling_rate: float | None,
        return_embeddings: bool,
    ) -> dict[str, Any]:
        limit = math.inf if self.maximum_samples is None else self.maximum_samples / self.sampling_rate
        cut = cutting(self.sampling_rate, window, hop, limit)
        pieces = windows_of(audio, name, cut, _warn_once, sampling_rate, channel)
        windows: list[Window] = []
        outputs: list[tuple[np.ndarray, np.ndarray]] = []
        for some in _batches(pieces, self.batch_size):
            windows += [piece for piece, _ in some]
            lengths = np.array([len(samples) for _, samples in some])
            waves = np.zeros((len(some), lengths.max()), np.float32)
            for row, (_, samples) in zip(waves, some, strict=True):
                row[: len(samples)] = samples
            outputs.append(self.run(waves, lengths))
        scores, embeddings = (np.concatenate(parts) for parts in zip(*outputs, strict=True))

        def answer(score: np.ndarray, embedding: np.ndarray) -> dict[str, Any]:
            by_name = dict(zip(self.dimensions, score.tolist(), strict=True))
            known = {dimension: by_name[dimension] for dimension in self.rated_dimensions}
            ratings = {dimension: self.to_label_scale(value) for dimension, value in known.items()}
            values: dict[str, Any] = {"scores": known, "ratings": ratings}
            return values | {"embedding": embedding.tolist()} if return_embeddings else values

        return whole_answer(windows, scores, embeddings, answer, channel)

    def _run(self, waves: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._log_mel is None:
            inputs = {"waveform": waves, "lengths": lengths}
        else:
            inputs = dict(zip(("log_mel", "lengths"), self._log_mel.batch(waves, lengths), strict=True))
        scores, embeddings = self.session.run(["scores", "embeddings"], inputs)
        return scores, embeddings

    def _checked(self, waves: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if waves.ndim != 2 or lengths.shape != waves.shape[:1] or not len(waves):
            raise ValueError(
                f"waves has shape {waves.shape} and lengths {lengths.shape}: must be (batch, samples) and (batch,), "
                "with at least one utterance."
            )
        if waves.dtype.kind != "f" or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"waves is {waves.dtype} and lengths {lengths.dtype}: must be floating point numbers, nominally from "
                "-1 to 1, and whole numbers. Divide 16-bit samples by 32768."
            )
        most = waves.shape[1] if self.maximum_samples is None else min(self.maximum_samples, waves.shape[1])
        for row, length in enumerate(lengths.tolist()):
            if not self.minimum_samples <= length <= most:
                raise ValueError(
                    f"lengths[{row}]={length}: must be from {self.minimum_samples} to {most} samples at "
                    f"{self.sampling_rate} Hz; the row has {waves.shape[1]}. Leave out shorter utterances, and cut "
                    "longer ones."
                )
            if not np.isfinite(waves[row, :length]).all():
                raise ValueError(f"waves[{row}] has samples that are NaN or infinite: leave this utterance out.")
        return np.ascontiguousarray(waves, np.float32), lengths.astype(np.int64)


class LogMel:
    """Whisper's input, as `WhisperFeatureExtractor` of transformers computes it, for the real frames alone.

    Args:
        num_mel_bins: How many triangular filters there are, up to 8 kHz, on Slaney's scale.
        sampling_rate: Hz.
        window_samples: Of the Hann window and the Fourier transform.
        hop_samples: From one frame to the next.
        maximum_samples: What the extractor pads an utterance to, 30 s.
    """

    def __init__(
        self, num_mel_bins: int, sampling_rate: int, window_samples: int, hop_samples: int, maximum_samples: int
    ):
        self.window, self.hop, self.most = window_samples, hop_samples, maximum_samples
        self.hann = np.hanning(window_samples + 1)[:-1]
        self.filters = mel_filters(num_mel_bins, window_samples, sampling_rate)

    def batch(self, waves: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(batch, samples) and (batch,) samples -> (batch, mel bins, frames), float32, and (batch,) frames."""
        rows = [self(wave[:length]) for wave, length in zip(waves, lengths.tolist(), strict=True)]
        frames = np.array([row.shape[1] for row in rows])
        padded = np.zeros((len(rows), self.filters.shape[0], frames.max()), np.float32)
        for target, row in zip(padded, rows, strict=True):
            target[:, : row.shape[1]] = row
        return padded, frames

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """One utterance (samples,) -> (mel bins, frames), float32, a frame for every hop that begins within it."""
        reach = self.window // 2
        # The extractor pads to 30 s with zeros, and that by half a window with what lies at its ends, mirrored. Frames
        # that hear no sample of the utterance are all the same, and left out.
        heard = np.zeros(min(self.most, len(wave) + self.window))
        heard[: len(wave)] = wave
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(heard, reach, mode="reflect"), self.window)[
            :: self.hop
        ]
        frames = frames[: min(-(-(len(wave) + reach) // self.hop), self.most // self.hop)]
        power = np.abs(np.fft.rfft(frames * self.hann)) ** 2
        log = np.log10(np.maximum(self.filters @ power.T, 1e-10))
        log = np.maximum(log, log.max() - 8.0)
        return ((log + 4.0) / 4.0)[:, : -(-len(wave) // self.hop)].astype(np.float32)


def mel_filters(count: int, window: int, rate: int) -> np.ndarray:
    """Triangles of area 1 over the frequencies of a Fourier transform, (count, 1 + window // 2), up to 8 kHz.

    Slaney's scale is linear up to 1 kHz, 15 mels, and logarithmic above (Auditory Toolbox, 1998).
    """

    def mels(hertz: float) -> float:
        return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    points = np.linspace(0.0, mels(8000.0), count + 2)
    corners = np.where(points < 15, points * 200 / 3, 1000 * np.exp((np.maximum(points, 15) - 15) * math.log(6.4) / 27))
    frequencies = np.linspace(0.0, rate // 2, 1 + window // 2)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * 2 / (high - low)


def read_metadata(properties: Mapping[str, str], name: str) -> dict[str, Any]:
    """What a graph says about itself, each value of which is JSON.

    Raises:
        ValueError: it says nothing, or is of a newer format.
    """
    if "cmkd_format" not in properties:
        raise ValueError(f"{name} has no metadata of CMKD: it is not a file that `cmkd export` wrote.")
    metadata = {key: json.loads(value) for key, value in properties.items() if not key.startswith("onnx.")}
    if metadata["cmkd_format"] != FORMAT:
        raise ValueError(
            f"{name} says that its cmkd_format is {metadata['cmkd_format']!r}, but this release of cmkd reads {FORMAT}"
            ": use the onnx_cmkd.py that was exported with it, or the release that wrote it."
        )
    return metadata


def _batches(pieces: Iterator[tuple[Window, np.ndarray]], size: int) -> Iterator[list[tuple[Window, np.ndarray]]]:
    some: list[tuple[Window, np.ndarray]] = []
    for piece in pieces:
        some.append(piece)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _saturates() -> bool:
    """Whether this processor adds two products of 8 bits in 16, where they may not fit: x86 without VNNI.

    Other systems than Linux do not say it in a file; there the answer is no.
    """
    if platform.machine() not in ("x86_64", "i686") or not CPUINFO.exists():
        return False
    return not {"avx512_vnni", "avx_vnni"} & set(CPUINFO.read_text().split())


@lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    logger.warning(message)


def main(arguments: Sequence[str]) -> int:
    """Prints the answer for each file as a line of JSON; what is wrong with one is said on standard error."""
    import sys

    if len(arguments) < 2:
        print("usage: python onnx_cmkd.py MODEL.onnx AUDIO [AUDIO ...]", file=sys.stderr)
        return 2
    try:
        student = OnnxStudent(arguments[0])
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    status = 0
    for path in arguments[1:]:
        try:
            print(json.dumps({"file": path} | student(path)))
        except (ValueError, OSError, ImportError) as error:
            print(error, file=sys.stderr)
            status = 3
    return status


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
