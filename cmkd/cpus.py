"""How many CPUs there are to work with."""

import os
import sys


def usable_cpus() -> int:
    """How many CPUs this process may use: where the system can say so, those that it is bound to, else all.

    A container or a batch system may bind a process to a few; macOS and Windows know of no such binding.
    """
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
