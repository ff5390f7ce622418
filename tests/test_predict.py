"""`cmkd predict`: its rows against the pipeline's answers, its refusals, and what it does when it is killed."""

import csv
import json
import os

import numpy as np
import pytest
import soundfile
import torch
from predictions import RATE, rows, run, save_student, sound, write
from sounds import chirp, encoded, mp3
from transformers import Wav2Vec2FeatureExtractor, pipeline

from cmkd.commands import main
from cmkd.predict import pieces
from cmkd.predict import plan as plans
from cmkd.predict.engines import ModelChoice, TorchEngine, check_choice
from cmkd.predict.pieces import Piece, cut_into_pieces, pack, unpack
from cmkd.predict.plan import Incoming, Plan
from cmkd.predict.reading import Ended, Failed, Heard
from cmkd.predict.sources import Source
from configuration_cmkd import EMOTION_DIMENSIONS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def score(model):
    """The pipeline that travels with the checkpoint: what every row has to equal."""
    return pipeline(model=str(model), trust_remote_code=True)


def scores_of(row):
    return {name: row[name] for name in EMOTION_DIMENSIONS}


def ratings_of(row):
    return {name: row[f"{name}_rating"] for name in EMOTION_DIMENSIONS}


def assert_is(row, answer, embedding=True):
    """A row of `scores` has the pipeline's answer, to the bit."""
    assert scores_of(row) == answer["scores"]
    assert ratings_of(row) == answer["ratings"]
    assert (row["duration"], row["silent"]) == (answer["duration"], answer["silent"])
    assert row["windows"] == len(answer["timeline"])
    if embedding:
        assert row["embedding"] == np.float32(answer["embedding"]).tolist()


FILES = {
    "a.wav": lambda path: write(path, 1.3),
    "b.flac": lambda path: write(path, 2.1, 1, 44100, 2),
    "c.ogg": lambda path: write(path, 1.1, 2, 48000),
    "d.mp3": lambda path: path.write_bytes(mp3(chirp(2, 22050), 22050)),
    "e.m4a": lambda path: path.write_bytes(encoded(chirp(2, 16000), 16000, "ipod", "aac")),
    "f.webm": lambda path: path.write_bytes(encoded(chirp(2, 48000), 48000, "webm", "libopus")),
    "g.aiff": lambda path: write(path, 1.2, 3, 8000),
    "h.au": lambda path: write(path, 1.2, 4, 16000, 2),
    "i.caf": lambda path: write(path, 1.2, 5),
    "j.w64": lambda path: write(path, 1.2, 6, subtype="FLOAT"),
    "k.rf64": lambda path: write(path, 1.2, 7),
    "l.nist": lambda path: write(path, 1.2, 8),
    "m.mov": lambda path: path.write_bytes(encoded(chirp(2, 48000), 48000, "mov", "aac")),
    "n.aac": lambda path: path.write_bytes(encoded(chirp(2, 16000), 16000, "adts", "aac")),
    "o.mkv": lambda path: path.write_bytes(encoded(chirp(2, 16000), 16000, "matroska", "flac")),
    "p.wma": lambda path: path.write_bytes(encoded(chirp(2, 44100), 44100, "asf", "wmav2", 96000)),
    "q.mp4": lambda path: path.write_bytes(encoded(np.stack([chirp(2, 44100)] * 2), 44100, "mp4", "aac")),
    "r.3gp": lambda path: path.write_bytes(encoded(chirp(2, 16000), 16000, "3gp", "aac")),
    "joined.mp3": lambda path: path.write_bytes(2 * mp3(chirp(2, 16000))),
}


def test_every_format_scores_as_the_pipeline_does(model, score, tmp_path):
    (tmp_path / "sounds").mkdir()
    for name, make in FILES.items():
        make(tmp_path / "sounds" / name)
    done = run([tmp_path / "sounds"], model, tmp_path / "out", embeddings=True)
    found = rows(tmp_path / "out")
    assert [row["source"] for row in found] == [str(tmp_path / "sounds" / name) for name in sorted(FILES)]
    for row in found:
        assert_is(row, score(row["source"], return_embeddings=True))
    assert (done.rows, done.errors, done.sources) == (len(FILES), 0, len(FILES))
    assert done.hours * 3600 == pytest.approx(sum(row["duration"] for row in found))
    assert "3 sources with several channels are scored as the mean" in str(done)
    assert {row["channels"] for row in found} == {1, 2} and {row["channel"] for row in found} == {None}


@pytest.mark.slow
def test_windows_and_channels_are_the_pipelines(model, score, tmp_path):
    call = write(tmp_path / "call.wav", 7.3, rate=8000, channels=2)
    long = write(tmp_path / "long.mp3", 34)
    for options in ({"window": 2, "hop": 1.5, "channel": "each"}, {"channel": 1, "window": 3}, {}):
        output = tmp_path / f"out{len(options)}"
        sources = [call] if options.get("channel") == 1 else [call, long]
        run(sources, model, output, timeline=True, embeddings=True, **options)
        found, timeline = rows(output), rows(output, "timeline")
        answers = []
        for source in sources:
            answer = score(str(source), return_embeddings=True, **options)
            answers += (
                [(str(source), n, a) for n, a in enumerate(answer["channels"])]
                if "channels" in answer
                else [(str(source), options.get("channel"), answer)]
            )
        assert len(found) == len(answers)
        for row, (source, channel, answer) in zip(found, answers, strict=True):
            assert (row["source"], row["channel"]) == (source, channel)
            assert_is(row, answer)
            own = [each for each in timeline if each["source"] == source and each["channel"] == channel]
            assert [(each["start"], each["end"], each["silent"]) for each in own] == [
                (each["start"], each["end"], each["silent"]) for each in answer["timeline"]
            ]
            assert [scores_of(each) for each in own] == [each["scores"] for each in answer["timeline"]]
            assert [ratings_of(each) for each in own] == [each["ratings"] for each in answer["timeline"]]
            assert [each["embedding"] for each in own] == [
                np.float32(each["embedding"]).tolist() for each in answer["timeline"]
            ]


def test_readers_ahead_bring_the_same(model, tmp_path):
    sources = [write(tmp_path / "in" / f"{number}.wav", 0.3 + number / 3, number) for number in range(7)]
    sources.insert(3, write(tmp_path / "in" / "long.flac", 31, channels=2))
    (tmp_path / "in" / "broken.mp3").write_bytes(b"no sound")
    sources.insert(5, tmp_path / "in" / "broken.mp3")
    for readers in (0, 2):
        run(sources, model, tmp_path / f"out{readers}", readers=readers, timeline=True, window=2)
    for table in ("scores", "timeline", "errors"):
        assert rows(tmp_path / "out0", table) == rows(tmp_path / "out2", table) != []


@pytest.mark.parametrize("kind", ["hubert", "whisper"])
def test_batches_change_no_score(kind, model, tmp_path):
    used = model if kind == "hubert" else save_student(tmp_path / "whisper", kind)
    for number, seconds in enumerate((0.2, 1.1, 0.7, 2.4, 5.0, 0.4)):
        write(tmp_path / "in" / f"{number}.wav", seconds, number)
    for batch_seconds in (0, 4.0):
        run([tmp_path / "in"], used, tmp_path / f"out{batch_seconds}", batch_seconds=batch_seconds, window=2)
    alone, together = ([list(scores_of(row).values()) for row in rows(tmp_path / f"out{b}")] for b in (0, 4.0))
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(alone, axis=0).max() > 1e-3


@pytest.mark.parametrize("do_normalize", [True, False])
def test_inputs_made_on_the_device_are_the_extractors(do_normalize, tmp_path):
    """The path of a GPU, on a CPU."""
    save_student(tmp_path / "model")
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=do_normalize).save_pretrained(tmp_path / "model")
    engine = TorchEngine(ModelChoice(str(tmp_path / "model"), device="cpu"))
    waves = [0.3 + sound(seconds, number)[:, 0] for number, seconds in enumerate((0.7, 2.0, 0.1))]
    for found, expected in zip(engine._padded(waves), engine._extracted(waves), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def test_batches_hold_what_they_may():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 100, 200).tolist()
    found = pieces.batches(lengths, 300)
    assert sorted(index for batch in found for index in batch) == list(range(200))
    for batch in found:
        assert max(lengths[index] for index in batch) * len(batch) <= 300
    shortest = [min(lengths[index] for index in batch) for batch in found]
    longest = [max(lengths[index] for index in batch) for batch in found]
    assert all(short >= long for short, long in zip(shortest, longest[1:], strict=False))


def test_a_dimension_that_is_not_rated_has_no_column(tmp_path):
    used = save_student(tmp_path / "model", rated_dimensions=["valence"])
    run([write(tmp_path / "a.wav", 1)], used, tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert {"valence", "valence_rating"} == {name for name in row if name.split("_")[0] in EMOTION_DIMENSIONS}
    assert np.isfinite(row["valence"])


def test_bf16_is_near(model, tmp_path):
    source = write(tmp_path / "a.wav", 1)
    run([source], model, tmp_path / "exact")
    run([source], model, tmp_path / "half", dtype="bfloat16")
    exact, half = (np.array(list(scores_of(rows(tmp_path / name)[0]).values())) for name in ("exact", "half"))
    assert 0 < np.abs(half - exact).max() < 0.05


# ---------------------------------------------------------------------------------------------------------------------
# what goes wrong


def test_broken_files_do_not_stop_the_others(model, tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "good.wav", 1)
    whole = write(folder / "cut.wav", 2).read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "text.wav").write_bytes(b"this is no sound")
    (folder / "empty.flac").write_bytes(b"")
    write(folder / "short.wav", 0.05)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    wave = sound(1)
    soundfile.write(folder / "swapped.wav", np.concatenate([wave, -wave], axis=1), RATE)
    (folder / "list").write_text(f"{folder / 'gone.wav'}\n")
    os.mkfifo(folder / "pipe.wav")
    kinds = {
        "cut.wav": "truncated audio",
        "text.wav": "unreadable audio",
        "empty.flac": "empty audio",
        "short.wav": "too short",
        "nan.wav": "non-finite audio",
        "swapped.wav": "channels cancel out",
        "pipe.wav": "unreadable audio",
        "gone.wav": "missing file",
    }
    (folder / "all.csv").write_text("audio\n" + "".join(f"{name}\n" for name in [*kinds, "good.wav"]))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "predict",
                str(folder / "all.csv"),
                "--model",
                str(model),
                "--output",
                str(tmp_path / "out"),
                "--readers",
                "0",
            ]
        )
    assert ended.value.code == 3
    found = rows(tmp_path / "out", "errors")
    assert {row["source"].rpartition("/")[2]: row["kind"] for row in found} == kinds
    assert all(row["message"] for row in found)
    assert [row["source"] for row in rows(tmp_path / "out")] == [f"{folder}/good.wav"]
    printed = capsys.readouterr().out
    assert (
        "1 rows of 9 sources" in printed and "8 sources could not be scored" in printed and "errors.parquet" in printed
    )


def test_a_decoder_that_crashes_costs_its_file_only(tmp_path):
    from cmkd.predict.readers import Readers
    from cmkd.predict.reading import Failed, Reading
    from windows_cmkd import cutting

    files = [write(tmp_path / f"{number}.wav", 1, number) for number in range(3)]
    readers = Readers(Reading(cutting(RATE), "mean", 1, str(tmp_path)), 1)
    try:
        groups = [(number, [(number, Source(str(path), str(path)))]) for number, path in enumerate(files)]

        def asked():
            for tag, group in groups:
                if tag == 1:
                    readers._spare.append(reader := readers._spare.pop() if readers._spare else None)
                    reader._process.kill()
                    reader._process.wait()
                yield tag, group

        found = list(readers.events(asked()))
    finally:
        readers.close()
    assert [type(event).__name__ for tag, event in found] == ["Heard", "Ended", "Failed", "Heard", "Ended"]
    failed = found[2][1]
    assert isinstance(failed, Failed) and failed.kind == "decoder crashed" and "exit code -9" in failed.message
    np.testing.assert_allclose(found[3][1].samples, soundfile.read(files[2], dtype="float32")[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": "left"}, 'channel=\'left\': must be "mean" or "each"'),
        ({"window": 0.01}, "window=0.01: must be a finite number of seconds"),
        ({"window": 2, "hop": 3}, "hop=3: must be above 0 and at most the window"),
        ({"batch_seconds": -1}, "--batch_seconds -1: must be"),
        ({"readers": -1}, "--readers -1: must be"),
        ({"address": "auto"}, "--address auto: is for --engine ray"),
        ({"readers": 2, "engine": "ray"}, "--readers 2: is not for --engine ray, where one task reads .* leave it out"),
        ({"actor_cpus": 4}, "--actor_cpus 4: is for --engine ray; leave it out"),
        ({"actor_cpus": 1}, "--actor_cpus 1: is for --engine ray; leave it out"),
        ({"actor_cpus": 0, "engine": "ray"}, "--actor_cpus 0: must be 1 or more"),
        ({"output": "s3://bucket/out"}, "--output s3://bucket/out: must be a folder on a disk"),
        ({"model": "/nowhere/model"}, "/nowhere/model"),
        ({"sources": ["nowhere.wav"]}, "nowhere.wav: there is no such file or folder"),
        ({"sources": ["nowhere/*.wav"]}, r"nowhere/\*.wav: there is nothing in it to score"),
        ({"sources": []}, "there are no sources"),
        ({"tiers": ["words", "turns"]}, "--tier words turns: is for TextGrid files, but no source is one"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, tmp_path, options, message):
    options = {
        "model": model,
        "output": tmp_path / "new" / "out",
        "sources": [write(tmp_path / "a.wav", 0.2)],
    } | options
    with pytest.raises((ValueError, OSError), match=message):
        run(**options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("sources", [["a.wav", "nowhere.wav"], ["nowhere/*.wav"], ["m.csv"], []])
def test_sources_are_looked_at_before_the_model(sources, tmp_path):
    write(tmp_path / "a.wav", 0.2)
    (tmp_path / "m.csv").write_text("audio,start\na.wav,soon\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match="nowhere|start is 'soon'|there are no sources"):
        run([tmp_path / source for source in sources], "/no model", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_leaves_a_folder_as_it_was(model, tmp_path):
    source = write(tmp_path / "a.wav", 0.2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "thesis.tex").write_text("mine")
    run([source], model, tmp_path / "out", timeline=True)
    expected = rows(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    for options in (
        {"sources": [source, tmp_path / "nowhere.wav"], "model": model},
        {"sources": [source], "model": "/no model"},
        {"sources": [source], "model": model, "window": 0.01},
    ):
        for output in ("empty", "strangers", "out"):
            for overwrite in (False, True):
                with pytest.raises((ValueError, OSError), match="nowhere.wav|/no model|window=0.01"):
                    run(**options, output=tmp_path / output, overwrite=overwrite)
                assert sorted(tmp_path.rglob("*")) == before
    assert rows(tmp_path / "out") == expected
    assert run([source], model, tmp_path / "out", timeline=True, overwrite=True).rows == 1


@pytest.mark.parametrize("device", ["cdua", "cuda", "cuda:0", "meta", "cpu:x", "mps"])
def test_a_device_that_is_not_there_is_refused_before_the_model_loads(device, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    write(tmp_path / "a.wav", 0.2)
    words = ["predict", str(tmp_path / "a.wav"), "--model", "/nowhere/model", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=rf"--device {device}: must be a device .* finds cpu; .* leave --device out"):
        main([*words, "--device", device])
    assert not (tmp_path / "out").exists()


def test_the_devices_of_a_machine_with_accelerators(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    for device in ("cpu", "cuda", "cuda:0", "cuda:1", None):
        check_choice(ModelChoice("student", device=device))
    for device in ("cuda:2", "mps", "cuda:-1"):
        with pytest.raises(ValueError, match=f"--device {device}: .* finds cpu, cuda:0 and cuda:1; name one of these"):
            check_choice(ModelChoice("student", device=device))


def test_a_teacher_that_reads_is_refused(tmp_path):
    from small_models import teacher
    from transformers import BertTokenizer, Wav2Vec2FeatureExtractor

    teacher().save_pretrained(tmp_path / "teacher")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "teacher")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="it is a teacher that also reads a transcript"):
        run([write(tmp_path / "a.wav", 0.2)], tmp_path / "teacher", tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# going on


def small_parts(monkeypatch, seconds=2.0, sources=2, chunks=2):
    monkeypatch.setattr(pieces, "PIECE_SECONDS", seconds)
    monkeypatch.setattr(plans, "CHUNK_SOURCES", sources)
    monkeypatch.setattr(plans, "SHARD_CHUNKS", chunks)


def test_parts_of_any_size_have_the_same_rows(model, tmp_path, monkeypatch):
    for number in range(9):
        write(tmp_path / "in" / f"{number}.wav", 0.2 + number / 2, number)
    run([tmp_path / "in"], model, tmp_path / "whole", window=1, timeline=True)
    small_parts(monkeypatch)
    run([tmp_path / "in"], model, tmp_path / "parts", window=1, timeline=True)
    assert [path.name for path in sorted((tmp_path / "parts/scores").iterdir())] == [
        "00000.parquet",
        "00001.parquet",
        "00002.parquet",
    ]
    for table in ("scores", "timeline"):
        assert rows(tmp_path / "parts", table) == rows(tmp_path / "whole", table)


def test_what_is_scored_is_not_scored_again(model, tmp_path, monkeypatch):
    small_parts(monkeypatch)
    for number in range(5):
        write(tmp_path / "in" / f"{number}.wav", 1, number)
    first = run([tmp_path / "in"], model, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/scores").iterdir()}
    again = run([tmp_path / "in"], model, tmp_path / "out")
    assert (first.hours * 3600, again.hours) == (pytest.approx(5), 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/scores").iterdir()} == before
    write(tmp_path / "in" / "more.wav", 2, 7)
    more = run([tmp_path / "in"], model, tmp_path / "out", timeline=True, format="csv")
    assert more.hours * 3600 == pytest.approx(2)
    assert "1 sources are new" in str(more)
    assert [row["number"] for row in rows(tmp_path / "out")] == list(range(6))
    with (tmp_path / "out/timeline.csv").open() as file:
        assert [row["source"].rpartition("/")[2] for row in csv.DictReader(file)] == [
            *(f"{number}.wav" for number in range(5)),
            "more.wav",
        ]


def test_a_changed_file_is_scored_anew_and_alone(model, score, tmp_path, monkeypatch):
    small_parts(monkeypatch)
    for number in range(6):
        write(tmp_path / "in" / f"{number}.wav", 1, number)
    (tmp_path / "in" / "3.wav").write_bytes(b"broken")
    assert run([tmp_path / "in"], model, tmp_path / "out", timeline=True).errors == 1
    write(tmp_path / "in" / "3.wav", 1.5, 30)
    write(tmp_path / "in" / "4.wav", 2.5, 40)
    done = run([tmp_path / "in"], model, tmp_path / "out", timeline=True)
    assert done.hours * 3600 == pytest.approx(4)
    assert done.errors == 0 and rows(tmp_path / "out", "errors") == []
    assert "2 sources have changed since they were scored, and are scored anew" in str(done)
    for table in ("scores", "timeline"):
        found = {row["source"]: scores_of(row) for row in rows(tmp_path / "out", table)}
        assert len(found) == 6 == len(rows(tmp_path / "out", table))
        assert found == {source: score(source)["scores"] for source in found}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1.5}, "was made with --window 1, but now it is 1.5: .*--overwrite"),
        ({"channel": 0}, "was made with --channel mean, but now it is 0"),
        ({"dtype": "bfloat16"}, "was made with --dtype float32, but now it is bfloat16"),
        ({"embeddings": True}, "was made with --embeddings False, but now it is True"),
        ({"model": "other"}, r"was made with the model .*\(sha256-.*, but now it is .*other \(sha256-"),
        ({"sources": ["a.wav"]}, "has 1 sources that are not named now .*b.wav"),
    ],
)
def test_a_folder_of_something_else_is_refused(model, tmp_path, options, message):
    given = {"sources": [write(tmp_path / "a.wav", 0.3), write(tmp_path / "b.wav", 0.4)], "model": model, "window": 1}
    run(**given, output=tmp_path / "out")
    before = rows(tmp_path / "out")
    if "model" in options:
        options = {"model": save_student(tmp_path / "other", label_mean=(0.1, 0.0, 0.0))}
    if "sources" in options:
        options = {"sources": [tmp_path / "a.wav"]}
    with pytest.raises(ValueError, match=message):
        run(**given | options, output=tmp_path / "out")
    assert rows(tmp_path / "out") == before
    settings = json.loads((tmp_path / "out/prediction.json").read_text())
    run(**given | options, output=tmp_path / "out", overwrite=True)
    changed = json.loads((tmp_path / "out/prediction.json").read_text()) != settings
    assert changed or len(rows(tmp_path / "out")) < len(before)


def test_a_folder_of_strangers_is_refused(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds thesis.tex, and is not an output of cmkd predict"):
            run([write(tmp_path / "a.wav", 0.3)], model, tmp_path / "out", overwrite=overwrite)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_other_formats_hold_the_same(model, tmp_path):
    write(tmp_path / "in" / "näme, with.wav", 2.5, channels=2)
    write(tmp_path / "in" / "b.wav", 1)
    for kind in ("csv", "jsonl"):
        run(
            [tmp_path / "in"],
            model,
            tmp_path / kind,
            format=kind,
            embeddings=True,
            timeline=True,
            window=1,
            channel="each",
        )
    for table in ("scores", "timeline"):
        expected = rows(tmp_path / "csv", table)
        assert [json.loads(line) for line in (tmp_path / f"jsonl/{table}.jsonl").read_text().splitlines()] == expected
        with (tmp_path / f"csv/{table}.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        assert len(found) == len(expected)
        for line, row in zip(found, expected, strict=True):
            vector = [float(line[f"embedding_{number}"]) for number in range(len(row["embedding"]))]
            assert np.float32(vector).tolist() == row["embedding"]
            assert (line["source"], int(line["channel"])) == (row["source"], row["channel"])
            assert [float(line[name]) for name in EMOTION_DIMENSIONS] == list(scores_of(row).values())


# ---------------------------------------------------------------------------------------------------------------------
# plans and pieces


def gathered(path, sources):
    incoming = Incoming(path)
    twice = incoming.gather(sources)
    return incoming, twice


def test_a_plan_puts_sources_of_one_file_together(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "CHUNK_SOURCES", 3)
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(plans, "SHARD_CHUNKS", 2)
    given = [
        Source("a", "/a", start=0.0, end=1.0, size=10),
        Source("b", "/b", size=10),
        Source("a", "/a", start=1.0, end=2.0, size=10),
        Source("A", "/a", start=0.0, end=1.0, size=10),  # the same again
        *(Source("c", "/c", start=float(n), size=10) for n in range(5)),
        Source("d", "/d", size=999),
        Source("e", "/e", size=2),
        *(Source(f"set#{n}", "dataset:set", row=n) for n in range(4)),
    ]
    incoming, twice = gathered(tmp_path / "incoming", given)
    incoming.write(tmp_path / "plan")
    plan = Plan(tmp_path / "plan")
    assert twice == 1 and plan.count() == len(given) - 1
    found = [[(source.address, source.start, source.row) for _, source in plan.sources(chunk)] for chunk in plan.chunks]
    assert found == [
        [("/a", 0, None), ("/a", 1, None), ("/b", None, None)],
        [("/c", n, None) for n in range(5)],
        [("/d", None, None)],
        [("/e", None, None), ("dataset:set", None, 0), ("dataset:set", None, 1)],
        [("dataset:set", None, 2), ("dataset:set", None, 3)],
    ]
    assert plan.shards() == {0: [0, 1], 1: [2, 3], 2: [4]}
    assert [plan.chunks[number].size for number in range(5)] == [20, 10, 999, 4, 2]


def test_a_plan_grows_behind(tmp_path):
    first = [Source("a", "/a", stamp="1"), Source("b", "/b", stamp="1"), Source("c", "/c", stamp="1")]
    incoming, _ = gathered(tmp_path / "incoming", first)
    incoming.write(tmp_path / "plan")
    incoming.close()
    second = [first[2], Source("b", "/b", stamp="2"), first[0], Source("d", "/d", stamp="1")]
    incoming, _ = gathered(tmp_path / "incoming", second)
    changes = incoming.compare(tmp_path / "plan")
    assert (changes.new, changes.changed, changes.gone) == (1, [1], 0)
    incoming.extend(tmp_path / "plan", changes.changed)
    incoming.close()
    plan = Plan(tmp_path / "plan")
    assert [[(n, source.name, source.stamp) for n, source in plan.sources(chunk)] for chunk in plan.chunks] == [
        [(0, "a", "1"), (2, "c", "1")],
        [(3, "b", "2"), (4, "d", "1")],
    ]
    assert plan.shards() == {0: [0], 1: [1]}
    incoming, _ = gathered(tmp_path / "incoming", first)
    changes = incoming.compare(tmp_path / "plan")
    assert (changes.new, changes.changed, changes.gone, changes.first_gone) == (0, [3], 1, ["d"])


def test_pieces_depend_on_nothing_but_the_events():
    events = [Heard(0, -1, n, n + 1, False, b"", np.zeros(10, np.float32), 0.0) for n in range(8)]
    found = list(cut_into_pieces(7, iter(events), most=30))
    assert [(piece.chunk, piece.number, piece.is_last, len(piece.events)) for piece in found] == [
        (7, 0, False, 3),
        (7, 1, False, 3),
        (7, 2, True, 2),
    ]
    assert [piece.seconds for piece in found] == [3, 3, 2]


def test_a_piece_is_sent_as_it_is():
    generator = np.random.default_rng(0)
    waves = [generator.normal(size=size).astype(np.float32) for size in (7, 1, 1600)]
    events = [
        Heard(3, -1, 0.5, 1.0 / 3, True, b"\x00\xff", waves[0], 1.5),
        Heard(3, 1, 0.0, 1e-9, False, b"", waves[1], 0.0),
        Ended(3, 2, 0.25, 7.5),
        Failed(4, "too short", "it is \u00fc"),
        Heard(5, 0, 0.0, 0.1, False, b"a", waves[2], 2.0),
    ]
    for piece in (Piece(7, 2, True, events), Piece(1, 0, False, [events[3]]), Piece(2, 5)):
        found = unpack(pack(piece))
        assert (found.chunk, found.number, found.is_last) == (piece.chunk, piece.number, piece.is_last)
        assert len(found.events) == len(piece.events)
        for event, expected in zip(found.events, piece.events, strict=True):
            assert type(event) is type(expected)
            ours, theirs = ({k: v for k, v in vars(e).items() if k != "samples"} for e in (event, expected))
            assert ours == theirs
            if isinstance(event, Heard):
                assert event.samples.dtype == np.float32 and (event.samples == expected.samples).all()
