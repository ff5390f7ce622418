"""What `speak` promises: the same samples always, voices that differ, text that is only read."""

import ctypes
import hashlib
import itertools
import re
import subprocess

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason='needs the extra "demo"')

from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, Voice, speak

SENTENCE = "The quick brown fox jumps over the lazy dog."


def digest(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()


def fundamental_frequency(speech: np.ndarray) -> float:
    """Median over voiced frames, in Hz, by autocorrelation."""
    estimates = []
    for start in range(0, len(speech) - 800, 400):
        frame = speech[start : start + 800] - speech[start : start + 800].mean()
        if frame.std() < 0.02:
            continue
        correlation = np.correlate(frame, frame, "full")[799:]
        shortest, longest = SAMPLING_RATE // 400, SAMPLING_RATE // 60
        period = shortest + correlation[shortest:longest].argmax()
        if correlation[period] > 0.5 * correlation[0]:
            estimates.append(SAMPLING_RATE / period)
    return float(np.median(estimates))


def spectral_envelope(speech: np.ndarray) -> np.ndarray:
    """Share of the energy, in dB, in 24 bands of 200 Hz."""
    power = np.abs(np.fft.rfft(speech)) ** 2
    frequencies = np.fft.rfftfreq(len(speech), 1 / SAMPLING_RATE)
    bands = np.array([power[(frequencies >= low) & (frequencies < low + 200)].sum() for low in range(0, 4800, 200)])
    return 10 * np.log10(bands / bands.sum() + 1e-6)


def test_waveform_is_float32_mono_at_16_khz():
    speech = speak(SENTENCE, VOICES[0])
    assert speech.dtype == np.float32
    assert speech.ndim == 1
    assert 0.1 < np.abs(speech).max() <= 1
    assert 2 < len(speech) / SAMPLING_RATE < 4  # nine words at 175 a minute take about three seconds


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_same_samples_whatever_was_spoken_before(voice):
    before = digest(speak(SENTENCE, voice))
    for text, other in (("x", VOICES[3]), ("something else, isn't it?", VOICES[17]), (SENTENCE, voice)):
        speak(text, other, rate=240, pitch=90, pitch_range=0, volume=30)
        assert digest(speak(SENTENCE, voice)) == before


@pytest.mark.slow
def test_same_samples_in_another_process(python):
    program = (
        "import hashlib; from cmkd.corpora.speech_synthesis import VOICES, speak;"
        f"print(*(hashlib.sha256(speak({SENTENCE!r}, voice).tobytes()).hexdigest() for voice in VOICES[8:12]))"
    )
    other_process = subprocess.run(
        [python.executable, "-c", program], capture_output=True, text=True, check=True, timeout=900
    )
    assert other_process.stdout.split() == [digest(speak(SENTENCE, voice)) for voice in VOICES[8:12]]


def test_voices_are_distinct_and_balanced():
    assert len(VOICES) == len({voice.name for voice in VOICES}) >= 24
    assert sum(voice.gender == "female" for voice in VOICES) == len(VOICES) // 2


def test_held_out_voices_share_no_vocal_tract_with_the_others():
    heard = [voice for voice in VOICES if voice not in HELD_OUT_VOICES]
    assert len(heard) == len(VOICES) - 8
    assert {voice.gender for voice in HELD_OUT_VOICES} == {"female", "male"}
    variants = {voice.name.split("+")[1] for voice in HELD_OUT_VOICES}
    assert variants.isdisjoint(voice.name.split("+")[1] for voice in heard)


def test_voices_sound_different_and_like_their_gender():
    speech = {voice: speak(SENTENCE, voice) for voice in VOICES}
    pitches = {voice: fundamental_frequency(samples) for voice, samples in speech.items()}
    assert min(pitches[voice] for voice in VOICES if voice.gender == "female") > 150
    assert max(pitches[voice] for voice in VOICES if voice.gender == "male") < 150
    envelopes = {voice: spectral_envelope(samples) for voice, samples in speech.items()}
    for one, other in itertools.combinations(VOICES, 2):
        distance_in_db = np.abs(envelopes[one] - envelopes[other]).mean()
        assert distance_in_db > 1 or abs(np.log2(pitches[one] / pitches[other])) > 1 / 12, (one, other)


def test_prosody_does_what_it_says():
    voice = VOICES[1]
    plain = speak(SENTENCE, voice)
    assert len(speak(SENTENCE, voice, rate=350)) < 0.7 * len(plain)
    assert fundamental_frequency(speak(SENTENCE, voice, pitch=90)) > 1.2 * fundamental_frequency(plain)
    assert speak(SENTENCE, voice, volume=50).std() == pytest.approx(plain.std() / 2, rel=0.1)
    assert digest(speak(SENTENCE, voice, pitch_range=5)) != digest(plain)


def test_markup_is_read_as_text():
    with_break = speak('<break time="9s"/>hello', VOICES[0])
    assert len(with_break) / SAMPLING_RATE < 7  # spoken, not obeyed
    spelled_out, hello = speak("[[h@l'oU]]", VOICES[0]), speak("hello", VOICES[0])
    assert len(spelled_out) > 2 * len(hello)


@pytest.mark.parametrize("character", ["\0", "\x01", "\x1b", "\ue000", "\ud800"])
def test_control_characters_are_spaces(character):
    assert digest(speak(f"hello {character}50P there", VOICES[0])) == digest(speak("hello  50P there", VOICES[0]))


@pytest.mark.parametrize("text", ["", "   ", "...", "?!", "\x01"])
def test_nothing_to_speak(text):
    with pytest.raises(ValueError, match="nothing to speak: give it at least one letter or digit"):
        speak(text, VOICES[0])


def test_silence_is_an_error():
    with pytest.raises(ValueError, match="'hello' came out silent in the voice 'en-us\\+f1'"):
        speak("hello", VOICES[0], volume=0)


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("rate", 20, "80 to 450"),
        ("pitch", 101, "0 to 100"),
        ("pitch_range", -1, "0 to 100"),
        ("volume", 300, "0 to 200"),
    ],
)
def test_prosody_out_of_range(argument, value, rule):
    with pytest.raises(ValueError, match=f"{argument}={value} is out of range: give a whole number from {rule}"):
        speak(SENTENCE, VOICES[0], **{argument: value})


def test_unknown_voice():
    with pytest.raises(
        ValueError, match=re.escape("voice=Voice(name='en-us+nobody', gender='male') is unknown: take one of VOICES")
    ):
        speak(SENTENCE, Voice("en-us+nobody", "male"))


def test_library_held_by_something_else():
    import _ctypes

    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        with pytest.raises(RuntimeError, match="already loaded by something else"):
            speak(SENTENCE, VOICES[0])
    finally:
        _ctypes.dlclose(library._handle)
