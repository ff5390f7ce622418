"""Converts a published checkpoint of Modified CPC to a folder that transformers loads (row 3 of the paper's Table 2).

The format is that of https://github.com/facebookresearch/CPC_audio (Rivière et al. 2020, arXiv 2002.02848), whose
hubconf.py reads it: a dict with `config`, the settings of the training, and `weights`, by their names in the network
(`gEncoder.conv0.weight`, `gAR.baseNet.weight_ih_l0` …). One example is 60k_epoch4-d0f474de.pt. The checkpoints that its
training writes, with a `checkpoint_args.json` beside them, have a different format.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2FeatureExtractor

from cmkd.atomic import folder_written_whole
from configuration_cmkd import CPCConfig
from speech_encoder_cmkd import CPCModel

DEFAULTS: dict[str, Any] = {
    "hiddenEncoder": 256,
    "hiddenGar": 256,
    "nLevelsGRU": 1,
    "arMode": "LSTM",
    "normMode": "layerNorm",
    "encoder_type": "cpc",
    "cpc_mode": None,
}
"""The values that CPC_audio uses for settings that a checkpoint does not name (its cpc_default_config.py)."""

SUPPORTED = {
    "arMode": ("LSTM", "GRU"),
    "normMode": ("layerNorm",),
    "encoder_type": ("cpc",),
    "cpc_mode": (None, "none"),
}
"""The values of those settings that [`CPCModel`] supports."""


def convert_cpc(source: Path, target: Path) -> CPCModel:
    """Converts a published checkpoint.

    Args:
        source (`Path`): The checkpoint, a file of `torch.save`. It is read with `weights_only=True`: nothing in it can
            run.
        target (`Path`): The folder to make, with config.json, model.safetensors, preprocessor_config.json and the code
            files. It appears whole or not at all.

    Returns:
        The network that was saved, in eval mode.

    Raises:
        ValueError: the file is not such a checkpoint, or its network is one that [`CPCModel`] does not support; or a
            weight is missing, unexpected or of another shape.
        OSError: the file cannot be read, or the folder cannot be written.
        FileExistsError: `target` already exists.
    """
    if target.exists():
        raise FileExistsError(f"{target} already exists: name a folder that does not, or remove it.")
    config, weights = _read(source)
    for name, supported in SUPPORTED.items():
        if config[name] not in supported:
            listed = " or ".join(repr(value) for value in supported)
            raise ValueError(f"{source}: config[{name!r}] is {config[name]!r}; only {listed} can be converted.")
    try:
        model = CPCModel(
            CPCConfig(
                num_channels=config["hiddenEncoder"],
                hidden_size=config["hiddenGar"],
                num_hidden_layers=config["nLevelsGRU"],
                recurrent_type=config["arMode"].lower(),
            )
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    model.load_state_dict(_rename(source, weights, model.state_dict()))
    model.eval()

    with folder_written_whole(target) as unfinished:
        model.save_pretrained(unfinished)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(unfinished)
    return model


def published_name(name: str) -> str:
    """`"layers.0.norm.weight"` -> `"gEncoder.batchNorm0.weight"`: a weight of [`CPCModel`] in CPC_audio."""
    module, _, rest = name.partition(".")
    if module == "recurrent":
        return f"gAR.baseNet.{rest}"
    index, kind, parameter = rest.split(".")
    return f"gEncoder.{'conv' if kind == 'conv' else 'batchNorm'}{index}.{parameter}"


def _read(source: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Reads the settings, with defaults for those that are not named, and the weights."""
    content = io.BytesIO(source.read_bytes())
    expected = "Expected a published checkpoint of CPC_audio, such as 60k_epoch4-d0f474de.pt."
    try:
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and its messages advise to read without weights_only
        raise ValueError(
            f"{source} cannot be read as plain settings and weights: it is damaged, of another kind, or holds objects "
            f"whose code would have to run. {expected}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{source} holds a {type(checkpoint).__name__} instead of a dict. {expected}")
    for part in ("config", "weights"):
        if not isinstance(checkpoint.get(part), Mapping):
            held = ", ".join(str(key) for key in checkpoint) or "nothing"
            raise ValueError(f"{source} holds no dict {part!r}, but {held}. {expected}")
    return DEFAULTS | dict(checkpoint["config"]), checkpoint["weights"]


def _rename(source: Path, weights: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published weights under our names, in our shapes and fp32; the prediction network's are left out."""
    names = {published_name(name): name for name in own}
    given = {name for name in weights if str(name).startswith(("gEncoder.", "gAR."))}
    missing, unexpected = sorted(names.keys() - given), sorted(given - names.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source}: the weights are not those that its config describes: missing {', '.join(missing) or 'none'}; "
            f"unexpected {', '.join(unexpected) or 'none'}."
        )
    renamed = {}
    for published, name in names.items():
        value, shape = weights[published], tuple(own[name].shape)
        stored_shape = (1, *shape, 1) if ".norm." in name else shape
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != stored_shape:
            actual = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"{source}: {published} is {actual}; by the config it is a tensor of shape {stored_shape}."
            )
        renamed[name] = value.float().reshape(shape)
    return renamed
