"""The one reader and writer of JSON files."""

import json
from pathlib import Path

import pytest

from cmkd.json_files import read_json, write_json

CONTENT = {"name": "Jörg", "folder": "/jörg/corpus", "surrogate": "\udc80", "scores": [0.1, None, 1e-300], "empty": {}}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new folder/results.json"
    write_json(path, CONTENT)
    assert read_json(path, "") == CONTENT == json.loads(path.read_bytes())
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_text_stands_there_as_it_is_so_that_a_search_for_a_path_finds_it(tmp_path):
    write_json(tmp_path / "a.json", CONTENT)
    content = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert '"folder": "/jörg/corpus",\n' in content and content.endswith("}\n")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"new": Path()})
    assert read_json(path, "") == {"old": 1} and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_read_is_named_with_advice(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"no file \S*a\.json: run it again\."):
        read_json(path, "run it again.")
    for damaged in (b"", b'{"a": ', b'"\xff"'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.json is not valid JSON \(.+\): run it again\."):
            read_json(path, "run it again.")
