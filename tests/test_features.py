"""Collation and stored features."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, WhisperFeatureExtractor

from cmkd.collator import collate_utterances
from cmkd.features import SpeechInputs, UtteranceDataset, frozen_features


def test_a_batch_is_padded_on_the_right_with_a_mask():
    batch = collate_utterances(
        [
            {
                "input_ids": torch.tensor([5, 6, 7]),
                "speech_features": torch.ones(1, 2),
                "labels": np.array([1.0, 2.0, 3.0]),
            },
            {
                "input_ids": torch.tensor([8]),
                "speech_features": torch.full((2, 2), 3.0),
                "labels": np.array([4.0, 5.0, 6.0]),
            },
        ]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["text_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["speech_features"].tolist() == [[[1, 1], [0, 0]], [[3, 3], [3, 3]]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_spectrograms_are_padded_in_time():
    batch = collate_utterances([{"input_features": torch.ones(2, 3)}, {"input_features": torch.full((2, 1), 4.0)}])
    assert batch["input_features"].tolist() == [[[1, 1, 1]] * 2, [[4, 0, 0]] * 2]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_columns_must_be_as_long_as_each_other():
    with pytest.raises(ValueError, match="{'a': 2, 'b': 3}"):
        UtteranceDataset({"a": [1, 2], "b": [1, 2, 3]})


def rows(folder, count=3) -> Dataset:
    table = []
    for index in range(count):
        path = folder / f"{index}.wav"
        soundfile.write(path, np.random.default_rng(index).normal(size=1000 * (index + 1)) / 10, 16000)
        table.append({"id": f"u{index}", "audio": {"path": str(path), "bytes": None}, "transcript": "a b"})
    return Dataset.from_list(table)


class Part(nn.Module):
    """Stands for a speech encoder around a stock encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.config = PreTrainedConfig()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def run(self, inputs):
        self.calls += 1
        return self.scale * inputs[..., None].repeat(1, 1, 2), None


def test_frozen_features_are_computed_once_for_what_they_depend_on(tmp_path):
    table, part = rows(tmp_path), Part()
    inputs = [torch.arange(float(length)) for length in (3, 1, 2)]

    def load(settings="a", table=table):
        return frozen_features(tmp_path / "cache", table, inputs, part, part.run, settings, "speech")

    first = load()
    assert part.calls == 3 and len(first) == 3
    for stored, expected in zip(first, inputs, strict=True):
        torch.testing.assert_close(stored, 2 * expected[:, None].repeat(1, 2))
    assert torch.equal(load()[2], first[2]) and part.calls == 3
    load(settings="b")
    assert part.calls == 6
    with torch.no_grad():
        part.scale.fill_(3.0)
    torch.testing.assert_close(load()[0], 3 * inputs[0][:, None].repeat(1, 2))
    assert part.calls == 9
    soundfile.write(tmp_path / "1.wav", np.zeros(500), 16000)
    load()
    assert part.calls == 12
    part.encoder.config.hidden_act = "relu"
    load()
    assert part.calls == 15


def test_stored_features_travel_to_workers_as_a_path(tmp_path):
    part = Part()
    inputs = [torch.arange(float(length)) for length in (30000, 1, 2)]
    stored = frozen_features(tmp_path / "cache", rows(tmp_path), inputs, part, part.run, "", "speech")
    sent = ForkingPickler.dumps(stored)
    assert len(sent) < 1000
    assert torch.equal(ForkingPickler.loads(sent)[2], stored[2])


def test_an_interrupted_cache_is_not_taken_for_a_whole_one(tmp_path):
    table, part = rows(tmp_path), Part()

    def interrupted(inputs):
        if part.calls == 2:
            raise KeyboardInterrupt
        return part.run(inputs)

    inputs = [torch.arange(3.0)] * 3
    with pytest.raises(KeyboardInterrupt):
        frozen_features(tmp_path / "cache", table, inputs, part, interrupted, "", "speech")
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(frozen_features(tmp_path / "cache", table, inputs, part, part.run, "", "speech")) == 3
    assert part.calls == 5


def test_an_error_names_the_utterance(tmp_path):
    def fail(inputs):
        raise ValueError("too short")

    with pytest.raises(ValueError, match="Utterance 'u0': too short"):
        frozen_features(tmp_path / "cache", rows(tmp_path), [torch.ones(1)] * 3, Part(), fail, "", "speech")


def test_whispers_input_is_cut_to_the_speech(tmp_path):
    """Against the extractor's own output at 30 s."""
    extractor = WhisperFeatureExtractor(return_attention_mask=True)
    inputs = SpeechInputs(rows(tmp_path), extractor)
    for index, frames in enumerate((7, 13, 19)):  # ceil(samples / 160)
        wave, _ = soundfile.read(tmp_path / f"{index}.wav", dtype="float32")
        expected = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_features"][0]
        assert inputs[index].shape == (80, frames)
        torch.testing.assert_close(inputs[index], expected[:, :frames])


def test_too_long_for_whisper_is_refused_and_named(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 31), 16000)
    table = Dataset.from_list([{"id": "long", "audio": {"path": str(tmp_path / "long.wav"), "bytes": None}}])
    with pytest.raises(ValueError, match="'long' lasts 31.0 s: this encoder takes at most 30 s"):
        SpeechInputs(table, WhisperFeatureExtractor())[0]
