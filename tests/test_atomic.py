"""Files and folders that are whole or not there, also after a power cut."""

import os
import platform
from pathlib import Path

import pytest

from cmkd.atomic import put_in_place, sync, unfinished_path, written_whole


@pytest.fixture
def events(monkeypatch):
    """What is waited for, and what is renamed, in order; the names as they are at that moment."""
    found = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        found.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        found.append(("replace", self, target))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return found


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after_that(tmp_path, events):
    path = tmp_path / "results.json"
    with written_whole(path) as unfinished:
        unfinished.write_text("whole")
        assert events == []
    assert events == [("fsync", unfinished), ("replace", unfinished, path), ("fsync", tmp_path)]
    assert path.read_text() == "whole"


def test_a_folder_is_on_the_disk_with_all_that_is_in_it(tmp_path, events):
    path = tmp_path / "student"
    unfinished = unfinished_path(path)
    (unfinished / "code").mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"weights")
    (unfinished / "code/model.py").write_text("code")
    put_in_place(unfinished, path)
    before = {event[1].relative_to(unfinished).as_posix() for event in events[:-2]}
    assert before == {"model.safetensors", "code/model.py", "code", "."} and len(events) == 6
    assert events[-2:] == [("replace", unfinished, path), ("fsync", tmp_path)]


def test_an_error_leaves_what_was_there(tmp_path, events):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyError), written_whole(path) as unfinished:
        unfinished.write_text("new")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path] and events == []


def test_a_file_that_cannot_reach_the_disk_does_not_take_the_place(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"), written_whole(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    running, dead = os.getpid(), 2**22 + 1  # above the largest number of a process on Linux
    names = [f".a.json.{platform.node()}-{rest}.tmp" for rest in (running, dead, "mine")]
    for name in names:
        (tmp_path / name).write_text("")
    assert unfinished_path(tmp_path / "a.json").name == names[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], names[2]])


def test_two_processes_may_remove_the_same_leftover_at_once(tmp_path, monkeypatch):
    left = tmp_path / f".downloads.{platform.node()}-{2**22 + 1}.tmp"
    left.mkdir()
    (left / "a").write_text("")
    (left / "b").write_text("")
    unlink = os.unlink

    def come_second(path: str, **options) -> None:
        unlink(path, **options)  # as the other process does just before
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", come_second)
    unfinished_path(tmp_path / "downloads")
    assert list(tmp_path.iterdir()) == []


def test_sync_waits_for_a_single_file(tmp_path, events):
    (tmp_path / "a").write_text("a")
    sync(tmp_path / "a")
    assert events == [("fsync", tmp_path / "a")]
