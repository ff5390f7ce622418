"""How the processes of a launch wait for each other, and notice when one of them has died or stands still.

There are two kinds of waiting. In a collective operation, such as the gathering of a training step, all processes
arrive at about the same time, so it ends with an error after `COLLECTIVE_TIMEOUT`. Where one process works for long
while the others have nothing to do, building a corpus or running folds, there is no such limit: they wait in
[`wait_for_all`] for as long as that process is alive. A thread of every process says so every `INTERVAL` seconds, in a
store on the main process. Whoever has been silent for `SILENCE` seconds has been killed or stopped, or its machine
cannot be reached; the waiting processes then end, and say which one it was and what they were waiting for.

The thread of a process goes on even when its work stands still, for example in a read from a disk that does not answer.
So a process that waits for long says which one it is waiting for.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Time after which a collective operation that some process does not take part in is given up."""

INTERVAL = 2.0
"""Seconds between two signs of life of a process."""

SILENCE = 300.0
"""Seconds without a sign of life after which a process is given up."""

READING_TIMEOUT = 600.0
"""Seconds after which a process that reads ahead is given up if it has not delivered what it was asked for."""

PATIENCE = 600.0
"""Seconds after which a process that waits says which one it waits for, and again whenever that time has doubled."""


def join_launch() -> PartialState:
    """The state of this process among those that were launched together; called before anything else asks for it."""
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=COLLECTIVE_TIMEOUT)
    if state.num_processes > 1:
        _watch()
    return state


def leave_launch() -> None:
    """Ends what the processes of a launch have together, once nothing is left to do; called last.

    Without it a thread of gloo may outlive the interpreter, which aborts then.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait_for_all(task: str) -> None:
    """Waits until all processes of the launch have come here, for as long as those that have not are alive.

    Args:
        task: what a process may still have to do before it comes here, such as "build the corpus".

    Raises:
        TimeoutError: a process has not arrived and gives no sign of life.
        ConnectionError: a process has ended without arriving.
    """
    if PartialState().num_processes > 1:
        _watch().wait(task)


def print_once(text: Any) -> None:
    """Prints on the main process of the launch only, without buffering."""
    if PartialState().is_main_process:
        print(text, flush=True)


@contextmanager
def main_process_first(task: str) -> Iterator[None]:
    """Runs what is inside on the main process, and then on the others; see [`wait_for_all`]."""
    state = PartialState()
    if not state.is_main_process:
        wait_for_all(task)
    yield
    if state.is_main_process:
        wait_for_all(task)


def silent_processes() -> str | None:
    """Names the processes that give no sign of life after a collective operation has failed; None where all do.

    It takes a few seconds to find out.
    """
    return _watch().silent() if _watch.cache_info().currsize else None


@dataclass
class _Process:
    """What is known of another process.

    Attributes:
        name: its number, machine and process id.
        beat: the number of its last sign of life.
        heard: when that was noticed, by this process's clock.
        arrived: how many times it has come to a `wait_for_all`.
        passed: how many of these it has left again.
        ended: whether it has said that it ends.
        reported: whether its silence has been reported.
    """

    name: str
    beat: int = -1
    heard: float = 0.0
    arrived: int = 0
    passed: int = 0
    ended: bool = False
    reported: bool = False


@functools.cache  # one per process, as there is one launch
def _watch() -> _Watch:
    return _Watch()


class _Watch:
    """Announces that this process is alive and listens to the others; all processes must create it at the same time."""

    def __init__(self) -> None:
        state = PartialState()
        self.rank, number = state.process_index, state.num_processes
        address = os.environ["MASTER_ADDR"]  # of rank 0
        port = [0]
        connect = functools.partial(torch.distributed.TCPStore, timeout=timedelta(seconds=SILENCE))  # type: ignore[attr-defined]
        if self.rank == 0:
            self._store = connect(address, port[0], is_master=True, wait_for_workers=False)
            port = [self._store.port]
        broadcast_object_list(port)
        if self.rank != 0:
            self._store = connect(address, port[0], is_master=False)
        now = time.monotonic()
        self.others = {rank: _Process(f"process {rank}", heard=now) for rank in range(number) if rank != self.rank}
        self._arrived = self._announced = self._passed = self._beat = 0
        self._broken: str | None = None
        self._round = self._waiting_since = now
        self._stop = threading.Event()
        self._is_waiting = threading.Event()
        self._announce()
        state.wait_for_everyone()  # now every process has written to the store
        self._listen()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def wait(self, task: str) -> None:
        self._arrived += 1
        begun = awake = self._waiting_since = time.monotonic()
        report_after = PATIENCE
        self._is_waiting.set()
        while (late := self._late()) or self._announced < self._arrived:
            now = time.monotonic()
            if now - awake > SILENCE / 2:  # it was this process that had been suspended
                self._restart_clocks(now)
            awake = now
            for other in late:
                if other.ended:
                    raise ConnectionError(f"{other.name} has ended, while process {self.rank} waited for it to {task}.")
            if self._broken is not None:
                raise ConnectionError(
                    f"process 0 has died or cannot be reached, and process {self.rank} waited for {_listed(late)} to "
                    f"{task}: {self._broken}"
                )
            silent = [other for other in late if now - other.heard > SILENCE]
            if now - self._round > SILENCE:  # no process can be heard while process 0 stands still
                silent = [other for rank, other in self.others.items() if rank == 0]
            if silent:
                raise TimeoutError(
                    f"{_listed(silent)} has given no sign of life for {SILENCE:.0f} s, and process {self.rank} waited "
                    f"for {_listed(late)} to {task}. It was killed or stopped, or its machine cannot be reached. Stop "
                    "this launch and give the same command again, without --overwrite: it goes on where it stopped."
                )
            if now - begun > report_after:
                _report(f"process {self.rank} has waited {report_after / 60:.0f} minutes for {_listed(late)} to {task}")
                report_after *= 2
            time.sleep(self._pause())
        self._passed = self._arrived
        self._is_waiting.clear()

    def _pause(self) -> float:
        """Seconds between two looks at the store: short at first, since most waits end at once, and there are many."""
        return min(0.1, 0.01 + (time.monotonic() - self._waiting_since) / 10)

    def _late(self) -> list[_Process]:
        return [other for other in self.others.values() if other.arrived < self._arrived]

    def silent(self) -> str | None:
        time.sleep(2 * INTERVAL)  # what was said before the failure is heard
        before = {rank: other.beat for rank, other in self.others.items()}
        time.sleep(3 * INTERVAL)
        still = [other for rank, other in self.others.items() if other.beat == before[rank] and not other.ended]
        if self._broken is not None or time.monotonic() - self._round > 2 * INTERVAL:
            still = [other for rank, other in self.others.items() if rank == 0]
        return f"{_listed(still)} gives no sign of life" if still else None

    def close(self) -> None:
        """Announces that this process ends. The main one stays for a moment, until all have heard that it arrived."""
        self._stop.set()
        self._is_waiting.set()
        self._thread.join(3 * INTERVAL)
        end = time.monotonic() + 3 * INTERVAL
        while self.rank == 0 and not self._thread.is_alive() and self._broken is None and time.monotonic() < end:
            self._listen()
            if all(other.ended or other.passed >= self._arrived for other in self.others.values()):
                break
            time.sleep(0.1)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._announce()
                self._listen()
                if not self._is_waiting.is_set():
                    self._is_waiting.wait(INTERVAL)
                else:
                    self._stop.wait(self._pause())
            self._announce(ended=True)
        except RuntimeError as error:  # torch's DistError: the store is gone
            self._broken = str(error).splitlines()[0]

    def _announce(self, ended: bool = False) -> None:
        self._beat += 1
        arrived = self._arrived
        word: dict[str, Any] = {"beat": self._beat, "arrived": arrived, "passed": self._passed, "ended": ended}
        word["name"] = f"process {self.rank} (on {socket.gethostname()}, pid {os.getpid()})"
        self._store.set(str(self.rank), json.dumps(word))
        self._announced = arrived

    def _listen(self) -> None:
        words = self._store.multi_get([str(rank) for rank in self.others])
        now = time.monotonic()
        if now - self._round > SILENCE / 2:
            self._restart_clocks(now)
        for other, word in zip(self.others.values(), map(json.loads, words), strict=True):
            if word["beat"] != other.beat:
                other.heard = now
            other.beat, other.name = word["beat"], word["name"]
            other.arrived, other.passed, other.ended = word["arrived"], word["passed"], word["ended"]
            if now - other.heard > SILENCE and not other.ended and not other.reported:
                other.reported = True
                _report(f"WARNING: {other.name} has given no sign of life for {SILENCE:.0f} s")
        self._round = now

    def _restart_clocks(self, now: float) -> None:
        for other in self.others.values():
            other.heard = now
        self._round = now


def _listed(processes: list[_Process]) -> str:
    return " and ".join(process.name for process in processes) or "the others"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
