"""How many CPUs a process may use, on each kind of system."""

import os
import subprocess
import sys

import pytest

from cmkd.cpus import usable_cpus
from cmkd.predict.engines import _threads
from cmkd.predict.prediction import _default_readers


@pytest.mark.skipif(sys.platform != "linux", reason="binds a process to a CPU")
def test_a_process_that_is_bound_to_one_cpu_has_one():
    cpu = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "import cmkd.cpus; print(cmkd.cpus.usable_cpus())"]
    bound = {"preexec_fn": lambda: os.sched_setaffinity(0, {cpu})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **bound)
    assert done.stdout == "1\n", done.stderr


def test_where_processes_are_not_bound_all_cpus_count(monkeypatch):
    """As on macOS, where `os.sched_getaffinity` is missing; there `os.process_cpu_count` is `os.cpu_count`."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 24)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 24, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert (usable_cpus(), _threads(), _default_readers(1), _default_readers(2)) == (24, 24, 6, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert (usable_cpus(), _threads()) == (24, 2)
