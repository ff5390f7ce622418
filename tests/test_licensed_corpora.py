"""How licensed corpora are built, kept, streamed and pushed: with a small corpus of its own and the real Hub client."""

import json
import os
import re
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from local_hub import LocalHub
from toys_corpus import TERMS, as_text, build, source_rows, write

from cmkd.corpora.known_sizes import KnownSize
from cmkd.corpora.report import CorpusError, CorpusReport
from cmkd.corpora.schema import ANNOTATOR_FEATURES, FEATURES, Corpus, StreamedCorpus
from cmkd.features.audio import AudioError, digest_audio
from cmkd.hub.corpus import corpus_card, tag_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "cmkd"


@pytest.fixture
def folder(tmp_path):
    """0.wav to 8.wav, of 0.1 s to 0.9 s."""
    folder = tmp_path / "toys"
    folder.mkdir()
    for number in range(9):
        write(folder / f"{number}.wav", number, (number + 1) / 10)
    return folder


def refused(folder, rows):
    with pytest.raises(CorpusError) as caught:
        build(folder, rows)
    return [(problem.row, problem.reason, problem.detail) for problem in caught.value.report.problems]


# What is built, and kept


def test_the_rows_are_those_that_stay_in_memory_elsewhere(folder):
    corpus = build(folder)
    assert {split: corpus[split]["id"][:] for split in corpus} == {
        "train": ["u0", "u1", "u2", "u3", "u4"],
        "validation": ["u5", "u6"],
        "test": ["u7", "u8"],
    }
    assert corpus["train"].features == FEATURES
    kept = [row for split in corpus.values() for row in split]
    assert as_text(kept) == as_text(row for split in Corpus.from_rows(kept, corpus.report).values() for row in split)
    assert kept[8]["duration"] == pytest.approx(0.9) and kept[8]["split"] == "test"


def test_an_unchanged_corpus_is_taken_from_the_disk_with_its_report(folder, monkeypatch):
    first = build(folder, annotators=True)
    monkeypatch.setattr("cmkd.corpora.checks.digest_audio", None)  # reading audio would fail
    second = build(folder, annotators=True)
    assert second.report == first.report
    assert as_text(second["train"]) == as_text(first["train"])
    assert second["train"].features == {**FEATURES, **ANNOTATOR_FEATURES}
    assert second["train"].cache_files == first["train"].cache_files != []


def change_a_label(folder, rows):
    rows[0].activation = 1.2


def change_a_transcript(folder, rows):
    rows[0].transcript = "Another word."


def change_the_audio(folder, rows):
    write(folder / "0.wav", 100, 0.5)


def change_the_audio_but_not_its_size(folder, rows):
    write(folder / "0.wav", 100)


@pytest.mark.parametrize(
    "change", [change_a_label, change_a_transcript, change_the_audio, change_the_audio_but_not_its_size]
)
def test_a_changed_corpus_is_built_anew(folder, change):
    before = build(folder)
    rows = source_rows()
    change(folder, rows)
    after = build(folder, rows)
    assert after.report.version != before.report.version
    assert after["train"].cache_files != before["train"].cache_files
    assert build(folder, rows).report == after.report


def test_the_version_is_that_of_the_content_not_of_the_folder(folder):
    version = build(folder).report.version
    os.utime(folder / "0.wav", (1, 1))
    moved = folder.rename(folder.with_name("moved"))
    corpus = build(moved)
    assert corpus.report.version == version and version.startswith("1.0-")
    assert corpus["train"]["audio"][0]["path"] == str(moved / "0.wav")


def test_nothing_is_left_behind_by_a_build_that_fails(folder, cache):
    (folder / "4.wav").write_bytes(b"no sound")
    assert [row for row, _, _ in refused(folder, source_rows())] == ["labels.csv:6"]
    assert list(cache.rglob("*.arrow")) == list(cache.rglob("report.json")) == []
    write(folder / "4.wav", 4)
    assert len(build(folder)["train"]) == 5


def test_the_version_is_made_of_fields(folder):
    report = build(folder).report
    assert (report.release, report.transcripts, report.is_streamed) == ("1.0", "", False)
    assert re.fullmatch("[0-9a-f]{12}", report.digest) and report.version == f"1.0-{report.digest}"
    streamed = build(folder, streaming=True).report
    assert (streamed.release, streamed.digest, streamed.is_streamed) == ("1.0", "", True)


def test_a_report_is_read_as_it_was_saved(folder, tmp_path):
    rows = source_rows()
    rows[0].transcript = "\udc80 is no text"
    report = build(folder, rows, on_error="skip").report
    report.save(tmp_path / "report.json")
    assert CorpusReport.load(tmp_path / "report.json") == report
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json is not valid JSON .*: delete the folder that it is in"):
        CorpusReport.load(tmp_path / "report.json")


def test_several_processes_write_the_same_rows(folder, tmp_path, monkeypatch):
    rows = {split: as_text(rows) for split, rows in build(folder).items()}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another_cache")
    corpus = build(folder, num_proc=2)
    assert len(corpus["train"].cache_files) == 2
    assert {split: as_text(rows) for split, rows in corpus.items()} == rows


# Streaming


def test_streamed_rows_are_those_of_the_built_corpus_and_nothing_is_kept(folder, cache):
    streamed = build(folder, annotators=True, streaming=True)
    assert isinstance(streamed, StreamedCorpus)
    rows = {split: as_text(rows) for split, rows in streamed.items()}
    assert list(cache.rglob("*.arrow")) == []
    assert rows == {split: as_text(rows) for split, rows in build(folder, annotators=True).items()}
    assert streamed.report.utterances == {"train": 5, "validation": 2, "test": 2}
    assert streamed.report.hours == {"train": None, "validation": None, "test": None}
    assert streamed.report.version == "1.0-streamed"


def test_a_streamed_corpus_is_checked_as_far_as_tables_and_names_of_files_go(folder):
    rows = source_rows()
    rows[0].valence = "9"
    rows[1].audio = "nowhere.wav"
    with pytest.raises(CorpusError) as caught:
        build(folder, rows, streaming=True)
    assert [problem.reason for problem in caught.value.report.problems] == ["outside the scale", "missing file"]


def test_broken_audio_in_a_stream(folder, caplog):
    (folder / "1.wav").write_bytes(b"no sound")
    with pytest.raises(CorpusError, match=r"u1, audio '.*1\.wav': unreadable audio"):
        list(build(folder, streaming=True)["train"])
    ids = [row["id"] for row in build(folder, on_error="skip", streaming=True)["train"]]
    assert ids == ["u0", "u2", "u3", "u4"]
    assert "left out of the stream: u1" in caplog.text


def test_the_rows_of_a_stream_can_be_shared_between_workers(folder):
    train = build(folder, streaming=True)["train"]
    shards = [[row["id"] for row in train.shard(2, index)] for index in range(2)]
    assert sorted(shards[0] + shards[1]) == ["u0", "u1", "u2", "u3", "u4"] and all(shards)


# The same sound


@pytest.mark.parametrize(("name", "settings"), [("9.wav", {}), ("9.flac", {}), ("9.wav", {"subtype": "PCM_24"})])
def test_the_same_sound_in_two_splits_is_an_error_whatever_the_file(folder, name, settings):
    write(folder / name, 0, **settings)
    assert (folder / name).read_bytes() != (folder / "0.wav").read_bytes() or not settings
    rows = source_rows()
    rows[8].audio = name
    assert refused(folder, rows) == [
        ("labels.csv:2", "same sound in two splits", f"'{name}' also in labels.csv:10, split test")
    ]
    assert build(folder, rows, on_error="skip")["train"]["id"][:] == ["u1", "u2", "u3", "u4"]


def test_every_pair_is_named(folder):
    for number in (1, 5, 8):
        write(folder / f"{number}.wav", 0)
    assert [(row, detail[-28:]) for row, _, detail in refused(folder, source_rows())] == [
        ("labels.csv:2", "also in labels.csv:10, split test"[-28:]),
        ("labels.csv:3", "also in labels.csv:10, split test"[-28:]),
        ("labels.csv:7", "also in labels.csv:10, split test"[-28:]),
    ]


def test_the_same_sound_in_one_split_is_noted(folder):
    for number in (1, 2):
        write(folder / f"{number}.wav", 0)
    corpus = build(folder)
    assert len(corpus["train"]) == 5
    assert (
        "2 utterances with the sound of another one of the same split, "
        "first 'u1' (labels.csv:3) like 'u0' (labels.csv:2)"
    ) in corpus.report.notes


def test_a_digest_is_that_of_the_samples(tmp_path):
    write(tmp_path / "a.wav", 0, 200)  # longer than a block
    write(tmp_path / "b.flac", 0, 200)
    write(tmp_path / "c.wav", 1, 200)
    a, b, c = (digest_audio(tmp_path / name) for name in ("a.wav", "b.flac", "c.wav"))
    assert a == b and a.duration == 200 and a.sha256 != c.sha256


def test_a_digest_is_taken_of_good_audio_only(tmp_path):
    samples = np.zeros(2_000_000, dtype=np.float32)
    samples[1_500_000] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="non-finite audio"):
        digest_audio(tmp_path / "a.wav")


# The card


def test_the_card(folder):
    report = build(folder).report
    assert str(report).splitlines() == [
        f"toys {report.version}, labels from 1 to 7 (mean ± standard deviation)",
        "             utterances    hours speakers    activation       valence     dominance",
        "train                 5     0.00        1   2.10 ± 0.71   4.20 ± 0.00   3.00 ± 0.00",
        "validation            2     0.00        1   3.85 ± 0.25   4.20 ± 0.00   3.00 ± 0.00",
        "test                  2     0.00        1   4.85 ± 0.25   4.20 ± 0.00   3.00 ± 0.00",
        "0-1 s                 9 ########################################",
    ]
    assert report.labels["train"]["valence"]["rated"] == 4


def test_a_report_is_saved_whole_and_read_back(folder):
    report = build(folder).report
    report.save(folder / "report.json")
    assert CorpusReport.load(folder / "report.json") == report
    assert json.loads((folder / "report.json").read_text())["utterances"] == {"train": 5, "validation": 2, "test": 2}
    assert [path.name for path in folder.iterdir() if path.suffix not in (".wav", ".json")] == []


@pytest.mark.parametrize(
    ("known", "skipped", "warnings"),
    [
        (KnownSize("Toys 1", {"train": 5, "test": 2}, total=9, hours=4.5 / 3600), {}, []),
        (KnownSize("Toys 1", total=9, hours=4.6 / 3600), {}, []),
        (
            KnownSize("Toys 1", {"train": 7, "validation": 2}),
            {},
            ["train has 5 utterances, but Toys 1 has 7: the copy is incomplete, or another, probably earlier, release"],
        ),
        (
            KnownSize("Toys 1", {"train": 7, "validation": 2}),
            {"missing file": 2},
            ["train has 5 utterances, but Toys 1 has 7: 2 were left out: see the reasons below"],
        ),
        (
            KnownSize("Toys 1", total=8),
            {},
            [
                "there are 9 utterances, but Toys 1 has 8: this is another, probably later, release, or something was "
                "added"
            ],
        ),
        (
            KnownSize("Toys 1", total=9, hours=1.0),
            {},
            [
                "there are 0.00 h, but Toys 1 has 1 h: the utterances are all there, so the audio itself differs: cut, "
                "padded, or at a wrong rate"
            ],
        ),
    ],
)
def test_known_sizes(folder, known, skipped, warnings):
    report = build(folder).report
    report.skipped = skipped
    assert known.mismatches(report) == warnings


def test_a_mismatch_is_in_the_report_also_of_the_next_load(folder, caplog):
    known = KnownSize("Toys 1", total=8)
    for _ in range(2):
        caplog.clear()
        report = build(folder, known_size=known).report
        assert len(report.warnings) == 1 and report.warnings[0] in str(report).splitlines()[1]
        assert report.warnings[0] in caplog.text


# The Hub


PUSH = """
import json, sys
sys.path[:0] = [{tests!r}, {checkout!r}]
from pathlib import Path
import cmkd, datasets
from toys_corpus import TERMS, as_text, build
folder = Path({folder!r})
corpus = build(folder, terms=TERMS, annotators=True)

def attempt(**settings):
    try:
        cmkd.push_corpus(corpus, **settings)
    except (PermissionError, ValueError) as error:
        return f"{{type(error).__name__}}: {{error}}"

def sound(audio):
    return (audio["bytes"] or Path(audio["path"]).read_bytes()).hex()

def content(rows):
    return [{{**row, "audio": sound(row["audio"])}} for row in rows]

answers = {{
    "private": attempt(repo_id="user/toys"),
    "again": attempt(repo_id="user/toys"),
    "public": attempt(repo_id="user/open", private=False),
    "no sentence": attempt(repo_id="user/open", private=False, public_permission="yes"),
    "allowed": attempt(repo_id="user/allowed", private=False, public_permission="The Institute of Toys wrote so."),
    "already public": attempt(repo_id="user/allowed"),
}}
loaded = datasets.load_dataset("user/toys")
answers["rows"] = {{split: as_text(content(rows)) == as_text(content(loaded[split])) for split, rows in corpus.items()}}
answers["splits"] = list(loaded)
answers["features"] = loaded["train"].features == corpus["train"].features
answers["paths"] = [audio["path"] for audio in loaded["test"]["audio"]]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pushed(python, tmp_path_factory):
    """The answers of a process that pushes to a Hub of its own, the Hub, and the folder of the corpus."""
    folder = tmp_path_factory.mktemp("toys_of_a_user")
    for number in range(9):
        write(folder / f"{number}.wav", number, (number + 1) / 10)
    tests = Path(__file__).parent
    code = PUSH.format(tests=str(tests), checkout=str(tests.parent), folder=str(folder))
    with LocalHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path_factory.mktemp("home"))}
        process = subprocess.run(
            [python.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900
        )
        assert process.returncode == 0, process.stderr
        yield json.loads(process.stdout.splitlines()[-1]), hub, folder


@pytest.mark.slow
def test_what_is_loaded_from_the_hub_is_what_was_pushed(pushed):
    answers, _, _ = pushed
    assert answers["private"] is answers["again"] is None
    assert answers["splits"] == ["train", "validation", "test"]
    assert answers["rows"] == {"train": True, "validation": True, "test": True}
    assert answers["features"]
    assert answers["paths"] == ["7.wav", "8.wav"]


@pytest.mark.slow
def test_a_push_is_private_and_says_nothing_of_local_folders(pushed):
    _, hub, folder = pushed
    assert hub.repositories["datasets", "user/toys"].private
    files = hub.files("datasets", "user/toys")
    assert set(files) == {
        "README.md",
        *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
    }
    for content in files.values():
        assert str(folder).encode() not in content and folder.name.encode() not in content


@pytest.mark.slow
def test_the_card_comes_first_with_the_terms(pushed):
    _, hub, _ = pushed
    repository = hub.repositories["datasets", "user/toys"]
    assert repository.messages[:3] == ["initial commit", "Card of the corpus", "Upload dataset"]
    first = repository.commits[list(repository.commits)[1]]
    assert set(first) == {"README.md"} and TERMS in first["README.md"].decode()
    final = hub.files("datasets", "user/toys")["README.md"].decode()
    assert "license: other" in final and "num_examples: 5" in final and f"**Terms:** {TERMS}" in final
    assert "train                 5     0.00        1   2.10 ± 0.71" in final


@pytest.mark.slow
def test_a_public_push_of_a_licensed_corpus_is_refused(pushed):
    answers, hub, _ = pushed
    assert answers["public"].startswith(f"PermissionError: private is False, but 'toys' is licensed: {TERMS}")
    assert answers["no sentence"].startswith("ValueError: public_permission is 'yes', but must be a sentence")
    assert ("datasets", "user/open") not in hub.repositories
    assert answers["already public"].startswith("PermissionError: repo_id is 'user/allowed', which exists and is")


@pytest.mark.slow
def test_a_sentence_allows_it_and_stands_on_the_card(pushed):
    answers, hub, _ = pushed
    assert answers["allowed"] is None
    assert not hub.repositories["datasets", "user/allowed"].private
    card = hub.files("datasets", "user/allowed")["README.md"].decode()
    assert "**Public** with this reason from whoever pushed it: The Institute of Toys wrote so." in card


@pytest.mark.parametrize("streaming", [False, True])
def test_the_method_of_datasets_that_pushes_without_a_look_at_the_licence_is_not_inherited(folder, streaming):
    """The Hub would be asked for the repository first, and is not: offline that is another error."""
    corpus = build(folder, terms=TERMS, streaming=streaming)
    for settings in ({}, {"private": True}, {"config_name": "toys", "num_proc": 2}):
        with pytest.raises(NotImplementedError, match=r"cmkd\.push_corpus\(corpus, repo_id\)"):
            corpus.push_to_hub("user/toys", **settings)


def test_the_tag_is_made_of_what_the_corpus_is():
    settings = {"name": "toys", "label_scale": (1, 7), "config": {}}
    assert (
        tag_of(CorpusReport(release="1.0", digest="0123456789ab", transcripts="cd", **settings)) == "cmkd-0123456789ab"
    )
    assert tag_of(CorpusReport(release="78b0bd36f61e", **settings)) == "cmkd-78b0bd36f61e"
    heard = CorpusReport(release="78b0bd36f61e", transcripts="0123456789ab", **settings)
    assert tag_of(heard) == "cmkd-78b0bd36f61e-transcripts-0123456789ab"


def test_the_card_of_a_corpus_without_terms_names_no_licence(folder):
    card = corpus_card(build(folder).report, None, "user/toys")
    assert "license" not in card.data.to_dict() and "Terms" not in card.text
