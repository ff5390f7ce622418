"""A Python that starts at once: each of its processes is a fork of one that has imported the libraries.

A process that imports torch, transformers and datasets has worked for seven seconds before it does anything; a run of
the tests' size takes one. `Warm.executable` is a program that takes what `python` takes: a script, `-m MODULE` or
`-c CODE`. It asks a server (warm_worker.py) for a fork with its own arguments, environment, folder, input and output,
passes signals on to it, and ends as the fork does; if it is killed, so is the fork. What the fork starts with
`sys.executable` is such a program too: the processes of `accelerate launch`, or the folds of a cross-validation.

Where what is tested is how an interpreter starts, or what it imports, a test uses `subprocess` and `sys.executable`.
"""

import contextlib
import fcntl
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("warm_worker.py")


def module(name: str) -> str:
    """The code that runs a module as `python -m` does."""
    return f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"


def free_port() -> int:
    """A port that nothing listens on, drawn from those that Linux gives to nobody who asks for any.

    One of those may be given away before the program that is told of this one listens.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Program:
    """A program that runs, and what it has said so far."""

    def __init__(self, process: subprocess.Popen, output: Path):
        self.process, self.output = process, output

    def wait(self, timeout: float) -> int:
        """Until it has ended: its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not; it is killed.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise subprocess.TimeoutExpired(self.read("out"), timeout, self.read("err")) from None

    def kill(self) -> None:
        self.process.kill()

    def read(self, stream: str) -> str:
        """What it has said on "out" or "err" so far."""
        return self.output.with_name(f"{self.output.name}.{stream}").read_text()


class Warm:
    """Starts programs in forks of a server, which all processes of a test session share.

    Args:
        folder: an empty one, for what programs say.
        session: a folder of the whole session; the first that comes starts the server.
        owner: the process that the server ends with.
    """

    def __init__(self, folder: Path, session: Path, owner: int):
        self.folder, self.number = folder, 0
        with (session / "warm").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            place = file.read() or self._serve(owner)
            file.truncate(0)
            file.write(place)
        self.executable = f"{place}/python"

    @staticmethod
    def _serve(owner: int) -> str:
        """Starts the server, in a folder whose name is short, as those of sockets have to be; it removes the folder."""
        place = tempfile.mkdtemp(prefix="warm_")
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with Path(place, "said").open("w") as said:
            command = [sys.executable, str(WORKER), place, str(owner)]
            subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        while not Path(place, "python").exists():
            time.sleep(0.02)
        return place

    def start(
        self, code: str, *arguments: str, environment: Mapping[str, str | None] | None = None, cwd: Path = ROOT
    ) -> Program:
        """As `python -c CODE ARGUMENT...`.

        Args:
            code: of Python, run as `__main__`.
            arguments: `sys.argv[1:]`.
            environment: variables that come on top; those that are None are not there.
            cwd: the current folder.
        """
        output, self.number = self.folder / str(self.number), self.number + 1
        changed = os.environ | dict(environment or {})
        variables = {name: value for name, value in changed.items() if value is not None}
        with Path(f"{output}.out").open("w") as out, Path(f"{output}.err").open("w") as err:
            command = [self.executable, "-c", code, *arguments]
            process = subprocess.Popen(
                command, env=variables, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        return Program(process, output)

    def run(self, code: str, *arguments: str, timeout: float = 900, **options) -> subprocess.CompletedProcess:
        """As `subprocess.run(…, capture_output=True, text=True)`; see `start`."""
        program = self.start(code, *arguments, **options)
        returncode = program.wait(timeout)
        return subprocess.CompletedProcess(arguments, returncode, program.read("out"), program.read("err"))
