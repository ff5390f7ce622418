"""Speech that is acted on after it was spoken: what is heard, what is kept, and that an interruption loses nothing.

espeak-ng stands in for Kokoro, which speaks as well where $CMKD_KOKORO is a folder of its files.
"""

import hashlib
import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from watching import present

from cmkd.corpora import load_corpus, performed_speech, synthesisers
from cmkd.corpora.acted_speech import ActedUtterance, Prosody
from cmkd.corpora.expression import Expression, express, expression_of
from cmkd.corpora.performed_speech import SpeechStore, performed_corpus
from cmkd.corpora.report import CorpusError, CorpusReport
from cmkd.corpora.speech_synthesis import VOICES
from cmkd.corpora.synthesisers import KOKORO_VOICES, Espeak, Flite, Kokoro, make_synthesiser

NEUTRAL = Prosody(rate=175, pitch=50, pitch_range=50, volume=100)
SENTENCE = "The old miller and her young nephew were running a mile along the narrow river."


@pytest.fixture
def espeak():
    pytest.importorskip("espeakng_loader", reason="speaking needs the extra cmkd[demo]")


@pytest.fixture
def world():
    pytest.importorskip("pyworld", reason="acting on speech needs the extra cmkd[kokoro]")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of datasets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "cmkd"


# What is heard


def pitch_of(waveform, sampling_rate):
    """The pitch of the voiced frames in Hz, by autocorrelation of 50 ms: WORLD finds it in another way."""
    size, longest, shortest = sampling_rate // 20, sampling_rate // 65, sampling_rate // 500
    frames = np.lib.stride_tricks.sliding_window_view(waveform, size)[:: sampling_rate // 100]
    frames = frames[(frames**2).mean(axis=1) > (waveform**2).mean() / 4] * np.hanning(size)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * size)) ** 2)
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)
    correlation = (correlation / window)[:, shortest:longest] / (correlation[:, :1] / window[0])
    clear = correlation[correlation.max(axis=1) > 0.8]
    first = (clear > 0.9 * clear.max(axis=1, keepdims=True)).argmax(axis=1)  # a multiple of the period is as high
    near = first[:, None] + np.arange(sampling_rate // 1000)
    peaks = np.take_along_axis(clear, np.minimum(near, clear.shape[1] - 1), axis=1).argmax(axis=1)
    return sampling_rate / (first + peaks + shortest)


def heard(waveform, sampling_rate):
    pitch = pitch_of(waveform, sampling_rate)
    semitones = 12 * np.log2(pitch)
    low, high = np.percentile(semitones, [10, 90])
    return {
        "seconds": len(waveform) / sampling_rate,
        "pitch": float(np.median(semitones)),
        "spread": float(high - low),
        "decibels": 10 * math.log10(np.mean(waveform.astype(np.float64) ** 2)),
    }


def spoken_by_kokoro(text, name, folder):
    """In a process of its own, since Kokoro keeps espeak-ng loaded, which then cannot speak by itself."""
    if "CMKD_KOKORO" not in os.environ:
        pytest.skip("$CMKD_KOKORO is not set")
    pytest.importorskip("kokoro_onnx")
    program = (
        "import sys, numpy\nfrom cmkd.corpora.synthesisers import KOKORO_VOICES, Kokoro\n"
        "voice = next(voice for voice in KOKORO_VOICES if voice.name == sys.argv[3])\n"
        "samples, sampling_rate = Kokoro(sys.argv[1]).speak(sys.argv[2], voice)\n"
        "numpy.save(sys.argv[4], samples)\nprint(sampling_rate)\n"
    )
    command = [sys.executable, "-c", program, os.environ["CMKD_KOKORO"], text, name, str(folder / "samples.npy")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=900)
    return np.load(folder / "samples.npy"), int(done.stdout)


@pytest.fixture(scope="module", params=["en-us+f1", "en-us+m1", "af_bella", "bm_george"])
def neutral(request, tmp_path_factory):
    """A sentence as a synthesiser speaks it, at half its loudness so that nothing is cut off."""
    if "_" in request.param:
        samples, sampling_rate = spoken_by_kokoro(SENTENCE, request.param, tmp_path_factory.mktemp("kokoro"))
    else:
        pytest.importorskip("espeakng_loader")
        voice = next(voice for voice in VOICES if voice.name == request.param)
        samples, sampling_rate = Espeak().speak(SENTENCE, voice)
    return samples / 2, sampling_rate


@pytest.mark.parametrize("rate", [0.77, 1.3])
def test_the_rate_is_heard_and_nothing_else(world, neutral, rate):
    before, after = heard(*neutral), heard(express(*neutral, Expression(rate=rate)), neutral[1])
    assert after["seconds"] == pytest.approx(before["seconds"] / rate, rel=0.01)
    assert after["pitch"] == pytest.approx(before["pitch"], abs=0.5)
    assert after["spread"] == pytest.approx(before["spread"], rel=0.3)
    assert after["decibels"] == pytest.approx(before["decibels"], abs=0.05)


@pytest.mark.parametrize("semitones", [-5.6, -2.0, 3.0, 5.6])
def test_the_pitch_is_heard_and_nothing_else(world, neutral, semitones):
    before, after = heard(*neutral), heard(express(*neutral, Expression(semitones=semitones)), neutral[1])
    assert after["pitch"] - before["pitch"] == pytest.approx(semitones, abs=0.5)
    assert after["spread"] == pytest.approx(before["spread"], rel=0.3)
    assert after["seconds"] == pytest.approx(before["seconds"], rel=0.01)
    assert after["decibels"] == pytest.approx(before["decibels"], abs=0.05)


@pytest.mark.slow
def test_the_range_of_the_pitch_is_heard_and_nothing_else(world, neutral):
    before = heard(*neutral)
    after = [heard(express(*neutral, Expression(pitch_range=factor)), neutral[1]) for factor in (0.2, 0.6, 1.0, 1.8)]
    spreads = [one["spread"] for one in after]
    assert spreads == sorted(spreads)
    for factor, spread in zip((0.6, 1.0, 1.8), spreads[1:], strict=True):
        assert spread == pytest.approx(factor * before["spread"], rel=0.3)
    assert spreads[0] < 0.5 * before["spread"]
    # the median stays where WORLD has it, which finds other frames voiced
    assert [one["pitch"] for one in after] == pytest.approx([before["pitch"]] * 4, abs=1)
    assert [one["decibels"] for one in after] == pytest.approx([before["decibels"]] * 4, abs=0.05)


@pytest.mark.parametrize("decibels", [-12.0, -3.0])
def test_the_loudness_is_heard_and_nothing_else(world, neutral, decibels):
    before, after = heard(*neutral), heard(express(*neutral, Expression(decibels=decibels)), neutral[1])
    assert after["decibels"] - before["decibels"] == pytest.approx(decibels, abs=0.05)
    assert after["pitch"] == pytest.approx(before["pitch"], abs=0.5)


def test_the_same_expression_gives_the_same_samples(world, neutral):
    one, other = (express(*neutral, Expression(1.1, 2.0, 1.5, -3.0)) for _ in range(2))
    assert one.dtype == np.float32 and np.array_equal(one, other)


def test_silence_cannot_be_acted_on(world):
    with pytest.raises(ValueError, match="the speech is silent"):
        express(np.zeros(16000, np.float32), 16000, Expression())


@pytest.mark.parametrize(
    ("prosody", "expression"),
    [
        (NEUTRAL, Expression(1.0, 0.0, 1.0, 0.0)),
        (Prosody(rate=228, pitch=78, pitch_range=90, volume=35), Expression(228 / 175, 5.6, 1.8, -9.118639)),
        (Prosody(rate=135, pitch=22, pitch_range=10, volume=50), Expression(135 / 175, -5.6, 0.2, -6.0206)),
    ],
)
def test_the_prosody_of_espeak_is_translated(prosody, expression):
    assert vars(expression_of(prosody)) == pytest.approx(vars(expression))


# Who speaks


@pytest.mark.parametrize("engine", [Espeak, Kokoro])
def test_voices_are_in_one_split_each_and_balanced(engine):
    names = {split: [voice.name for voice in voices] for split, voices in engine.split_voices.items()}
    everybody = [name for of_split in names.values() for name in of_split]
    assert len(everybody) == len(set(everybody)) == {"espeak": 32, "kokoro": 28}[engine.name]
    for split in ("validation", "test"):
        voices = engine.split_voices[split]
        assert [voice.gender for voice in voices].count("female") == len(voices) / 2 == 2
    if engine is Kokoro:
        assert [sorted(name[:2] for name in names[split]) for split in ("validation", "test")] == [
            ["af", "am", "bf", "bm"]
        ] * 2
        assert len(names["train"]) == 20


@pytest.fixture
def kokoro_files(tmp_path):
    """Files that are named like Kokoro's: enough to know what it has spoken, not to speak."""
    folder = tmp_path / "kokoro"
    folder.mkdir()
    (folder / "kokoro-v1.0.int8.onnx").write_bytes(b"a model")
    styles = {voice.name: np.full((510, 1, 256), number, np.float32) for number, voice in enumerate(KOKORO_VOICES)}
    with (folder / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, **styles)
    return folder


def test_the_digest_is_that_of_the_files_however_they_are_packed(kokoro_files, tmp_path):
    digest = Kokoro(kokoro_files).digest
    as_on_hub = tmp_path / "hub"
    (as_on_hub / "onnx").mkdir(parents=True)
    (as_on_hub / "voices").mkdir()
    shutil.copy(kokoro_files / "kokoro-v1.0.int8.onnx", as_on_hub / "onnx/model_quantized.onnx")
    with np.load(kokoro_files / "voices-v1.0.bin") as voices:
        for name in voices:
            voices[name].tofile(as_on_hub / f"voices/{name}.bin")
    assert Kokoro(as_on_hub).digest == digest
    (kokoro_files / "kokoro-v1.0.int8.onnx").write_bytes(b"another model")
    assert Kokoro(kokoro_files).digest != digest


def test_files_that_are_not_kokoros_are_refused(kokoro_files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither kokoro-v1\.0\*\.onnx nor onnx/model\*\.onnx"):
        make_synthesiser("kokoro", tmp_path)
    (kokoro_files / "kokoro-v1.0.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has kokoro-v1\.0\.int8\.onnx, kokoro-v1\.0\.onnx: leave one"):
        make_synthesiser("kokoro", kokoro_files)
    (kokoro_files / "kokoro-v1.0.onnx").unlink()
    (kokoro_files / "voices-v1.0.bin").unlink()
    with pytest.raises(FileNotFoundError, match="has no voices af_alloy, af_aoede"):
        make_synthesiser("kokoro", kokoro_files)
    with pytest.raises(ValueError, match="models_dir is 'here', but voices 'espeak' need no files"):
        make_synthesiser("espeak", "here")
    with pytest.raises(ValueError, match="voices is 'kokorro', but must be one of.* Did you mean 'kokoro'"):
        make_synthesiser("kokorro")


def test_kokoro_speaks_the_same_every_time(tmp_path):
    spoken = [spoken_by_kokoro("Hello there.", "af_heart", tmp_path) for _ in range(2)]
    assert spoken[0][1] == 24000 and 0.4 < len(spoken[0][0]) / 24000 < 2
    assert spoken[0][0].dtype == np.float32 and np.array_equal(spoken[0][0], spoken[1][0])


def test_kokoro_refuses_what_has_no_words(kokoro_files):
    with pytest.raises(ValueError, match="has nothing to speak"):
        Kokoro(kokoro_files).speak("...", KOKORO_VOICES[3])


@pytest.mark.skipif(shutil.which("flite") is None, reason="needs the program flite")
def test_flite_speaks():
    engine = Flite()
    for voice in engine.split_voices["train"]:
        samples, sampling_rate = engine.speak("-o is not an option here.", voice)
        assert sampling_rate in (8000, 16000) and 1 < len(samples) / sampling_rate < 4 and np.abs(samples).max() <= 1
        assert np.array_equal(samples, engine.speak("-o is not an option here.", voice)[0])
    with pytest.raises(ValueError, match="has nothing to speak"):
        engine.speak("...", engine.split_voices["train"][0])


def test_without_flite_its_voices_are_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ImportError, match="need the program flite: apt install flite"):
        make_synthesiser("flite")


# What is kept


class Counting(Espeak):
    """Counts what it speaks."""

    def __init__(self):
        super().__init__()
        self.spoken = []

    def speak(self, text, voice):
        self.spoken.append((text, voice.name))
        return super().speak(text, voice)


def test_a_text_is_spoken_once_in_each_voice(espeak, tmp_path):
    engine = Counting()
    store = SpeechStore(tmp_path, engine)
    first, sampling_rate = store.speech("Hello.", VOICES[0])
    again, _ = store.speech("Hello.", VOICES[0])
    store.speech("Hello.", VOICES[1])
    assert engine.spoken == [("Hello.", VOICES[0].name), ("Hello.", VOICES[1].name)]
    assert sampling_rate == 16000 and np.array_equal(first, again)
    assert np.abs(first - Espeak().speak("Hello.", VOICES[0])[0]).max() <= 1 / 32768
    name = hashlib.sha256(b"Hello.").hexdigest()[:32]
    assert (tmp_path / f"espeak-{engine.digest}/en-us+f1/{name}.flac").is_file()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".flac"}


def script(number, text="Number {} is spoken."):
    return [
        ActedUtterance(f"u{index}", text.format(index), VOICES[index], NEUTRAL, 2.0, 3.0, 4.0)
        for index in range(number)
    ]


def performed(splits, folder, **settings):
    report = CorpusReport(name="script", release="", label_scale=(1, 5), config={})
    settings = {"voices": "espeak", "models_dir": None, "num_proc": 1, "acted": False} | settings
    return performed_corpus(splits, report, speech_dir=folder, **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_a_corpus_is_the_same_whoever_speaks_it_and_however_often(espeak, cache, tmp_path, monkeypatch):
    splits = {"train": script(3), "test": script(4)[3:], "validation": []}
    first = performed(splits, tmp_path / "speech")
    assert {split: rows["id"][:] for split, rows in first.items()} == {"train": ["u0", "u1", "u2"], "test": ["u3"]}
    row = first["train"][1]
    expected, _ = Espeak().speak("Number 1 is spoken.", VOICES[1])
    samples, sampling_rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert sampling_rate == 16000 and np.abs(samples - expected).max() <= 2 / 32768
    assert row["duration"] == pytest.approx(len(expected) / 16000)
    assert (row["speaker"], row["gender"], row["valence"]) == ("en-us+m1", "male", 3.0)
    assert first.report.hours["train"] == pytest.approx(sum(first["train"]["duration"]) / 3600)
    assert len(first.report.digest) == 12 and first.report.version == f"{first.report.release}-{first.report.digest}"

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another")
    second = performed(splits, tmp_path / "more_speech", num_proc=2)
    assert second.report.version == first.report.version
    assert [rows.to_dict() for rows in second.values()] == [rows.to_dict() for rows in first.values()]
    monkeypatch.setattr(performed_speech, "_perform", None)  # is not needed again
    assert performed(splits, tmp_path / "speech")["test"].to_dict() == first["test"].to_dict()
    (folder,) = (tmp_path / "another/cmkd").glob("script-*")
    assert folder.name.startswith(f"script-{second.report.release}-")
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_code_that_changes_no_sound_leaves_the_version(espeak, cache, tmp_path, monkeypatch):
    splits = {"train": script(2)}
    first = performed(splits, tmp_path / "speech")
    monkeypatch.setattr(performed_speech, "_code", lambda: "newer")
    again = performed(splits, tmp_path / "speech")
    made = [Path(corpus["train"].cache_files[0]["filename"]).parent for corpus in (first, again)]
    assert made[0] != made[1]  # it was made anew, since nobody knows what the code changes
    assert again.report.version == first.report.version

    for path in (tmp_path / "speech").rglob("*.flac"):  # as if that code spoke more softly
        samples, sampling_rate = soundfile.read(path)
        soundfile.write(path, samples / 2, sampling_rate)
    monkeypatch.setattr(performed_speech, "_code", lambda: "newest")
    softer = performed(splits, tmp_path / "speech")
    assert softer.report.release == first.report.release and softer.report.version != first.report.version


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_acting_is_part_of_what_a_corpus_is(espeak, world, cache, tmp_path):
    loud = [ActedUtterance("u", SENTENCE, VOICES[0], NEUTRAL, 2.0, 3.0, 4.0)]
    soft = [ActedUtterance("u", SENTENCE, VOICES[0], Prosody(228, 50, 50, 50), 2.0, 3.0, 4.0)]
    found = [performed({"train": one}, tmp_path / "speech", acted=True) for one in (loud, soft)]
    assert found[0].report.release != found[1].report.release
    waves = [soundfile.read(io.BytesIO(corpus["train"][0]["audio"]["bytes"]))[0] for corpus in found]
    assert len(waves[1]) / len(waves[0]) == pytest.approx(175 / 228, rel=0.01)
    loudness = [10 * math.log10(np.mean(wave**2)) for wave in waves]
    assert loudness[1] - loudness[0] == pytest.approx(20 * math.log10(0.5), abs=0.1)
    assert len(list((tmp_path / "speech").rglob("*.flac"))) == 1  # spoken once, acted twice


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_after_an_interruption_what_is_done_is_not_done_again(espeak, cache, tmp_path, monkeypatch):
    splits = {"train": script(3)}
    with monkeypatch.context() as patched:

        def interrupted(*_):
            raise KeyboardInterrupt

        patched.setattr(performed_speech, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            performed(splits, tmp_path / "speech")
    (parts,) = cache.glob(".script-*.parts")
    assert len(list(parts.iterdir())) == 3
    shutil.rmtree(tmp_path / "speech")
    (parts / "000001.flac").unlink()
    corpus = performed(splits, tmp_path / "speech")
    assert [path.parent.name for path in (tmp_path / "speech").rglob("*.flac")] == [VOICES[1].name]
    assert len(corpus["train"]) == 3 and not parts.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_a_corpus_that_two_ask_for_at_once_is_made_once(espeak, cache, tmp_path, monkeypatch, caplog):
    """While the first one collects what was spoken, the second one comes; it waits, and says so."""
    collects, made, write = threading.Event(), [], performed_speech._write

    def slow_write(*given):
        made.append(given)
        collects.set()
        end = time.monotonic() + 300
        while "another process is speaking it" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        write(*given)

    monkeypatch.setattr(performed_speech, "_write", slow_write)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(performed, {"train": script(3)}, tmp_path / "speech")
        assert collects.wait(300)
        second = pool.submit(performed, {"train": script(3)}, tmp_path / "speech")
        found = [one.result()["train"]["audio"][:] for one in (first, second)]
    assert found[0] == found[1] and len(found[0]) == 3
    assert len(made) == 1 and "script: another process is speaking it; waiting until it is done" in caplog.text


@pytest.mark.slow
def test_processes_that_are_killed_lose_one_utterance_each(espeak, cache, tmp_path, request):
    program = (
        "import sys, datasets\nfrom pathlib import Path\n"
        "from cmkd.corpora import load_corpus\n"
        "datasets.config.HF_DATASETS_CACHE = sys.argv[1]\n"
        "config = {'voices': 'espeak', 'acted': False, 'num_proc': 1, 'speech_dir': sys.argv[3]}\n"
        "load_corpus('spoken-sentences', sys.argv[2], **config)\n"
    )
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    sentences = tmp_path / "sentences.txt"
    lines = [f"the {a} and {b} and {c} things" for a in words for b in words for c in words[:2]]
    sentences.write_text("\n".join(lines), encoding="utf-8")
    speech = tmp_path / "speech"
    command = [sys.executable, "-c", program, str(cache.parent), str(sentences), str(speech)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while len(present(speech, "**/*.flac")) < 5 and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=900)
    spoken = {path: path.stat().st_mtime_ns for path in speech.rglob("[!.]*.flac")}
    assert 5 <= len(spoken) < len(lines)
    config = {"voices": "espeak", "acted": False, "num_proc": 2, "speech_dir": speech}
    request.getfixturevalue("quick_processes")
    corpus = load_corpus("spoken-sentences", sentences, **config)
    assert len(corpus["train"]) == len(lines)
    assert all(path.stat().st_mtime_ns == changed for path, changed in spoken.items())


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_what_goes_wrong_in_a_process_is_raised_here(espeak, cache, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has nothing to speak"):
        performed({"train": script(2, text="...")}, tmp_path / "speech", num_proc=2)
    with pytest.raises(ValueError, match="num_proc is 0"):
        performed({"train": script(1)}, tmp_path / "speech", num_proc=0)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="ended with exit code 1.*What was spoken is kept"):
        performed({"train": script(1)}, tmp_path / "speech")


# SpokenEmoBank in other voices

EMOBANK = """\
id,split,V,A,D,text
a_1,train,3.0,3.1,3.2,Did anybody ask where the red boat went?
a_2,dev,2.8,3.1,2.8,When I wasn't looking there.
a_3,train,3.0,3.0,3.0,It rained all day long.
a_4,test,4.6,4.4,3.22,"What a well-known, wonderful day!"
"""


@pytest.fixture
def emobank(tmp_path):
    path = tmp_path / "emobank.csv"
    path.write_text(EMOBANK, encoding="utf-8")
    return path


def test_labels_and_acting_do_not_depend_on_who_speaks(plan, emobank, shared_dir):
    for data in (emobank, shared_dir / "data"):
        espeak, kokoro = (plan("spoken-emobank", data, voices=voices, renderings=2) for voices in ("espeak", "kokoro"))
        for split, utterances in espeak.splits.items():
            assert len(utterances) == len(kokoro.splits[split])
            for one, other in zip(utterances, kokoro.splits[split], strict=True):
                assert vars(one) | {"voice": None} == vars(other) | {"voice": None}
    assert {split: len(rows) for split, rows in kokoro.splits.items()} == {
        "train": 2 * 4570,
        "validation": 566,
        "test": 524,
    }
    for split, rows in kokoro.splits.items():
        assert {utterance.voice for utterance in rows} == set(Kokoro.split_voices[split])


def test_who_speaks_is_drawn_by_seed_and_sentence(plan, emobank):
    kokoro = plan("spoken-emobank", emobank, voices="kokoro", seed=3)
    test_voices = ["af_bella", "am_michael", "bf_emma", "bm_george"]
    assert kokoro.splits["test"][0].voice.name == random.Random("3/a_4").choice(test_voices)
    assert "Kokoro-82M, Apache-2.0" in kokoro.report.notes[0] and "CC-BY-SA 4.0" in kokoro.report.notes[1]


@pytest.mark.slow
def test_speech_that_was_spoken_before_needs_no_kokoro(world, cache, emobank, kokoro_files, tmp_path, monkeypatch):
    """The words are those of a buzz: what is there under the key of Kokoro is taken for its speech."""
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    store = SpeechStore(tmp_path / "speech", Kokoro(kokoro_files))
    seconds = np.arange(24000) / 24000
    buzz = sum(np.sin(2 * np.pi * 120 * harmonic * seconds) / harmonic for harmonic in range(1, 30)) * 0.1
    for row in EMOBANK.splitlines()[1:]:
        identifier, split, *_ = row.split(",")
        text = row.split(",", 5)[5].strip('"')
        split = {"dev": "validation"}.get(split, split)
        path = store.path(text, random.Random(f"0/{identifier}").choice(Kokoro.split_voices[split]))
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, buzz, 24000)
    config = {"voices": "kokoro", "models_dir": kokoro_files, "speech_dir": tmp_path / "speech", "num_proc": 1}
    corpus = load_corpus("spoken-emobank", emobank, **config)
    assert {split: len(rows) for split, rows in corpus.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    row = corpus["test"][0]
    assert row["speaker"] in {"af_bella", "am_michael", "bf_emma", "bm_george"} and row["valence"] == pytest.approx(4.6)
    assert 1 / 1.31 < row["duration"] < 1.31 and row["duration"] != 1.0
    monkeypatch.setattr(synthesisers.Kokoro, "speak", None)
    again = load_corpus("spoken-emobank", emobank, **config)
    assert again.report.version == corpus.report.version


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"voices": "flite"}, "voices is 'flite', but must be one of 'espeak', 'kokoro'"),
        ({"models_dir": "here"}, "models_dir is 'here', but is for voices: kokoro only"),
        ({"speech_dir": "here"}, "speech_dir is 'here', but is for voices: kokoro only"),
    ],
)
def test_settings_of_voices(emobank, config, message):
    with pytest.raises(ValueError, match=message):
        load_corpus("spoken-emobank", emobank, **config)


# Sentences without ratings

WORDNET = """\
  1 This software and database is being provided to you, "the LICENSEE", by Princeton University under this licence
00001740 00 a 01 able 0 005 | having the means; "able to swim"; "she was able to program her computer"
00002098 00 a 01 unable 0 002 | lacking the means; "unable to get to town without a car"; "at 9-0 they lead"
"""


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for name in ("data.noun", "data.verb", "data.adv"):
        (folder / name).write_text("  1 licence\n")
    (folder / "data.adj").write_text(WORDNET, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_examples_of_wordnet_are_spoken_and_not_rated(espeak, cache, wordnet, tmp_path):
    config = {"voices": "espeak", "acted": False, "num_proc": 1}
    corpus = load_corpus("spoken-sentences", wordnet, **config)
    assert list(corpus) == ["train"] and corpus["train"]["transcript"][:] == [
        "she was able to program her computer",
        "unable to get to town without a car",
    ]
    rows = corpus["train"].to_list()
    assert all(math.isnan(row[key]) for row in rows for key in ("activation", "valence", "dominance"))
    assert {row["speaker"] for row in rows} <= {voice.name for voice in Espeak.split_voices["train"]}
    assert all(row["duration"] > 1 for row in rows)
    assert corpus.report.skipped == {"fewer than 5 words": 1, "not only plain words": 1}
    assert "examples of WordNet" in corpus.report.notes[1] and "without ratings" in corpus.report.notes[0]
    assert corpus.report.labels["train"]["valence"]["rated"] == 0


def test_lines_of_a_text_file(plan, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffOh, it's a well-known song!\r\n\nIt costs 5 dollars today.\nso so\n".encode())
    found = plan("spoken-sentences", path, voices="espeak", min_words=2, max_words=6)
    assert [utterance.transcript for utterance in found.splits["train"]] == ["Oh, it's a well-known song!", "so so"]
    assert found.report.skipped == {"not only plain words": 1}
    path.write_bytes(path.read_bytes() + b"so so\n\xff is no text at all\n")
    with pytest.raises(CorpusError, match=r"lines\.txt:6: not text: not UTF-8"):
        plan("spoken-sentences", path, voices="espeak", min_words=2)
    kept = plan("spoken-sentences", path, voices="espeak", min_words=2, on_error="skip")
    assert kept.report.skipped == {"not only plain words": 1, "said before": 1, "not text": 1}


def test_more_sentences_have_the_fewer_among_them(plan, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(f"the {a} and the {b} sang" for a in "abcdefgh" for b in "abcdefgh"), encoding="utf-8")
    settings = {"voices": "espeak", "max_words": 9}
    few, more = (plan("spoken-sentences", path, **settings, max_sentences=n).splits["train"] for n in (10, 30))
    everything = plan("spoken-sentences", path, **settings).splits["train"]
    assert (len(few), len(more), len(everything)) == (10, 30, 64)
    assert all(utterance in more for utterance in few) and all(utterance in everything for utterance in more)
    assert plan("spoken-sentences", path, **settings, max_sentences=10, seed=1).splits["train"] != few
    rates = [utterance.prosody.rate for utterance in everything]
    assert min(rates) < 150 and max(rates) > 200


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"min_words": 7, "max_words": 6}, ValueError, "min_words is 7 and max_words 6"),
        ({"max_sentences": 0}, ValueError, "max_sentences is 0"),
        ({"data_dir": None}, ValueError, "data_dir is None: pass a text file"),
        ({"data_dir": "nowhere"}, FileNotFoundError, "neither a text file nor the folder of a WordNet"),
        ({"min_words": 50, "max_words": 60}, CorpusError, "none has 50 to 60 plain words"),
    ],
)
def test_settings_of_sentences(tmp_path, espeak, config, error, message):
    path = tmp_path / "lines.txt"
    path.write_text("This is a line of words.\n")
    config = {"data_dir": path, "voices": "espeak"} | config
    with pytest.raises(error, match=message):
        load_corpus("spoken-sentences", **config)
