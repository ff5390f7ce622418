"""The speech encoder that ships with the demo: small, offline, 25 frames a second, and not the same for all speech."""

from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "demo_models" / "speech"


@pytest.fixture(scope="module")
def encoder():
    from transformers import HubertModel

    return HubertModel.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True).eval()


def test_weights_take_at_most_8_megabytes():
    assert (FOLDER / "model.safetensors").stat().st_size <= 8e6


def test_feature_extractor():
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(FOLDER, local_files_only=True)
    assert type(extractor).__name__ == "Wav2Vec2FeatureExtractor"
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (16_000, False, True)


def test_frames_of_40_milliseconds(encoder):
    with torch.no_grad():
        frames = encoder(torch.randn(2, 2 * 16_000, generator=torch.Generator().manual_seed(0))).last_hidden_state
    assert frames.shape == (2, 49, 192)  # 2 s at 25 frames a second; the last would need samples beyond the end
    assert torch.isfinite(frames).all()


def test_fine_tuning_has_no_randomness_that_distributed_training_cannot_take(encoder):
    config = encoder.config
    assert (config.layerdrop, config.mask_time_prob, config.apply_spec_augment) == (0, 0, False)


def test_loudness_does_not_change_the_features(encoder):
    pytest.importorskip("espeakng_loader", reason='needs the extra "demo"')
    from cmkd.corpora.speech_synthesis import HELD_OUT_VOICES, speak

    speech = torch.from_numpy(speak("nobody expected such a quiet evening", HELD_OUT_VOICES[0]))[None]
    other = torch.from_numpy(speak("we shall open every single window", HELD_OUT_VOICES[0]))[None, : speech.shape[1]]
    with torch.no_grad():
        plain, quiet, different = (encoder(clip).last_hidden_state[0, :25] for clip in (speech, speech / 4, other))
    assert (quiet - plain).norm() < 0.05 * (different - plain).norm()
