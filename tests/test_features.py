"""Inputs and their collation."""

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from transformers import WhisperFeatureExtractor

from cmkd.features.inputs import SpeechInputs, UtteranceDataset
from cmkd.training.collator import collate_utterances


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
