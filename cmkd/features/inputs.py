"""The inputs of a network for each utterance, computed when they are asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from cmkd.features.audio import read_audio
from cmkd.features.stretch import stretch_of


class UtteranceDataset(torch.utils.data.Dataset):
    """Utterances stored as columns: item i holds `column[i]` of every column, under the column's name."""

    def __init__(self, columns: Mapping[str, Any]):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class ChosenRows(Sequence):
    """Some rows of a column, in the order in which they were chosen; each is looked up when it is asked for."""

    def __init__(self, column: Sequence, rows: np.ndarray | Sequence[int]):
        self.column = column
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        return self.column[int(self.rows[index])]


def normalized(waves: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over the real samples of each row, 0 elsewhere, as `Wav2Vec2FeatureExtractor` does it.

    Args:
        waves: (batch, samples).
        mask: (batch, samples), True at real samples.
        lengths: (batch,).
    """
    count = lengths[:, None]
    centred = waves - waves.masked_fill(~mask, 0.0).sum(-1, keepdim=True) / count
    centred = centred.masked_fill(~mask, 0.0)
    return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + 1e-7)


class SpeechInputs(Sequence):
    """The inputs of the speech encoder, computed from the audio when they are asked for.

    Args:
        rows: a split of a corpus.
        feature_extractor: the encoder's; Whisper's pads to 30 s, and its result is cut to the real frames.

    Raises:
        ValueError: (on access) the audio cannot be read or is too long for the encoder; the message names the
            utterance.
    """

    def __init__(self, rows: Dataset, feature_extractor: Any):
        self.rows = rows
        self.feature_extractor = feature_extractor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        row = self.rows[index]
        rate = self.feature_extractor.sampling_rate
        try:
            wave = read_audio(row["audio"], rate, **stretch_of(row))
        except ValueError as error:
            raise ValueError(f"Utterance {row['id']!r}: {error}") from error
        name = self.feature_extractor.model_input_names[0]
        if name == "input_values":
            inputs = self.feature_extractor(wave, sampling_rate=rate, return_tensors="pt")
            return inputs["input_values"][0]
        if len(wave) > self.feature_extractor.n_samples:
            raise ValueError(
                f"Utterance {row['id']!r} lasts {len(wave) / rate:.1f} s: this encoder takes at most "
                f"{self.feature_extractor.n_samples // rate} s. Cut it or leave it out."
            )
        inputs = self.feature_extractor(wave, sampling_rate=rate, return_attention_mask=True, return_tensors="pt")
        return inputs["input_features"][0, :, : int(inputs["attention_mask"].sum())]


class TextInputs(Sequence):
    """Token ids (tokens,) of the transcripts.

    An utterance without words gets only the tokenizer's special tokens, or its end token if, like GPT's, it adds none.

    Raises:
        ValueError: an utterance has no tokens, and the tokenizer has no end token to stand for an empty text.
    """

    def __init__(self, rows: Dataset, tokenizer: Any):
        self.ids = tokenizer(list(rows["transcript"]), truncation=True)["input_ids"]
        for index, ids in enumerate(self.ids):
            if not ids and tokenizer.eos_token_id is None:
                raise ValueError(
                    f"Utterance {rows[index]['id']!r} has no tokens, and the tokenizer has no end token to stand for "
                    "an empty text: choose another text encoder."
                )
            self.ids[index] = ids or [tokenizer.eos_token_id]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(self.ids[index])
