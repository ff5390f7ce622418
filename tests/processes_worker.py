"""Run by test_processes.py, in two processes without a launcher: their output says what happens.

Times are shortened, so that what takes minutes takes seconds.
"""

import os
import signal
import time
from datetime import timedelta

import torch
from accelerate.utils import gather_object

from cmkd import processes

processes.COLLECTIVE_TIMEOUT = timedelta(seconds=8)
processes.INTERVAL = 1.0
processes.SILENCE = 6.0
processes.PATIENCE = 4.0


def strike(case: str) -> None:
    """Does to this process what the case says."""
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "failed":
        raise ValueError("the corpus is broken")


def main(case: str) -> None:
    state = processes.join_launch()
    when, _, what = case.partition("-")
    with processes.main_process_first("build the corpus"):
        if state.is_main_process:
            if when == "main":
                time.sleep(0.5)
                strike(what)
            if when == "slow":
                time.sleep(12)  # longer than a collective operation and than the silence of a process that is dead
        print(f"process {state.process_index} has the corpus", flush=True)
    if when == "other" and not state.is_main_process:
        strike(what)
    processes.wait_for_all("compute its share")
    for step in range(20):
        if when == "training" and step == 10 and not state.is_main_process:
            strike(what)
        gather_object([step])
    processes.wait_for_all("save")
    print(f"process {state.process_index} is done", flush=True)


def run(case: str) -> None:
    try:
        main(case)
    except (OSError, RuntimeError) as error:
        silent = processes.silent_processes() if isinstance(error, RuntimeError) else None
        print(f"{type(error).__name__}: {error}\nsilent: {silent}", flush=True)
        os._exit(3)
    torch.distributed.destroy_process_group()
