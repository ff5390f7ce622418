"""Processes of a launch, as a user's launcher or two machines would start them."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from warm import Program, Warm, free_port

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
"""The presets of `accelerate launch`."""
ON_CPUS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}


def launch(
    python: Warm, preset: str, processes: int, script: Path | str, *arguments: str, timeout: float = 900
) -> subprocess.CompletedProcess:
    """`accelerate launch` with a preset, as a user with GPUs types it, but in fp32 and on the CPU.

    The script may be "-m", which the name of a module follows.

    With a port of its own: that which is free while accelerate looks for one may be taken before it is used.
    """
    command = [python.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / preset)]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--main_process_port", str(free_port())]
    command += [str(script), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | ON_CPUS, timeout=timeout
    )


def start_processes(
    python: Warm,
    number: int,
    code: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> list[Program]:
    """Starts the processes of a launch without a launcher, which would end the others when one dies."""
    of_launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "1"}
    of_launch |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), **(environment or {})}
    return [
        python.start(code, *arguments, environment=of_launch | {"RANK": rank, "LOCAL_RANK": rank}, cwd=cwd)
        for rank in map(str, range(number))
    ]


def output_of(processes: Sequence[Program], timeout: float = 900) -> str:
    """What all processes have printed, once they have ended with exit code 0."""
    for process in processes:
        assert process.wait(timeout) == 0, process.read("err")[-5000:]
    return "".join(process.read("out") for process in processes)


@contextmanager
def two_processes(python: Warm, code: str, *arguments: str) -> Iterator[list[Program]]:
    """Two processes, started as two machines would start them; both are killed at the end."""
    started = start_processes(python, 2, code, *arguments)
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait(timeout=120)
