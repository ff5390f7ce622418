"""What a run's numbers depend on besides its recipe: the commit of every encoder, and the precision of the launch."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_choice_from_env
from huggingface_hub import hf_hub_download
from transformers import AutoConfig

START, EARS_CONFIG = "start.safetensors", "ears.json"
"""The files in which a stage `lexical` leaves the weights of its student, and its configuration if it has ears."""

_DIGEST = "sha256-"  # how that of a folder begins
_WEIGHTS_AND_SETTINGS = (".safetensors", ".bin", ".json", ".txt", ".model")


def read_encoder(
    source: str, revision: str | None = None, read: Callable[..., Any] = AutoConfig.from_pretrained
) -> tuple[Any, str]:
    """The configuration of an encoder, and the commit that it is.

    Args:
        source: Hub name or folder.
        revision: Branch, tag or commit on the Hub; None: its main branch.
        read: takes both, the second one as `revision`, and reads the configuration.

    Returns:
        The configuration, and the commit on the Hub, or for a folder what [`folder_digest`] says of it.

    Raises:
        ValueError: a revision is given for a folder.
        OSError: there is no such encoder, or no such revision of it.
    """
    folder = Path(source)
    if not folder.is_dir():
        read(source, revision=revision)  # its errors say more than those of a download
        commit = hub_commit(source, revision)
        return read(source, revision=commit), commit
    if revision is not None:
        raise ValueError(
            f"revision is {revision!r}, but {source!r} is a folder, which has no revisions: leave it out, or name an "
            "encoder on the Hub that is not in models_dir."
        )
    return read(source), folder_digest(folder)


def hub_commit(name: str, revision: str | None = None) -> str:
    """The commit that a revision of a model on the Hub stands for; its folder in the cache is named after it."""
    return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name


def folder_digest(folder: Path) -> str:
    """A short name for what the folder of a model holds (weights, settings, vocabulary): "sha256-" and 12 digits.

    Of a stage `lexical` it is that of the ears: when it was trained, and for how long, is in its folder too.
    """
    digest = hashlib.sha256()
    of_ears = [folder / EARS_CONFIG, folder / START]
    for path in of_ears if is_stage_with_ears(folder) else sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _WEIGHTS_AND_SETTINGS:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return f"{_DIGEST}{digest.hexdigest()[:12]}"


def is_stage_with_ears(folder: Path) -> bool:
    """Whether it is the folder of a stage `lexical` that has taught ears for words."""
    return (folder / EARS_CONFIG).is_file() and (folder / START).is_file()


def is_folder_digest(commit: str) -> bool:
    """Whether what [`read_encoder`] gave as a commit is the digest of a folder, and not a commit on the Hub.

    >>> is_folder_digest("sha256-0123456789ab"), is_folder_digest("0123456789abcdef0123456789abcdef01234567")
    (True, False)
    """
    return commit.startswith(_DIGEST)


def precision(device: torch.device) -> str:
    """What a launch computes in: "fp32", "bf16", "fp16" or "fp8", as accelerate was told, and whether TF32 is on.

    TF32 is what the device does, not what a flag says: there are several flags, old and new, that set it.

    >>> precision(torch.device("cpu"))
    'fp32'
    """
    mixed = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    name = "fp32" if mixed == "no" else mixed
    return name if _keeps_fp32(device) else f"{name} with TF32 in matrix products"


def _keeps_fp32(device: torch.device) -> bool:
    """Whether a matrix product keeps the 23 bits of fp32; TF32 has 10, bf16 7."""
    factor = torch.full((256, 256), 1 + 2**-12, device=device)
    return bool((factor @ torch.eye(256, device=device) == factor).all())
