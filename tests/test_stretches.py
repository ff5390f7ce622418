"""Rows that are stretches or channels of a file: read, checked, cached, transcribed and pushed as what they are."""

import datasets
import numpy as np
import pytest
import soundfile
from manifests import load, refused
from transformers import Wav2Vec2FeatureExtractor

from cmkd.corpora.schema import StreamedCorpus
from cmkd.features.audio import read_audio
from cmkd.features.inputs import SpeechInputs
from cmkd.features.store import audio_keys
from cmkd.features.stretch import Stretch, Taken, stretch_of
from cmkd.transcription.recognizers import Hypothesis
from cmkd.transcription.transcribe import transcribe

RATE = 16000
COLUMNS = "id,audio,start,end,channel,valence,speaker,split\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def samples():
    return np.random.default_rng(0).integers(-9000, 9000, (4 * RATE, 2), dtype=np.int16)


@pytest.fixture
def folder(tmp_path, samples):
    """call.wav has two channels and 4 s."""
    soundfile.write(tmp_path / "call.wav", samples, RATE)
    return tmp_path


def table(*rows):
    return COLUMNS + "".join(f"{row}\n" for row in rows)


def test_each_row_is_its_stretch_of_its_channel(folder, samples):
    train = load(
        folder,
        table(
            "a,call.wav,0.5,1.25,0,3,s,train",
            "b,call.wav,2,,1,3,s,train",
            "c,call.wav,,0.5,,3,s,train",
            "d,call.wav,1.25,2,mean,3,s,train",
        ),
    )["train"]
    assert train["duration"][:] == [0.75, 2.0, 0.5, 0.75]
    assert [train["start"][:], train["end"][:], train["channel"][:]] == [
        [0.5, 2.0, None, 1.25],
        [1.25, None, 0.5, 2.0],
        [0, 1, None, None],
    ]
    sound = samples / np.float32(2**15)
    expected = [sound[8000:20000, 0], sound[32000:, 1], sound[:8000].mean(1), sound[20000:32000].mean(1)]
    for row, waveform in zip(train, expected, strict=True):
        np.testing.assert_allclose(read_audio(row["audio"], RATE, **stretch_of(row)), waveform, atol=1e-6)

    inputs = SpeechInputs(train, Wav2Vec2FeatureExtractor(do_normalize=False))
    for index, waveform in enumerate(expected):
        np.testing.assert_allclose(inputs[index], waveform, atol=1e-6)
    whole = SpeechInputs(load(folder, "audio,valence,split\ncall.wav,3,train\n")["train"], inputs.feature_extractor)
    np.testing.assert_allclose(whole[0], sound.mean(1), atol=1e-6)


def test_the_keys_of_stored_features_tell_stretches_apart(folder):
    rows = [f"{name},call.wav,{what},3,s,train" for name, what in zip("abc", ("0,1,0", "0,1,1", "1,2,0"), strict=True)]
    keys = audio_keys(load(folder, table(*rows))["train"])
    assert len(set(map(repr, keys))) == 3
    whole = load(folder, "audio,valence,split\ncall.wav,3,train\n")["train"]
    status = (folder / "call.wav").stat()
    assert audio_keys(whole) == [(str(folder / "call.wav"), status.st_size, status.st_mtime_ns)]  # as ever
    assert audio_keys(whole.remove_columns(["start", "end", "channel"])) == audio_keys(whole)


def test_ids_are_made_of_the_file_and_the_stretch(folder):
    content = "audio,start,end,channel,valence,split\ncall.wav,0.50,1,,3,train\ncall.wav,1,,1,3,train\n"
    corpus = load(folder, content)
    assert corpus["train"]["id"][:] == ["call_0.5-1", "call_1-_channel1"]
    assert any(note.endswith("without ending, with the stretch or channel") for note in corpus.report.notes)


@pytest.mark.parametrize(
    ("stretch", "reason"),
    [
        ("1,1,", "not a stretch"),
        ("2,1,", "not a stretch"),
        ("-1,1,", "not a stretch"),
        (",0,", "not a stretch"),
        (",inf,", "not a stretch"),
        ("one,2,", "not a number"),
        ("1,4.2,", "stretch outside the audio"),
        ("5,,", "stretch outside the audio"),
        ("0,1,2", "no such channel"),
        ("0,1,each", "not a channel"),
        ("0,1,-1", "not a channel"),
        ("0,1,0.5", "not a channel"),
        ("0,1,left", "not a channel"),
    ],
)
def test_what_is_no_stretch_is_refused(folder, stretch, reason):
    soundfile.write(folder / "other.wav", np.random.default_rng(1).uniform(-0.5, 0.5, RATE), RATE)
    content = table(f"a,call.wav,{stretch},3,s,train", "b,other.wav,,,,3,s,train")
    assert refused(folder, content) == [("manifest.csv:2", reason)]
    assert load(folder, content, on_error="skip").report.skipped == {reason: 1}


def test_a_channel_of_a_column_with_gaps_is_a_whole_number(folder):
    train = load(folder, table("a,call.wav,0,1,1.0,3,s,train", "b,call.wav,1,2,,3,s,train"))["train"]
    assert train["channel"][:] == [1, None]


@pytest.mark.parametrize(
    ("first", "second", "problems"),
    [
        ("0,2,", "1,3,", [("manifest.csv:2", "audio in two splits")]),  # of the first is some in test
        (",,", "1,3,", [("manifest.csv:2", "audio in two splits")]),
        ("1,3,", ",,", [("manifest.csv:2", "audio in two splits")]),
        ("1,3,", "1,3,", [("manifest.csv:2", "audio in two splits")]),
        ("0,2,0", "1,3,", [("manifest.csv:2", "audio in two splits")]),  # the mean has a part of channel 0
        ("0,2,0", "1,3,1", []),
        ("0,2,", "2,3,", []),
    ],
)
def test_overlapping_stretches_in_two_splits(folder, first, second, problems):
    content = table(f"a,call.wav,{first},3,s,train", f"b,call.wav,{second},3,t,test")
    if problems:
        assert refused(folder, content) == problems
        return
    notes = load(folder, content).report.notes
    cut = [note for note in notes if note.startswith("files of which different parts are in different splits: 1, ")]
    assert len(cut) == 1


def test_within_a_split_stretches_may_overlap_but_not_be_the_same(folder):
    content = table("a,call.wav,0,2,,3,s,train", "b,call.wav,1,3,,3,s,train", "c,call.wav,0.0,2.0,,3,s,train")
    assert refused(folder, content) == [("manifest.csv:4", "audio used twice")]


def test_the_same_sound_in_other_stretches_of_two_splits(folder, samples):
    soundfile.write(folder / "twice.wav", np.concatenate([samples[:RATE], samples[:RATE]]), RATE)
    content = table("a,twice.wav,0,1,,3,s,train", "b,twice.wav,1,2,,3,t,test")
    assert refused(folder, content) == [("manifest.csv:2", "same sound in two splits")]


def test_a_thousand_stretches_of_one_file_are_compared_quickly():
    taken = Taken()
    for number in range(20000):
        stretch = Stretch("a", number, number + 1.5)
        assert [other.start for other in taken.overlapping(stretch)] == ([number - 1] if number else [])
        taken.add(stretch)


def test_streaming_reads_the_stretch(folder):
    streamed = load(folder, table("a,call.wav,0.5,1.25,0,3,s,train"), streaming=True)
    assert isinstance(streamed, StreamedCorpus)
    (row,) = streamed["train"]
    assert (row["duration"], row["start"], row["end"], row["channel"]) == (0.75, 0.5, 1.25, 0)


def test_the_version_has_the_stretches_and_without_any_it_is_as_ever(folder):
    report = load(folder, table("a,call.wav,0,1,,3,s,train")).report
    other = load(folder, table("a,call.wav,0,1,1,3,s,train")).report
    assert report.digest != other.digest
    # of the code before there were stretches
    assert load(folder, table("a,call.wav,,,,3,s,train")).report.digest == "ffdfe085860a"


def test_a_stretch_is_transcribed_alone(folder, samples, monkeypatch):
    heard = []

    class Recognizer:
        name, revision, sampling_rate = "recorder", "1", RATE

        def cost(self, seconds):
            return seconds

        def recognize(self, waveforms):
            heard.extend(waveforms)
            return [Hypothesis("word") for _ in waveforms]

    monkeypatch.setattr("cmkd.transcription.transcribe.load_recognizer", lambda *arguments: Recognizer())
    corpus = load(folder, table("a,call.wav,0.5,1.25,0,3,s,train", "b,call.wav,2,2.5,1,3,s,train"))
    transcribe(corpus, "recorder", folder / "t.parquet")
    sound = samples / np.float32(2**15)
    for waveform, expected in zip(heard, (sound[8000:20000, 0], sound[32000:40000, 1]), strict=True):
        np.testing.assert_allclose(waveform, expected, atol=1e-6)
