"""Modified CPC: the converter, the network against a forward pass by hand, batch invariance, loading and training."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from small_models import CPC, student
from tones import make_corpus
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

import train_distill
from cmkd.hub.cpc_checkpoint import convert_cpc
from configuration_cmkd import CMKDStudentConfig, CPCConfig
from modeling_cmkd import CMKDStudentModel
from speech_encoder_cmkd import CPCModel

SHORTEST = 159
"""Samples of the shortest utterance that has a frame."""

KERNELS, STRIDES, PADDING = (10, 8, 4, 4, 4), (5, 4, 2, 2, 2), (3, 2, 1, 1, 1)


def published(mode="LSTM", levels=2, channels=8, hidden=6) -> dict:
    """A dict in the form of 60k_epoch4-d0f474de.pt, with random weights, some of them of the prediction network."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape, mean=0.0):
        return mean + 0.5 * torch.randn(shape, generator=generator)

    weights = {}
    for index, kernel in enumerate(KERNELS):
        weights[f"gEncoder.conv{index}.weight"] = weight(channels, 1 if index == 0 else channels, kernel)
        weights[f"gEncoder.conv{index}.bias"] = 0.01 * weight(channels)
        weights[f"gEncoder.batchNorm{index}.weight"] = weight(1, channels, 1, mean=1.0)
        weights[f"gEncoder.batchNorm{index}.bias"] = weight(1, channels, 1)
    gates = {"LSTM": 4, "GRU": 3}[mode] * hidden
    for level in range(levels):
        weights[f"gAR.baseNet.weight_ih_l{level}"] = weight(gates, channels if level == 0 else hidden)
        weights[f"gAR.baseNet.weight_hh_l{level}"] = weight(gates, hidden)
        weights[f"gAR.baseNet.bias_ih_l{level}"] = weight(gates)
        weights[f"gAR.baseNet.bias_hh_l{level}"] = weight(gates)
    weights["wPrediction.predictors.0.weight"] = weight(channels, hidden)
    config = {"hiddenEncoder": channels, "hiddenGar": hidden, "nLevelsGRU": levels, "arMode": mode}
    training = {"normMode": "layerNorm", "samplingType": "samespeaker", "learningRate": 2e-4, "schedulerRamp": None}
    return {"config": config | training, "weights": weights}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(checkpoint: dict, wave: np.ndarray) -> np.ndarray:
    """The features (frames, hidden) of one utterance in float64, by the equations and the published names."""
    weights = {name: value.double().numpy() for name, value in checkpoint["weights"].items()}
    hidden = wave.astype(np.float64)[None]
    for index, (kernel, stride, padding) in enumerate(zip(KERNELS, STRIDES, PADDING, strict=True)):
        hidden = np.pad(hidden, ((0, 0), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(hidden, kernel, axis=1)[:, ::stride]
        hidden = np.einsum("oik,itk->ot", weights[f"gEncoder.conv{index}.weight"], windows)
        hidden += weights[f"gEncoder.conv{index}.bias"][:, None]
        centred = hidden - hidden.mean(0)
        variance = np.square(centred).sum(0) / (len(hidden) - 1)
        normalized = centred / np.sqrt(variance + 1e-5)
        scale, shift = (weights[f"gEncoder.batchNorm{index}.{name}"][0] for name in ("weight", "bias"))
        hidden = np.maximum(normalized * scale + shift, 0)
    frames = hidden.T
    for level in range(checkpoint["config"]["nLevelsGRU"]):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        from_input, from_state, bias_input, bias_state = (weights[f"gAR.baseNet.{name}_l{level}"] for name in names)
        state = cell = np.zeros(from_state.shape[1])
        outputs = []
        for frame in frames:
            given, kept = from_input @ frame + bias_input, from_state @ state + bias_state
            if checkpoint["config"]["arMode"] == "LSTM":
                enter, forget, candidate, leave = np.split(given + kept, 4)
                cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
                state = sigmoid(leave) * np.tanh(cell)
            else:
                reset_given, update_given, new_given = np.split(given, 3)
                reset_kept, update_kept, new_kept = np.split(kept, 3)
                update = sigmoid(update_given + update_kept)
                new = np.tanh(new_given + sigmoid(reset_given + reset_kept) * new_kept)
                state = (1 - update) * new + update * state
            outputs.append(state)
        frames = np.stack(outputs)
    return frames


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0.02, 0.1, samples).astype(np.float32)


def saved(path: Path, content, **options) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A converted checkpoint."""
    folder = tmp_path_factory.mktemp("cpc")
    convert_cpc(saved(folder / "published.pt", published()), folder / "encoder")
    return folder / "encoder"


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "as-before-torch-1.6"])
def test_a_converted_checkpoint_gives_the_published_networks_features(mode, levels, is_zip, tmp_path):
    checkpoint = published(mode, levels)
    source = saved(tmp_path / "published.pt", checkpoint, _use_new_zipfile_serialization=is_zip)
    converted = convert_cpc(source, tmp_path / "encoder")
    loaded = AutoModel.from_pretrained(tmp_path / "encoder")
    wave = noise(4321) / 20  # so quiet that eps counts
    expected = by_hand(checkpoint, wave)
    assert expected.shape == (27, 6) and expected.std(0).max() > 0.05
    for model in (converted, loaded):
        assert isinstance(model, CPCModel) and not model.training
        with torch.no_grad():
            features = model(torch.from_numpy(wave)[None]).last_hidden_state[0]
        np.testing.assert_allclose(features.numpy(), expected, atol=2e-5, rtol=0)


def test_the_folder_has_what_an_encoders_folder_has(folder):
    code = {"configuration_cmkd.py", "speech_encoder_cmkd.py"}
    files = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in folder.iterdir()} == files | code
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_channels, config.hidden_size, config.num_hidden_layers) == (8, 6, 2)
    extractor = AutoFeatureExtractor.from_pretrained(folder, return_attention_mask=True)
    wave = noise(500)
    inputs = extractor([wave, wave[:300]], sampling_rate=16000, padding=True, return_tensors="np")
    assert np.array_equal(inputs["input_values"][0], wave)  # as it is, neither centred nor scaled
    assert inputs["attention_mask"].sum(1).tolist() == [500, 300]


def test_settings_that_a_checkpoint_does_not_name_are_the_published_codes(tmp_path):
    checkpoint = published(levels=1, channels=256, hidden=256)
    checkpoint["config"] = {"learningRate": 2e-4}
    model = convert_cpc(saved(tmp_path / "published.pt", checkpoint), tmp_path / "encoder")
    assert model.config.recurrent_type == "lstm" and model.config.num_hidden_layers == 1
    # Convolutions: 2,816 + 524,544 + 3 x 262,400; their norms: 5 x 512; LSTM: 526,336.
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_843_456


def test_every_length_gives_the_same_features_alone_and_padded_with_noise(folder):
    model = CPCModel.from_pretrained(folder)
    lengths = [*range(SHORTEST, SHORTEST + 161), 800, 1599, 1600]
    batch = 3 * torch.randn(len(lengths), 2000, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(len(lengths), 2000, dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, :length] = torch.from_numpy(noise(length))
        mask[row, :length] = 1
    with torch.no_grad():
        found, frames = model.encode(batch, mask)
        for row, length in enumerate(lengths):
            alone = model(batch[row : row + 1, :length]).last_hidden_state[0]
            assert len(alone) == frames[row] == (length + 1) // 160
            torch.testing.assert_close(found[row, : frames[row]], alone, atol=1e-5, rtol=0)
        mask[3, SHORTEST - 1 :] = 0
        with pytest.raises(ValueError, match="Utterance 3 of the batch is shorter than one frame"):
            model(batch, mask)
    with pytest.raises(ValueError, match="Utterance 0 of the batch is shorter than one frame"):
        model(torch.zeros(1, SHORTEST - 1))


def test_a_second_has_a_hundred_frames(folder):
    with torch.no_grad():
        assert CPCModel.from_pretrained(folder)(torch.zeros(2, 16000)).last_hidden_state.shape == (2, 100, 6)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [0, -1])
def test_it_trains_wholly_or_not_at_all(kind, layers):
    config = CPCConfig(**CPC.to_dict() | {"recurrent_type": kind})
    model = student(config, num_trainable_layers=layers)
    wave = torch.from_numpy(noise(8000))[None].requires_grad_()
    for part in (model, model.speech_encoder):
        part.train()
        assert model.speech_encoder.encoder.training == (layers == -1)
    model(input_values=wave).logits.sum().backward()
    for name, parameter in model.speech_encoder.encoder.named_parameters():
        assert parameter.requires_grad == (layers == -1), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (layers == -1), name
    assert model.speech_summarizer.gru.weight_ih_l0.grad.any()


@pytest.mark.slow
def test_an_encoder_loads_elsewhere_without_this_package(folder, tmp_path):
    wave = noise(3000)
    np.save(tmp_path / "wave.npy", wave)
    code = f"""
import json, sys
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel
folder, again = {str(folder)!r}, {str(tmp_path / "again")!r}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
inputs = AutoFeatureExtractor.from_pretrained(folder)(
    np.load({str(tmp_path / "wave.npy")!r}), sampling_rate=16000, return_tensors="pt"
)
with torch.no_grad():
    for model in (model, AutoModel.from_pretrained(again, trust_remote_code=True)):
        print(json.dumps(model(**inputs).last_hidden_state[0].tolist()))
print([name for name in sys.modules if name.split(".")[0].endswith("cmkd")])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900
    )
    assert result.returncode == 0, result.stderr
    *found, leaked = result.stdout.splitlines()
    for features in found:
        np.testing.assert_allclose(json.loads(features), by_hand(published(), wave), atol=2e-5, rtol=0)
    assert leaked == "[]"


def test_the_code_of_a_checkpoint_does_not_take_the_place_of_ours(folder, tmp_path):
    """One process may hold several copies of the files, each with classes of its own."""
    ours = CMKDStudentModel.from_pretrained_encoder(str(folder))
    ours.save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(theirs.speech_encoder.encoder).__module__.startswith("transformers_modules.")
    assert type(AutoConfig.from_pretrained(folder)) is CPCConfig
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)) is CPCModel
    mixed = CMKDStudentModel(CMKDStudentConfig(speech_config=theirs.config.speech_config))
    mixed.load_state_dict(theirs.state_dict())
    wave = torch.from_numpy(noise(3000))[None]
    with torch.no_grad():
        answers = [model.eval()(input_values=wave).logits for model in (ours, theirs, mixed)]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-6, rtol=0)
    again = type(theirs).from_pretrained_encoder(str(folder))
    assert type(again.speech_encoder.encoder) is type(theirs.speech_encoder.encoder)


@pytest.mark.slow
def test_row_3_of_table_2_and_its_fine_tuning(folder, tmp_path):
    """The main job on stored features, and on audio; the answers are those of the saved student on the raw waveform."""
    (tmp_path / "corpus").mkdir()
    make_corpus(tmp_path / "corpus")
    settings = {
        "corpus": {"name": "manifest", "data_dir": str(tmp_path / "corpus"), "label_scale": [1, 7]},
        "output_dir": str(tmp_path / "run"),
        "student_speech_encoder": folder.name,
        "models_dir": str(folder.parent),
        "stages": ["audio", "finetune"],
        "num_trainable_layers": -1,
        "num_epochs": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    train_distill.main([str(tmp_path / "recipe.yaml")])
    assert len(list((tmp_path / "run/cache").glob("speech-*"))) == 1  # of the frozen encoder only
    wave, _ = soundfile.read(tmp_path / "corpus/test_2.wav", dtype="float32")
    before = CPCModel.from_pretrained(folder).state_dict()
    for stage in ("audio", "finetune"):
        model = CMKDStudentModel.from_pretrained(tmp_path / "run" / stage)
        with torch.no_grad():
            scores = model(input_values=torch.from_numpy(wave)[None]).logits[0]
        row = pq.read_table(tmp_path / "run/predictions" / f"{stage}_test.parquet").to_pylist()[2]
        assert row["id"] == "test_2"
        assert row["predicted_valence"] == pytest.approx(scores[1].item(), abs=1e-5)
        after = model.speech_encoder.encoder.state_dict()
        assert {torch.equal(value, before[name]) for name, value in after.items()} == {stage == "audio"}


def changed(part: str, **changes) -> dict:
    checkpoint = published()
    checkpoint[part] |= {name.replace("__", "."): value for name, value in changes.items()}
    return checkpoint


def without(name: str) -> dict:
    checkpoint = published()
    del checkpoint["weights"][name]
    return checkpoint


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (changed("config", normMode="batchNorm"), r"config\['normMode'\] is 'batchNorm'; only 'layerNorm'"),
        (changed("config", arMode="RNN"), r"config\['arMode'\] is 'RNN'; only 'LSTM' or 'GRU'"),
        (changed("config", arMode="transformer"), r"config\['arMode'\] is 'transformer'"),
        (changed("config", encoder_type="mfcc"), r"config\['encoder_type'\] is 'mfcc'; only 'cpc'"),
        (changed("config", cpc_mode="reverse"), r"config\['cpc_mode'\] is 'reverse'; only None or 'none'"),
        (changed("config", nLevelsGRU=0), "num_hidden_layers=0: must be a whole number"),
        (changed("config", hiddenGar="6"), "hidden_size='6': must be a whole number"),
        (changed("config", nLevelsGRU=1), r"missing none; unexpected gAR\.baseNet\.bias_hh_l1, gAR"),
        (changed("config", nLevelsGRU=3), r"missing gAR\.baseNet\.bias_hh_l2, .*; unexpected none"),
        (changed("config", arMode="GRU"), r"gAR\.baseNet\.weight_ih_l0 is \(24, 8\); .* shape \(18, 8\)"),
        (changed("config", hiddenEncoder=9), r"gEncoder\.conv0\.weight is \(8, 1, 10\); .* shape \(9, 1, 10\)"),
        (without("gEncoder.conv2.bias"), r"missing gEncoder\.conv2\.bias; unexpected none"),
        (changed("weights", gEncoder__batchNorm0__running_mean=torch.zeros(8)), "unexpected gEncoder.*running_mean"),
        (changed("weights", gEncoder__batchNorm1__bias=torch.zeros(8)), r"batchNorm1\.bias is \(8,\); .*\(1, 8, 1\)"),
        (changed("weights", gEncoder__conv1__bias=[0.0] * 8), r"conv1\.bias is list; .* shape \(8,\)"),
        ({"gEncoder": {}, "cpcCriterion": {}}, "holds no dict 'config', but gEncoder, cpcCriterion. Expected a publ"),
        ({"config": {}, "weights": torch.zeros(3)}, "holds no dict 'weights', but config, weights"),
        ([1, 2], "holds a list instead of a dict"),
        ({"config": argparse.Namespace(nLevelsGRU=2), "weights": {}}, "holds objects whose code would have to run"),
    ],
)
def test_another_checkpoint_is_refused(checkpoint, message, tmp_path):
    source = saved(tmp_path / "published.pt", checkpoint)
    with pytest.raises(ValueError, match=message) as error:
        convert_cpc(source, tmp_path / "encoder")
    assert str(source) in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


def test_another_file_is_refused(tmp_path):
    source = tmp_path / "published.pt"
    torch.save(published(), source)
    whole = source.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], Path(__file__).read_bytes()):
        source.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as plain settings and weights.*Expected a published"):
            convert_cpc(source, tmp_path / "encoder")
    with pytest.raises(FileNotFoundError, match="nothing.pt"):
        convert_cpc(tmp_path / "nothing.pt", tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == [source]


class Harmful:
    """What runs when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_runs(tmp_path):
    source = saved(tmp_path / "published.pt", published() | {"more": Harmful(tmp_path / "it ran")})
    with pytest.raises(ValueError, match="holds objects whose code would have to run"):
        convert_cpc(source, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == [source]
    torch.load(source, weights_only=False)  # it would have
    assert (tmp_path / "it ran").is_dir()


def test_a_folder_is_not_written_over(folder, tmp_path):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="already exists"):
        convert_cpc(saved(tmp_path / "published.pt", published("GRU")), folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_failed_write_leaves_nothing(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("transformers.Wav2Vec2FeatureExtractor.save_pretrained", fail)
    source = saved(tmp_path / "published.pt", published())
    with pytest.raises(OSError, match="the disk is full"):
        convert_cpc(source, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_channels": 1}, "num_channels=1: must be a whole number of at least 2"),  # one has no variance
        ({"hidden_size": 0}, "hidden_size=0: must be a whole number of at least 1"),
        ({"num_hidden_layers": 1.0}, "num_hidden_layers=1.0"),
        ({"recurrent_type": "rnn"}, "recurrent_type='rnn': must be 'lstm' or 'gru'"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CPCConfig(**fields)
