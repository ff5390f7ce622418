"""What scoring takes: time and memory, beside an encoder of transformers in the same process."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from cmkd.audit.subjects import Subject
from cmkd.audit.tests import Cost

SECONDS = 10
"""Of noise that is scored."""

_SEED = 0
_TIMES = 3
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def measure_cost(subject: Subject, reference: HubertConfig) -> Cost:
    """What a model takes to score 10 s of noise, and what an encoder with random weights takes right after.

    Args:
        subject: the model.
        reference: the size of the encoder.
    """
    noise = np.random.default_rng(_SEED).normal(0, 0.05, SECONDS * subject.sampling_rate).astype(np.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None  # of a machine that has one
    with torch.random.fork_rng():
        encoder = HubertModel(reference).eval().to(device)

    @torch.inference_mode()
    def encode() -> None:
        encoder(torch.from_numpy(noise)[None].to(device)).last_hidden_state.cpu()

    def score() -> None:
        subject.score([noise])

    score()  # what is done once only
    own, own_memory = _median_time(score), peak_memory(score, device)
    encode()
    other, other_memory = _median_time(encode), peak_memory(encode, device)
    return Cost(
        own / SECONDS,
        other / SECONDS,
        subject.parameters,
        encoder.num_parameters(),
        own_memory,
        other_memory,
        device.type,
    )


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes that a function takes on top of what the process, or the GPU, held before.

    On a CPU they are those that the operating system counts as resident; the C library's free blocks are given back
    before, since they would hide what is taken from them.

    Returns:
        None where this is not known: on a CPU elsewhere than on Linux with glibc, or on a device that is no GPU of
        torch.cuda.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _RESET.exists() or platform.libc_ver()[0] != "glibc":
        return None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:  # of a container that forbids it
        return None
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _median_time(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
