"""How torch says that there is no memory left."""

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is that of a GPU, or of the CPU, which has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
