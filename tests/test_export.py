"""Students in ONNX Runtime, against torch, the stock feature extractors and the pipeline that travels."""

import numpy as np
import pytest
import torch
from test_modeling import ALL_CONFIGS, student, whisper_extractor
from transformers import Wav2Vec2FeatureExtractor

from cmkd.export.folder import export_folder
from cmkd.export.runtime import LogMel, OnnxStudent

RATE = 16000
SECONDS = (0.1, 0.1337, 0.25, 0.4, 0.61, 0.99, 1.3, 2.02, 3.7, 5.5)


def extractor(name: str):
    """As published beside each encoder: CPC takes the waveform as it is."""
    if name == "whisper":
        return whisper_extractor()
    return Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=name != "cpc")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


def by_torch(model, name: str, wave: np.ndarray):
    """Scores and embedding from the stock extractor and the model, one utterance at a time."""
    features = extractor(name)(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    with torch.no_grad():
        output = model(**features)
    return output.logits[0].numpy(), output.embeddings[0].numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """By the name of an encoder: its model, and the folder that `export_folder` wrote."""
    made: dict[str, tuple] = {}

    def make(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = student(ALL_CONFIGS[name], label_scale=(1, 7))
            model.save_pretrained(folder / "student")
            extractor(name).save_pretrained(folder / "student")
            export_folder(str(folder / "student"), folder / "onnx")
            made[name] = model, folder / "onnx"
        return made[name]

    return make


def padded(waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A batch whose padding is loud noise."""
    lengths = np.array([len(wave) for wave in waves])
    batch = np.random.default_rng(9).normal(size=(len(waves), lengths.max() + 333)).astype(np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return batch, lengths


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_ten_lengths_alone_and_in_padded_batches_score_as_in_torch(name, exported):
    model, folder = exported(name)
    found = OnnxStudent(folder / "model.onnx")
    waves = [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    expected = [np.stack(values) for values in zip(*(by_torch(model, name, wave) for wave in waves), strict=True)]
    assert expected[0].std(0).max() > 3e-4  # the utterances differ, so that equality says something
    alone = [found.run(wave[None], np.array([len(wave)])) for wave in waves]
    for kind in (0, 1):
        np.testing.assert_allclose(np.concatenate([one[kind] for one in alone]), expected[kind], atol=1e-5, rtol=0)
    order = [3, 0, 9, 1, 7, 2, 8, 4, 6, 5]
    for rows in (list(range(10)), order, order[:3], order[7:]):
        for kind, values in enumerate(found.run(*padded([waves[row] for row in rows]))):
            np.testing.assert_allclose(values, expected[kind][rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.23456, 29.98, 29.995, 30.0])
def test_the_log_mel_of_whisper_is_that_of_its_extractor(seconds):
    mel = LogMel(num_mel_bins=80, sampling_rate=RATE, window_samples=400, hop_samples=160, maximum_samples=480000)
    wave = noise(seconds) * np.linspace(0, 1, round(seconds * RATE), dtype=np.float32) ** 3
    wave[-30:] = 0.9  # loudest at the end, where the frames beyond it hear it too
    stock = extractor("whisper")
    expected = stock._np_extract_fbank_features(np.pad(wave, (0, 480000 - len(wave)))[None], "cpu")[0]
    features = stock(wave, sampling_rate=RATE, return_tensors="np", return_attention_mask=True)
    found = mel(wave)
    assert found.shape == (80, features["attention_mask"].sum())
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found, features["input_features"][0][:, : found.shape[1]], atol=1e-4, rtol=0)
