"""Synthetic English speech, made in this process by espeak-ng.

The demo corpora are spoken by this module, so that they need no recordings and no download. The same arguments give the
same samples, to the bit, in every process and whatever was spoken before.

espeak-ng carries state from one utterance to the next (the flutter of the voice, the phase of the wave, its random
numbers) and no call of its interface resets all of it. So [`speak`] loads the library afresh for each utterance, seeds
its random numbers and unloads it. That costs about 3 ms, which leaves some 150 short sentences per second.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import threading
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SAMPLING_RATE = 16_000
"""Samples per second of what [`speak`] returns."""


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Args:
        name (`str`): espeak-ng's name for it, an accent and a variant of the vocal tract, e.g. `"en-us+f3"`.
        gender (`str`): `"female"` or `"male"`.
    """

    name: str
    gender: Literal["female", "male"]


VOICES: tuple[Voice, ...] = (
    Voice("en-us+f1", "female"),
    Voice("en-us+m1", "male"),
    Voice("en+f2", "female"),
    Voice("en+m3", "male"),
    Voice("en-gb-x-rp+Alicia", "female"),
    Voice("en-gb-x-rp+m4", "male"),
    Voice("en-gb-scotland+Andrea", "female"),
    Voice("en-gb-scotland+m6", "male"),
    Voice("en-029+Annie", "female"),
    Voice("en-029+m8", "male"),
    Voice("en-us-nyc+anika", "female"),
    Voice("en-us-nyc+Alex", "male"),
    Voice("en-gb-x-gbclan+aunty", "female"),
    Voice("en-gb-x-gbclan+Mario", "male"),
    Voice("en-gb-x-gbcwmd+belinda", "female"),
    Voice("en-gb-x-gbcwmd+Reed", "male"),
    Voice("en-us+steph", "female"),
    Voice("en-us+klatt3", "male"),
    Voice("en+grandma", "female"),
    Voice("en+robert", "male"),
    Voice("en-gb-scotland+f1", "female"),
    Voice("en-gb-scotland+Denis", "male"),
    Voice("en-us+f2", "female"),
    Voice("en-us+grandpa", "male"),
    Voice("en-us+f3", "female"),
    Voice("en-us+m7", "male"),
    Voice("en+linda", "female"),
    Voice("en+Michael", "male"),
    Voice("en-gb-x-rp+f5", "female"),
    Voice("en-gb-x-rp+m2", "male"),
    Voice("en-gb-scotland+f4", "female"),
    Voice("en-gb-scotland+victor", "male"),
)
"""The speakers. Eight accents of English; half of the voices are female, half male."""

HELD_OUT_VOICES: tuple[Voice, ...] = VOICES[-8:]
"""Voices that the demo's speech encoder never heard: four female, four male, of variants of their own."""

# espeak-ng's speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CHARS_UTF8 = 1  # neither SSML (0x10) nor phonemes in [[]] (0x100): the text is read as text
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_PARAMETER_RANGES = {"rate": (80, 450), "pitch": (0, 100), "pitch_range": (0, 100), "volume": (0, 200)}
_one_utterance_at_a_time = threading.Lock()


def speak(
    text: str, voice: Voice, *, rate: int = 175, pitch: int = 50, pitch_range: int = 50, volume: int = 100
) -> np.ndarray:
    """Speaks a text.

    Markup, phoneme commands and control characters in the text have no effect: it is read as it stands.

    Args:
        text (`str`): English text with at least one letter or digit.
        voice (`Voice`): one of `VOICES`.
        rate (`int`, *optional*, defaults to 175): words per minute, 80 to 450.
        pitch (`int`, *optional*, defaults to 50): 0 to 100, relative to the voice; 50 is the voice's own.
        pitch_range (`int`, *optional*, defaults to 50): 0 (monotone) to 100; 50 is the voice's own.
        volume (`int`, *optional*, defaults to 100): 0 to 200; 100 is the voice's own. Loud voices clip above it.

    Returns:
        `np.ndarray` of shape (samples,): float32 in [-1, 1], mono, 16 kHz.

    Raises:
        ValueError: the text has nothing to speak, a number is out of range, or the voice is not one of `VOICES`.
        ImportError: `espeakng_loader` or `soxr` is not installed.
        RuntimeError: something else in this process holds espeak-ng, so that its state cannot be reset.
    """
    if not any(character.isalnum() for character in text):
        raise ValueError(f"text={text!r} has nothing to speak: give it at least one letter or digit.")
    if voice not in VOICES:  # espeak-ng itself falls back silently to another vocal tract
        raise ValueError(f"voice={voice!r} is unknown: take one of VOICES, e.g. {VOICES[0]!r}.")
    prosody = {"rate": rate, "pitch": pitch, "pitch_range": pitch_range, "volume": volume}
    for name, value in prosody.items():
        lowest, highest = _PARAMETER_RANGES[name]
        if not lowest <= value <= highest:
            raise ValueError(f"{name}={value!r} is out of range: give a whole number from {lowest} to {highest}.")
    try:
        import soxr
    except ImportError as error:
        raise ImportError('Synthetic speech needs soxr: pip install "cmkd[demo]"') from error

    with _one_utterance_at_a_time:
        samples, sampling_rate = _synthesize(_without_control_characters(text), voice, prosody)
    if not samples.any():
        raise ValueError(f"text={text!r} came out silent in the voice {voice.name!r}: speak other words or louder.")
    speech = soxr.resample(samples.astype(np.float32) / 32768, sampling_rate, SAMPLING_RATE)
    return np.clip(speech, -1, 1)


def _without_control_characters(text: str) -> str:
    """Replaces control, private and unassigned characters with spaces: espeak-ng takes some of them for commands."""
    return "".join(" " if unicodedata.category(character).startswith("C") else character for character in text)


def _synthesize(text: str, voice: Voice, prosody: dict[str, int]) -> tuple[np.ndarray, int]:
    """Returns 16-bit samples and their number per second, from a freshly loaded espeak-ng."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError('Synthetic speech needs espeakng_loader: pip install "cmkd[demo]"') from error
    library_path = espeakng_loader.get_library_path()
    if _is_loaded(library_path):
        raise RuntimeError(
            f"{library_path} is already loaded by something else in this process, so its state cannot be reset and "
            "the speech would depend on what was spoken before: synthesize in a process of its own."
        )

    chunks: list[bytes] = []

    @_SYNTH_CALLBACK
    def collect(wave: Any, num_samples: int, events: Any) -> int:  # at the end of the text it sends no wave
        if wave:
            chunks.append(ctypes.string_at(wave, 2 * num_samples))
        return 0

    espeak = ctypes.CDLL(library_path)
    try:
        data_path = os.fsencode(espeakng_loader.get_data_path())
        sampling_rate = espeak.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path, 0)
        espeak.espeak_SetSynthCallback(collect)
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))  # otherwise it is the time of day
        ctypes.CDLL(None).srand(1)  # its Klatt voices take their noise from the generator of the C library
        espeak.espeak_SetVoiceByName(voice.name.encode())
        for parameter, name in ((_RATE, "rate"), (_VOLUME, "volume"), (_PITCH, "pitch"), (_RANGE, "pitch_range")):
            espeak.espeak_SetParameter(parameter, prosody[name], 0)
        encoded = text.encode() + b"\0"
        espeak.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _CHARS_UTF8, None, None)
    finally:
        espeak.espeak_Terminate()
        _ctypes.dlclose(espeak._handle)
    return np.frombuffer(b"".join(chunks), dtype=np.int16), sampling_rate


def _is_loaded(library_path: str) -> bool:
    try:
        handle = _ctypes.dlopen(library_path, os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    _ctypes.dlclose(handle)
    return True
