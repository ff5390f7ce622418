"""How far a run is: hours scored, how many times faster than they were spoken, and what is left."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

INTERVAL = 2.0
"""Seconds after which a process says how far it is."""


class Progress:
    """Counts what this process has done, says so in a file, and shows what all processes have done together.

    Args:
        folder: Where processes say so.
        total: Bytes of all sources, which is what the share that is done is estimated from.
        done: Bytes of those that were scored before.
        shows: Whether this process shows it.
    """

    def __init__(self, folder: Path, total: float, done: float, shows: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._done = folder, done
        self._own = folder / f"{platform.node()}-{os.getpid()}.json"
        self.seconds = self.read = 0.0
        self.begun = time.monotonic()
        self._since = time.time()
        self._reported = -INTERVAL
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc="scoring",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix}, {remaining} left",
            disable=not shows,
            postfix="0.00 hours",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )

    def add(self, seconds: float, read: float) -> None:
        """Counts what was scored: seconds of sound, and about how many bytes of files."""
        self.seconds += seconds
        self.read += read
        now = time.monotonic()
        if now - self._reported < INTERVAL:
            return
        self._reported = now
        self._report()
        if not self._bar.disable:
            all_seconds, all_read = self._of_all()
            speed = all_seconds / max(now - self.begun, 1e-3)
            self._bar.set_postfix_str(f"{all_seconds / 3600:.2f} hours, {speed:.1f} times real time", refresh=False)
            self._bar.update(max(0.0, min(self._bar.total, self._done + all_read) - self._bar.n))

    def flush(self) -> None:
        """Says how far this process is now, for the others."""
        self._report()

    def hours(self) -> float:
        """Of sound that all processes have scored since this one began, as far as they have said so."""
        self._report()
        return self._of_all()[0] / 3600

    def close(self) -> None:
        self._bar.close()

    def _report(self) -> None:
        word = {"seconds": self.seconds, "read": self.read, "time": time.time()}
        with suppress(OSError):  # a full disk stops what matters, not this
            self._own.write_text(json.dumps(word))

    def _of_all(self) -> tuple[float, float]:
        """Seconds and bytes, by all that have said something since this process began."""
        seconds = read = 0.0
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError):
                word = json.loads(path.read_text())
                if word["time"] >= self._since:
                    seconds, read = seconds + word["seconds"], read + word["read"]
        return seconds, read
