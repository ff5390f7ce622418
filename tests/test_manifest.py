import json
import math
import pickle
import re

import datasets
import numpy as np
import pandas
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import clash, load, refused

from cmkd.corpora import load_corpus
from cmkd.corpora.report import CorpusError
from cmkd.corpora.schema import FEATURES
from cmkd.features.audio import read_audio

HEADER = "id,audio,transcript,activation,valence,dominance,speaker,gender,split\n"


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """Ten good files: 0.wav lasts 0.1 s, 1.wav 0.2 s, and so on."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(10):
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, 800 * (number + 1))
        soundfile.write(folder / f"{number}.wav", samples, 8000)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path, sounds):
    for path in sounds.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def problems_file(folder):
    """The only one that was written."""
    (path,) = (folder / "cache/cmkd/problems").iterdir()
    return path


def kept(folder, table=None, **config):
    """The ids by split that are kept when rows are skipped."""
    corpus = load(folder, table, on_error="skip", **config)
    return {split: corpus[split]["id"] for split in corpus}


# Reading


def test_rows(folder):
    corpus = load(
        folder,
        HEADER
        + 'a,0.wav,"Hello, ""you""",1,2.5,7,anna,female,train\nb,1.wav,,,4,,bert,M,Dev\nc,2.wav,Äh?,3,3,3,,,test\n',
    )

    assert list(corpus) == ["train", "validation", "test"]
    assert all(split.features == FEATURES and list(split.features) == list(FEATURES) for split in corpus.values())
    assert corpus["train"].to_list() == [
        {
            "id": "a",
            "audio": {"bytes": None, "path": str(folder / "0.wav")},
            "transcript": 'Hello, "you"',
            "activation": 1.0,
            "valence": 2.5,
            "dominance": 7.0,
            "speaker": "anna",
            "gender": "female",
            "split": "train",
            "duration": pytest.approx(0.1),
            "label_scale": [1.0, 7.0],
            "start": None,
            "end": None,
            "channel": None,
        }
    ]
    validation = corpus["validation"][0]
    assert (validation["transcript"], validation["gender"], validation["split"]) == ("", "male", "validation")
    assert math.isnan(validation["activation"]) and validation["valence"] == 4 and math.isnan(validation["dominance"])
    test = corpus["test"][0]
    assert (test["transcript"], test["speaker"], test["gender"]) == ("Äh?", "", "")
    assert read_audio(test["audio"]).shape == (4800,)


TABLE = pandas.DataFrame(
    {
        "id": [7, 8],
        "audio": ["0.wav", "1.wav"],
        "transcript": ['tab\tand "quote"', "line\nbreak, comma"],
        "activation": [1.5, math.nan],
        "dominance": [2, 3],
        "speaker": ["s", None],
        "split": ["train", "test"],
    }
)
WRITERS = {
    "csv": lambda path: TABLE.to_csv(path, index=False),
    "tsv": lambda path: TABLE.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda path: TABLE.to_json(path, orient="records", lines=True),
    "parquet": lambda path: TABLE.to_parquet(path),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_table_format_gives_the_same_rows(folder, ending):
    WRITERS[ending](folder / f"manifest.{ending}")
    corpus = load(folder)
    columns = ["id", "transcript", "dominance", "speaker", "split"]
    assert corpus["train"].select_columns(columns).to_list() == [
        {"id": "7", "transcript": 'tab\tand "quote"', "dominance": 2, "speaker": "s", "split": "train"}
    ]
    assert corpus["test"].select_columns(columns).to_list() == [
        {"id": "8", "transcript": "line\nbreak, comma", "dominance": 3, "speaker": "", "split": "test"}
    ]
    assert corpus["train"]["activation"][0] == 1.5 and math.isnan(corpus["test"]["activation"][0])
    assert math.isnan(corpus["train"]["valence"][0])


def test_byte_order_mark_and_windows_line_ends(folder):
    content = b"\xef\xbb\xbf" + (HEADER + "a,0.wav,hi,1,2,3,s,f,train\n\nb,1.wav,,1,2,3,s,f,train\n").encode()
    (folder / "manifest.csv").write_bytes(content.replace(b"\n", b"\r\n"))
    assert load(folder)["train"]["id"][:] == ["a", "b"]


@pytest.mark.parametrize("rate", [8000, 48000])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_audio_formats(folder, ending, rate):
    soundfile.write(folder / f"a.{ending}", np.random.default_rng(0).uniform(-0.5, 0.5, (rate * 2, 2)), rate)
    train = load(folder, f"audio,valence,split\na.{ending},4,train\n")["train"]
    assert train["duration"][:] == [2.0]
    assert read_audio(train["audio"][0]).shape == (32000,)


def test_ids_default_to_the_names_of_the_files_and_the_report_says_so(folder):
    corpus = load(folder, "audio,valence,split\n0.wav,4,train\n1.wav,4,train\n")
    assert corpus["train"]["id"][:] == ["0", "1"]
    assert "the manifest has no column 'id': ids are the names of the audio files without ending" in corpus.report.notes


def test_columns_that_are_not_read_are_noted(folder):
    notes = load(folder, "audio,valance,activation,split,duration\n0.wav,4,4,train,9\n").report.notes
    assert "the column 'valance' is not read; did you mean 'valence'?" in notes
    assert "the column 'duration' is not read" in notes


def test_line_breaks_within_fields_are_noted_and_counted_as_lines(folder):
    table = HEADER + 'a,0.wav,"two\nlines",1,2,3,s,f,train\nb,1.wav,,9,2,3,s,f,train\n'
    assert refused(folder, table) == [("manifest.csv:4", "outside the scale")]
    notes = load(folder, table, on_error="skip").report.notes
    assert "rows with line breaks in a field: 1, the first at manifest.csv:2" in notes


def test_split_names(folder):
    names = ["TRAIN", "Val", "development", "test", "Test2", "trian"]
    table = "audio,valence,split\n" + "".join(f"{number}.wav,4,{name}\n" for number, name in enumerate(names))
    corpus = load(folder, table)
    assert {split: corpus[split]["id"][:] for split in corpus} == {
        "train": ["0"],
        "validation": ["1", "2"],
        "test": ["3"],
        "Test2": ["4"],
        "trian": ["5"],
    }
    assert "the split 'trian' keeps its name; did you mean 'train'?" in corpus.report.notes


def test_missing_splits_and_unknown_speakers_and_genders_are_noted(folder):
    notes = load(folder, "audio,valence,split,gender\n0.wav,4,train,x\n1.wav,4,test,x\n").report.notes
    assert "no rows of validation" in notes
    assert "2 utterances of unknown speakers: whether these cross splits cannot be checked" in notes
    assert "gender 'x' of 2 utterances is taken as unknown" in notes


# Tables that cannot be used as a whole


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        (b"", "manifest.csv", "no columns"),
        (HEADER.encode(), "", "nothing left"),
        (b"id,valence,split\na,1,train\n", "manifest.csv", "no column 'audio'"),
        (b"id,audio,valence\na,0.wav,1\n", "manifest.csv", "no column 'split'"),
        (b"id;audio;valence;split\na;0.wav;1;train\n", "manifest.csv", "no column 'audio'"),
        (b"audio,anger,split\n0.wav,1,train\n", "manifest.csv", "none of the columns activation, valence, dominance"),
        (b"audio,arousal,activation,split\n0.wav,1,1,train\n", "manifest.csv", "columns 'arousal' and 'activation'"),
        (b"audio,Arousal,split\n0.wav,1,train\n", "manifest.csv", "column 'Arousal'"),
        (b"audio,valence,split,start_time\n0.wav,1,train,0\n", "manifest.csv", "column 'start_time'"),
        (b"audio,valence,split,Start Time\n0.wav,1,train,0\n", "manifest.csv", "column 'Start Time'"),
        (b"audio,valence,split,start,duration\n0.wav,1,train,0,1\n", "manifest.csv", "column 'duration'"),
        (b"audio,valence,split,Speaker\n0.wav,1,train,s\n", "manifest.csv", "column 'Speaker'"),
        (b"audio,valence,split,valence\n0.wav,1,train,2\n", "manifest.csv", "more than one column 'valence'"),
        (b"audio,valence,split\n0.wav,1,train\n\xe4.wav,1,train\n", "manifest.csv:3", "not UTF-8"),
        ("audio,valence,split\n".encode("utf-16"), "manifest.csv:1", "not UTF-8"),
        (b'audio,valence,split\n0.wav,1,train\n"1.wav,1,train\n2.wav,1,train\n', "manifest.csv:3", "broken table"),
        (b'audio,valence,split\n0.wav,1,"train" x\n', "manifest.csv:2", "broken table"),
    ],
)
def test_a_broken_table_is_refused_whatever_on_error(folder, content, row, reason, on_error):
    (folder / "manifest.csv").write_bytes(content)
    assert refused(folder, on_error=on_error) == [(row, reason)]


@pytest.mark.parametrize("name", ["segment.start", "meta.end"])
def test_a_nested_stretch_is_not_ignored(folder, name):
    outer, inner = name.split(".")
    rows = [{"audio": f"{i}.wav", "valence": 1, "split": "train", outer: {inner: 0.5}} for i in range(2)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert refused(folder) == [("manifest.jsonl", f"column {name!r}")]


def test_columns_that_only_look_like_a_stretch_can_be_left_unread(folder):
    """As in a data set whose files are cut already, where no column can be taken out."""
    (folder / "manifest.csv").write_text("audio,valence,split,begin_time,end_time\n0.wav,1,train,61.5,64.25\n")
    assert refused(folder) == [("manifest.csv", "column 'begin_time'")]
    corpus = load_corpus("manifest", data_dir=folder, label_scale=(1, 7), columns={"start": None})
    (row,) = corpus["train"]
    assert (row["start"], row["end"]) == (None, None)
    assert "the column 'begin_time' is not read" in "\n".join(corpus.report.notes)
    (folder / "manifest.csv").write_text("audio,valence,split,start,duration\n0.wav,1,train,0.05,9\n")
    corpus = load_corpus("manifest", data_dir=folder, label_scale=(1, 7), columns={"end": None})
    assert (corpus["train"][0]["start"], corpus["train"][0]["end"]) == (0.05, None)


def test_a_broken_parquet_file_is_refused(folder):
    (folder / "manifest.parquet").write_bytes(b"PAR1 and nothing else")
    assert refused(folder) == [("manifest.parquet", "broken table")]


def test_a_split_of_which_nothing_is_left_is_refused(folder):
    table = "audio,valence,split\n0.wav,4,train\n1.wav,9,test\n"
    assert refused(folder, table, on_error="skip") == [("", "nothing left"), ("manifest.csv:3", "outside the scale")]


# Rows that are refused, or skipped


def sample(good, bad):
    """A table of two good rows around a bad one, which is on line 3."""
    return f"audio,activation,valence,split,speaker\n{good[0]}\n{bad}\n{good[1]}\n"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("1.wav,7.1,2,train,s", "outside the scale"),
        ("1.wav,0.9,2,train,s", "outside the scale"),
        ("1.wav,-inf,2,train,s", "outside the scale"),
        ("1.wav,four,2,train,s", "not a number"),
        ('1.wav,"4,5",2,train,s', "not a number"),
        ("1.wav,1_0,2,train,s", "not a number"),
        ("1.wav,,nan,train,s", "unrated"),
        ("1.wav,1,2, ,s", "missing value"),
        (",1,2,train,s", "missing value"),
        ("1.wav,1,2,train:x,s", "not a split name"),
        ("1.wav,1,2,../train,s", "not a split name"),
        ("1.wav,1,2,train", "wrong number of fields"),
        ("1.wav,1,2,train,s,", "wrong number of fields"),
        ("nowhere.wav,1,2,train,s", "missing file"),
        ("../1.wav,1,2,train,s", "outside the folder"),
        ("sub/../../1.wav,1,2,train,s", "outside the folder"),
        ("/1.wav,1,2,train,s", "outside the folder"),
        (".,1,2,train,s", "outside the folder"),
        ("0.wav,1,2,train,s", "audio used twice"),
        ("./0.wav,1,2,train,s", "audio used twice"),
    ],
)
def test_a_bad_row_is_refused_or_skipped(folder, bad, reason):
    table = sample(["0.wav,1,7,train,s", "2.wav,4,,train,s"], bad)
    assert reason in dict(map(reversed, refused(folder, table)))
    assert {row for row, _ in refused(folder, table)} == {"manifest.csv:3"}
    corpus = load(folder, table, on_error="skip")
    assert corpus["train"]["id"][:] == ["0", "2"]
    assert sum(corpus.report.skipped.values()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty audio"), (b"no sound", "unreadable audio"), (None, "truncated audio"), ("nan", "non-finite audio")],
)
def test_bad_audio_is_refused_or_skipped(folder, content, reason):
    if content == "nan":
        soundfile.write(folder / "1.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    else:
        (folder / "1.wav").write_bytes((folder / "1.wav").read_bytes()[:1000] if content is None else content)
    table = sample(["0.wav,1,7,train,s", "2.wav,4,,train,s"], "1.wav,1,2,train,s")
    assert refused(folder, table) == [("manifest.csv:3", reason)]
    assert kept(folder, table) == {"train": ["0", "2"]}


def test_json_lines_that_are_no_objects(folder):
    good = '{"audio": "%d.wav", "valence": 4, "split": "train", "id": "%d"}'
    bad = [
        "{",
        "[1]",
        '{"id": 1, "id": 2}',
        "[" * 99999,
        '{"audio": "2.wav", "valence": true, "split": 5.5, "id": 1.5, "speaker": true}',
    ]
    bad += ['{"audio": ["2.wav"], "valence": [4], "split": "train", "id": "\\ud800"}', '{"id": "x"}']
    (folder / "manifest.jsonl").write_text("\n".join([good % (0, 0), *bad, good % (1, 1)]))
    assert refused(folder) == [
        ("manifest.jsonl:2", "not a JSON object"),
        ("manifest.jsonl:3", "not a JSON object"),
        ("manifest.jsonl:4", "not a JSON object"),
        ("manifest.jsonl:5", "not a JSON object"),
        ("manifest.jsonl:6", "not text"),
        ("manifest.jsonl:6", "not text"),
        ("manifest.jsonl:6", "not a number"),
        ("manifest.jsonl:6", "not text"),
        ("manifest.jsonl:7", "not text"),
        ("manifest.jsonl:7", "not text"),
        ("manifest.jsonl:7", "not a number"),
        ("manifest.jsonl:8", "missing value"),
        ("manifest.jsonl:8", "missing value"),
        ("manifest.jsonl:8", "unrated"),
    ]
    corpus = load(folder, on_error="skip")
    assert corpus["train"]["id"][:] == ["0", "1"]
    assert corpus.report.skipped == {"not a JSON object": 4, "not text": 2, "missing value": 1}
    corpus.report.save(folder / "report.json")  # lone surrogates and all
    assert len(json.loads((folder / "report.json").read_text())["problems"]) == 14


def test_every_problem_of_a_row_is_listed_with_what_stands_there(folder):
    with pytest.raises(CorpusError) as caught:
        load(folder, "audio,activation,valence,split,id\nx.wav,9,a,train,k\n")
    path = str(folder / "x.wav")
    assert [str(problem) for problem in caught.value.report.problems] == [
        "manifest.csv:2 (id 'k'), activation '9': outside the scale: the scale is 1 to 7",
        "manifest.csv:2 (id 'k'), valence 'a': not a number",
        "manifest.csv:2 (id 'k'), audio 'x.wav': missing file: [Errno 2] No such file or directory: " + repr(path),
    ]


def test_a_duplicate_id(folder):
    table = clash("a,0.wav,1,train,", "a,1.wav,2,train,", "b,2.wav,3,train,")
    assert refused(folder, table) == [("manifest.csv:3", "duplicate id")]
    assert kept(folder, table) == {"train": ["a", "b"]}


def test_rows_of_evaluation_stay_where_ids_clash(folder):
    table = clash("a,0.wav,1,train,", "a,1.wav,2,test,", "b,2.wav,3,train,")
    assert refused(folder, table) == [("manifest.csv:2", "duplicate id")]
    assert kept(folder, table) == {"train": ["b"], "test": ["a"]}


def test_a_file_in_two_splits_even_by_a_symbolic_link(folder):
    (folder / "link.wav").symlink_to(folder / "0.wav")
    table = clash("a,0.wav,1,train,", "b,link.wav,2,validation,", "c,2.wav,3,train,")
    assert refused(folder, table) == [("manifest.csv:2", "audio in two splits")]
    assert kept(folder, table) == {"train": ["c"], "validation": ["b"]}


def test_a_speaker_in_two_splits_leaves_evaluation_whole(folder):
    table = clash(
        "a,0.wav,1,train,x",
        "b,1.wav,1,train,y",
        "c,2.wav,1,train, x ",
        "d,3.wav,1,test,x",
        "e,4.wav,1,validation,z",
        "f,5.wav,1,validation,w",
        "g,6.wav,1,test,w",
    )
    assert refused(folder, table) == [
        ("manifest.csv:2", "speaker in two splits"),
        ("manifest.csv:4", "speaker in two splits"),
        ("manifest.csv:7", "speaker in two splits"),
    ]
    corpus = load(folder, table, on_error="skip")
    assert {split: corpus[split]["id"][:] for split in corpus} == {
        "train": ["b"],
        "validation": ["e"],
        "test": ["d", "g"],
    }
    assert corpus.report.skipped == {"speaker in two splits": 3}


def test_a_speaker_in_two_test_splits_is_no_clash(folder):
    table = clash("a,0.wav,1,test1,x", "b,1.wav,1,test2,x", "c,2.wav,1,train,y")
    assert kept(folder, table) == {"train": ["c"], "test1": ["a"], "test2": ["b"]}
    load(folder, table)


# Where things lie


def test_paths_start_in_data_dir_and_may_be_absolute_within_it(folder, tmp_path_factory):
    manifest = tmp_path_factory.mktemp("elsewhere") / "table.tsv"
    manifest.write_text(f"audio\tvalence\tsplit\n0.wav\t1\ttrain\n{folder / '1.wav'}\t1\ttrain\n")
    train = load_corpus("manifest", folder, manifest=manifest, label_scale=(1, 7))["train"]
    assert [audio["path"] for audio in train["audio"]] == [str(folder / "0.wav"), str(folder / "1.wav")]


def test_paths_start_in_the_folder_of_the_manifest_without_data_dir(folder, monkeypatch):
    (folder / "table.CSV").write_text("audio,valence,split\n0.wav,1,train\n")
    monkeypatch.chdir(folder.parent)
    train = load_corpus("manifest", manifest=f"{folder.name}/table.CSV", label_scale=(1, 7))["train"]
    assert train["audio"][0]["path"] == str(folder / "0.wav")


@pytest.mark.parametrize(
    ("error", "message", "names", "config"),
    [
        (FileNotFoundError, "has none of manifest.csv, manifest.tsv, manifest.jsonl, manifest.parquet", [], {}),
        (ValueError, "has manifest.csv, manifest.tsv: pass manifest= to say", ["manifest.csv", "manifest.tsv"], {}),
        (FileNotFoundError, "no such file exists", [], {"manifest": "nowhere.csv"}),
        (ValueError, "must end in one of .csv, .tsv, .jsonl, .parquet", [], {"manifest": "table.xlsx"}),
        (FileNotFoundError, "no such folder exists", [], {"data_dir": "nowhere"}),
        (ValueError, "data_dir and manifest are None", [], {"data_dir": None}),
        (ValueError, "label_scale is '17', but must be two numbers", [], {"label_scale": "17"}),
        (ValueError, "label_scale is 7, but must be two numbers", [], {"label_scale": 7}),
        (ValueError, r"label_scale is \(7, 1\), but must be two numbers", [], {"label_scale": (7, 1)}),
        (ValueError, r"label_scale is \[1, nan\], but must be two numbers", [], {"label_scale": [1, math.nan]}),
        (ValueError, "on_error is 'ignore', but must be one of 'raise', 'skip'", [], {"on_error": "ignore"}),
        (ValueError, "has no setting 'label_scal'; .* Did you mean 'label_scale'", [], {"label_scal": (1, 7)}),
        (ValueError, "'manifset', but must be one of 'manifest', .* Did you mean 'man", [], {"name": "manifset"}),
    ],
)
def test_settings_are_checked(folder, error, message, names, config):
    for name in names:
        (folder / name).write_text("audio,valence,split\n0.wav,1,train\n")
    with pytest.raises(error, match=message):
        load_corpus(**{"name": "manifest", "data_dir": folder, "label_scale": (1, 7), **config})


def test_the_scale_is_required(folder):
    with pytest.raises(ValueError, match="the corpus 'manifest' needs 'label_scale'"):
        load_corpus("manifest", folder)


# The report


def test_report(folder):
    table = clash("a,9.wav,1,train,x", "b,8.wav,1,train,", "c,7.wav,9,train,x", "d,6.wav,8,test,z", "e,5.wav,2,test,z")
    report = load(folder, table, on_error="skip").report
    assert report.to_dict() == {
        "name": "manifest",
        "version": report.version,
        "release": report.release,
        "transcripts": "",
        "digest": report.digest,
        "label_scale": [1.0, 7.0],
        "utterances": {"train": 2, "test": 1},
        "hours": {"train": pytest.approx(1.9 / 3600), "test": pytest.approx(0.6 / 3600)},
        "speakers": {"train": 1, "test": 1},
        "labels": {
            split: {
                "activation": {"rated": 0, "mean": None, "std": None},
                "valence": {"rated": rated, "mean": mean, "std": 0.0},
                "dominance": {"rated": 0, "mean": None, "std": None},
            }
            for split, rated, mean in (("train", 2, 1.0), ("test", 1, 2.0))
        },
        "durations": {"train": {"0-1": 1, "1-2": 1}, "test": {"0-1": 1}},
        "skipped": {"outside the scale": 2},
        "warnings": [],
        "notes": [
            "no rows of validation",
            "1 utterance of unknown speakers: whether these cross splits cannot be checked",
            f"the table of all problems that were skipped: {problems_file(folder)}",
        ],
        "terms": "",
        "licence": "",
        "language": "",
        "about": "",
    }
    assert re.fullmatch("[0-9a-f]{12}-[0-9a-f]{12}", report.version)
    assert str(report).splitlines() == [
        f"manifest {report.version}, labels from 1 to 7 (mean ± standard deviation)",
        "             utterances    hours speakers    activation       valence     dominance",
        "train                 2     0.00        1     not rated   1.00 ± 0.00     not rated",
        "test                  1     0.00        1     not rated   2.00 ± 0.00     not rated",
        "0-1 s                 2 ########################################",
        "1-2 s                 1 ####################",
        "left out: 2 rows: outside the scale (2)",
        "note: no rows of validation",
        "note: 1 utterance of unknown speakers: whether these cross splits cannot be checked",
        f"note: the table of all problems that were skipped: {problems_file(folder)}",
    ]
    report.save(folder / "report.json")
    saved = json.loads((folder / "report.json").read_text())
    assert saved["config"]["label_scale"] == [1, 7]
    assert saved["problems"][1] == {
        "row": "manifest.csv:5",
        "reason": "outside the scale",
        "detail": "the scale is 1 to 7",
        "id": "d",
        "field": "valence",
        "value": "8",
    }


def test_the_version_follows_the_table(folder):
    versions = [load(folder, clash(f"a,0.wav,{label},train,")).report.version for label in (1, 2, 1)]
    assert versions[0] == versions[2] != versions[1]


def test_the_message_shows_the_first_cases_the_counts_and_what_to_do(folder):
    rows = [f"r{number},0.wav,9,train," for number in range(30)]
    with pytest.raises(ValueError, match="the corpus 'manifest' has 59 problems") as caught:
        load(folder, clash(*rows))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith(": outside the scale (30), audio used twice (29)")
    assert lines[1] == "  manifest.csv:2 (id 'r0'), valence '9': outside the scale: the scale is 1 to 7"
    assert lines[21] == "  ... and 39 more"
    assert lines[22] == f"all of them, as a table: {problems_file(folder)}"
    assert problems_file(folder).read_text(encoding="utf-8").splitlines()[:2] == [
        "row,reason,detail,id,field,value",
        "manifest.csv:2,outside the scale,the scale is 1 to 7,r0,valence,9",
    ]
    assert len(problems_file(folder).read_text(encoding="utf-8").splitlines()) == 1 + 59
    assert "outside the scale: correct the label, or the scale of the corpus." in lines
    assert 'or pass on_error="skip"' in lines[-1]
    assert len(lines) == 26
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_report_survives_pickling(folder):
    corpus = load(folder, clash("a,0.wav,1,train,"))
    assert pickle.loads(pickle.dumps(corpus)).report == corpus.report


# Any text gives rows or a CorpusError that says where

CELLS = st.sampled_from(["", " ", "0.wav", "x.wav", "..", "\0", "train", "1", "nan", "1e999", "ä\u2028"]) | st.text(
    max_size=5
)
GOOD_ROWS = st.integers(0, 9).map(lambda number: [f"r{number}", f"{number}.wav", "4", "train", ""])
ANY_ROWS = st.lists(CELLS, min_size=4, max_size=6).filter(any)
CSV_TEXT = st.text(st.sampled_from("audio,valence,split\n\r\t\"'; 0.wav1train\0ä\ufeff"), max_size=80)
FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(rows=st.lists(GOOD_ROWS | ANY_ROWS, min_size=1, max_size=6))
def test_no_row_of_a_table_is_lost(folder, rows):
    lines = [["id", "audio", "valence", "split", "speaker"], *rows]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    (folder / "manifest.csv").write_bytes("\n".join(quoted).encode())
    try:
        corpus = load(folder, on_error="skip")
    except CorpusError as error:
        report = error.report
        assert all(re.fullmatch(r"(manifest\.csv:\d+)?", problem.row) for problem in report.problems)
    else:
        report = corpus.report
        assert sum(map(len, corpus.values())) == sum(report.utterances.values())
    if "broken table" not in {problem.reason for problem in report.problems}:
        assert sum(report.utterances.values()) + sum(report.skipped.values()) == len(rows)


@FUZZ
@given(text=CSV_TEXT.map(str.encode) | st.binary(max_size=40))
def test_any_text_gives_rows_or_an_error_that_says_where(folder, text):
    (folder / "manifest.csv").write_bytes(b"audio,valence,split\n0.wav,4,train\n" + text)
    try:
        assert load(folder)["train"]["id"][0] == "0"
    except CorpusError as error:
        assert error.report.problems
        assert all(re.fullmatch(r"manifest\.csv:\d+", problem.row) for problem in error.report.problems)
