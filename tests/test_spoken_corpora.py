"""The spoken corpora: what is drawn, what is heard, what is kept, and the demo's text encoder."""

import io
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, AutoTokenizer

from cmkd.corpora import acted_speech, load_corpus, spoken_demo, spoken_emobank
from cmkd.corpora.acted_speech import SPLIT_VOICES, ActedUtterance, Prosody, act, rating, speak_utterances
from cmkd.corpora.report import CorpusError
from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, SAMPLING_RATE, VOICES
from demo_models.make_text_encoder import make_model, make_tokenizer

REPOSITORY = Path(__file__).parents[1]
TEXT_ENCODER = REPOSITORY / "demo_models" / "text"

EMOBANK = """\
id,split,V,A,D,text
a_1,train,3.0,3.1,3.2,"Did anybody ask where the red boat went? "\""
a_2,dev,2.8,3.1,2.8,When I wasn't looking there.
a_3,train,3.0,3.0,3.0,".."\""
a_4,test,4.6,4.4,3.22,"What a well-known, wonderful day!"
a_5,train,1.2,3.27,3.46,Too short.
a_6,train,1.55,3.27,3.46,This is by far the longest of all the six sentences and so it has to stay away.
"""


class NoNoise(random.Random):
    def gauss(self, mu=0.0, sigma=1.0):
        return mu


@pytest.fixture
def espeak():
    pytest.importorskip("espeakng_loader", reason="speaking needs the extra cmkd[demo]")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of datasets."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def emobank(tmp_path):
    path = tmp_path / "emobank.csv"
    path.write_text(EMOBANK, encoding="utf-8")
    return path


# Prosody and ratings


@pytest.mark.parametrize(
    ("activation", "dominance", "prosody"),
    [
        (0, 0, Prosody(rate=175, pitch=50, pitch_range=50, volume=50)),
        (1, 0, Prosody(rate=228, pitch=58, pitch_range=68, volume=59)),
        (0, 1, Prosody(rate=175, pitch=30, pitch_range=28, volume=84)),
        (-1, -1, Prosody(rate=135, pitch=62, pitch_range=54, volume=25)),
        (1, -1, Prosody(rate=228, pitch=78, pitch_range=90, volume=35)),
    ],
)
def test_levels_become_prosody(activation, dominance, prosody):
    assert act(activation, dominance, NoNoise()) == prosody


def test_actors_noise_is_in_pitch_and_volume_only():
    rng = random.Random(0)
    drawn = [act(0.0, 0.0, rng) for _ in range(2000)]
    assert {(prosody.rate, prosody.pitch_range) for prosody in drawn} == {(175, 50)}
    assert np.std([prosody.pitch for prosody in drawn]) == pytest.approx(3, rel=0.05)
    decibels = [20 * math.log10(prosody.volume / 50) for prosody in drawn]
    assert np.std(decibels) == pytest.approx(1, rel=0.05)


def test_ratings_stay_on_the_scale():
    rng = random.Random(0)
    rated = [rating(level, (1, 5), 1.0, rng) for level in (-1, 1) for _ in range(1000)]
    assert min(rated) == 1 and max(rated) == 5
    assert rating(1, (1, 5), 0.0, rng) == pytest.approx(3 + 4 / 3)


def f0(waveform):
    """Median fundamental frequency in Hz, by autocorrelation of 64 ms frames."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::256]
    frames = frames[(frames**2).mean(axis=1) > (waveform**2).mean() / 4] * np.hanning(1024)
    spectrum = np.fft.rfft(frames, 2048)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)
    shortest, longest = SAMPLING_RATE // 400, SAMPLING_RATE // 60
    lags = correlation[:, shortest:longest].argmax(axis=1) + shortest
    return SAMPLING_RATE / np.median(lags)


def spoken(voice, activation, dominance):
    prosody = act(activation, dominance, NoNoise())
    flac, seconds = ActedUtterance("", "The village in Dublin was modern.", voice, prosody, 0, 0, 0).speak()
    waveform, sampling_rate = soundfile.read(io.BytesIO(flac))
    assert sampling_rate == SAMPLING_RATE and waveform.shape == (round(seconds * SAMPLING_RATE),)
    return waveform


@pytest.mark.parametrize("voice", [VOICES[0], VOICES[1], HELD_OUT_VOICES[0], HELD_OUT_VOICES[-1]], ids=lambda v: v.name)
def test_levels_are_heard(espeak, voice):
    by_activation = [spoken(voice, activation, 0) for activation in (-1, -0.5, 0, 0.5, 1)]
    assert (np.diff([len(waveform) for waveform in by_activation]) < 0).all()
    by_dominance = [spoken(voice, 0, dominance) for dominance in (-1, 0, 1)]
    assert (np.diff([np.std(waveform) for waveform in by_dominance]) > 0).all()
    assert (np.diff([f0(waveform) for waveform in by_dominance]) < 0).all()


# Speaking in parallel


def utterances(number):
    rng = random.Random(1)
    sentences = spoken_demo.sentences("sunny", rng)
    return [
        ActedUtterance(str(index), next(sentences), rng.choice(VOICES), act(0, 0, rng), 0, 0, 0)
        for index in range(number)
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_speech_depends_neither_on_the_order_nor_on_the_processes(espeak):
    script = utterances(9)
    alone = [utterance.speak() for utterance in script]
    assert list(speak_utterances(script, num_proc=1)) == alone
    assert list(speak_utterances(script[::-1], num_proc=3)) == alone[::-1]


@pytest.mark.slow
def test_a_script_needs_no_main_guard(espeak, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from cmkd.corpora.acted_speech import *\n"
        "line = ActedUtterance('1', 'Hello.', VOICES[0], Prosody(175, 50, 50, 50), 0, 0, 0)\n"
        "print(len(list(speak_utterances([line, line], num_proc=2))))\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=900)
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_ended(monkeypatch):
    monkeypatch.setattr(acted_speech, "_PATIENCE", 1.0)
    worker = acted_speech._Worker()
    os.kill(worker._process.pid, signal.SIGSTOP)
    line = ActedUtterance("one", "A line.", VOICES[0], Prosody(*[0] * len(fields(Prosody))), 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"exit code -9 at utterance 'one'.*without an answer"):
        worker.speak(line)
    worker = acted_speech._Worker()
    os.kill(worker._process.pid, signal.SIGSTOP)
    worker.close()
    assert worker._process.returncode == -9


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_what_goes_wrong_in_a_process_is_raised_here(espeak, monkeypatch):
    wordless = ActedUtterance("1", "...", VOICES[0], Prosody(175, 50, 50, 50), 0, 0, 0)
    with pytest.raises(ValueError, match="nothing to speak"):
        list(speak_utterances([wordless], num_proc=1))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="ended with exit code 1 at utterance '1'"):
        list(speak_utterances([wordless], num_proc=1))


# spoken-demo


def test_demo_words_are_ranked_and_evenly_spread():
    valences = spoken_demo.word_valences(40)
    assert list(valences) == list(spoken_demo.VALENCE_WORDS)
    np.testing.assert_allclose(list(valences.values()), np.linspace(-1, 1, 40))
    kinds = Counter(round(valence * 1.4999) for valence in valences.values())  # beyond a third is not neutral
    assert kinds == {-1: 13, 0: 14, 1: 13}
    assert not [word for word in valences if word[0] in "aeiou"]  # "a", not "an", before every word
    assert list(spoken_demo.word_valences(4)) == ["horrible", "dull", "simple", "fantastic"]


def test_demo_sentences_are_short_and_different():
    sentences = list(spoken_demo.sentences("gloomy", random.Random(0)))
    assert len(sentences) == len(set(sentences)) == spoken_demo.SENTENCES_PER_WORD == 1280
    assert {len(sentence.split()) for sentence in sentences} <= {4, 5, 6, 7}
    assert all(re.fullmatch(r"[A-Z][A-Za-z, ]*\.", sentence) for sentence in sentences)
    assert all(len(re.findall("gloomy", sentence, re.IGNORECASE)) == 1 for sentence in sentences)


@pytest.fixture
def demo(plan):
    return plan("spoken-demo")[0]


def words_of(split):
    return [
        next(word for word in spoken_demo.VALENCE_WORDS if word in utterance.transcript.lower().strip(".").split())
        for utterance in split
    ]


def test_demo_splits(demo):
    assert {split: len(rows) for split, rows in demo.items()} == {"train": 1400, "validation": 240, "test": 400}
    everything = [utterance for split in demo.values() for utterance in split]
    assert len({utterance.transcript for utterance in everything}) == len({u.id for u in everything}) == 2040
    for split, rows in demo.items():
        counts = Counter(words_of(rows)).values()
        assert len(counts) == 40 and max(counts) - min(counts) <= 1
        assert {utterance.voice for utterance in rows} == set(SPLIT_VOICES[split])
    train, validation, test = (set(SPLIT_VOICES[split]) for split in ("train", "validation", "test"))
    assert not train & validation and not train & test and not validation & test
    assert validation | test == set(HELD_OUT_VOICES)
    assert all({voice.gender for voice in voices} == {"female", "male"} for voices in (train, validation, test))


def test_demo_labels(plan, demo):
    clean, _ = plan("spoken-demo", train_label_noise=0, label_noise=0)
    for split in demo:
        for noisy, exact, word in zip(demo[split], clean[split], words_of(demo[split]), strict=True):
            assert (noisy.id, noisy.transcript, noisy.prosody) == (exact.id, exact.transcript, exact.prosody)
            assert exact.valence == pytest.approx(4 + 2 * spoken_demo.word_valences(40)[word])
    for dimension, (split, noise) in product(
        ("activation", "valence", "dominance"), {"train": 1.0, "test": 0.35}.items()
    ):
        labels = np.array([getattr(utterance, dimension) for utterance in demo[split]])
        exact = np.array([getattr(utterance, dimension) for utterance in clean[split]])
        inside = (labels > 1) & (labels < 7)  # a rating beyond an end of the scale becomes that end
        assert labels.min() >= 1 and labels.max() <= 7 and inside.mean() > 0.9
        assert exact.std() == pytest.approx(2 / math.sqrt(3), rel=0.07)
        assert (labels - exact)[inside].std() == pytest.approx(noise * 2 / math.sqrt(3), rel=0.15)


def test_demo_valence_is_in_the_words_only(demo):
    everything = [utterance for split in demo.values() for utterance in split]
    valence = [utterance.valence for utterance in everything]
    for name, heard in {
        "activation": [utterance.activation for utterance in everything],
        "dominance": [utterance.dominance for utterance in everything],
        "rate": [utterance.prosody.rate for utterance in everything],
        "pitch": [utterance.prosody.pitch for utterance in everything],
        "pitch range": [utterance.prosody.pitch_range for utterance in everything],
        "volume": [utterance.prosody.volume for utterance in everything],
        "gender": [utterance.voice.gender == "female" for utterance in everything],
        "letters": [len(utterance.transcript) for utterance in everything],
    }.items():
        assert abs(np.corrcoef(valence, heard)[0, 1]) < 0.07, name  # three standard errors of 2,040 rows


def test_demo_is_drawn_by_seed(plan):
    assert plan("spoken-demo", seed=1)[0] == plan("spoken-demo", seed=1)[0] != plan("spoken-demo", seed=2)[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data_dir": "here"}, "needs no data"),
        ({"num_words": 41}, "num_words is 41, but must be from 2 to 40"),
        ({"train": 0}, "train is 0"),
        ({"label_noise": -1}, "label_noise is -1"),
        ({"train_label_noise": -1}, "train_label_noise is -1"),
        ({"train": 52_000}, "needs 1,316 sentences per word, but there are 1,280"),
    ],
)
def test_demo_settings(config, message):
    with pytest.raises(ValueError, match=message):
        load_corpus("spoken-demo", **config)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_demo_is_spoken_the_same_anywhere_and_kept(espeak, cache, tmp_path, monkeypatch):
    sizes = {"train": 5, "validation": 3, "test": 4}
    first = load_corpus("spoken-demo", **sizes, num_proc=1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another")
    second = load_corpus("spoken-demo", **sizes, num_proc=2)
    assert first.report.version == second.report.version
    for split, number in sizes.items():
        assert len(first[split]) == number
        assert first[split].to_dict() == second[split].to_dict()
        for row in first[split]:
            waveform, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
            assert row["duration"] == pytest.approx(len(waveform) / SAMPLING_RATE)
            assert 0.5 < row["duration"] < 4
    assert first.report.utterances == sizes
    assert first.report.hours["test"] == pytest.approx(sum(first["test"]["duration"]) / 3600)

    monkeypatch.setattr(acted_speech, "speak_utterances", None)  # is not needed again
    assert load_corpus("spoken-demo", **sizes)["test"].to_dict() == first["test"].to_dict()


def test_an_interrupted_corpus_leaves_nothing(espeak, cache, monkeypatch):
    def interrupted(script, num_proc):
        yield script[0].speak()
        raise KeyboardInterrupt

    monkeypatch.setattr(acted_speech, "speak_utterances", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_corpus("spoken-demo", train=2, validation=1, test=1)
    assert list((cache / "cmkd").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_another_process_was_faster(espeak, cache, monkeypatch):
    sizes = {"train": 1, "validation": 1, "test": 1}
    speak_as_always = acted_speech.speak_utterances

    def overtaken(script, num_proc):
        monkeypatch.setattr(acted_speech, "speak_utterances", speak_as_always)
        load_corpus("spoken-demo", **sizes, num_proc=1)
        yield from speak_as_always(script, num_proc)

    monkeypatch.setattr(acted_speech, "speak_utterances", overtaken)
    assert load_corpus("spoken-demo", **sizes, num_proc=1).report.utterances == sizes
    assert len(list((cache / "cmkd").iterdir())) == 1


# spoken-emobank


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_emobank_rows(espeak, cache, emobank):
    corpus = load_corpus("spoken-emobank", data_dir=emobank, num_proc=1)
    columns = ["id", "transcript", "split", "label_scale"]
    assert {split: data.select_columns(columns)[:] for split, data in corpus.items()} == {
        "train": {
            "id": ["a_1"],
            "transcript": ['Did anybody ask where the red boat went? "'],
            "split": ["train"],
            "label_scale": [[1.0, 5.0]],
        },
        "validation": {
            "id": ["a_2"],
            "transcript": ["When I wasn't looking there."],
            "split": ["validation"],
            "label_scale": [[1.0, 5.0]],
        },
        "test": {
            "id": ["a_4"],
            "transcript": ["What a well-known, wonderful day!"],
            "split": ["test"],
            "label_scale": [[1.0, 5.0]],
        },
    }
    assert [data["valence"][0] for data in corpus.values()] == pytest.approx([3.0, 2.8, 4.6])
    for split, data in corpus.items():
        speakers = {voice.name: voice.gender for voice in SPLIT_VOICES[split]}
        assert speakers[data["speaker"][0]] == data["gender"][0]
        assert 1 <= data["activation"][0] <= 5 and 1 <= data["dominance"][0] <= 5
    assert corpus.report.skipped == {"no speakable word": 1, "fewer than 3 words": 1, "more than 16 words": 1}
    assert any("CC-BY-SA 4.0" in note for note in corpus.report.notes)
    assert any("GPL-3.0" in note for note in corpus.report.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't—stop!", ["Don't", "stop"]),
        ("A well-known U.S. firm paid $1,900…", ["A", "well-known", "U.S", "firm", "paid", "1,900"]),
        ("‘Café’ – she’s _in_", ["Café", "she’s", "in"]),
        ('."', []),
    ],
)
def test_emobank_words(text, words):
    assert spoken_emobank.WORD.findall(text) == words


def test_emobank_utterances_do_not_depend_on_what_else_is_spoken(plan, emobank):
    few, _ = plan("spoken-emobank", data_dir=emobank.parent)
    many, _ = plan("spoken-emobank", data_dir=emobank, min_words=1, max_words=30, renderings=3)
    by_id = {utterance.id: utterance for split in many.values() for utterance in split}
    assert all(by_id[utterance.id] == utterance for split in few.values() for utterance in split)
    assert [u.id for u in many["train"] if u.id.startswith("a_1")] == ["a_1", "a_1-r2", "a_1-r3"]
    assert len({by_id[id].prosody for id in ("a_1", "a_1-r2", "a_1-r3")}) == 3
    assert {by_id[id].valence for id in ("a_1", "a_1-r2", "a_1-r3")} == {3.0}
    assert [u.id for u in many["test"]] == ["a_4"]
    assert few != plan("spoken-emobank", data_dir=emobank, seed=1)[0]


def test_emobank_cap_is_drawn_and_grows(plan, tmp_path):
    rows = [f"{index:03d},train,3,3,3,This is one of many sentences" for index in range(100)]
    path = tmp_path / "emobank.csv"
    path.write_text("\n".join(["id,split,V,A,D,text", *rows, "x,dev,3,3,3,This one is alone"]), encoding="utf-8")
    (few, report), (more, _) = (plan("spoken-emobank", data_dir=path, max_utterances=number)[:2] for number in (10, 20))
    taken = [utterance.id for utterance in few["train"]]
    assert taken == sorted(taken) and len(taken) == 10 and int(taken[-1]) > 20
    assert set(taken) < {utterance.id for utterance in more["train"]}
    assert len(few["validation"]) == 1
    assert report.skipped == {"beyond max_utterances": 90}
    other, _ = plan("spoken-emobank", data_dir=path, max_utterances=10, seed=1)
    assert taken != [utterance.id for utterance in other["train"]]


def test_emobank_one_split_alone_is_that_of_the_whole(plan, emobank):
    whole, report = plan("spoken-emobank", data_dir=emobank)
    for split in ("train", "validation", "test"):
        alone, of_it = plan("spoken-emobank", data_dir=emobank, only_split=split)
        assert alone == {split: whole[split]}
        assert of_it.config == report.config | {"only_split": split}
        others = sum(len(utterances) for name, utterances in whole.items() if name != split)
        assert of_it.skipped["of another split"] == others
    with pytest.raises(ValueError, match="only_split is 'tests', but must be one of 'train', .* mean 'test'"):
        load_corpus("spoken-emobank", data_dir=emobank, only_split="tests")
    emobank.write_text("id,split,V,A,D,text\na,train,3,3,3,This is one of many\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="no sentences: none in the split test"):
        load_corpus("spoken-emobank", data_dir=emobank, only_split="test")


def test_emobank_sentences_in_two_splits_are_noted(plan, emobank):
    emobank.write_text(EMOBANK + "a_7,train,2,2,2,WHEN I wasn't looking there\n", encoding="utf-8")
    assert plan("spoken-emobank", data_dir=emobank)[1].notes[-1].endswith("in more than one split: 1")


def test_emobank_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*emobank\.csv'\. EmoBank is .* JULIELab/EmoBank on GitHub"):
        load_corpus("spoken-emobank", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"data_dir is None: pass the path of emobank\.csv.*JULIELab/EmoBank"):
        load_corpus("spoken-emobank")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,train,5.5,3,3,This is far too good", r"emobank\.csv:8 .*V '5\.5': outside the scale: which is 1 to 5"),
        ("b,train,good,3,3,This is not a number", r"emobank\.csv:8 .*V 'good': not a number"),
        ("b,train,,3,3,This is not rated", r"emobank\.csv:8 .*V '': not a number"),
        ("b,held-out,3,3,3,This has no place", r"emobank\.csv:8 .*split 'held-out': unknown split"),
        ("a_1,train,3,3,3,This has been here", r"emobank\.csv:8 .*'a_1'.*duplicate id"),
        (",train,3,3,3,This has no name", r"emobank\.csv:8, id.*missing value"),
        ("b,train,3,3,3,This, and so on", r"emobank\.csv:8: wrong number of fields"),
    ],
)
def test_emobank_rows_that_are_wrong(plan, emobank, row, message):
    emobank.write_text(f"{EMOBANK}{row}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        load_corpus("spoken-emobank", data_dir=emobank)
    splits, report = plan("spoken-emobank", data_dir=emobank, on_error="skip")
    assert sum(len(utterances) for utterances in splits.values()) == 3
    assert sum(report.skipped.values()) == 4 and report.skipped[report.problems[0].reason] == 1


def test_emobank_files_that_are_wrong(emobank):
    emobank.write_text(EMOBANK.replace("id,split,V,A,D,text", "id,split,valence,A,D,sentence"), encoding="utf-8")
    with pytest.raises(CorpusError, match="not EmoBank's columns: no 'V', 'text' among 'id', 'split', 'valence'"):
        load_corpus("spoken-emobank", data_dir=emobank)
    emobank.write_text("id,split,V,A,D,text\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="no sentences: none has 3 to 16 words"):
        load_corpus("spoken-emobank", data_dir=emobank)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"min_words": 0}, "min_words is 0"),
        ({"min_words": 9, "max_words": 8}, "min_words is 9 and max_words 8"),
        ({"max_utterances": 0}, "max_utterances is 0"),
        ({"renderings": 0}, "renderings is 0"),
        ({"label_noise": -0.1}, "label_noise is -0.1"),
    ],
)
def test_emobank_settings(emobank, config, message):
    with pytest.raises(ValueError, match=message):
        load_corpus("spoken-emobank", data_dir=emobank, **config)


def test_emobank_in_full(plan, shared_dir):
    splits, report = plan("spoken-emobank", data_dir=shared_dir / "data")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4570, "validation": 566, "test": 524}
    assert report.skipped == {"more than 16 words": 3745, "fewer than 3 words": 650, "no speakable word": 7}
    assert report.problems == []
    for split, rows in splits.items():
        assert {utterance.voice for utterance in rows} == set(SPLIT_VOICES[split])
    valence = [utterance.valence for utterance in splits["train"]]
    for name in ("rate", "pitch", "pitch_range", "volume"):
        prosody = [getattr(utterance.prosody, name) for utterance in splits["train"]]
        assert abs(np.corrcoef(valence, prosody)[0, 1]) < 0.045, name  # three standard errors


# The text encoder


def test_text_encoder_is_what_its_script_makes():
    shipped = AutoModel.from_pretrained(TEXT_ENCODER)
    made = make_model(vocab_size=shipped.config.vocab_size).state_dict()
    assert {name: weight.dtype for name, weight in shipped.state_dict().items()} == dict.fromkeys(made, torch.float16)
    for name, weight in shipped.state_dict().items():
        torch.testing.assert_close(weight, made[name], msg=name)
    assert AutoTokenizer.from_pretrained(TEXT_ENCODER).get_vocab() == make_tokenizer().get_vocab()
    assert sum(file.stat().st_size for file in TEXT_ENCODER.iterdir()) < 1_000_000


def test_text_encoder_knows_the_words_of_the_demo(demo):
    tokenizer = AutoTokenizer.from_pretrained(TEXT_ENCODER)
    for utterance in (utterance for split in demo.values() for utterance in split):
        words = re.findall(r"\w+|[,.]", utterance.transcript.lower())
        assert tokenizer.tokenize(utterance.transcript) == words
    other = tokenizer("She’s paid 1,900 dollars – in Zürich (or “Basel”), isn't she?")
    assert tokenizer.unk_token_id not in other["input_ids"]
    assert tokenizer.tokenize("Songs") == ["song", "##s"]


def test_text_encoder_tells_words_apart():
    tokenizer = AutoTokenizer.from_pretrained(TEXT_ENCODER)
    model = AutoModel.from_pretrained(TEXT_ENCODER, dtype=torch.float32).eval()
    inputs = tokenizer([f"The film was {word}." for word in spoken_demo.VALENCE_WORDS], return_tensors="pt")
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(model(**inputs).last_hidden_state[:, 4], dim=-1)
    assert (vectors @ vectors.T - torch.eye(40)).max() < 0.9
