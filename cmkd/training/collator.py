"""The collator, which makes a batch of utterances."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

MASKS = {
    "input_values": "attention_mask",
    "input_features": "attention_mask",
    "speech_features": "attention_mask",
    "input_ids": "text_attention_mask",
    "text_features": "text_attention_mask",
}
"""The inputs that differ in length from utterance to utterance, each with the name of its mask."""


def collate_utterances(utterances: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Pads and stacks utterances that have the same keys.

    Args:
        utterances: each with some of `input_values` (samples,), `input_features` (mel bins, frames), `speech_features`
            (frames, ...), `input_ids` (tokens,) and `text_features` (tokens, size); any values of a fixed shape, such
            as `labels` (3,), `teacher_embeddings` (size,) and `quality_weights` (); and text, such as `id`.

    Returns:
        Lists for text, and otherwise tensors with a leading batch axis. The first five are padded with zeros on the
        right to the longest utterance, and each has a mask (batch, length), 1 where real, under its name in `MASKS`.
    """
    batch: dict[str, Any] = {}
    for name in utterances[0]:
        if isinstance(utterances[0][name], str):
            batch[name] = [utterance[name] for utterance in utterances]
            continue
        values = [torch.as_tensor(utterance[name]) for utterance in utterances]
        if name not in MASKS:
            batch[name] = torch.stack(values)
            continue
        if name == "input_features":
            values = [value.T for value in values]
        padded = pad_sequence(values, batch_first=True)
        batch[name] = padded.transpose(1, 2) if name == "input_features" else padded
        batch[MASKS[name]] = pad_sequence([value.new_ones(len(value), dtype=torch.long) for value in values], True)
    return batch
