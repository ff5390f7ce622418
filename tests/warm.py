"""Processes that start at once, since they are forks of one that has imported much.

A process that imports torch, transformers and datasets has worked for five seconds before it does anything; a run of
the tests' size takes one. So a test that needs a process of its own takes one from here: it is a fork, with its own
environment, arguments, folder, output and exit code. Where what is tested is how a process starts and how it ends,
`python train_distill.py` itself say, a test uses `subprocess`.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("warm_worker.py")
LIBRARIES = (
    "av",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "numpy",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "scipy.optimize",
    "scipy.signal",
    "soundfile",
    "soxr",
    "sympy",
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.data",
    "tyro",
)
"""What reads no variables of the Hub when it is imported: these forks may have those of any Hub."""


def module(name: str) -> str:
    """The code that runs a module as `python -m` does."""
    return f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Program:
    """One that runs, on each process of a launch."""

    def __init__(self, outputs: Sequence[Path], over: Path):
        self.outputs, self.over = outputs, over

    def wait(self, timeout: float) -> int:
        """Until it has ended: its exit code; of several processes the one that stands for the most trouble.

        Raises:
            subprocess.TimeoutExpired: it has not; it is killed.
        """
        end = time.monotonic() + timeout
        while not all(output.with_name(f"{output.name}.code").exists() for output in self.outputs):
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.read("out"), timeout, self.read("err"))
            time.sleep(0.02)
        codes = [int(output.with_name(f"{output.name}.code").read_text()) for output in self.outputs]
        return max(codes, key=abs)

    def kill(self) -> None:
        self.over.touch()

    def read(self, stream: str) -> str:
        """What it has said on "out" or "err" so far."""
        files = [output.with_name(f"{output.name}.{stream}") for output in self.outputs]
        return "".join(file.read_text() for file in files if file.exists())


class Warm:
    """Starts programs in forks of a process, or of the processes of a launch.

    Args:
        folder: an empty one, for programs and their output.
        imports: the modules that the process imports first.
        launcher: the command in front of the script and its arguments.
        processes: that the launcher starts.
        environment: variables that come on top.
    """

    def __init__(
        self,
        folder: Path,
        imports: Sequence[str] = LIBRARIES,
        *,
        launcher: Sequence[str] = (sys.executable,),
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ):
        self.folder, self.processes, self.number = folder, processes, 0
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | dict(environment or {})
        command = [*launcher, str(WORKER), str(folder), str(os.getpid()), *imports]
        self.said = (folder / "said").open("w")
        self.process = subprocess.Popen(command, env=variables, stdout=self.said, stderr=self.said)

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
        assert self.process.poll() is None, (self.folder / "said").read_text()
        number, self.number = self.number, self.number + 1
        program = {"code": code, "arguments": arguments, "environment": dict(environment or {}), "cwd": str(cwd)}
        self._hand_over(number, program | {"port": free_port()})
        outputs = [self.folder / f"{number}.{rank}" for rank in range(self.processes)]
        return Program(outputs, self.folder / f"{number}.over")

    def run(self, code: str, *arguments: str, timeout: float = 300, **options) -> subprocess.CompletedProcess:
        """As `subprocess.run(…, capture_output=True, text=True)`; see `start`."""
        program = self.start(code, *arguments, **options)
        returncode = program.wait(timeout)
        return subprocess.CompletedProcess(arguments, returncode, program.read("out"), program.read("err"))

    def close(self) -> None:
        if self.process.poll() is None:
            for number in range(self.number):
                (self.folder / f"{number}.over").touch()
            self._hand_over(self.number, None)
            try:
                self.process.wait(timeout=60)
            finally:
                self.process.kill()
        self.said.close()

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _hand_over(self, number: int, program: dict | None) -> None:
        part = self.folder / f"{number}.part"
        part.write_text(json.dumps(program))
        part.rename(self.folder / f"{number}.json")
