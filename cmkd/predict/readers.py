"""Processes that read and decode ahead of the network, and give what they find in the order in which it was asked for.

Each has one file at a time, and waits where nobody takes what it has: so what lies in memory is some windows for each
process, whatever the number and the length of files. A process that a file brings down costs that file, and another one
takes its place.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from cmkd.predict.reading import Ended, Event, Failed, Reading, read_group
from cmkd.predict.sources import Source

READING_TIMEOUT = 600.0
"""Seconds after which a process is given up that has not brought the next window of a file."""

WAITING = 0.1
"""Seconds after which it is asked again whether there is something to read."""

Group = Sequence[tuple[int, Source]]
Tag = TypeVar("Tag")
Item = TypeVar("Item")


class Readers(Generic[Tag]):
    """Reads groups of sources, each of one file, ahead of whoever takes the windows.

    Args:
        reading: How.
        processes: How many; 0: in this process, and not ahead.
    """

    def __init__(self, reading: Reading, processes: int):
        self._reading = reading
        self._own = processes == 0
        self._spare = [_Reader(reading) for _ in range(processes)]
        self._busy: deque[_Reader] = deque()

    def events(self, groups: Iterable[tuple[Tag, Group] | None]) -> Iterator[tuple[Tag, Event | None]]:
        """What the sources of the groups hold, one after the other, each with the tag of its group.

        Args:
            groups: They are taken ahead, one for each process. An empty group is a mark: it comes out as None. Where
                there is None, there is no group yet: it is asked again.

        Raises:
            ImportError: A package is missing that a file needs.
        """
        for following in groups if self._own else self._ahead(groups):
            if following is None:
                time.sleep(WAITING)
                continue
            tag, group = following
            if not group:
                yield tag, None
            elif self._own:
                for event in read_group(group, self._reading):
                    yield tag, event
            else:
                reader = self._busy.popleft()
                for event in reader.answers(group):
                    yield tag, event
                self._spare.append(reader if reader.is_alive() else _Reader(self._reading))

    def _ahead(self, groups: Iterable[tuple[Tag, Group] | None]) -> Iterator[tuple[Tag, Group] | None]:
        """The groups, each asked for as soon as a process is free for it."""
        waiting: deque[tuple[Tag, Group]] = deque()
        coming = iter(groups)
        is_over = False
        while True:
            while self._spare and not is_over:
                try:
                    following = next(coming)
                except StopIteration:
                    is_over = True
                    break
                if following is None:
                    break
                if following[1]:
                    reader = self._spare.pop()
                    reader.ask(following[1])
                    self._busy.append(reader)
                waiting.append(following)
            if waiting:
                yield waiting.popleft()
            elif is_over:
                return
            else:
                yield None

    def close(self) -> None:
        """Ends the processes."""
        for reader in [*self._spare, *self._busy]:
            reader.end()
        self._spare = []
        self._busy.clear()


def in_background(items: Iterable[Item], most: int) -> Iterator[Item]:
    """The items, made by a thread of its own that is at most so many ahead; what it raises is raised here."""
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(most)
    stop = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                made.put((item, error), timeout=0.2)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=make, name="cmkd reading", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()


class _Reader:
    """A process that reads one group after the other.

    It is a program of its own, not one of multiprocessing, which would run the caller's script once more.
    """

    def __init__(self, reading: Reading):
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cmkd.predict.readers", str(there.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the one that started it
            )
        self._pipe = Connection(here.detach())
        self._is_ready = False
        with suppress(OSError):  # it could not start, which the answers will show
            self._pipe.send(reading)

    def ask(self, group: Group) -> None:
        with suppress(OSError):  # it is dead, which the answers will show
            self._pipe.send(list(group))

    def answers(self, group: Group) -> Iterator[Event]:
        """What it finds, to the end of the group."""
        open_sources = dict(group)
        while open_sources:
            event, problem = self._next()
            if problem is not None:
                self.end()
                if not self._is_ready:
                    raise RuntimeError(
                        f"a process that reads files could not start: {problem}; --readers 0 needs none."
                    )
                yield from (Failed(number, "decoder crashed", problem) for number in open_sources)
                return
            if isinstance(event, Exception):
                raise event
            if event is None:
                self._is_ready = True
                continue
            if isinstance(event, (Ended, Failed)):
                del open_sources[event.source]
            yield event

    def _next(self) -> tuple[Any, str | None]:
        """What it says next, or what is wrong with it."""
        try:
            if self._pipe.poll(READING_TIMEOUT):
                return self._pipe.recv(), None
            return None, f"nothing came from it for {READING_TIMEOUT:.0f} s"
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            return None, f"the process that decoded it ended (exit code {self._process.returncode})"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait(timeout=60)


def _serve(pipe: Connection) -> None:
    """The life of a process: it ends when the pipe does."""
    try:
        reading = pipe.recv()
        pipe.send(None)
        while True:
            group = pipe.recv()
            try:
                for event in read_group(group, reading):
                    pipe.send(event)
            except ImportError as error:
                pipe.send(ImportError(str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
