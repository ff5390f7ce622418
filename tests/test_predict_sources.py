"""What `cmkd predict` takes as a source: each kind against what `read_audio` or the pipeline says of the same sound."""

import io
import json
import sys

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from predictions import rows, run, save_student, write
from sounds import chirp, encoded
from transformers import pipeline

from cmkd.commands import main
from cmkd.features.audio import read_audio
from cmkd.predict.sources import Search, find_sources
from configuration_cmkd import EMOTION_DIMENSIONS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def score(model):
    return pipeline(model=str(model), trust_remote_code=True)


def names(*arguments, **search):
    return [source.name for source in find_sources([str(argument) for argument in arguments], Search(**search))]


def assert_stretches(found, score, expected):
    """Rows are those of stretches (path, start, end, channel), cut out by `read_audio`."""
    assert len(found) == len(expected)
    for row, (path, start, end, channel) in zip(found, expected, strict=True):
        wave = read_audio(path, start=start, end=end, channel="mean" if channel is None else channel)
        answer = score(wave, sampling_rate=16000)
        assert [row[name] for name in EMOTION_DIMENSIONS] == pytest.approx(list(answer["scores"].values()), abs=1e-6)
        assert (row["source"], row["channel"]) == (str(path), channel)
        assert row["start"] == pytest.approx(start or 0.0)
        assert row["end"] == pytest.approx(row["start"] + len(wave) / 16000)


def test_folders_globs_and_files_in_their_order(tmp_path):
    for name in ("b/2.WAV", "b/1.mp3", "b/c/0.m4a", "a.flac", ".hidden/x.wav", "b/.y.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("b/notes.txt", "b/more.txt", "README"):
        (tmp_path / name).write_text("x")
    search = Search()
    found = [source.name for source in find_sources([str(tmp_path)], search)]
    assert found == [str(tmp_path / name) for name in ("a.flac", "b/1.mp3", "b/2.WAV", "b/c/0.m4a")]
    assert search.passed_over == {".txt": 2, "": 1}
    assert names(tmp_path / "b/*.txt", tmp_path / "a.flac") == [
        str(tmp_path / name) for name in ("b/more.txt", "b/notes.txt", "a.flac")
    ]
    assert names(f"{tmp_path}/**/*.m*") == [str(tmp_path / "b/1.mp3"), str(tmp_path / "b/c/0.m4a")]
    (tmp_path / "[1].wav").write_bytes(b"x")
    assert names(tmp_path / "[1].wav") == [str(tmp_path / "[1].wav")]


LABEL_FILES = [f"call.wav.cmkd.{ending}" for ending in ("txt", "eaf", "TextGrid")]


def named(folder, how):
    """All files of a folder, as each kind of argument names them."""
    paths = sorted(map(str, folder.iterdir()))
    return {"folder": [folder], "glob": [f"{folder}/*"], "shell": paths, "list": ["-"]}[how], paths


@pytest.mark.parametrize("how", ["folder", "glob", "shell", "list", "address", "address of a glob"])
def test_label_files_that_were_written_beside_the_sounds_are_no_sources(how, tmp_path):
    for name in ("call.wav", "b.cmkd.wav", *LABEL_FILES):
        (tmp_path / name).write_bytes(b"x")
    sounds = ["b.cmkd.wav", "call.wav"]
    if how.startswith("address"):
        folder = f"{how}'s own labels"  # one file system for all tests of this process; `put` nests into what is there
        fsspec.filesystem("memory").put(str(tmp_path), f"/{folder}", recursive=True)
        arguments, lines = [f"memory://{folder}" + ("/*" if "glob" in how else "")], []
        expected = [f"memory:///{folder}/{name}" for name in sounds]
    else:
        arguments, lines = named(tmp_path, how)
        expected = [str(tmp_path / name) for name in sounds]
    search = Search(lines=lines)
    assert [source.name for source in find_sources([str(one) for one in arguments], search)] == expected
    assert (search.own_labels, search.passed_over) == (3, {})


@pytest.mark.parametrize("labels", ["audacity", "elan", "textgrid"])
def test_a_second_run_of_a_glob_does_not_take_its_own_labels(labels, model, tmp_path):
    if labels == "textgrid":
        pytest.importorskip("praatio")
    write(tmp_path / "in" / "call.wav", 1)
    first = run([f"{tmp_path}/in/*"], model, tmp_path / "out", labels=labels)
    second = run([f"{tmp_path}/in/*"], model, tmp_path / "out", labels=labels)
    assert (first.sources, second.sources, second.rows, second.errors) == (1, 1, 1, 0)
    assert "1 label files that cmkd predict has written were passed over" in str(second)
    assert "passed over" not in str(first)


def test_a_list_on_standard_input(model, tmp_path, monkeypatch, capsys):
    files = [write(tmp_path / f"{number} [a], b.wav", 0.3, number) for number in range(3)]
    lines = "".join(f"{path}\n" for path in [*files, tmp_path / "gone.wav", files[0]])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as ended:
        main(["predict", "-", "--model", str(model), "--output", str(tmp_path / "out"), "--readers", "0"])
    assert ended.value.code == 3
    assert "1 sources were named more than once, and count once" in capsys.readouterr().out
    assert [row["source"] for row in rows(tmp_path / "out")] == list(map(str, files))
    (error,) = rows(tmp_path / "out", "errors")
    assert (error["source"], error["kind"]) == (str(tmp_path / "gone.wav"), "missing file")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_manifest(kind, model, score, tmp_path):
    call = write(tmp_path / "calls" / "a.wav", 4, channels=2, rate=8000)
    film = tmp_path / "calls" / "b.webm"
    film.write_bytes(encoded(chirp(3, 48000), 48000, "webm", "libopus"))
    table = [
        {"id": "one", "audio": "calls/a.wav", "start": 0.5, "end": 1.75, "channel": 1},
        {"id": "two", "audio": str(film), "start": 1.0, "end": None, "channel": None},
        {"id": "three", "audio": "calls/a.wav", "start": None, "end": 2.0, "channel": None},
        {"id": "four", "audio": "calls/a.wav", "start": 1.0, "end": 3.5, "channel": 0},
    ]
    path = tmp_path / f"manifest.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, table)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        cells = [list(table[0]), *([("" if value is None else str(value)) for value in row.values()] for row in table)]
        path.write_text("\n".join(("," if kind == "csv" else "\t").join(row) for row in cells) + "\n\n")
    run([path], model, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["id"] for row in found] == ["one", "three", "four", "two"]  # those of a file together
    expected = [(call, 0.5, 1.75, 1), (call, None, 2.0, None), (call, 1.0, 3.5, 0), (film, 1.0, None, None)]
    assert_stretches(found, score, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.wav\n", "m.csv: a manifest has the column audio, .* this one has file"),
        ("audio,start,end\na.wav,2,1\n", "m.csv:2: start=2 must be before end=1"),
        ("audio,start\na.wav,\na.wav,-1\n", "m.csv:3: start is '-1', but must be a number of seconds from 0 on"),
        ("audio,channel\na.wav,left\n", "m.csv:2: channel is 'left', but must be a number from 0 on"),
        ("audio,start\na.wav\n", "m.csv:2: it has 1 fields, but the header has 2"),
        ('audio\n"a.wav\n', "m.csv:.*: quote a field"),
        ("audio\n", "m.csv: there is nothing in it to score"),
        ("audio,start\n,1\n", "m.csv:2: audio is '', but must be the path"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(text, message, tmp_path):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        names(tmp_path / "m.csv")


@pytest.mark.parametrize("ending", ["wav", "webm"])
def test_segments_of_rttm(ending, model, score, tmp_path):
    """Also of a file that a decoder cannot go back in, with more turns than it is decoded anew for."""
    audio = tmp_path / f"talk.{ending}"
    if ending == "wav":
        write(audio, 6)
    else:
        audio.write_bytes(encoded(chirp(6, 48000), 48000, ending, "libopus"))
    turns = [(0.25, 1.0, "anna"), (1.5, 0.75, "ben"), (1.5, 2.5, "anna"), (4.0, 0.5, "ben"), (4.5, 1.0, "anna")]
    lines = [f"SPEAKER talk 1 {start} {length} <NA> <NA> {who} <NA> <NA>" for start, length, who in turns]
    (tmp_path / "t.rttm").write_text("\n".join([";; a comment", "SPKR-INFO talk 1 <NA>", *lines]) + "\n")
    run([tmp_path / "t.rttm"], model, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["label"] for row in found] == [who for *_, who in turns]
    assert_stretches(found, score, [(audio, start, start + length, None) for start, length, _ in turns])


def test_channels_of_rttm_count_from_1_where_there_are_several(model, score, tmp_path):
    audio = write(tmp_path / "talk.wav", 3, channels=2)
    lines = [f"SPEAKER talk {channel} 0.5 1.5 <NA> <NA> s{channel} <NA> <NA>\n" for channel in (1, 2)]
    (tmp_path / "t.rttm").write_text("".join(lines))
    run([tmp_path / "t.rttm"], model, tmp_path / "out")
    assert_stretches(rows(tmp_path / "out"), score, [(audio, 0.5, 2.0, 0), (audio, 0.5, 2.0, 1)])


def test_tiers_of_a_textgrid(model, score, tmp_path):
    textgrid = pytest.importorskip("praatio.textgrid")
    audio = write(tmp_path / "talk.wav", 5)
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("anna", [(0.5, 1.5, "hello"), (2.0, 3.0, "")], 0, 5))
    grid.addTier(textgrid.IntervalTier("ben", [(1.25, 2.75, "hi, there")], 0, 5))
    grid.addTier(textgrid.PointTier("clicks", [(1.0, "x")], 0, 5))
    grid.save(str(tmp_path / "talk.TextGrid"), format="short_textgrid", includeBlankSpaces=True)
    with pytest.raises(ValueError, match="talk.TextGrid: it has the tiers anna and ben: say which, by --tier NAME"):
        names(tmp_path / "talk.TextGrid")
    with pytest.raises(ValueError, match="there is no tier of intervals 'bem', but anna and ben. Did you mean 'ben'?"):
        names(tmp_path / "talk.TextGrid", tiers=["bem"])
    run([tmp_path / "talk.TextGrid"], model, tmp_path / "out", tiers=["anna", "ben"])
    found = rows(tmp_path / "out")
    assert [row["label"] for row in found] == ["hello", "hi, there"]
    assert_stretches(found, score, [(audio, 0.5, 1.5, None), (audio, 1.25, 2.75, None)])


def test_segments_whose_sound_is_not_beside_them(model, tmp_path):
    (tmp_path / "t.rttm").write_text("SPEAKER talk 1 0 1 <NA> <NA> a <NA> <NA>\n")
    assert run([tmp_path / "t.rttm"], model, tmp_path / "out").errors == 1
    assert rows(tmp_path / "out", "errors")[0]["kind"] == "missing file"
    write(tmp_path / "talk.wav", 1), write(tmp_path / "talk.flac", 1)
    with pytest.raises(ValueError, match="the sound of 'talk' may be talk.flac and talk.wav: keep one beside it"):
        names(tmp_path / "t.rttm")
    (tmp_path / "u.rttm").write_text("SPEAKER talk 1 0\n")
    with pytest.raises(ValueError, match="u.rttm:1: a line of RTTM has 9 or 10 fields, this one 4"):
        names(tmp_path / "u.rttm")


def test_stretches_outside_of_their_file_are_errors(model, tmp_path):
    write(tmp_path / "a.wav", 2)
    (tmp_path / "m.csv").write_text("audio,start,end\na.wav,0,1\na.wav,1,3\na.wav,5,\n")
    assert run([tmp_path / "m.csv"], model, tmp_path / "out").errors == 2
    found = rows(tmp_path / "out", "errors")
    assert [(row["start"], row["end"], row["kind"]) for row in found] == [
        (1.0, 3.0, "stretch outside the audio"),
        (5.0, None, "stretch outside the audio"),
    ]


def test_data_sets(model, score, tmp_path):
    from datasets import Dataset, DatasetDict

    files = [write(tmp_path / "in" / f"{number}.wav", 0.5 + number / 4, number, channels=2) for number in range(3)]
    columns = {
        "id": ["x", "y", "z"],
        "sound": [
            {"path": str(files[0]), "bytes": None},
            {"path": "y.wav", "bytes": files[1].read_bytes()},
            {"path": str(files[2]), "bytes": None},
        ],
        "channel": [None, 1, None],
        "start": [None, None, 0.25],
    }
    rows_of = Dataset.from_dict(columns)
    DatasetDict({"train": rows_of.select([0]), "test": rows_of}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"say which split, such as dataset:.*\?split=train; it has .*split=test"):
        names(tmp_path / "saved")
    with pytest.raises(ValueError, match="there is no column 'audio', but id, sound, channel and start"):
        names(f"dataset:{tmp_path}/saved?split=test")
    with pytest.raises(ValueError, match="'colum' is none of .* Did you mean 'column'?"):
        names(f"dataset:{tmp_path}/saved?colum=sound")
    address = f"dataset:{tmp_path}/saved?split=test&column=sound"
    for readers in (0, 1):
        run([address], model, tmp_path / f"out{readers}", readers=readers)
    found = rows(tmp_path / "out0")
    assert found == rows(tmp_path / "out1")
    assert [row["source"] for row in found] == [f"{address}#{number}" for number in range(3)]
    assert [row["id"] for row in found] == ["x", "y", "z"]
    parts = [(files[0], None, "mean"), (files[1], None, 1), (files[2], 0.25, "mean")]
    for row, (path, start, channel) in zip(found, parts, strict=True):
        answer = score(read_audio(path, start=start, channel=channel), sampling_rate=16000)
        assert [row[name] for name in EMOTION_DIMENSIONS] == pytest.approx(list(answer["scores"].values()), abs=1e-6)
    assert run([address], model, tmp_path / "out0").hours == 0  # the same data set is the same


def test_addresses_of_any_file_system(model, score, tmp_path):
    """`memory://` lives in this process: a folder, a glob, a manifest, and a file that is not there."""
    files = {
        f"m/{name}.wav": write(tmp_path / f"{name}.wav", 1 + number / 2, number) for number, name in enumerate("abc")
    }
    memory = fsspec.filesystem("memory")
    for name, path in files.items():
        memory.pipe(f"/calls/{name}", path.read_bytes())
    memory.pipe("/calls/m/notes.txt", b"x")
    memory.pipe("/calls/list.csv", b"audio\nm/a.wav\nm/gone.wav\n")
    wanted = [f"memory://calls/m/{name}.wav" for name in "abc"]
    normal = [name.replace("memory:///", "memory://") for name in names("memory://calls")]
    assert normal == wanted
    assert [name.replace("memory:///", "memory://") for name in names("memory://calls/m/[bc].*")] == wanted[1:]
    with pytest.raises(FileNotFoundError, match="memory://calls/nowhere: there is no such file or folder"):
        names("memory://calls/nowhere")
    done = run(["memory://calls", "memory://calls/list.csv"], model, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["source"].replace("memory:///", "memory://") for row in found][:3] == wanted
    for row, path in zip(found, files.values(), strict=False):
        assert {name: row[name] for name in EMOTION_DIMENSIONS} == score(str(path))["scores"]
    assert done.errors == 1 and rows(tmp_path / "out", "errors")[0]["kind"] == "missing file"
    assert not list((tmp_path / "out/journal").glob(".downloads*/*"))


@pytest.fixture(scope="module")
def s3():
    """A server of S3 in this process, and the options that s3fs needs to find it."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.mark.slow
def test_s3(s3, model, score, tmp_path):
    files = [write(tmp_path / f"{number}.flac", 1 + number / 2, number, 44100) for number in range(3)]
    bucket = fsspec.filesystem("s3")
    bucket.mkdir("calls")
    for path in files:
        bucket.put(str(path), f"calls/2026/{path.name}")
    bucket.pipe("calls/2026/readme.txt", b"x")
    for readers in (0, 2):
        run(["s3://calls/2026"], model, tmp_path / f"out{readers}", readers=readers)
    found = rows(tmp_path / "out0")
    assert found == rows(tmp_path / "out2")
    assert [row["source"] for row in found] == [f"s3://calls/2026/{number}.flac" for number in range(3)]
    for row, path in zip(found, files, strict=True):
        assert {name: row[name] for name in EMOTION_DIMENSIONS} == score(str(path))["scores"]
    bucket.put(str(files[0]), "calls/2026/2.flac")  # another content under the same name
    bucket.invalidate_cache()
    done = run(["s3://calls/2026"], model, tmp_path / "out0")
    assert "1 sources have changed since they were scored" in str(done)
    assert [row["duration"] for row in rows(tmp_path / "out0")] == [1.0, 1.5, 1.0]


def test_what_cannot_be_fetched_is_tried_again_the_next_time(model, tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    from cmkd.predict import reading

    fsspec.filesystem("memory").pipe("/far/a.wav", write(tmp_path / "a.wav", 1).read_bytes())
    monkeypatch.setattr(reading._fetch.retry, "wait", lambda state: 0)
    calls = []

    def broken(self, *arguments, **options):
        calls.append(arguments)
        raise ConnectionResetError("the cable")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", broken)
        assert run(["memory://far/a.wav"], model, tmp_path / "out").errors == 1
    assert len(calls) == 4
    (error,) = rows(tmp_path / "out", "errors")
    assert error["kind"] == "unreachable" and "the cable" in error["message"]
    done = run(["memory://far/a.wav"], model, tmp_path / "out")
    assert (done.errors, done.rows) == (0, 1)
    assert "1 sources could not be fetched the last time, and are tried again" in str(done)


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="nosuch://a/b.wav: Protocol not known: nosuch"):
        names("nosuch://a/b.wav")
