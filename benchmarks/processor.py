"""What the processor of this machine is good for."""

import platform
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
"""Flags of /proc/cpuinfo that decide what int8 and bf16 are good for."""


def processor() -> dict[str, Any]:
    """What the processor is, and which instructions for small numbers it has, as Linux says."""
    text = Path("/proc/cpuinfo").read_text()
    flags = set(text.split("flags", 1)[-1].split("Features", 1)[-1].split("\n", 1)[0].split())
    return {"machine": platform.machine(), "instructions": [name for name in INSTRUCTIONS if name in flags]}
