"""Tables as people have them: nested, with sound inside, names of a Mac or of pandas, and files that change."""

import io
import json
import os
import unicodedata

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from datasets import Dataset
from manifests import clash, load, refused

from cmkd.corpora import load_corpus, manifest
from cmkd.corpora.columns import COLUMNS
from cmkd.corpora.report import CorpusError
from cmkd.corpora.transcripts import SCHEMA
from cmkd.corpora.values import as_text
from cmkd.features.audio import read_audio

RATE = 8000
NFC, NFD = unicodedata.normalize("NFC", "Jäger"), unicodedata.normalize("NFD", "Jäger")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def samples(number, seconds=0.1):
    return np.random.default_rng(number).integers(-9000, 9000, int(RATE * seconds), dtype=np.int16)


def content(number):
    file = io.BytesIO()
    soundfile.write(file, samples(number), RATE, format="FLAC")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", samples(number), RATE)
    return tmp_path


# Columns


def test_arousal_is_activation(folder):
    corpus = load(folder, "audio,arousal,split\n0.wav,4,train\n")
    assert corpus["train"]["activation"][:] == [4]
    assert "the column 'arousal' is read as 'activation'" in corpus.report.notes


def test_columns_say_which_is_which(folder):
    table = "file,a,v,who,fold\n0.wav,4,2,anna,train\n"
    columns = {"audio": "file", "activation": "a", "valence": "v", "speaker": "who", "split": "fold"}
    row = load(folder, table, columns=columns)["train"][0]
    assert (row["id"], row["activation"], row["valence"], row["speaker"]) == ("0", 4, 2, "anna")
    with pytest.raises(ValueError, match="columns has 'arousl', but must have some of 'id', 'audio'"):
        load(folder, table, columns={"arousl": "a"})
    with pytest.raises(ValueError, match=r"columns\['valence'\] is 'w', but the columns are 'file', 'a', 'v'"):
        load(folder, table, columns={"valence": "w"})


def test_what_the_user_names_comes_before_a_column_of_that_name(folder):
    table = "audio,valence,valence_mean,split\n0.wav,1,5,train\n"
    corpus = load(folder, table, columns={"valence": "valence_mean"})
    assert corpus["train"]["valence"][:] == [5]
    assert "the column 'valence' is not read" in " ".join(corpus.report.notes)


def test_nested_json_lines(folder):
    rows = [
        {"audio": {"path": "0.wav"}, "labels": {"activation": 3, "std": 1}, "who": {"id": "anna"}, "split": "train"},
        {"audio": {"path": "1.wav", "bytes": None}, "labels": {"activation": None, "valence": 2}, "split": "test"},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load(folder, columns={"speaker": "who.id"})
    assert [corpus["train"]["activation"][0], corpus["train"]["speaker"][0]] == [3, "anna"]
    assert np.isnan(corpus["test"]["activation"][0]) and corpus["test"]["valence"][:] == [2]
    assert corpus["test"]["audio"][0]["path"] == str(folder / "1.wav")
    assert "the column 'labels.activation' is read as 'activation'" in corpus.report.notes


def test_of_two_nested_labels_none_is_guessed(folder):
    row = {"audio": "0.wav", "anna": {"valence": 3}, "bert": {"valence": 4}, "split": "train"}
    (folder / "manifest.jsonl").write_text(json.dumps(row))
    assert refused(folder) == [("manifest.jsonl", "columns 'anna.valence' and 'bert.valence'")]
    assert load(folder, columns={"valence": "bert.valence"})["train"]["valence"][:] == [4]


# Sound in the table


def test_parquet_with_sound_as_datasets_writes_it(folder):
    rows = Dataset.from_dict(
        {
            "audio": [
                {"bytes": content(0), "path": "a.flac"},
                {"bytes": content(1), "path": None},
                {"bytes": None, "path": "2.wav"},
            ],
            "valence": [1, 2, 3],
            "split": ["train", "train", "test"],
        }
    )
    rows.to_parquet(folder / "manifest.parquet")
    corpus = load(folder)
    assert corpus["train"]["id"][:] == ["a", "manifest.parquet:2"] and corpus["test"]["id"][:] == ["2"]
    read = [read_audio(row["audio"], RATE) for split in corpus.values() for row in split]
    for waveform, number in zip(read, (0, 1, 2), strict=True):
        np.testing.assert_array_equal(waveform, samples(number) / np.float32(2**15))


def test_parquet_with_the_content_of_files(folder):
    columns = {"id": ["a", "b"], "audio": [content(0), b"RIFF"], "valence": [1, 2], "split": ["train"] * 2}
    pandas.DataFrame(columns).to_parquet(folder / "manifest.parquet")
    assert refused(folder) == [("manifest.parquet:2", "unreadable audio")]
    assert load(folder, on_error="skip")["train"]["id"][:] == ["a"]


# The version


def test_a_replaced_sound_is_another_version(folder):
    first = load(folder, clash("a,0.wav,1,train,")).report.version
    assert load(folder).report.version == first
    soundfile.write(folder / "0.wav", samples(9), RATE)
    second = load(folder).report.version
    assert first.split("-")[0] == second.split("-")[0] and first != second
    soundfile.write(folder / "0.wav", samples(0), RATE)
    assert load(folder).report.version == first


def test_it_is_built_once(folder, monkeypatch):
    report = load(folder, clash("a,0.wav,1,train,")).report
    monkeypatch.setattr("cmkd.corpora.checks.digest_audio", None)  # which is not called again
    assert load(folder).report == report
    os.utime(folder / "0.wav", ns=(0, 0))
    with pytest.raises(TypeError):
        load(folder)


# The duration is that of what can be heard


@pytest.mark.parametrize("kind", ["manifest", "parquet"])
def test_a_header_that_lies_does_not_make_the_duration(folder, kind):
    """A VBR mp3 without its header frame, of which libsndfile hears 4 of 10 s."""
    seconds = 10
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * seconds)
    file = io.BytesIO()
    soundfile.write(file, noise, 16000, format="MP3", bitrate_mode="VARIABLE")
    data = file.getvalue()
    start = max(data.find(b"Xing"), data.find(b"Info"))
    frame = data.rfind(b"\xff", 0, start)
    following = data.find(data[frame : frame + 2], start)
    cut = data[:frame] + data[following:]
    assert soundfile.info(io.BytesIO(cut)).duration < seconds - 1
    if kind == "manifest":
        (folder / "lying.mp3").write_bytes(cut)
        train = load(folder, "audio,valence,split\nlying.mp3,4,train\n")["train"]
    else:
        pandas.DataFrame({"audio": [cut], "valence": [1], "split": ["train"]}).to_parquet(folder / "manifest.parquet")
        train = load(folder)["train"]
    heard = len(read_audio(train["audio"][0])) / 16000
    assert train["duration"][0] == pytest.approx(heard, abs=1e-4) and abs(heard - seconds) < 0.1
    streamed = load(folder, streaming=True)["train"]
    assert next(iter(streamed))["duration"] == pytest.approx(heard, abs=0.1)


# Names


@pytest.mark.parametrize(("on_disk", "in_table"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_of_another_unicode_form_is_found(folder, on_disk, in_table):
    (folder / on_disk).mkdir()
    (folder / "0.wav").rename(folder / on_disk / f"{on_disk}.wav")
    corpus = load(folder, f"audio,valence,speaker,split\n{in_table}/{in_table}.wav,4,{in_table},train\n")
    row = corpus["train"][0]
    assert row["audio"]["path"] == str(folder / on_disk / f"{on_disk}.wav")
    assert (row["id"], row["speaker"]) == (NFC, NFC)
    found = "audio found under a name in another Unicode normal form: 1, "
    assert any(note.startswith(found) for note in corpus.report.notes)
    version = corpus.report.version
    soundfile.write(folder / on_disk / f"{on_disk}.wav", samples(9), RATE)  # a change is seen there too
    assert load(folder).report.version != version


def test_of_two_files_that_differ_in_the_form_only_none_is_guessed(folder):
    third = unicodedata.normalize("NFC", "ậ.wav")  # three spellings
    other = "\u1ea1\u0302.wav"
    assert unicodedata.normalize("NFC", other) == third
    for name in (third, other):
        soundfile.write(folder / name, samples(1), RATE)
    wanted = unicodedata.normalize("NFD", third)
    assert refused(folder, f"audio,valence,split\n{wanted},4,train\n") == [("manifest.csv:2", "missing file")]


def test_a_speaker_in_two_forms_is_one_speaker(folder):
    table = clash(f"a,0.wav,1,train,{NFC}", f"b,1.wav,1,test,{NFD}")
    assert refused(folder, table) == [("manifest.csv:2", "speaker in two splits")]
    notes = load(folder, clash(f"a,0.wav,1,train,{NFC}", f"b,1.wav,1,train,{NFD}")).report.notes
    read = "speaker is in another Unicode normal form than NFC and read in NFC: 1 utterance, "
    assert any(note.startswith(read) for note in notes)


def test_transcripts_are_joined_whatever_the_form(folder):
    row = {"id": NFC, "text": "Hello.", "model": "m", "revision": "r", "settings": "{}", "duration": 0.1}
    row |= {"average_log_probability": 0.0, "no_speech_probability": 0.0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row], SCHEMA), folder / "t.parquet")
    corpus = load(folder, f"id,audio,valence,split\n{NFD},0.wav,4,train\n", transcripts=folder / "t.parquet")
    assert corpus["train"]["transcript"][:] == ["Hello."]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_whole_numbers_of_a_column_with_gaps(folder, ending):
    table = pandas.DataFrame(
        {
            "id": [1.0, 2.0, 3.0],
            "audio": ["0.wav", "1.wav", "2.wav"],
            "valence": [1, 2, 3],
            "speaker": [7.0, np.nan, 8.0],
            "split": ["train", "train", "test"],
        }
    )
    write = {"csv": lambda path: table.to_csv(path, index=False), "parquet": table.to_parquet}
    write["jsonl"] = lambda path: path.write_text(
        "".join(f"{json.dumps(row).replace('NaN', 'null')}\n" for row in table.to_dict("records"))
    )
    write[ending](folder / f"manifest.{ending}")
    corpus = load(folder)
    assert corpus["train"]["id"][:] == ["1", "2"] and corpus["train"]["speaker"][:] == ["7", ""]
    assert corpus["test"]["speaker"][:] == ["8"]
    assert sum("whole" in note for note in corpus.report.notes) == 2


def test_names_like_numbers_stay_where_not_all_are(folder):
    table = clash("v1.0,0.wav,1,train,1.0", "x,1.wav,2,train,1.5")
    assert load(folder, table)["train"]["speaker"][:] == ["1.0", "1.5"]


@pytest.mark.parametrize("value", [1.5, True, ["a"], "\ud800"])
def test_what_is_no_text_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        as_text(value)


def test_all_columns_are_documented():
    assert all(f"`{column}`" in manifest.__doc__ for column in COLUMNS)


def test_the_error_of_the_command_line_names_the_file(folder):
    with pytest.raises(CorpusError) as caught:
        load_corpus("manifest", folder, label_scale=(1, 7), manifest=_broken(folder))
    error = caught.value
    assert error.problems_file.is_file() and str(error.problems_file) in str(error)
    table = pandas.read_csv(error.problems_file, keep_default_na=False)
    assert list(table.columns) == ["row", "reason", "detail", "id", "field", "value"]
    assert list(table["reason"]) == [problem.reason for problem in error.report.problems]


def _broken(folder):
    path = folder / "broken.csv"
    path.write_text("id,audio,valence,split\na,0.wav,9,train\na,1.wav,x,train\n")
    return path
