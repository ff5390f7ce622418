"""`dataset`: data sets as datasets itself writes them, on the disk and on a Hub."""

import hashlib
import io
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value
from local_hub import LocalHub

from cmkd.corpora import load_corpus
from cmkd.corpora.report import CorpusError
from cmkd.corpora.schema import FEATURES, Corpus, StreamedCorpus
from cmkd.features.audio import read_audio

RATE = 8000
SCALE = (1, 5)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def samples(number):
    return np.random.default_rng(number).integers(-9000, 9000, RATE // 10 * (number + 1), dtype=np.int16)


def flac(number):
    file = io.BytesIO()
    soundfile.write(file, samples(number), RATE, format="FLAC")
    return file.getvalue()


def cells(numbers, **columns):
    """Columns of rows with sound of their own, named by number."""
    own = {
        "speech": [{"bytes": flac(number), "path": f"{number}.flac"} for number in numbers],
        "ratings": [{"arousal": 1 + number % 5, "valence": f"{1 + number / 4:.2f}"} for number in numbers],
        "text": [f"Word {number}." for number in numbers],
        "speaker": [number % 2 for number in numbers],
    }
    return own | {name: [value(number) for number in numbers] for name, value in columns.items()}


FEATURES_OF_SOURCE = Features(
    {
        "speech": {"bytes": Value("binary"), "path": Value("string")},
        "ratings": {"arousal": Value("int32"), "valence": Value("string")},
        "text": Value("string"),
        "speaker": ClassLabel(names=["anna", "bert"]),
    }
)
COLUMNS = {"transcript": "text"}


def source(numbers):
    rows = Dataset.from_dict(cells(numbers), features=FEATURES_OF_SOURCE)
    return rows.cast_column("speech", Audio(decode=False)).cast_column("speech", Audio())  # as it is left by datasets


def source_splits():
    """Anna and Bert are in train only: 0 to 3; others have no speaker in test."""
    return DatasetDict({"train": source(range(4)), "test": source(range(4, 6))})


def load(path, **config):
    return load_corpus("dataset", path=str(path), **{"label_scale": SCALE, "columns": COLUMNS, **config})


def unknown_speakers(splits):
    """Without the speakers, which are the same in all splits."""
    return DatasetDict({split: rows.remove_columns("speaker") for split, rows in splits.items()})


def write_folder(folder, splits):
    for split, rows in splits.items():
        rows.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def write_saved(folder, splits):
    splits.save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.fixture(params=[write_folder, write_saved])
def path(tmp_path, request):
    (tmp_path / "source/data").mkdir(parents=True)
    return request.param(tmp_path / "source", unknown_speakers(source_splits()))


def check(splits):
    """The rows of `unknown_speakers(source_splits())`."""
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        rows = list(splits[split])
        assert [row["id"] for row in rows] == [f"{split}-{number - numbers[0]}" for number in numbers]
        assert [row["transcript"] for row in rows] == [f"Word {number}." for number in numbers]
        assert [row["activation"] for row in rows] == [1 + number % 5 for number in numbers]
        assert [row["valence"] for row in rows] == pytest.approx([1 + number / 4 for number in numbers])
        assert all(np.isnan(row["dominance"]) for row in rows)
        assert [row["duration"] for row in rows] == pytest.approx([(number + 1) / 10 for number in numbers])
        assert [row["split"] for row in rows] == [split] * len(numbers)
        for row, number in zip(rows, numbers, strict=True):
            assert row["audio"]["path"] == f"{number}.flac"
            np.testing.assert_array_equal(read_audio(row["audio"], RATE), samples(number) / np.float32(2**15))


def test_a_data_set_of_the_disk(path):
    corpus = load(path)
    assert isinstance(corpus, Corpus) and list(corpus) == ["train", "test"]
    assert all(rows.features == FEATURES for rows in corpus.values())
    check(corpus)
    assert corpus.report.hours["train"] == pytest.approx(1.0 / 3600)
    assert "the column 'speech', the only one with sound, is read as 'audio'" in corpus.report.notes
    assert "the column 'ratings.arousal' is read as 'activation'" in corpus.report.notes
    assert load(path).report == corpus.report


def test_a_data_set_is_streamed(path):
    corpus = load(path, streaming=True)
    assert isinstance(corpus, StreamedCorpus)
    check(corpus)
    check(corpus)  # once more
    assert corpus.report.utterances == {"train": 4, "test": 2} and corpus.report.hours["train"] is None


def test_it_is_built_once_and_anew_if_it_changes(tmp_path, monkeypatch):
    folder = write_saved(tmp_path / "a", unknown_speakers(source_splits()))
    version = load(folder).report.version
    monkeypatch.setattr("cmkd.corpora.checks.digest_audio", None)  # is not called again
    assert load(folder).report.version == version
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    other = source_splits()
    other["test"] = source([4, 8])
    assert load(write_saved(tmp_path / "b", unknown_speakers(other))).report.digest != version.split("-")[-1]


def test_class_labels_are_read_by_name_and_speakers_in_two_splits_are_found(tmp_path):
    source_splits().save_to_disk(tmp_path / "saved")
    with pytest.raises(CorpusError) as caught:
        load(tmp_path / "saved")
    problem = caught.value.report.problems[0]
    assert (problem.reason, problem.value) == ("speaker in two splits", "anna")
    assert problem.row == f"{tmp_path / 'saved'}/train:0"
    corpus = load(tmp_path / "saved", splits={"train": "train"})
    assert corpus["train"]["speaker"][:] == ["anna", "bert", "anna", "bert"]


def test_splits_that_the_user_names(tmp_path):
    folder = write_folder(tmp_path / "source", {"train": source(range(6)).remove_columns("speaker")})
    corpus = load(folder, splits={"train": "train[:4]", "dev": "train[4:]"})
    assert {split: rows["transcript"][:] for split, rows in corpus.items()} == {
        "train": [f"Word {number}." for number in range(4)],
        "validation": ["Word 4.", "Word 5."],
    }
    source(range(2)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"splits\['test'\] is 'tset', but .* has the splits 'train'"):
        load(tmp_path / "saved", splits={"test": "tset"})


def test_a_column_divides_a_data_set_of_one_split(tmp_path):
    rows = source(range(4)).remove_columns("speaker").add_column("split", ["train", "Train", "dev", "test"])
    rows.save_to_disk(tmp_path / "saved")
    corpus = load(tmp_path / "saved")
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 2, "validation": 1, "test": 1}
    assert "the splits are those of the column 'split'" in corpus.report.notes
    DatasetDict(
        {"train": rows, "test": source([7, 8]).remove_columns("speaker").add_column("split", ["test"] * 2)}
    ).save_to_disk(tmp_path / "two")
    with pytest.raises(CorpusError) as caught:
        load(tmp_path / "two")
    assert [problem.value for problem in caught.value.report.problems] == ["dev", "test"]
    assert {problem.reason for problem in caught.value.report.problems} == {"two splits"}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_sound_files(tmp_path, streaming):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = []
    for number in range(3):
        (folder / f"{number}.flac").write_bytes(flac(number))
        lines.append(json.dumps({"file_name": f"{number}.flac", "valence": number + 1, "start": 0.05}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    corpus = load(folder, columns=None, streaming=streaming)
    rows = list(corpus["train"])
    assert [row["duration"] for row in rows] == pytest.approx([0.05, 0.15, 0.25])
    assert [row["valence"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_tables_with_paths(tmp_path, ending):
    for number in range(2):
        (tmp_path / f"{number}.flac").write_bytes(flac(number))
    rows = Dataset.from_dict({"file": ["0.flac", "1.flac"], "arousal": [1.5, None], "valence": [None, 2]})
    (rows.to_csv if ending == "csv" else rows.to_json)(tmp_path / f"rows.{ending}")
    kind = {"csv": "csv", "jsonl": "json"}[ending]
    settings = {"data_files": str(tmp_path / f"rows.{ending}"), "columns": {"audio": "file"}}
    corpus = load(kind, audio_dir=tmp_path, **settings)
    assert corpus["train"]["audio"][0]["path"] == str(tmp_path / "0.flac")
    assert corpus["train"]["activation"][0] == 1.5 and np.isnan(corpus["train"]["activation"][1])
    streamed = load(kind, audio_dir=tmp_path, streaming=True, **settings)
    assert [row["duration"] for row in streamed["train"]] == pytest.approx([0.1, 0.2])


def test_bad_rows_are_refused_or_skipped_as_everywhere(tmp_path):
    columns = cells(range(3)) | {
        "speech": [{"bytes": flac(0), "path": None}, {"bytes": b"no sound", "path": "x"}, None]
    }
    rows = Dataset.from_dict(columns, features=FEATURES_OF_SOURCE).cast_column("speech", Audio(decode=False))
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(CorpusError) as caught:
        load(tmp_path / "saved")
    assert [(p.row.split(":")[-1], p.reason) for p in caught.value.report.problems] == [
        ("1", "unreadable audio"),
        ("2", "missing value"),
    ]
    corpus = load(tmp_path / "saved", on_error="skip")
    assert corpus["train"]["id"][:] == ["train-0"]
    streamed = load(tmp_path / "saved", on_error="skip", streaming=True)
    assert [row["id"] for row in streamed["train"]] == ["train-0"]
    rows.select(range(2)).save_to_disk(tmp_path / "two")
    with pytest.raises(CorpusError, match="unreadable audio"):
        list(load(tmp_path / "two", streaming=True)["train"])


def test_what_does_not_suffice_is_refused(tmp_path):
    rows = source(range(2))
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"columns\['transcript'\] is 'texts', but .* Did you mean 'text'"):
        load(tmp_path / "saved", columns={"transcript": "texts"})
    with pytest.raises(ValueError, match="columns has 'words', but must have some of"):
        load(tmp_path / "saved", columns={"words": "text"})
    with pytest.raises(ValueError, match="label_scale is None, but .* has no column of this name"):
        load(tmp_path / "saved", label_scale=None)
    with pytest.raises(ValueError, match="revision is 'v1', but .* was written by save_to_disk"):
        load(tmp_path / "saved", revision="v1")
    with pytest.raises(ValueError, match="the corpus 'dataset' needs 'path'"):
        load_corpus("dataset", label_scale=SCALE)
    rows.remove_columns("speech").save_to_disk(tmp_path / "mute")
    with pytest.raises(CorpusError, match="no column 'audio'"):
        load(tmp_path / "mute")
    DatasetDict({"train": rows, "test": rows.remove_columns("text")}).save_to_disk(tmp_path / "odd")
    with pytest.raises(CorpusError, match="columns of train and test differ: text: in one of them only"):
        load(tmp_path / "odd")


FROM_HUB = """
import json, sys
import datasets
from cmkd.features.audio import digest_audio
from cmkd.corpora import load_corpus

settings = {"path": "user/speech", "columns": {"transcript": "text"}, "label_scale": (1, 5)}
answers = {}
for name, further in {"whole": {}, "streamed": {"streaming": True}, "tagged": {"revision": "v1"}}.items():
    corpus = load_corpus("dataset", **settings, **further)
    rows = {split: list(corpus[split]) for split in corpus}
    answers[name] = {split: [[row["id"], row["activation"], row["duration"]] for row in rows[split]] for split in rows}
    answers[name + " version"] = corpus.report.version
try:
    load_corpus("dataset", **{**settings, "path": "user/nothing"})
except FileNotFoundError as error:
    answers["nothing"] = str(error)
pushed = load_corpus("dataset", path="user/pushed")
answers["pushed"] = [pushed.report.digest, list(pushed.report.label_scale)]
(row,) = load_corpus("dataset", path="user/cut")["train"]
answers["cut"] = [row["id"], row["duration"], row["start"], row["end"], row["channel"], digest_audio(row["audio"])]
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_a_data_set_of_the_hub(python, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "0"}
    with LocalHub() as hub:
        environment |= hub.environment(tmp_path / "hub")
        for number in range(2):
            soundfile.write(tmp_path / f"{number}.wav", samples(number), RATE)
        (tmp_path / "manifest.csv").write_text(
            "id,audio,valence,speaker,split\na,0.wav,2,anna,train\nb,1.wav,3,bert,test\n"
        )
        own = load_corpus("manifest", tmp_path, label_scale=SCALE)
        unknown_speakers(source_splits()).save_to_disk(tmp_path / "saved")
        (tmp_path / "hour").mkdir()
        noise = np.random.default_rng(0).integers(-9000, 9000, (60 * RATE, 2), dtype=np.int16)
        soundfile.write(tmp_path / "hour/hour.wav", noise, RATE)
        (tmp_path / "hour/manifest.csv").write_text(
            "id,audio,start,end,channel,valence,split\na/b,hour.wav,30,30.5,1,2,train\n"
        )
        push = (
            "import datasets, huggingface_hub\n"
            "from cmkd import load_corpus, push_corpus\n"
            f"datasets.load_from_disk({str(tmp_path / 'saved')!r}).push_to_hub('user/speech')\n"
            "huggingface_hub.HfApi().create_tag('user/speech', tag='v1', repo_type='dataset')\n"
            f"push_corpus(load_corpus('manifest', {str(tmp_path)!r}, label_scale=(1, 5)), 'user/pushed')\n"
            f"push_corpus(load_corpus('manifest', {str(tmp_path / 'hour')!r}, label_scale=(1, 5)), 'user/cut')\n"
        )
        for code in (push, FROM_HUB):
            done = subprocess.run(
                [python.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    expected = {
        "train": [[f"train-{number}", 1 + number % 5, pytest.approx((number + 1) / 10)] for number in range(4)],
        "test": [[f"test-{number - 4}", 1 + number % 5, pytest.approx((number + 1) / 10)] for number in range(4, 6)],
    }
    assert answers["whole"] == answers["streamed"] == answers["tagged"] == expected
    assert answers["whole version"].startswith("main-") and answers["tagged version"].startswith("v1-")
    assert answers["streamed version"] == "main-streamed"
    assert "user/nothing" in answers["nothing"]
    assert answers["pushed"] == [own.report.digest, [1, 5]]
    heard = noise[30 * RATE : 30 * RATE + RATE // 2, 1] / np.float32(2**15)
    assert answers["cut"] == ["a/b", 0.5, None, None, None, [0.5, hashlib.sha256(heard.tobytes()).hexdigest()]]
    (cut,) = [content for name, content in hub.files("datasets", "user/cut").items() if name.endswith(".parquet")]
    assert len(cut) < 30_000  # of 1.9 MB
