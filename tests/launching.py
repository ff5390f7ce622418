"""Processes of a launch, as a user's launcher or two machines would start them."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
"""The presets of `accelerate launch`."""


def environment(**more: str) -> dict[str, str]:
    """Of a process of one thread on the CPU that finds this checkout, not an installed package."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"} | more


def launch(preset: str, processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`accelerate launch` with a preset, as a user with GPUs types it, on the CPU in fp32."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / preset)]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=600)


@contextmanager
def two_processes(program: list[str], folder: Path):
    """Started as two machines would, so that nobody ends one when the other dies; their outputs go into files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, *program]
    started = []
    try:
        for rank in ("0", "1"):
            with (folder / rank).open("w") as output:
                of_rank = environment(**of_launch, RANK=rank, LOCAL_RANK=rank)
                started.append(subprocess.Popen(command, env=of_rank, stdout=output, stderr=subprocess.STDOUT))
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
