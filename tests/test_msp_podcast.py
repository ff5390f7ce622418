import io
import json
import math
import re

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmkd.corpora import load_corpus
from cmkd.corpora.msp_labels import read_consensus, read_ratings
from cmkd.corpora.report import CorpusError, CorpusReport
from cmkd.corpora.transcripts import SCHEMA

HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
LABELS = """\
FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set
MSP-PODCAST_0001_0008.wav,N,4.2,3.6,4.0,127,Female,Train
MSP-PODCAST_0001_0019.wav,H,5.4,6.25,5.0,128,Male,Train
MSP-PODCAST_0002_0033.wav,X,3.0,2.8,3.5,Unknown,Unknown,Validation
MSP-PODCAST_0003_0045.wav,A,6.0,1.5,6.75,129,Female,Test1
"""
NAMES = [line.split(",")[0] for line in LABELS.splitlines()[1:]]


@pytest.fixture(scope="session")
def sounds():
    """Ten good files as bytes: the first lasts 0.1 s, the next 0.2 s, and so on."""
    contents = []
    for number in range(10):
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, 800 * (number + 1))
        file = io.BytesIO()
        soundfile.write(file, samples, 8000, format="WAV")
        contents.append(file.getvalue())
    return contents


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path, sounds):
    """A release of four utterances without a number in its name, in the layout of releases up to 1.9."""
    folder = tmp_path / "podcast"
    (folder / "Audios").mkdir(parents=True)
    (folder / "Labels").mkdir()
    for name, sound in zip(NAMES, sounds, strict=False):
        (folder / "Audios" / name).write_bytes(sound)
    (folder / "Labels" / "labels_concensus.csv").write_text(LABELS)
    return folder


def load(folder, **config):
    return load_corpus("msp-podcast", folder, **config)


def relabel(folder, text, name="labels_concensus.csv"):
    for path in (folder / "Labels").glob("labels_con*"):
        path.unlink()
    (folder / "Labels" / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def as_json(text):
    header, *lines = [line.split(",") for line in text.splitlines()]
    rows = {}
    for name, *values in lines:
        row = dict(zip(header[1:], values, strict=True))
        rows[name] = row | {field: float(row[field]) for field in ("EmoAct", "EmoVal", "EmoDom")}
    return json.dumps(rows, indent=1)


def problems(folder, **config):
    with pytest.raises(CorpusError) as caught:
        load(folder, **config)
    return [(problem.row, problem.reason) for problem in caught.value.report.problems]


def ids(corpus):
    return {split: corpus[split]["id"][:] for split in corpus}


ALL_IDS = {
    "train": ["MSP-PODCAST_0001_0008", "MSP-PODCAST_0001_0019"],
    "validation": ["MSP-PODCAST_0002_0033"],
    "test": ["MSP-PODCAST_0003_0045"],
}


# Rows


def test_rows(folder):
    corpus = load(folder)
    assert ids(corpus) == ALL_IDS
    assert corpus["train"][1] == {
        "id": "MSP-PODCAST_0001_0019",
        "audio": {"bytes": None, "path": str(folder / "Audios" / "MSP-PODCAST_0001_0019.wav")},
        "transcript": "",
        "activation": pytest.approx(5.4),
        "valence": 6.25,
        "dominance": 5.0,
        "speaker": "128",
        "gender": "male",
        "split": "train",
        "duration": pytest.approx(0.2),
        "label_scale": [1.0, 7.0],
        "start": None,
        "end": None,
        "channel": None,
    }
    validation = corpus["validation"][0]
    assert (validation["speaker"], validation["gender"]) == ("", "")
    assert "1 utterance of unknown speakers: whether these cross splits cannot be checked" in corpus.report.notes
    assert "the split 'Test1' is called 'test'" in corpus.report.notes
    assert corpus.report.warnings == []


def test_the_report_says_which_layout_was_taken(folder):
    report = load(folder).report
    assert re.fullmatch(r"1\.0-to-1\.9-[0-9a-f]{12}", report.version)
    assert report.notes[0] == (
        "release 1.0-to-1.9, going by the spelling 'concensus' and the split 'Validation'; "
        "labels in Labels/labels_concensus.csv, audio in Audios"
    )
    assert "this copy has no folder Transcripts: `cmkd transcribe` makes transcripts" in report.notes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels_consensus.csv", LABELS.replace("Validation", "Development")),
        ("labels_concensus.json", as_json(LABELS)),
        ("labels_consensus.json", json.dumps({name: [row] for name, row in json.loads(as_json(LABELS)).items()})),
        ("labels_concensus.csv", b"\xef\xbb\xbf" + LABELS.replace("\n", "\r\n").encode()),
        ("labels_concensus.json", b"\xef\xbb\xbf" + as_json(LABELS).replace("\n", "\r\n").encode()),
    ],
    ids=["consensus", "json", "json lists", "byte order mark and Windows line ends", "the same in json"],
)
def test_every_form_of_the_label_file_gives_the_same_rows(folder, name, text):
    expected = {split: rows.to_list() for split, rows in load(folder).items()}
    relabel(folder, text, name)
    assert {split: rows.to_list() for split, rows in load(folder).items()} == expected


def test_csv_is_taken_where_json_is_there_too(folder):
    (folder / "Labels" / "labels_concensus.json").write_text("not read")
    assert ids(load(folder)) == ALL_IDS


def test_folders_of_other_names_and_audio_one_folder_deeper(folder):
    (folder / "Labels").rename(folder / "labels")
    (folder / "Audios").rename(folder / "Audio")
    deeper = folder / "Audio" / "0001"
    deeper.mkdir()
    (folder / "Audio" / NAMES[0]).rename(deeper / NAMES[0])
    (deeper / ("._" + NAMES[0])).write_bytes(b"left behind by a Mac")
    corpus = load(folder)
    assert ids(corpus) == ALL_IDS
    assert corpus["train"]["audio"][0]["path"] == str(deeper / NAMES[0])


def test_a_file_that_is_there_twice(folder):
    (folder / "Audios" / "old").mkdir()
    (folder / "Audios" / "old" / NAMES[0]).write_bytes(b"an older version")
    assert problems(folder) == [("labels_concensus.csv:2", "two files of this name")]
    assert ids(load(folder, on_error="skip"))["train"] == ["MSP-PODCAST_0001_0019"]


def test_missing_and_broken_wavs(folder):
    (folder / "Audios" / NAMES[0]).unlink()
    (folder / "Audios" / NAMES[2]).write_bytes(b"")
    content = (folder / "Audios" / NAMES[3]).read_bytes()
    (folder / "Audios" / NAMES[3]).write_bytes(content[: len(content) // 2])
    assert problems(folder) == [
        ("labels_concensus.csv:2", "missing file"),
        ("labels_concensus.csv:4", "empty audio"),
        ("labels_concensus.csv:5", "truncated audio"),
    ]


def test_skipped_rows_are_counted(folder):
    (folder / "Audios" / NAMES[0]).unlink()
    corpus = load(folder, on_error="skip")
    assert ids(corpus)["train"] == ["MSP-PODCAST_0001_0019"]
    assert corpus.report.skipped == {"missing file": 1}


def test_wavs_without_labels_and_other_files_are_counted(folder, sounds):
    (folder / "Audios" / "MSP-PODCAST_0009_0001.wav").write_bytes(sounds[9])
    (folder / "Audios" / "MSP-PODCAST_0009_0002.WAV").write_bytes(sounds[8])
    (folder / "Audios" / "readme.txt").write_text("hello")
    notes = load(folder).report.notes
    assert "wav files without labels: 2, the first 'MSP-PODCAST_0009_0001'" in notes
    assert "files in Audios that are not wav: 1, the first 'Audios/readme.txt'" in notes


def test_labels_that_are_withheld_are_counted_but_no_error(folder, sounds):
    text = LABELS.replace("Validation", "Development")
    text += "MSP-PODCAST_test3_0001.wav,,,,,,,Test3\nMSP-PODCAST_test3_0002.wav,,nan,,,,,Test3\n"
    relabel(folder, text, "labels_consensus.csv")
    for number in (1, 2, 3):  # there is no row of the third
        (folder / "Audios" / f"MSP-PODCAST_test3_000{number}.wav").write_bytes(sounds[number + 4])
    corpus = load(folder)
    assert ids(corpus) == ALL_IDS
    assert corpus.report.skipped == {"labels withheld": 2}
    assert "wav files without labels (Test3's labels are withheld): 1, the first 'MSP-PODCAST_test3_0003'" in (
        corpus.report.notes
    )
    assert corpus.report.version.startswith("from-1.11-")


def test_an_utterance_without_labels_elsewhere_is_an_error(folder):
    relabel(folder, LABELS.replace("3.0,2.8,3.5", ",,"))
    assert problems(folder) == [("labels_concensus.csv:4", "unrated")]


def test_test2_keeps_its_name_and_test_its_own(folder, sounds):
    (folder / "Audios" / "a.wav").write_bytes(sounds[4])
    (folder / "Audios" / "b.wav").write_bytes(sounds[5])
    relabel(folder, LABELS + "a.wav,N,4,4,4,130,Male,Test2\nb.wav,N,4,4,4,131,Male,Test\n")
    assert {split: len(rows) for split, rows in ids(load(folder)).items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
        "Test1": 1,
        "Test2": 1,
    }


def test_a_speaker_in_two_splits_is_an_error_but_not_an_unknown_one(folder):
    relabel(folder, LABELS.replace(",129,", ",127,").replace(",128,", ",Unknown,"))
    assert problems(folder) == [("labels_concensus.csv:2", "speaker in two splits")]


# Releases


def test_the_name_of_the_folder_tells_the_release(folder):
    named = folder.rename(folder.with_name("MSP-PODCAST-Publish-1.4"))
    report = load(named).report
    assert report.version.startswith("1.4-")
    assert "going by the name of the folder, MSP-PODCAST-Publish-1.4" in report.notes[0]
    assert report.warnings == []


def test_labels_of_another_release_than_the_name_says_are_warned_about(folder):
    named = folder.rename(folder.with_name("MSP-PODCAST-Publish-1.11"))
    assert load(named).report.warnings == [
        "the spelling 'concensus' belongs to releases 1.0-to-1.9, but the release is 1.11",
        "the split 'Validation' belongs to releases 1.0-to-1.9, but the release is 1.11",
    ]


def test_the_paper_s_configuration_leaves_out_other_splits_and_compares_sizes(folder, sounds, caplog):
    (folder / "Audios" / "a.wav").write_bytes(sounds[4])
    relabel(folder, LABELS + "a.wav,N,4,4,4,130,Male,Test2\n")
    corpus = load(folder, release="1.6")
    assert ids(corpus) == ALL_IDS
    assert corpus.report.skipped == {"Test2 is not in the paper's configuration": 1}
    assert corpus.report.warnings == [
        "train has 2 utterances, but MSP-Podcast 1.6 has 34,280: "
        "1 were left out, and the copy is incomplete or another release",
        "validation has 1 utterances, but MSP-Podcast 1.6 has 5,958: "
        "1 were left out, and the copy is incomplete or another release",
        "test has 1 utterances, but MSP-Podcast 1.6 has 10,124: "
        "1 were left out, and the copy is incomplete or another release",
        "there are 0.00 h, but MSP-Podcast 1.6 has 84 h: see above",
    ]
    assert str(corpus.report).splitlines()[1].startswith("WARNING: train has 2 utterances")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][:1] == [
        f"msp-podcast: {corpus.report.warnings[0]}"
    ]


# Transcripts


def test_transcripts(folder):
    (folder / "Transcripts").mkdir()
    (folder / "Transcripts" / "MSP-PODCAST_0001_0008.txt").write_bytes(b"\xef\xbb\xbfWell,\r\n  I don't  know.\r\n")
    (folder / "Transcripts" / "MSP-PODCAST_0001_0019.txt").write_bytes("it’s".encode("cp1252"))
    (folder / "Transcripts" / "MSP-PODCAST_0003_0045.txt").write_text("", encoding="utf-8")
    corpus = load(folder)
    assert corpus["train"]["transcript"][:] == ["Well, I don't know.", "it’s"]
    assert corpus["validation"]["transcript"][:] == corpus["test"]["transcript"][:] == [""]
    notes = corpus.report.notes
    assert "utterances without a file in Transcripts: 1, the first 'MSP-PODCAST_0002_0033'" in notes
    assert any(note.startswith("transcripts that are not UTF-8") and ": 1, the" in note for note in notes)


@pytest.mark.parametrize(("prefer", "first"), [("manual", "Mine."), ("asr", "heard one")])
def test_transcripts_of_a_recogniser_fill_in(folder, prefer, first):
    (folder / "Transcripts").mkdir()
    (folder / "Transcripts" / "MSP-PODCAST_0001_0008.txt").write_text("Mine.")
    rows = [
        {"id": id, "text": text, "model": "recogniser", "revision": "1", "settings": "{}"}
        for id, text in (("MSP-PODCAST_0001_0008", "heard one"), ("MSP-PODCAST_0001_0019", "heard two"))
    ]
    sidecar = folder / "asr.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), sidecar)
    corpus = load(folder, release="1.6", transcripts=sidecar, prefer_transcripts=prefer)
    assert corpus.report.warnings[0].startswith("train has 2 utterances, but MSP-Podcast 1.6 has 34,280")
    assert corpus["train"]["transcript"][:] == [first, "heard two"]
    assert corpus["test"]["transcript"][:] == [""]


# Annotators

DETAILED = """\
FileName,Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom
MSP-PODCAST_0001_0008.wav,WORKER01,Neutral,"Neutral,Happy",4.0,3.0,5
MSP-PODCAST_0001_0008.wav,WORKER02,Neutral,,6.0,,5
MSP-PODCAST_0001_0019.wav,WORKER01,Happy,"a ""lot"" of it, Happy",5,6,7
MSP-PODCAST_0002_0033.wav,WORKER03,Sad,,3,3,3
"""
DETAILED_IN_ONE = """\
FileName,EmoDetail
MSP-PODCAST_0001_0008.wav,"WORKER01; Neutral; Neutral,Happy; A:4.000000; V:3.000000; D:5.000000;"
MSP-PODCAST_0001_0008.wav,"WORKER02; Other-a; b; ; A:6.000000; V:; D:5.000000;"
MSP-PODCAST_0001_0019.wav,"WORKER01; Happy; ; A:5.000000; V:6.000000; D:7.000000;"
MSP-PODCAST_0002_0033.wav,WORKER03; Sad; ; A:3; V:3; D:3
"""
DETAILED_JSON = {
    "MSP-PODCAST_0001_0008.wav": {
        "WORKER01": {"EmoClass_Major": "Neutral", "EmoAct": "4.0", "EmoVal": 3.0, "EmoDom": 5},
        "WORKER02": {"EmoAct": 6, "EmoVal": None, "EmoDom": "5"},
    },
    "MSP-PODCAST_0001_0019.wav": {"WORKER01": {"EmoAct": 5, "EmoVal": 6, "EmoDom": 7}},
    "MSP-PODCAST_0002_0033.wav": {"WORKER03": {"EmoAct": 3, "EmoVal": 3, "EmoDom": 3}},
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels_detailed.csv", DETAILED),
        ("labels_detailed.csv", DETAILED_IN_ONE),
        ("labels_detailed.json", json.dumps(DETAILED_JSON)),
    ],
    ids=["columns", "one column", "json"],
)
def test_ratings_of_single_annotators_and_their_spread(folder, name, text):
    (folder / "Labels" / name).write_text(text)
    corpus = load(folder, annotators=True)
    first = corpus["train"][0]
    assert first["annotators"] == ["WORKER01", "WORKER02"]
    assert first["activation_ratings"] == [4.0, 6.0] and first["dominance_ratings"] == [5.0, 5.0]
    assert first["valence_ratings"][0] == 3.0 and math.isnan(first["valence_ratings"][1])
    assert first["activation_std"] == pytest.approx(2**0.5) and first["dominance_std"] == 0.0
    assert math.isnan(first["valence_std"])  # of one rating
    assert first["activation"] == pytest.approx(4.2)  # the label stays that of the release
    assert corpus["test"][0]["annotators"] == []
    notes = corpus.report.notes
    assert "utterances without ratings of single annotators: 1, the first 'MSP-PODCAST_0003_0045'" in notes


def test_without_annotators_the_columns_are_not_there(folder):
    (folder / "Labels" / "labels_detailed.csv").write_text("not even read")
    assert "annotators" not in load(folder)["train"].features


def test_bad_ratings_are_errors_and_cost_the_rating_not_the_row(folder):
    text = DETAILED.replace("6.0,,5", "6.0,eight,5").replace("5,6,7", "5,6,9").replace(".wav,WORKER03", "/,WORKER03")
    (folder / "Labels" / "labels_detailed.csv").write_text(text + "unknown.wav,WORKER01,Sad,,1,1,1\n")
    assert sorted(problems(folder, annotators=True)) == [
        ("labels_detailed.csv:3", "not a number"),
        ("labels_detailed.csv:4", "outside the scale"),
        ("labels_detailed.csv:5", "not a file name"),
    ]
    corpus = load(folder, annotators=True, on_error="skip")
    assert ids(corpus) == ALL_IDS and corpus.report.skipped == {}
    assert corpus["train"]["activation_ratings"][:] == [[4.0, 6.0], [5.0]]
    assert math.isnan(corpus["train"][1]["dominance_ratings"][0])
    notes = "\n".join(corpus.report.notes)
    assert "lines of labels_detailed.csv left out: 1, first labels_detailed.csv:5" in notes
    assert "2 ratings of single annotators left out: not a number (1), outside the scale (1), first" in notes
    assert (
        "files with ratings in labels_detailed.csv but no row in labels_concensus.csv: 1, the first 'unknown'" in notes
    )


# What cannot be used


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("name", "text", "row", "reason"),
    [
        ("labels_concensus.csv", "", "labels_concensus.csv", "no column 'FileName'"),
        ("labels_concensus.csv", LABELS.replace("Split_Set", "Set"), "labels_concensus.csv", "no column 'Split_Set'"),
        ("labels_concensus.csv", LABELS.encode() + b"\xff.wav,", "labels_concensus.csv:6", "not UTF-8"),
        ("labels_concensus.csv", LABELS + '"open,', "labels_concensus.csv:6", "broken table"),
        ("labels_concensus.json", "[]", "labels_concensus.json:1", "not JSON"),
        ("labels_concensus.json", as_json(LABELS)[:-3], "labels_concensus.json:29", "not JSON"),
        ("labels_concensus.json", as_json(LABELS) + "x", "labels_concensus.json:29", "not JSON"),
        ("labels_concensus.json", b'{\n\n"\xff": 1}', "labels_concensus.json:3", "not UTF-8"),
        ("labels_concensus.json", '{"a": ' + "[" * 100_000, "labels_concensus.json:1", "not JSON"),
    ],
)
def test_a_broken_label_file_is_refused_whatever_on_error(folder, name, text, row, reason, on_error):
    relabel(folder, text, name)
    assert problems(folder, on_error=on_error)[0] == (row, reason)


def test_rows_of_a_json_file_that_cannot_be_used(folder):
    rows = json.loads(as_json(LABELS))
    text = as_json(LABELS)[:-2] + ',\n "list.wav": [],\n "lacks.wav": {"EmoAct": 1},\n'
    text += f' "{NAMES[0]}": {json.dumps(rows[NAMES[1]])},\n "../x.wav": {json.dumps(rows[NAMES[1]])}\n}}'
    relabel(folder, text, "labels_concensus.json")
    first = text.split("\n").index(' "list.wav": [],') + 1
    assert sorted(problems(folder)) == [
        (f"labels_concensus.json:{first}", "not a JSON object"),
        (f"labels_concensus.json:{first + 1}", "missing field"),
        (f"labels_concensus.json:{first + 2}", "audio used twice"),
        (f"labels_concensus.json:{first + 2}", "duplicate id"),
        (f"labels_concensus.json:{first + 3}", "not a file name"),
    ]
    corpus = load(folder, on_error="skip")
    assert ids(corpus) == ALL_IDS
    assert sum(corpus.report.skipped.values()) == 4


@pytest.mark.parametrize(
    ("error", "message", "remove", "config"),
    [
        (ValueError, "data_dir is None", None, {"data_dir": None}),
        (FileNotFoundError, "no such folder exists", None, {"data_dir": "nowhere"}),
        (FileNotFoundError, "has no folder Labels", "Labels", {}),
        (FileNotFoundError, "has no folder Audios", "Audios", {}),
        (FileNotFoundError, "has no labels_consensus.csv", "Labels/labels_concensus.csv", {}),
        (FileNotFoundError, "has no labels_detailed.csv", None, {"annotators": True}),
        (ValueError, "release is '1.13', but must be None or one of '1.0', .* '2.0'", None, {"release": "1.13"}),
        (ValueError, "prefer_transcripts is 'auto'", None, {"prefer_transcripts": "auto"}),
        (ValueError, "but there are none: pass transcripts=", None, {"prefer_transcripts": "asr"}),
        (ValueError, "num_proc is 0", None, {"num_proc": 0}),
    ],
)
def test_settings_and_folders_are_checked(folder, error, message, remove, config):
    if remove:
        (folder / remove).rename(folder / "moved")
    with pytest.raises(error, match=message):
        load_corpus("msp-podcast", **{"data_dir": folder, **config})


def test_two_label_files_are_refused(folder):
    (folder / "Labels" / "labels_consensus.csv").write_text(LABELS)
    with pytest.raises(ValueError, match="has labels_concensus.csv and labels_consensus.csv: keep that of the release"):
        load(folder)


# Any text gives rows or a CorpusError that says where

FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CELLS = st.sampled_from(["", "a.wav", "4", "nan", "Train", "Test3", "x/y", 'a"b', "\0", "\u2028"]) | st.text(max_size=4)


def empty_report():
    return CorpusReport(name="msp-podcast", release="1", label_scale=(1, 7), config={})


def says_where(error, name):
    assert error.report.problems
    assert all(re.fullmatch(rf"{re.escape(name)}(:\d+)?", problem.row) for problem in error.report.problems)


@FUZZ
@given(rows=st.lists(st.lists(CELLS, min_size=7, max_size=9).filter(any), min_size=1, max_size=5))
def test_no_row_of_a_csv_file_is_lost(tmp_path, rows):
    path = tmp_path / "labels_consensus.csv"
    lines = [HEADER.split(","), *rows]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    path.write_bytes("\n".join(quoted).encode())
    report = empty_report()
    try:
        labels = read_consensus(path, report)
    except CorpusError as error:
        says_where(error, path.name)
    else:
        assert len(labels) + len(report.problems) == len(rows)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["EmoAct", "EmoVal", "EmoDom", "Split_Set", "W1"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@FUZZ
@given(entries=st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), indent=st.sampled_from([None, 0, 2]))
def test_no_entry_of_a_json_file_is_lost(tmp_path, entries, indent):
    path = tmp_path / "labels_consensus.json"
    path.write_text(json.dumps(entries, indent=indent))
    report = empty_report()
    labels = read_consensus(path, report)
    assert len(labels) + len(report.problems) == len(entries)
    ratings, broken = read_ratings(path, report)
    given = sum(len(workers) if isinstance(workers, dict) else 1 for workers in entries.values())
    assert sum(map(len, ratings.values())) + len(broken) == given


@FUZZ
@given(
    text=st.text(st.sampled_from('{}[]":,\n a1\\uE'), max_size=40).map(lambda text: '{"a.wav": ' + text)
    | st.text(st.sampled_from("FileName,EmoDetail;A:V:D\n\"' 1"), max_size=60)
    | st.binary(max_size=40),
    ending=st.sampled_from(["csv", "json"]),
)
def test_any_text_gives_labels_or_an_error_that_says_where(tmp_path, text, ending):
    path = tmp_path / f"labels.{ending}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_consensus, read_ratings):
        try:
            read(path, empty_report())
        except CorpusError as error:
            says_where(error, path.name)


@pytest.mark.slow
@FUZZ
@given(names=st.lists(CELLS, min_size=1, max_size=3), values=st.lists(CELLS, min_size=6, max_size=6))
def test_any_values_give_a_corpus_or_a_corpus_error(tmp_path_factory, names, values):
    folder = tmp_path_factory.mktemp("podcast")
    (folder / "Labels").mkdir()
    (folder / "Audios").mkdir()
    rows = {name: dict(zip(HEADER.split(",")[2:], values, strict=True)) for name in names}
    (folder / "Labels" / "labels_consensus.json").write_text(json.dumps(rows))
    with pytest.raises(CorpusError) as caught:  # at least since no audio is there
        load(folder, on_error="raise")
    assert caught.value.report.problems


# Copies that were unpacked in another way than the release


@pytest.mark.parametrize("part", ["Labels", "Audios", "Transcripts", None])
def test_what_was_unzipped_twice_is_found(folder, part):
    (folder / "Transcripts").mkdir()
    (folder / "Transcripts/MSP-PODCAST_0001_0008.txt").write_text("Hello.")
    whole = load(folder).report.digest
    outer = folder if part is None else folder / part
    outer.rename(folder.parent / "inner")
    outer.mkdir()
    (folder.parent / "inner").rename(outer / outer.name)
    (outer / ".DS_Store").write_bytes(b"")
    corpus = load(folder)
    assert corpus.report.digest == whole
    assert corpus["train"][0]["transcript"] == "Hello."
    if part == "Labels":
        assert any("labels in Labels/Labels/labels_concensus.csv" in note for note in corpus.report.notes)


def test_what_is_not_unzipped_is_named(folder):
    (folder / "Transcripts.zip").write_bytes(b"PK")
    warnings = load(folder).report.warnings
    assert "Transcripts.zip is not unzipped, so that no utterance has a transcript: unzip it where it is" in warnings
    for part in ("Audios", "Labels"):
        (folder / part).rename(folder.parent / part)
        (folder / f"{part}.tar.gz").write_bytes(b"PK")
        with pytest.raises(FileNotFoundError, match=rf"has no folder {part}: unzip {part}.tar.gz, which is there"):
            load(folder)
        (folder.parent / part).rename(folder / part)
