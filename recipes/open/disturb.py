"""Writes a copy of CREMA-D as it sounds elsewhere: in rooms, in noise, through codecs, with silence around it.

    python recipes/open/disturb.py path/to/CREMA-D path/to/copy

The copy has the tables of the original and every clip under its name, as FLAC at 16 kHz; `student.yaml` trains on both.
What happens to a clip is drawn from its name, each with the probability below, in this order:

- a room (.5) of random size, with a reverberation time of .2 to .9 s, heard from .5 to 3 m;
- silence (.5) of 0 to 1.5 s before it and after it;
- noise (.6) at a signal-to-noise ratio of 0 to 25 dB: white, chords, or the voices of five other clips of its
  split, where it has so many;
- its level (.5), by -20 to +10 dB; what is beyond full scale is cut;
- a codec (.3): the telephone (G.711), mp3 at 16 kbit/s or Opus at 8 kbit/s.

Nothing changes how fast or how high a voice speaks, since that is part of what is rated. These are kinds of disturbance
that `cmkd audit` tries, too, in other amounts, rooms and draws: its findings on a student that was trained so are not
about disturbances of another kind. Clips that are there already are not written again.
"""

import shutil
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import soundfile
from tqdm.auto import tqdm

from cmkd.atomic import written_whole
from cmkd.audit import disturbances
from cmkd.audit.rooms import Room, in_room
from cmkd.corpora import load_corpus
from cmkd.corpora.crema_d import DEMOGRAPHICS, VOTES
from cmkd.features.audio import read_audio

RATE = 16_000
ROOM_COUNT = 200
CODECS = (disturbances.g711_mulaw, disturbances.mp3, disturbances.opus)


def draw_rooms(rng: np.random.Generator) -> list[Room]:
    """Rooms of 3 x 3 x 2.4 m to 10 x 8 x 4 m."""
    rooms = []
    for _ in range(ROOM_COUNT):
        size = rng.uniform((3, 3, 2.4), (10, 8, 4))
        rooms.append(Room(rng.uniform(0.2, 0.9), tuple(size), rng.uniform(0.5, min(3, size[0] / 2))))
    return rooms


def disturbed(wave: np.ndarray, rng: np.random.Generator, rooms: list[Room], voices: list[np.ndarray]) -> np.ndarray:
    """What is heard instead of `wave` (samples,), see the module."""
    if rng.random() < 0.5:
        wave = in_room(wave, RATE, rng, room=rooms[rng.integers(len(rooms))])
    if rng.random() < 0.5:
        wave = np.pad(wave, tuple(rng.integers(round(1.5 * RATE), size=2)))
    if rng.random() < 0.6:
        snr = rng.uniform(0, 25)
        kind = rng.integers(3 if len(voices) > disturbances.TALKERS else 2)
        if kind == 0:
            wave = disturbances.white_noise(wave, RATE, rng, snr=snr)
        elif kind == 1:
            wave = disturbances.music(wave, RATE, rng, snr=snr)
        else:
            chosen = rng.choice(len(voices), disturbances.TALKERS, replace=False)
            wave = disturbances.babble(wave, RATE, rng, snr=snr, voices=[voices[index] for index in chosen])
    if rng.random() < 0.5:
        wave = disturbances.gain(wave, RATE, rng, db=rng.uniform(-20, 10))
    wave = wave.clip(-1, 1)
    if rng.random() < 0.3:
        wave = CODECS[rng.integers(len(CODECS))](wave, RATE, rng)
    return wave.clip(-1, 1)


def main(original: Path, copy: Path) -> None:
    corpus = load_corpus("crema-d", original, on_error="skip")
    rooms = draw_rooms(np.random.default_rng(0))
    (copy / "AudioFLAC").mkdir(parents=True, exist_ok=True)
    for rows in corpus.values():
        paths = [copy / "AudioFLAC" / f"{clip}.flac" for clip in rows["id"]]
        if all(path.exists() for path in paths):
            continue
        waves = [read_audio(row["audio"], RATE) for row in rows]
        for path, wave in zip(paths, tqdm(waves, unit=" clips"), strict=True):
            if not path.exists():
                with written_whole(path) as unfinished:
                    heard = disturbed(wave, np.random.default_rng(crc32(path.stem.encode())), rooms, waves)
                    soundfile.write(unfinished, heard, RATE, format="FLAC", subtype="PCM_16")
    for table in (f"processedResults/{VOTES}", VOTES, DEMOGRAPHICS, "README.md"):
        if (original / table).is_file():
            (copy / table).parent.mkdir(exist_ok=True)
            shutil.copyfile(original / table, copy / table)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
