"""A model answers an audit what its makers say that it answers, and what cannot be audited is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import TINY, student
from spoken_tones import MODELS
from transformers import (
    HubertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from cmkd.audit import vox_profile
from cmkd.audit.subjects import callable_subject, load_subject
from configuration_cmkd import EMOTION_DIMENSIONS

SIZE = TINY["hidden_size"]
PUBLISHED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
"""As wav2vec2-large-robust and wavlm-large have it."""
LABELS = {"0": "arousal", "1": "dominance", "2": "valence"}


def waves():
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, size).astype(np.float32) for size in (8000, 12345, 6400)]


def published_names(encoder, prefix):
    """The weights as checkpoints of that time have them: weight normalisation had other names."""
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    found = {}
    for name, value in encoder.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        found[f"{prefix}.{name}"] = value.contiguous()
    return found


def linear(generator, rows, columns, name):
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    return {f"{name}.weight": weight, f"{name}.bias": torch.randn(rows, generator=generator)}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def write_audeering(folder, generator, labels=LABELS, leave_out=()):
    config = Wav2Vec2Config(**TINY, **PUBLISHED, initializer_range=0.2, num_labels=3)
    torch.manual_seed(0)
    encoder = Wav2Vec2Model(config).eval()
    head = linear(generator, SIZE, SIZE, "classifier.dense") | linear(generator, 3, SIZE, "classifier.out_proj")
    weights = published_names(encoder, "wav2vec2") | head
    folder.mkdir(exist_ok=True)
    save_file({name: value for name, value in weights.items() if name not in leave_out}, folder / "model.safetensors")
    content = config.to_dict() | {"id2label": labels, "label2id": {name: int(key) for key, name in labels.items()}}
    content["architectures"] = ["Wav2Vec2ForSpeechClassification"]
    (folder / "config.json").write_text(json.dumps(content))
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return encoder, {name: value.double().numpy() for name, value in head.items()}


def test_the_head_of_audeering(tmp_path, generator):
    """Against the stock encoder, and the head of the published card in numpy."""
    encoder, head = write_audeering(tmp_path / "w2v2", generator)
    subject = load_subject(str(tmp_path / "w2v2"))
    assert (subject.kind, subject.dimensions, subject.batches) == ("audeering", EMOTION_DIMENSIONS, False)
    assert subject.parameters == sum(value.numel() for value in encoder.parameters()) + 16 * 16 + 16 + 3 * 16 + 3
    for wave, answer in zip(waves(), subject.score(waves()), strict=True):
        normal = torch.tensor((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))
        with torch.no_grad():
            pooled = encoder(normal[None]).last_hidden_state[0].mean(0).double().numpy()
        hidden = np.tanh(head["classifier.dense.weight"] @ pooled + head["classifier.dense.bias"])
        arousal, dominance, valence = head["classifier.out_proj.weight"] @ hidden + head["classifier.out_proj.bias"]
        assert answer == pytest.approx([arousal, valence, dominance], abs=1e-4)


def test_the_order_is_that_of_the_configuration(tmp_path, generator):
    write_audeering(tmp_path / "one", generator)
    other = {"0": "valence", "1": "arousal", "2": "dominance"}
    write_audeering(tmp_path / "other", torch.Generator().manual_seed(0), other)
    one, two = (load_subject(str(tmp_path / name)).score(waves()) for name in ("one", "other"))
    # outputs 0, 1, 2 of the first are activation, dominance, valence, and of the second valence, activation, dominance
    assert two[:, [1, 0, 2]] == pytest.approx(one[:, [0, 2, 1]])


def test_another_head_and_missing_weights_are_refused(tmp_path, generator):
    write_audeering(tmp_path / "happy", generator, {"0": "happy", "1": "sad", "2": "angry"})
    with pytest.raises(ValueError, match="names its outputs happy, sad and angry, but they must be arousal, dominance"):
        load_subject(str(tmp_path / "happy"))
    write_audeering(tmp_path / "poor", generator, leave_out=["classifier.dense.weight"])
    with pytest.raises(ValueError, match="has no weights for classifier.dense.weight"):
        load_subject(str(tmp_path / "poor"))


def test_the_baseline_of_odyssey(tmp_path, generator):
    """Against the stock encoder, and pooling and head of the published code in numpy, alone and in a batch."""
    config = WavLMConfig(**TINY, **PUBLISHED, initializer_range=0.2)
    config.save_pretrained(tmp_path / "wavlm")
    torch.manual_seed(0)
    encoder = WavLMModel(config).eval()
    parts = {"pool_model.attention": torch.randn(SIZE, 1, generator=generator)}
    parts |= linear(generator, SIZE, SIZE, "pool_model.sap_linear")
    parts |= linear(generator, SIZE, 2 * SIZE, "ser_model.fc.0.0")
    parts |= {"ser_model.fc.0.1.weight": torch.rand(SIZE, generator=generator)}
    parts |= {"ser_model.fc.0.1.bias": torch.rand(SIZE, generator=generator)}
    parts |= linear(generator, 3, SIZE, "ser_model.out.0")
    folder = tmp_path / "odyssey"
    folder.mkdir()
    save_file(published_names(encoder, "ssl_model") | parts, folder / "model.safetensors")
    content = {
        "architectures": ["SERModel"],
        "model_type": "ser",
        "ssl_type": str(tmp_path / "wavlm"),
        "hidden_size": SIZE,
        "classifier_hidden_layers": 1,
        "classifier_dropout_prob": 0.5,
        "num_classes": 3,
        "sampling_rate": 16000,
        "mean": -0.01,
        "std": 0.08,
        "auto_map": {"AutoModel": "pipeline_utils.SERModel"},
    }
    (folder / "config.json").write_text(json.dumps(content))
    subject = load_subject(str(folder))
    assert (subject.kind, subject.dimensions, subject.batches) == ("odyssey", EMOTION_DIMENSIONS, True)
    weights = {name: value.double().numpy() for name, value in parts.items()}
    for wave in waves():
        standard = torch.tensor((wave + 0.01) / (0.08 + 1e-6))
        with torch.no_grad():
            states = encoder(standard[None]).last_hidden_state[0].double().numpy()
        energies = np.tanh(states @ weights["pool_model.sap_linear.weight"].T + weights["pool_model.sap_linear.bias"])
        shares = np.exp(energies @ weights["pool_model.attention"])
        shares /= shares.sum()
        mean = (shares * states).sum(0)
        spread = np.sqrt(np.maximum((shares * states**2).sum(0) - mean**2, 1e-5))
        hidden = weights["ser_model.fc.0.0.weight"] @ np.concatenate([mean, spread]) + weights["ser_model.fc.0.0.bias"]
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        hidden = np.maximum(hidden * weights["ser_model.fc.0.1.weight"] + weights["ser_model.fc.0.1.bias"], 0)
        arousal, dominance, valence = weights["ser_model.out.0.weight"] @ hidden + weights["ser_model.out.0.bias"]
        assert subject.score([wave])[0] == pytest.approx([arousal, valence, dominance], abs=1e-3)
    assert subject.score(waves()[:1] * 2)[1] == pytest.approx(subject.score(waves()[:1])[0], abs=1e-5)


def write_vox_profile(folder, generator, encoder, weights, **settings):
    """The configuration and the weights that the published wrappers write; returns those of the head in numpy."""
    head = {}
    for name, before in (("model_seq.0", SIZE), ("model_seq.3", 8), ("model_seq.6", 8)):
        parts = linear(generator, 8, before, name)
        head |= {f"{name}.weight": parts[f"{name}.weight"][..., None], f"{name}.bias": parts[f"{name}.bias"]}
    for name in ("arousal", "valence", "dominance", "emotion"):
        head |= linear(generator, 8, 8, f"{name}_layer.0") | linear(generator, 1, 8, f"{name}_layer.2")
    folder.mkdir()
    save_file(published_names(encoder, "backbone_model") | head | weights, folder / "model.safetensors")
    content = {
        "pretrain_model": "wavlm_large",
        "hidden_dim": 8,
        "finetune_method": "finetune",
        "lora_rank": 16,
        "freeze_params": False,
        "output_class_num": 9,
        "use_conv_output": True,
        "detailed_class_num": 17,
        "predict_gender": False,
    }
    (folder / "config.json").write_text(json.dumps(content | settings))
    return {name: value.double().numpy() for name, value in head.items()}


def vox_profile_head(head, states):
    """Of states (frames, size): arousal, valence, dominance by the published formulas, in numpy."""
    for name in ("model_seq.0", "model_seq.3", "model_seq.6"):
        states = np.maximum(states, 0) if name != "model_seq.0" else states
        states = states @ head[f"{name}.weight"][..., 0].T + head[f"{name}.bias"]
    pooled = states.mean(0)
    answers = []
    for name in ("arousal", "valence", "dominance"):
        hidden = np.maximum(head[f"{name}_layer.0.weight"] @ pooled + head[f"{name}_layer.0.bias"], 0)
        answers.append(1 / (1 + np.exp(-(head[f"{name}_layer.2.weight"] @ hidden + head[f"{name}_layer.2.bias"])[0])))
    return answers


@pytest.mark.parametrize("with_input", [True, False])
def test_vox_profile_with_wavlm(tmp_path, generator, monkeypatch, with_input):
    """Against a loop over the stock encoder's layers: a learnt mean over them, the last after the norm."""
    config = WavLMConfig(**TINY, **PUBLISHED, initializer_range=0.2)
    config.save_pretrained(tmp_path / "wavlm")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(tmp_path / "wavlm")
    monkeypatch.setitem(vox_profile.ENCODERS, "wavlm_large", str(tmp_path / "wavlm"))
    torch.manual_seed(0)
    encoder = WavLMModel(config).eval()
    torch.nn.init.normal_(encoder.encoder.layer_norm.weight)  # so that it matters whether the norm is there
    shares = torch.randn(config.num_hidden_layers + with_input, generator=generator)
    folder = tmp_path / "vox"
    head = write_vox_profile(folder, generator, encoder, {"weights": shares}, use_conv_output=with_input)
    subject = load_subject(str(folder))
    assert (subject.kind, subject.dimensions, subject.batches) == ("vox-profile", EMOTION_DIMENSIONS, False)
    shares = torch.softmax(shares, 0).numpy()
    for wave in waves():
        normal = torch.tensor((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))
        with torch.no_grad():
            states = encoder.feature_projection(encoder.feature_extractor(normal[None]).transpose(1, 2))[0]
            states = states + encoder.encoder.pos_conv_embed(states)
            layers, bias = [states], None
            for layer in encoder.encoder.layers:
                states, bias = layer(states, position_bias=bias)[:2]
                layers.append(states)
            layers[-1] = encoder.encoder.layer_norm(layers[-1])
        layers = layers if with_input else layers[1:]
        mean = sum(share * layer[0].double().numpy() for share, layer in zip(shares, layers, strict=True))
        arousal, valence, dominance = vox_profile_head(head, mean)
        assert subject.score([wave])[0] == pytest.approx([arousal, valence, dominance], abs=1e-4)


def test_vox_profile_with_whisper(tmp_path, generator, monkeypatch):
    """Against the stock encoder for 15 s with the checkpoint's own positions, and the mean over frames of speech."""
    config = WhisperConfig(
        d_model=SIZE,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=80,
        vocab_size=50,
        pad_token_id=0,
        init_std=0.3,
    )
    config.save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(tmp_path / "whisper")
    monkeypatch.setitem(vox_profile.ENCODERS, "whisper_large", str(tmp_path / "whisper"))
    config.max_source_positions = 750
    torch.manual_seed(0)
    model = WhisperModel(config).eval()
    positions = torch.randn(750, SIZE, generator=generator)
    folder = tmp_path / "vox"
    weights = {"embed_positions": positions, "weights": torch.ones(3)}
    head = write_vox_profile(folder, generator, model, weights, pretrain_model="whisper_large")
    subject = load_subject(str(folder))
    model.encoder.embed_positions.weight.data = positions
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=15)
    long = np.random.default_rng(1).normal(0, 0.1, 16 * 16000).astype(np.float32)
    for wave, frames in ((waves()[0], 25), (waves()[1], 39), (long, 750)):
        values = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
        with torch.no_grad():
            states = model.encoder(values).last_hidden_state[0, :frames].double().numpy()
        arousal, valence, dominance = vox_profile_head(head, states)
        assert subject.score([wave])[0] == pytest.approx([arousal, valence, dominance], abs=1e-4)
    assert subject.score([long[: 15 * 16000]]) == pytest.approx(subject.score([long]))  # what comes later is not heard


def test_other_models_of_vox_profile_are_refused(tmp_path):
    for name, settings, message in (
        ("lora", {"pretrain_model": "wavlm_large", "finetune_method": "lora"}, "finetune_method 'lora', but only"),
        ("base", {"pretrain_model": "whisper_tiny"}, "pretrain_model 'whisper_tiny' .* of wavlm_large and whisper_lar"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=message):
            load_subject(str(tmp_path / name))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"arousal": 0.5}, "a score for 'arousal', but it must be one of activation, .* Did you mean 'activation'"),
        ([0.5, 0.5, 0.5], "it must return a dict"),
        ({}, "it must return a dict"),
        ({"valence": float("nan")}, "returned nan as valence: it must be a finite number"),
        ({"valence": "high"}, "returned 'high' as valence"),
        ({"valence": np.zeros(2)}, "as valence: it must be a finite number"),
    ],
)
def test_answers_that_are_none(answer, message):
    with pytest.raises(ValueError, match=message):
        callable_subject(lambda wave, rate: answer, "mine", "1")


def test_a_function_answers_the_same_dimensions_always():
    subject = callable_subject(
        lambda wave, rate: dict.fromkeys(EMOTION_DIMENSIONS[: 1 + len(wave) % 2], 0.5), "mine", "1"
    )
    assert subject.dimensions == ("activation",)
    assert subject.score([np.zeros(10, np.float32)]).tolist()[0][0] == 0.5
    with pytest.raises(ValueError, match="mine answered activation and valence, and activation before"):
        subject.score([np.zeros(11, np.float32)])


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """A student that has not learnt dominance, and its folder."""
    folder = tmp_path_factory.mktemp("hubert") / "student"
    model = student(HubertConfig(**TINY, initializer_range=0.2), rated_dimensions=("activation", "valence"))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder)
    return model, folder


def by_torch(model, wave):
    normal = torch.tensor((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))
    with torch.no_grad():
        return model(input_values=normal[None], attention_mask=torch.ones(1, len(wave))).logits[0].numpy()


def test_a_student_of_ours(hubert):
    model, folder = hubert
    subject = load_subject(str(folder))
    assert (subject.name, subject.kind, subject.batches) == ("student", "cmkd", True)
    assert subject.dimensions == ("activation", "valence") and subject.parameters == model.num_parameters()
    answers = subject.score(waves())
    for wave, answer in zip(waves(), answers, strict=True):
        assert answer == pytest.approx(by_torch(model, wave), abs=1e-4, nan_ok=True)


@pytest.mark.slow
def test_an_exported_student(hubert, tmp_path):
    pytest.importorskip("onnx", reason='needs the extra "export"')
    from cmkd.export.folder import export_folder

    model, folder = hubert
    export_folder(str(folder), tmp_path / "graph")
    subject = load_subject(str(tmp_path / "graph"))
    assert (subject.name, subject.kind, subject.dimensions) == ("graph/model.onnx", "onnx", ("activation", "valence"))
    for wave, answer in zip(waves(), subject.score(waves()), strict=True):
        assert answer == pytest.approx(by_torch(model, wave), abs=1e-4, nan_ok=True)


def test_where_functions_are(tmp_path, monkeypatch):
    (tmp_path / "some_models.py").write_text(MODELS)
    one = load_subject(f"{tmp_path}/some_models.py:constant")
    monkeypatch.chdir(tmp_path)
    two = load_subject("some_models:constant")
    assert one.identity == two.identity and one.dimensions == two.dimensions == EMOTION_DIMENSIONS
    assert one.score(waves()).tolist() == [[0.5] * 3] * 3
    with pytest.raises(ValueError, match="there is no module 'no_models'"):
        load_subject("no_models:constant")
    with pytest.raises(FileNotFoundError, match="there is no file 'other.py'"):
        load_subject("other.py:constant")


def test_what_is_no_model(tmp_path):
    with pytest.raises(OSError, match="neither a folder nor can it be had from the Hub"):
        load_subject(str(tmp_path / "nothing"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match="of the model type 'bert', but must be of cmkd_student, cmkd_teacher, wav2vec2"
    ):
        load_subject(str(tmp_path / "bert"))
