"""What a room makes of a voice: impulse responses by the image sources of pyroomacoustics, brought to their decay.

The walls get the absorption that Sabine's formula asks for. What comes out of it decays up to a third more slowly,
since the formula is about diffuse sound; the response is then multiplied by an exponential, so that the decay from -5
to -35 dB is that of the reverberation time. It begins with the direct sound, which is thus not delayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.signal import oaconvolve  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Room:
    """A room with a speaker and a microphone in it.

    Attributes:
        seconds: Its reverberation time, in which sound falls by 60 dB.
        size: Length, width and height, in metres.
        distance: From the speaker to the microphone, in metres.
    """

    seconds: float
    size: tuple[float, float, float]
    distance: float


ROOMS = (Room(0.3, (5, 4, 3), 1.5), Room(0.7, (8, 6, 3.5), 2))
"""An office, and a room for many."""

_SPEAKER = (0.29, 0.43, 0.52)
"""Where the speaker is, as shares of length, width and height: in the middle of nothing."""
_CORRECTIONS = 2
"""Of the decay: after the first, it is right to 5 %."""


def in_room(waveform: np.ndarray, rate: int, rng: np.random.Generator, *, room: Room) -> np.ndarray:
    """As long and as loud (by its mean square) as before; what would be heard after its end is cut off."""
    heard = oaconvolve(waveform, impulse_response(room, rate))[: len(waveform)]
    power, before = (float(np.mean(np.square(part, dtype=np.float64))) for part in (heard, waveform))
    return (heard * np.sqrt(before / power)).astype(np.float32) if before and power else waveform


@cache
def impulse_response(room: Room, rate: int) -> np.ndarray:
    """What the microphone hears of a single sample (n,), which it hears first.

    Raises:
        ImportError: pyroomacoustics is not installed.
    """
    acoustics = load_acoustics()
    absorption, order = acoustics.inverse_sabine(room.seconds, room.size)
    walls = acoustics.ShoeBox(room.size, fs=rate, materials=acoustics.Material(absorption), max_order=order)
    speaker = np.array(room.size) * _SPEAKER
    samples = round(room.distance / walls.c * rate)  # whole ones, so that the direct sound is one sample, too
    walls.add_source(speaker)
    walls.add_microphone(speaker + np.array([samples / rate * walls.c, 0, 0]))
    walls.compute_rir()
    response = np.asarray(walls.rir[0][0], dtype=np.float64)
    response = response[samples + acoustics.constants.get("frac_delay_length") // 2 :]
    time = np.arange(len(response)) / rate
    for _ in range(_CORRECTIONS):
        measured = acoustics.experimental.measure_rt60(response, fs=rate, decay_db=30)
        response = response * np.exp(-np.log(1000) * time * (1 / room.seconds - 1 / measured))
    return response


def load_acoustics() -> Any:
    """The package that simulates rooms.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ImportError(
            'rooms need pyroomacoustics: pip install "cmkd[audit]", or name the disturbances to try without them, as '
            "--disturbances mp3 gain_+20db."
        ) from error
    return pyroomacoustics
