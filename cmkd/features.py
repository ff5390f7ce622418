"""What a network is fed with: the inputs of an utterance, and the stored output of its frozen parts.

A frozen part gives the same output for an utterance in every epoch and every stage, so it runs once an utterance, on
that utterance alone, and its output lies in a memory-mapped file.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tqdm.auto import tqdm

from cmkd.audio import read_audio


class UtteranceDataset(torch.utils.data.Dataset):
    """Utterances by columns: item i holds `column[i]` of every column, under the column's name."""

    def __init__(self, columns: Mapping[str, Any]):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


class SpeechInputs(Sequence):
    """What the speech encoder takes, computed from the audio when it is asked for.

    Args:
        rows: a split of a corpus.
        feature_extractor: of the encoder; Whisper's is taken at its own 30 s and cut to the real frames.

    Raises:
        ValueError: (on access) the audio cannot be read, or is too long for the encoder; it names the utterance.
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
            wave = read_audio(row["audio"], rate)
        except ValueError as error:
            raise ValueError(f"Utterance {row['id']!r}: {error}") from error
        name = self.feature_extractor.model_input_names[0]
        if name == "input_values":
            inputs = self.feature_extractor(wave, sampling_rate=rate, return_tensors="pt")
            return inputs["input_values"][0]
        if len(wave) > self.feature_extractor.n_samples:
            raise ValueError(
                f"Utterance {row['id']!r} lasts {len(wave) / rate:.1f} s: this encoder takes at most "
                f"{self.feature_extractor.n_samples // rate} s. Cut it, or leave it out."
            )
        inputs = self.feature_extractor(wave, sampling_rate=rate, return_attention_mask=True, return_tensors="pt")
        return inputs["input_features"][0, :, : int(inputs["attention_mask"].sum())]


class TextInputs(Sequence):
    """Token ids (tokens,) of the transcripts; an utterance without words gets the tokenizer's special tokens alone."""

    def __init__(self, rows: Dataset, tokenizer: Any):
        self.ids = tokenizer(list(rows["transcript"]), truncation=True)["input_ids"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(self.ids[index])


class StoredFeatures(Sequence):
    """Arrays (length, ...) of one utterance each, in one memory-mapped fp32 file.

    Args:
        folder: as [`store_features`] wrote it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        shape = json.loads((folder / "shape.json").read_text())
        self.offsets = np.load(folder / "offsets.npy")
        self.values = np.memmap(folder / "values.f32", dtype=np.float32, mode="r", shape=tuple(shape))

    def __reduce__(self):
        return StoredFeatures, (self.folder,)  # workers of a data loader map the file, rather than get a copy

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        return torch.from_numpy(np.array(self.values[self.offsets[index] : self.offsets[index + 1]]))


def store_features(folder: Path, features: Iterable[torch.Tensor]) -> StoredFeatures:
    """Writes the arrays (length, ...) to a folder, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "features"
        unfinished.mkdir()
        offsets: list[int] = [0]
        tail: tuple[int, ...] = ()
        with (unfinished / "values.f32").open("wb") as file:
            for array in features:
                file.write(array.contiguous().float().cpu().numpy().tobytes())
                offsets.append(offsets[-1] + len(array))
                tail = tuple(array.shape[1:])
        np.save(unfinished / "offsets.npy", np.array(offsets))
        (unfinished / "shape.json").write_text(json.dumps([offsets[-1], *tail]))
        unfinished.replace(folder)
    return StoredFeatures(folder)


def frozen_features(
    cache_dir: Path, rows: Dataset, inputs: Sequence, encoder: Any, run: Callable, settings: Any, name: str
) -> StoredFeatures:
    """The output of a frozen part for every utterance, from the cache or computed now.

    Args:
        cache_dir: where stored features lie, each in a folder named by what they depend on.
        rows: a split of a corpus.
        inputs: the part's inputs, as many as there are rows.
        encoder: the speech or text encoder of a CMKD model, whose weights and configuration the output depends on.
        run: takes a batch of one and returns its features (1, length, ...) and their mask.
        settings: whatever else the output depends on; must print the same whenever it means the same.
        name: says what it is in the folder's name and beside the progress bar.
    """
    digest = hashlib.sha256(repr((settings, encoder.encoder.config.to_dict(), transformers.__version__)).encode())
    for key, tensor in sorted(encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for row in rows.select_columns(["id", "audio", "transcript"]):
        digest.update(repr((row["id"], row["transcript"], _audio_identity(row["audio"]))).encode())
    folder = cache_dir / f"{name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return StoredFeatures(folder)
    device = next(encoder.parameters()).device

    def compute() -> Iterable[torch.Tensor]:
        for index in tqdm(range(len(rows)), desc=f"  {name}", unit=" utterances", disable=None):
            try:
                with torch.no_grad():
                    yield run(inputs[index][None].to(device))[0][0]
            except ValueError as error:
                raise ValueError(f"Utterance {rows[index]['id']!r}: {error}") from error

    return store_features(folder, compute())


def _audio_identity(audio: Mapping[str, Any]) -> Any:
    if audio["bytes"] is not None:
        return hashlib.sha256(audio["bytes"]).hexdigest()
    status = Path(audio["path"]).stat()
    return audio["path"], status.st_size, status.st_mtime_ns
