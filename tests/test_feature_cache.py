"""`cmkd cache`: what it lists, what it removes, and that it keeps what a job uses."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from command import Called, call
from stored_features import Part, check, load, make_rows

from cmkd.features import cache as feature_cache
from cmkd.features import store as feature_store
from cmkd.features.cache import code_version, hold, remove, stored_folders

DAY = 86400


@pytest.fixture(autouse=True)
def one_utterance_a_file(monkeypatch):
    monkeypatch.setattr(feature_store, "CHUNK", 1)


def make_folder(cache: Path, number: int, *, size: int = 1000, days: float = 0, about=None) -> Path:
    folder = cache / f"speech-{number:016x}"
    folder.mkdir(parents=True)
    (folder / "0.safetensors").write_bytes(b"x" * size)
    if about is not None:
        (folder / "about.json").write_text(json.dumps({"code": code_version()} | about))
        (folder / "in_use").touch()
    for file in folder.iterdir():
        os.utime(file, (time.time() - days * DAY,) * 2)
    return folder


def run(*arguments, answer: str = "") -> Called:
    return call("cache", *arguments, answer=answer)


def test_a_folder_says_what_it_is_and_when_it_was_used(tmp_path):
    part = Part()
    part.encoder.config._name_or_path = "tones/speech"
    rows = make_rows(tmp_path)
    load(tmp_path, part, rows=rows, dtype="bfloat16")
    (folder,) = (tmp_path / "cache").iterdir()
    os.utime(folder / "in_use", (0, 0))
    before = time.time()
    load(tmp_path, part, rows=rows, dtype="bfloat16")
    code, output, _ = run(tmp_path / "cache", "--json")
    (found,) = json.loads(output)
    assert code == 0
    assert (found["folder"], found["part"], found["encoder"], found["dtype"]) == (
        str(folder),
        "speech",
        "tones/speech",
        "bfloat16",
    )
    assert found["files"] == 5 and found["settings"] == "'a'" and not found["of_other_code"] and not found["in_use"]
    assert found["size"] == sum(file.stat().st_size for file in folder.iterdir())
    assert before - 1 <= (folder / "in_use").stat().st_mtime <= time.time() + 1
    assert found["last_used"][:4] >= "2024"


def test_the_name_of_an_encoder_s_folder_does_not_matter(tmp_path):
    part, rows = Part(), make_rows(tmp_path)
    for name in ("here/speech", "there/speech"):
        part.encoder.config._name_or_path = name
        load(tmp_path, part, rows=rows)
    assert part.calls == 5


def test_what_other_code_has_stored_does_not_count_against_the_limit(tmp_path, capsys, monkeypatch):
    rows, needed = make_rows(tmp_path), 120  # bytes, see test_feature_store.py
    make_folder(tmp_path / "cache", 1, size=10_000)  # of an earlier version, which did not say what it is
    make_folder(tmp_path / "cache", 2, size=10_000, about={"code": "other"})
    check(load(tmp_path, Part(), rows=rows, limit_gb=1.1 * needed / 1e9))
    assert load(tmp_path, Part(), rows=rows, settings="b", limit_gb=2 * needed / 1e9) is None
    output = capsys.readouterr().out
    assert "were stored by other code; they are not counted" in output
    assert f"cmkd cache {tmp_path / 'cache'} --other_code" in output
    monkeypatch.setattr(feature_store, "code_version", lambda: "new")  # the code changes
    monkeypatch.setattr(feature_cache, "code_version", lambda: "new")
    check(load(tmp_path, Part(), rows=rows, limit_gb=1.1 * needed / 1e9))


def test_the_code_is_that_of_the_modules_and_of_transformers(monkeypatch):
    before = code_version()
    monkeypatch.setattr(feature_cache, "CODE", ("cmkd.features.audio", "cmkd.features.inputs"))
    assert code_version.__wrapped__() != before
    monkeypatch.undo()
    monkeypatch.setattr(feature_cache, "version", lambda name: "0.0")
    assert code_version.__wrapped__() != before


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        (["--all"], {1, 2, 3, 4}),
        (["--other_code"], {3, 4}),
        (["--unused_days", "20"], {2, 3}),
        (["--encoder", "hubert"], {1}),
        (["--encoder", "facebook/hubert"], {1}),
        (["--encoder", "bert"], set()),
        (["--keep_gb", "2.5e-6"], {2, 3}),  # of 4,000 bytes and some, the least recently used
        (["--other_code", "--unused_days", "20"], {3}),
    ],
)
def test_what_is_pruned(tmp_path, options, removed):
    made = {
        1: make_folder(tmp_path, 1, about={"encoder": "/models/facebook/hubert"}),
        2: make_folder(tmp_path, 2, days=30, about={"encoder": "wavlm"}),
        3: make_folder(tmp_path, 3, days=40),
        4: make_folder(tmp_path, 4, days=1, about={"code": "other", "encoder": "wavlm"}),
    }
    (tmp_path / "my speech").mkdir()
    (tmp_path / "my speech/0.safetensors").write_bytes(b"mine")
    run(tmp_path, *options[: 0 if "--all" in options else None])  # a list removes nothing
    run(tmp_path, *options, "--prune", answer="n\n")
    assert all(folder.is_dir() for folder in made.values())
    code, output, _ = run(tmp_path, *options, "--prune", answer="y\n")
    assert code == 0
    assert {number for number, folder in made.items() if not folder.exists()} == removed
    assert f"Removed {len(removed)} of {len(removed)} folders." in output or not removed
    assert (tmp_path / "my speech/0.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{cache}", "--prune"], "--prune needs to know what: --encoder, --unused_days"),
        (["{cache}", "--prune", "--all", "--other_code"], "--prune needs to know what"),
        (["{cache}", "--prune", "--all", "--json"], "--json lists, and --prune asks"),
        (["nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path, arguments, message):
    folder = make_folder(tmp_path, 1)
    code, _, error = run(*(argument.format(cache=tmp_path) for argument in arguments))
    assert code == 1 and message in error and folder.is_dir()


HOLDER = """
import sys, stored_features
from pathlib import Path
from cmkd.features import store as feature_store
feature_store.CHUNK = 1
rows = stored_features.Dataset.load_from_disk(sys.argv[2])
stored = stored_features.load(Path(sys.argv[1]), stored_features.Part(), rows=rows)
print("ready", flush=True)
input()
stored_features.check(stored)
"""


@pytest.mark.slow
def test_nothing_goes_while_a_job_uses_it(python, tmp_path):
    """A job that has read none of the files yet."""
    make_rows(tmp_path).save_to_disk(str(tmp_path / "rows"))
    root = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{root.parent}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    command = [python.executable, "-c", HOLDER, str(tmp_path), str(tmp_path / "rows")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as job:
        assert job.stdout.readline() == "ready\n"
        (folder,) = stored_folders(tmp_path / "cache")
        assert folder.is_in_use() and folder.to_dict()["in_use"]
        code, output, _ = run(tmp_path / "cache", "--all", "--prune", "--yes")
        assert code == 0 and "Removed 0 of 1 folders." in output and f"In use, and kept: {folder.path}" in output
        job.communicate("go on\n", timeout=900)
    assert job.returncode == 0
    assert not folder.is_in_use()
    run(tmp_path / "cache", "--all", "--prune", "--yes")
    assert stored_folders(tmp_path / "cache") == []


def test_a_job_that_comes_while_a_folder_is_removed_makes_it_anew(tmp_path):
    folder = tmp_path / "speech-0123456789abcdef"
    for _ in range(200):
        lock = hold(folder, {"encoder": "a"})
        assert not remove(stored_folders(tmp_path)[0])
        lock.close()
        (stored,) = stored_folders(tmp_path)
        removal = threading.Thread(target=remove, args=[stored])
        removal.start()
        lock = hold(folder, {"encoder": "a"})
        removal.join(timeout=900)
        assert (folder / "in_use").samefile(f"/proc/self/fd/{lock.descriptor}")  # what is held is what is there
        lock.close()


def test_a_folder_that_another_process_removes_first_is_gone(tmp_path):
    make_folder(tmp_path, 1, about={})
    stored, again = stored_folders(tmp_path) * 2
    assert remove(stored) and remove(again)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_made_again_while_it_is_removed_stays(tmp_path, monkeypatch):
    """The lock that this process has waited with is then that of a file which is no longer there."""
    make_folder(tmp_path, 1, about={})
    (stored,) = stored_folders(tmp_path)
    is_alone = feature_cache._is_alone

    def come_late(lock) -> bool:
        monkeypatch.setattr(feature_cache, "_is_alone", is_alone)
        assert remove(stored)  # as another process does
        make_folder(tmp_path, 1, about={})
        return is_alone(lock)

    monkeypatch.setattr(feature_cache, "_is_alone", come_late)
    assert not remove(stored)
    assert (stored.path / "0.safetensors").stat().st_size == 1000


def test_what_is_removed_while_the_room_is_counted_counts_as_nothing(tmp_path, capsys):
    rows = make_rows(tmp_path)
    for number, name in enumerate(("0.safetensors", "1.safetensors")):
        folder = make_folder(tmp_path / "cache", number, size=0, about={})
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("removed")  # there when files are listed, and gone when they are looked at
    check(load(tmp_path, Part(), rows=rows, limit_gb=1))
    assert "would take" not in capsys.readouterr().out


def test_stored_features_are_held_as_long_as_they_live(tmp_path):
    stored = load(tmp_path, Part())
    (folder,) = stored_folders(tmp_path / "cache")
    assert folder.is_in_use()
    assert torch.equal(stored[1], 2 * torch.tensor([[0.0] * 2, [1 / 3] * 2]))
    del stored
    assert not folder.is_in_use()
