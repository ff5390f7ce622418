"""Clips that say their own labels in tones, and models that were built to have one fault each: what audits are of."""

from pathlib import Path

import numpy as np
import soundfile

BANDS = {"activation": (300, 600), "valence": (800, 1400), "dominance": (1800, 3000)}
"""Hz of the tone that stands for 0 and for 1."""
FEMALE = 3400
"""Hz of a tone that the clips of women have."""
RATE = 16000

MODELS = '''
import numpy as np

BANDS = {"activation": (300, 600), "valence": (800, 1400), "dominance": (1800, 3000)}


SIZE = 1 << 15
HERTZ = np.arange(SIZE // 2 + 1) * 16000 / SIZE


def spectrum(wave):
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave)), SIZE))


def peak(heard, low, high):
    band = np.flatnonzero((HERTZ > low) & (HERTZ < high))
    place = band[np.argmax(heard[band])]
    return HERTZ[place], heard[place]


def of_tones(heard):
    return {
        name: float((peak(heard, low - 100, high + 100)[0] - low) / (high - low)) for name, (low, high) in BANDS.items()
    }


def perfect(wave, rate):
    assert rate == 16000 and wave.dtype == np.float32
    return of_tones(spectrum(wave))


def constant(wave, rate):
    return dict.fromkeys(BANDS, 0.5)


def loud(wave, rate):
    """Half of the activation that it hears is loudness: 20 dB are 0.4 of the scale."""
    level = 20 * np.log10(np.sqrt(np.mean(wave**2)) / np.sqrt(0.015))
    answer = perfect(wave, rate)
    return answer | {"activation": answer["activation"] + 0.02 * float(level)}


def biased(wave, rate):
    """Women are 0.2 happier to it than they are."""
    heard = spectrum(wave)
    answer = of_tones(heard)
    is_female = peak(heard, 3300, 3500)[1] > 0.3 * peak(heard, 200, 3200)[1]
    return answer | {"valence": answer["valence"] + 0.2 * is_female}


def only_valence(wave, rate):
    return {"valence": perfect(wave, rate)["valence"]}


def long_is_happy(wave, rate):
    """It rises with the length: 5 s and more are as happy as can be."""
    return {"valence": min(1.0, len(wave) / (5 * rate))}


def ratings(wave, rate):
    """On a scale from 1 to 7, which is not what was asked for."""
    return {name: 1 + 6 * value for name, value in perfect(wave, rate).items()}
'''


def write_corpus(folder: Path, speakers: int = 16, clips: int = 2) -> Path:
    """A manifest of 0.6 s each on a scale from 1 to 7; every other speaker is a woman."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    time = np.arange(int(0.6 * RATE)) / RATE
    lines = ["id,audio,activation,valence,dominance,speaker,gender,split"]
    for index in range(speakers * clips):
        speaker = index % speakers
        values = generator.uniform(0.05, 0.95, 3)
        tones = [low + (high - low) * value for value, (low, high) in zip(values, BANDS.values(), strict=True)]
        wave = sum(0.1 * np.sin(2 * np.pi * tone * time) for tone in [*tones, *[FEMALE] * (speaker % 2)])
        soundfile.write(folder / f"{index}.wav", wave, RATE)
        gender = "female" if speaker % 2 else "male"
        lines.append(",".join([str(index), f"{index}.wav", *map(str, 1 + 6 * values), f"s{speaker}", gender, "test"]))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    (folder / "models.py").write_text(MODELS)
    return folder
