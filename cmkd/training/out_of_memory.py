"""How torch reports that there is no memory left."""

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a GPU or the CPU is out of memory; the CPU's error has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
