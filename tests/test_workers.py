"""Processes that read ahead get all that they need, however they are started.

Linux forked them until Python 3.13, so that they had everything; since 3.14 a server starts them, as a Mac and Windows
start each anew, and they have what can be pickled.
"""

import multiprocessing
import time

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from linear_trainer import trainer
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from cmkd.features.inputs import SpeechInputs, UtteranceDataset
from cmkd.features.store import FrozenPart, Storage, audio_keys, frozen_features

ENDS = [None, 1600, 2400, None, 3200]
"""Of the utterances, in samples."""


@pytest.fixture(autouse=True)
def workers_come_from_a_server():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def make_rows(folder) -> Dataset:
    """As a split of a corpus has them: each utterance is a stretch of the second channel of its file."""
    table = []
    for index, end in enumerate(ENDS):
        path = folder / f"{index}.wav"
        noise = np.random.default_rng(index).normal(size=(1000 * (index + 1), 2)) / 10
        soundfile.write(path, noise, 16000, subtype="FLOAT")
        row = {"id": f"u{index}", "audio": {"path": str(path), "bytes": None}, "duration": (index + 1) / 16}
        table.append(row | {"start": 0.01, "end": end and end / 16000, "channel": 1})
    return Dataset.from_list(table).cast_column("audio", Audio(decode=False))


def heard(folder, index: int, extractor) -> torch.Tensor:
    """What the encoder takes of an utterance, read by soundfile alone."""
    wave, _ = soundfile.read(folder / f"{index}.wav", dtype="float32")
    inputs = extractor(wave[160 : ENDS[index], 1], sampling_rate=16000, return_tensors="pt")
    if "input_values" in inputs:
        return inputs["input_values"][0]
    return inputs["input_features"][0, :, : -(-len(wave[160 : ENDS[index]]) // 160)]  # 100 frames a second


class Part(torch.nn.Module):
    """Stands for the frozen part of a speech encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.config = WhisperFeatureExtractor()  # anything that has `to_dict`
        self.encoder.config._name_or_path = "nothing"
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def run(self, inputs):
        return self.scale * inputs.flatten(1)[..., None], None


@pytest.mark.slow
@pytest.mark.parametrize(
    "extractor", [Wav2Vec2FeatureExtractor(return_attention_mask=True), WhisperFeatureExtractor()], ids=["wave", "mel"]
)
def test_a_corpus_and_its_stored_features(extractor, tmp_path):
    rows, part, name = make_rows(tmp_path), Part(), extractor.model_input_names[0]
    inputs = SpeechInputs(rows, extractor)
    frozen, storage = FrozenPart(part, part.run, "", "speech"), Storage(tmp_path / "cache", workers=1)
    stored = frozen_features(rows, inputs, audio_keys(rows), frozen, storage)
    columns = {name: inputs, "speech_features": stored, "labels": np.arange(5.0)[:, None].repeat(3, 1)}
    utterances = UtteranceDataset(columns)
    job = trainer(tmp_path, train=utterances, dataloader_num_workers=1)
    for loader in (job.get_train_dataloader(), job.get_test_dataloader(utterances)):
        seen = []
        for batch in loader:
            for row, label in enumerate(batch["labels"]):
                index = int(label[0])
                seen.append(index)
                expected = heard(tmp_path, index, extractor)
                got = batch[name][row]
                torch.testing.assert_close(got[..., : expected.shape[-1]], expected)
                assert not got[..., expected.shape[-1] :].any()
                features = batch["speech_features"][row, : expected.numel(), 0]
                torch.testing.assert_close(features, 2 * expected.flatten())
        assert sorted(seen) == list(range(5))


class Stuck(torch.utils.data.Dataset):
    """A file system that does not answer."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(3600)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["training", "evaluation", "prediction"])
def test_a_process_that_reads_for_ever_ends_the_job(of, tmp_path, monkeypatch):
    monkeypatch.setattr("cmkd.training.trainer.READING_TIMEOUT", 3.0)
    job = trainer(tmp_path, train=Stuck(), dataloader_num_workers=1)
    act = {
        "training": job.train,
        "evaluation": lambda: job.evaluate(Stuck()),
        "prediction": lambda: job.predict(Stuck()),
    }[of]
    with pytest.raises(RuntimeError, match="DataLoader timed out after 3"):
        act()
