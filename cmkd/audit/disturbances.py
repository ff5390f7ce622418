"""What is done to a recording before it is scored again, each a function of (waveform, rate, rng).

A waveform is (samples,) of float32, nominally from -1 to 1; the rate is in Hz; the generator draws whatever is random.
Codecs, tempo, filters and rooms are those of libsndfile, FFmpeg, soxr and pyroomacoustics; only what is one line of
arithmetic is written here.
The tests measure that each does what its sentence says.

audiomentations was tried and left out: 0.43 needs soxr below 1.0, and all that is taken from it here would be white
noise and gain.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np
import soundfile
import soxr

from cmkd.audit.rooms import ROOMS, in_room, load_acoustics
from cmkd.features.audio import read_audio

PHONE_RATE = 8000
SNRS = (20, 10, 0)
"""Decibels."""
GAINS = (-20, 20)
"""Decibels."""
CLIPPED = 0.1
"""The share of the samples that clipping cuts."""
CUT = 0.1
"""The share of the duration that is cut off."""
SILENCE = 1.0
"""Seconds."""
TEMPOS = (0.9, 1.1)
SEMITONES = (-2, 2)
MP3_RATE = 16_000
OPUS_RATE = 8_000
"""Bits per second."""
CODEC_RATE = 16000
"""Hz of what both encode."""
TALKERS = 5

Apply = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Disturbance:
    """A disturbance and what it is.

    Attributes:
        name: As files, tables and the option `--disturbances` have it.
        about: Its definition, a sentence.
        apply: Takes a waveform, its rate and a generator, and returns what is heard instead.
        check: Raises an ImportError if a package that it needs is missing.
    """

    name: str
    about: str
    apply: Apply
    check: Callable[[], Any] = lambda: None


def disturbances(voices: Sequence[np.ndarray]) -> dict[str, Disturbance]:
    """All disturbances, by name.

    Args:
        voices: What babble is made of: waveforms of the corpus.
    """
    found = []
    for snr in SNRS:
        ratio = f"at a signal-to-noise ratio of {snr} dB over the whole clip."
        found += [
            Disturbance(f"white_noise_{snr}db", f"White noise {ratio}", partial(white_noise, snr=snr)),
            Disturbance(
                f"babble_{snr}db",
                f"{TALKERS} other voices of the corpus, equally loud, {ratio}",
                partial(babble, snr=snr, voices=voices),
            ),
            Disturbance(f"music_{snr}db", f"Synthetic chords {ratio}", partial(music, snr=snr)),
        ]
    found += [
        Disturbance(f"gain_{level:+d}db", f"{level:+d} dB; nothing is clipped.", partial(gain, db=level))
        for level in GAINS
    ]
    found += [
        Disturbance(
            "clipping", f"The loudest {CLIPPED:.0%} of all samples are cut to the level of the rest.", clipping
        ),
        Disturbance("resampled_8khz", "Down to 8 kHz and back: nothing above 4 kHz is left.", resampled),
        Disturbance("g711_mulaw", "The telephone: 8 kHz, 8 bits per sample, mu-law of ITU-T G.711.", g711_mulaw),
        Disturbance("mp3", f"MP3 at {MP3_RATE // 1000} kbit/s.", mp3),
        Disturbance("opus", f"Opus at {OPUS_RATE // 1000} kbit/s.", opus),
    ]
    found += [
        Disturbance(
            f"room_{room.seconds:g}s",
            f"A room of {' x '.join(f'{metres:g}' for metres in room.size)} m with a reverberation time of "
            f"{room.seconds:g} s, heard from {room.distance:g} m; as loud as before, and not delayed.",
            partial(in_room, room=room),
            load_acoustics,
        )
        for room in ROOMS
    ]
    found += [
        Disturbance("silence_before", f"{SILENCE:g} s of zeros before it.", silence_before),
        Disturbance("silence_after", f"{SILENCE:g} s of zeros after it.", silence_after),
        Disturbance("start_cut", f"The first {CUT:.0%} is cut off.", start_cut),
        Disturbance("end_cut", f"The last {CUT:.0%} is cut off.", end_cut),
    ]
    found += [
        Disturbance(f"tempo_{factor:g}", f"{factor:g} times as fast at the same pitch.", partial(tempo, factor=factor))
        for factor in TEMPOS
    ]
    found += [
        Disturbance(
            f"pitch_{steps:+d}",
            f"{abs(steps)} semitones {'higher' if steps > 0 else 'lower'} at the same tempo.",
            partial(pitch, semitones=steps),
        )
        for steps in SEMITONES
    ]
    return {disturbance.name: disturbance for disturbance in found}


def at_snr(waveform: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """The sum of a waveform and a noise of the same length that has been scaled.

    The ratio of their mean squares, over the whole clip, is then 10^(snr/10). A silent waveform or noise leaves the
    waveform as it is: no noise has a ratio to silence.
    """
    signal_power, noise_power = (float(np.mean(np.square(part, dtype=np.float64))) for part in (waveform, noise))
    if not signal_power or not noise_power:
        return waveform
    scale = np.sqrt(signal_power / noise_power / 10 ** (snr / 10))
    return (waveform + scale * noise).astype(np.float32)


def white_noise(waveform: np.ndarray, rate: int, rng: np.random.Generator, *, snr: float) -> np.ndarray:
    """Gaussian noise, each sample by itself."""
    return at_snr(waveform, rng.standard_normal(len(waveform)), snr)


def babble(
    waveform: np.ndarray, rate: int, rng: np.random.Generator, *, snr: float, voices: Sequence[np.ndarray]
) -> np.ndarray:
    """Other voices at once, each as loud as the others and beginning anywhere; one that is too short goes round."""
    others = [voice for voice in voices if np.any(voice) and not np.array_equal(voice, waveform)]
    if not others:
        raise ValueError("babble is made of other clips of the corpus, and there is none: audit more than one clip.")
    noise = np.zeros(len(waveform))
    for index in rng.permutation(len(others))[:TALKERS]:
        voice = np.roll(others[index], rng.integers(len(others[index])))
        noise += np.resize(voice, len(waveform)) / np.sqrt(np.mean(np.square(voice, dtype=np.float64)))
    return at_snr(waveform, noise, snr)


def music(waveform: np.ndarray, rate: int, rng: np.random.Generator, *, snr: float) -> np.ndarray:
    """Major and minor triads of decaying tones with four overtones, a new one every half second."""
    noise, beat = np.zeros(len(waveform)), rate // 2
    for start in range(0, len(waveform), beat):
        time = np.arange(min(beat, len(waveform) - start)) / rate
        root = 110 * 2 ** (rng.integers(24) / 12)
        for step in (0, 3 + rng.integers(2), 7):
            for overtone in range(1, 6):
                tone = np.sin(2 * np.pi * root * 2 ** (step / 12) * overtone * time)
                noise[start : start + beat] += tone * np.exp(-3 * time) / overtone
    return at_snr(waveform, noise, snr)


def gain(waveform: np.ndarray, rate: int, rng: np.random.Generator, *, db: float) -> np.ndarray:
    return (waveform * 10 ** (db / 20)).astype(np.float32)


def clipping(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    limit = np.quantile(np.abs(waveform), 1 - CLIPPED)
    return np.clip(waveform, -limit, limit)


def resampled(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return _of_length(soxr.resample(soxr.resample(waveform, rate, PHONE_RATE), PHONE_RATE, rate), len(waveform))


def g711_mulaw(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """The companding is libsndfile's; samples beyond full scale are clipped, as a telephone does."""
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(waveform, rate, PHONE_RATE), PHONE_RATE, format="WAV", subtype="ULAW")
    file.seek(0)
    heard = soundfile.read(file, dtype="float32")[0]
    return _of_length(soxr.resample(heard, PHONE_RATE, rate), len(waveform))


def mp3(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return _through_codec(waveform, rate, "libmp3lame", "mp3", MP3_RATE)


def opus(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return _through_codec(waveform, rate, "libopus", "ogg", OPUS_RATE)


def silence_before(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return np.pad(waveform, (round(SILENCE * rate), 0))


def silence_after(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return np.pad(waveform, (0, round(SILENCE * rate)))


def start_cut(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return waveform[round(CUT * len(waveform)) :]


def end_cut(waveform: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    return waveform[: len(waveform) - round(CUT * len(waveform))]


def tempo(waveform: np.ndarray, rate: int, rng: np.random.Generator, *, factor: float) -> np.ndarray:
    """FFmpeg's `atempo`, by overlapping waveforms; the length is the old one divided by the factor."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="flt", sample_rate=rate, layout="mono", time_base=Fraction(1, rate))
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("atempo", f"{factor!r}"), sink).configure()
    source.push(_frame(waveform, rate))
    source.push(None)
    parts: list[np.ndarray] = []
    while True:
        try:
            frame = sink.pull()
        except (av.error.EOFError, av.error.BlockingIOError):
            return _of_length(np.concatenate(parts), round(len(waveform) / factor))
        assert isinstance(frame, av.AudioFrame)  # of a graph for sound
        parts.append(frame.to_ndarray()[0])


def pitch(waveform: np.ndarray, rate: int, rng: np.random.Generator, *, semitones: float) -> np.ndarray:
    """Played faster or slower, and brought back to its length by `tempo`."""
    factor = 2 ** (semitones / 12)
    return _of_length(tempo(soxr.resample(waveform, rate * factor, rate), rate, rng, factor=1 / factor), len(waveform))


def _through_codec(waveform: np.ndarray, rate: int, codec: str, container: str, bits: int) -> np.ndarray:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=CODEC_RATE)
        assert isinstance(stream, av.AudioStream)  # of a codec for sound
        stream.bit_rate = bits
        stream.layout = "mono"
        for frame in (_frame(waveform, rate), None):
            output.mux(stream.encode(frame))
    return _of_length(read_audio(file.getvalue(), rate), len(waveform))


def _frame(waveform: np.ndarray, rate: int) -> av.AudioFrame:
    samples = np.ascontiguousarray(waveform, np.float32)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    frame.sample_rate = rate
    frame.pts = 0
    frame.time_base = Fraction(1, rate)
    return frame


def _of_length(waveform: np.ndarray, length: int) -> np.ndarray:
    """A codec or a filter may give some samples more or fewer: these are cut, or are zeros."""
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32)
