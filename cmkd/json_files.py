"""JSON files: read with errors that name the file, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from cmkd.atomic import written_whole


def read_json(path: Path, advice: str) -> Any:
    """The content of a JSON file.

    Args:
        path: the file, in UTF-8.
        advice: what to do if it cannot be read; it ends the message, and has its full stop.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: {advice}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}): {advice}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, indented by two spaces, in UTF-8, that appears whole or not at all; missing folders are made.

    Text that is not valid Unicode, a lone surrogate, is escaped: it is read as it was.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with written_whole(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))
