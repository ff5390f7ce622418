"""The time and memory that a stage costs, over all of its sessions.

A session is one launch that worked on a stage, from its beginning to its end or interruption. Its cost is written to
stage.json when training begins and after every epoch, so that a session that is killed counts up to its last epoch.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

_WITH_PEAKS = ("cuda", "xpu")
"""The kinds of devices that report their peak memory."""


class SessionCost(TrainerCallback):
    """The cost of a session, which begins when this object is created; a callback that records it during training.

    Args:
        write: a function that takes what [`SessionCost.so_far`] returns; it is called in the main process only.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]):
        self._write = write
        self._started = time.monotonic()
        self._device = PartialState().device
        if self._device.type in _WITH_PEAKS:
            torch.get_device_module(self._device).reset_peak_memory_stats(self._device)

    def so_far(self) -> dict[str, Any]:
        """The cost of this process until now.

        Returns:
            `seconds`; `peak_memory_gb`, its peak memory in units of 2^30 bytes; `peak_device_memory_gb`, the most
            memory that tensors took on its GPU in this session, None without a GPU; `processes`, the number of
            processes in the launch; and `device`, the kind of device.
        """
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        of_device = None
        if self._device.type in _WITH_PEAKS:
            of_device = torch.get_device_module(self._device).max_memory_allocated(self._device) / 2**30
        return {
            "seconds": round(time.monotonic() - self._started, 1),
            "peak_memory_gb": round(peak, 2),
            "peak_device_memory_gb": of_device and round(of_device, 2),
            "processes": PartialState().num_processes,
            "device": self._device.type,
        }

    @contextmanager
    def until_interrupted(self, is_main_process: bool) -> Iterator[None]:
        """Records the cost if the block ends with an error or an interruption."""
        try:
            yield
        except BaseException:
            if is_main_process:
                with suppress(OSError):  # a full disk may be what ended it, which that error reports
                    self._write(self.so_far())
            raise

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._write(self.so_far())

    on_save = on_train_begin


def total_cost(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cost of several sessions: the sum of the seconds, and the maximum of everything else.

    >>> sessions = [
    ...     {"seconds": 2.5, "peak_memory_gb": 1.0, "peak_device_memory_gb": None, "processes": 1, "device": "cpu"},
    ...     {"seconds": 4.0, "peak_memory_gb": 0.5, "peak_device_memory_gb": 3.25, "processes": 2, "device": "cuda"},
    ... ]
    >>> total_cost(sessions)
    {'seconds': 6.5, 'peak_memory_gb': 1.0, 'peak_device_memory_gb': 3.25, 'processes': 2, 'device': 'cpu, cuda'}
    """
    of_devices = [session["peak_device_memory_gb"] for session in sessions]
    return {
        "seconds": round(sum(session["seconds"] for session in sessions), 1),
        "peak_memory_gb": max(session["peak_memory_gb"] for session in sessions),
        "peak_device_memory_gb": max((peak for peak in of_devices if peak is not None), default=None),
        "processes": max(session["processes"] for session in sessions),
        "device": ", ".join(dict.fromkeys(session["device"] for session in sessions)),
    }
