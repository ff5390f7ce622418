"""Expression laid on speech after it was spoken: another rate, pitch, range of pitch and loudness, by WORLD.

WORLD (Morise, Yokomori and Ozawa 2016, doi:10.1587/transinf.2015EDP7457) takes speech apart into pitch, spectrum and
noise and puts it together again; pyworld is its Python interface. What a synthesiser spoke neutrally thus becomes an
actor's utterance, in the same voice: the spectrum stays where it is when the pitch moves.

The prosody of [`cmkd.corpora.acted_speech`] is in espeak-ng's units. [`expression_of`] says what they are here:

| espeak-ng's parameter | here | for levels of -1 .. 1, without the noise |
|---|---|---|
| speaking rate, 175 words per minute | its ratio to 175 | .77 .. 1.30 |
| pitch, 0 to 100 | a fifth of a semitone for each unit from 50 | -5.6 .. 5.6 semitones |
| pitch range, 0 to 100 | its ratio to 50: of the distance of the pitch from its median, in semitones | .2 .. 1.8 |
| volume, 0 to 200 | its ratio to 100, in the amplitude | -12 .. 0 dB |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cmkd.corpora.acted_speech import Prosody

FRAME = 5.0
"""Milliseconds from one frame of the analysis to the next."""

LOWEST, HIGHEST = 65.0, 600.0
"""Hz: the pitch that is looked for."""


@dataclass(frozen=True)
class Expression:
    """How an utterance is to be changed.

    Args:
        rate (`float`): The ratio of the new speaking rate to the old one.
        semitones (`float`): How far the median pitch moves.
        pitch_range (`float`): The factor by which the distance of the pitch from its median grows, in semitones.
        decibels (`float`): The gain in loudness, the root mean square of all samples.
    """

    rate: float = 1.0
    semitones: float = 0.0
    pitch_range: float = 1.0
    decibels: float = 0.0


def expression_of(prosody: Prosody) -> Expression:
    """What a prosody in espeak-ng's units is here, by the table above.

    >>> expression_of(Prosody(rate=210, pitch=60, pitch_range=40, volume=50))
    Expression(rate=1.2, semitones=2.0, pitch_range=0.8, decibels=-6.020599913279624)
    """
    return Expression(
        rate=prosody.rate / 175,
        semitones=(prosody.pitch - 50) / 5,
        pitch_range=prosody.pitch_range / 50,
        decibels=20 * math.log10(prosody.volume / 100),
    )


def express(waveform: np.ndarray, sampling_rate: int, expression: Expression) -> np.ndarray:
    """Speech with another expression. The same arguments give the same samples.

    Args:
        waveform (`np.ndarray` of shape (samples,)): Samples in [-1, 1] that are not all zero.
        sampling_rate (`int`): Their number per second, at least 16,000.
        expression (`Expression`): What becomes of it.

    Returns:
        `np.ndarray` of shape (about samples / rate,): float32 in [-1, 1]; louder peaks are cut off.

    Raises:
        ImportError: pyworld is not installed.
        ValueError: The speech is silent.
    """
    try:
        import pyworld
    except ImportError as error:
        raise ImportError('Acting on synthetic speech needs pyworld: pip install "cmkd[kokoro]"') from error
    samples = np.ascontiguousarray(waveform, dtype=np.float64)
    loudness = _root_mean_square(samples)
    if loudness == 0:
        raise ValueError("the speech is silent, so there is nothing to express.")
    rough, times = pyworld.dio(samples, sampling_rate, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=FRAME)
    pitch = pyworld.stonemask(samples, rough, times, sampling_rate)
    spectrum = pyworld.cheaptrick(samples, pitch, times, sampling_rate, f0_floor=LOWEST)
    noise = pyworld.d4c(samples, pitch, times, sampling_rate, fft_size=2 * (spectrum.shape[1] - 1))
    voiced = pitch > 0
    if voiced.any():
        median = np.median(pitch[voiced])
        moved = median * 2 ** (expression.semitones / 12) * (pitch[voiced] / median) ** expression.pitch_range
        pitch[voiced] = np.clip(moved, LOWEST / 2, 2 * HIGHEST)
    spoken = pyworld.synthesize(pitch, spectrum, noise, sampling_rate, FRAME / expression.rate)
    spoken *= loudness / _root_mean_square(spoken) * 10 ** (expression.decibels / 20)
    return np.clip(spoken, -1, 1).astype(np.float32)


def _root_mean_square(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))
