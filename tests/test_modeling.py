"""Teacher and student: batch invariance, equality with the stock encoders, freezing, saving and loading."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from small_models import (
    ALL_CONFIGS,
    CPC,
    MOONSHINE,
    SMALL,
    TEXT,
    WAVEFORM_CONFIGS,
    WHISPER,
    padded,
    student,
    teacher,
    utterances,
    whisper_extractor,
)
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    HubertConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    T5Config,
    UniSpeechSatConfig,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    pipeline,
)
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder

import configuration_cmkd
import speech_encoder_cmkd
from configuration_cmkd import EMOTION_DIMENSIONS, CMKDStudentConfig, CMKDTeacherConfig, CPCConfig
from modeling_cmkd import AttentionSummarizer, CMKDStudentModel, CMKDTeacherModel, GRUSummarizer
from speech_encoder_cmkd import (
    SPEECH_ENCODERS,
    HubertSpeechEncoder,
    load_speech_encoder,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning"),  # the stock WavLM's
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),  # not in 5.17
]


def assert_batch_invariant(model):
    items = utterances(model)
    name = next(iter(items[0]))
    longest = 2 * items[0][name].shape[-1]
    with torch.no_grad():
        alone = torch.cat([model(**item).logits for item in items])
        batch = model(**padded(items, longest)).logits
        reverse = model(**padded(items[::-1], longest)).logits.flip(0)
    assert alone.std(0).max() > 1e-3  # the utterances differ, so that equality says something
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(reverse, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_an_utterance_scores_the_same_alone_padded_and_in_any_order(name):
    assert_batch_invariant(student(ALL_CONFIGS[name]))


@pytest.mark.parametrize("name", [name for name in ALL_CONFIGS if name != "cpc"])
def test_a_weighted_layer_sum_does_not_see_padding(name):
    assert_batch_invariant(student(ALL_CONFIGS[name], use_weighted_layer_sum=True))


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_attention_over_all_frames_does_not_see_padding(name):
    model = student(ALL_CONFIGS[name], summarizer="attention")
    assert_batch_invariant(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HubertConfig, WhisperConfig, MoonshineConfig, CPCConfig])
def test_batch_invariance_at_real_size(kind):
    config = kind()  # of HuBERT Base, Whisper Tiny, Moonshine Tiny, and CPC as it was published
    config.update({"initializer_range": 0.05, "init_std": 0.05})
    assert_batch_invariant(student(config))


@pytest.mark.slow
def test_batch_invariance_of_real_whisper_weights(shared_dir):
    torch.manual_seed(0)
    model = CMKDStudentModel.from_pretrained_encoder(str(shared_dir / "models/openai/whisper-tiny.en"))
    assert_batch_invariant(model)


def stock_encoder(model) -> nn.Module:
    """What transformers makes of the model's configuration, with the model's weights."""
    stock = AutoModel.from_config(model.config.speech_config, dtype=torch.float32).eval()
    stock = stock.get_encoder() if stock.config.is_encoder_decoder else stock
    lacking = stock.load_state_dict(model.speech_encoder.encoder.state_dict(), strict=False)
    assert set(lacking.missing_keys) <= {"masked_spec_embed"} and not lacking.unexpected_keys
    return stock


@pytest.mark.parametrize("name", WAVEFORM_CONFIGS)
def test_one_utterance_is_encoded_as_the_stock_encoder_does(name):
    model = student(WAVEFORM_CONFIGS[name])
    waves = utterances(model)[0]["input_values"]
    with torch.no_grad():
        hidden, mask = model.speech_encoder(waves)
        stock = stock_encoder(model)(waves).last_hidden_state
    assert mask.all()
    torch.testing.assert_close(hidden, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", WAVEFORM_CONFIGS)
def test_in_how_many_parts_the_convolutions_run_changes_nothing(name, monkeypatch):
    model = student(WAVEFORM_CONFIGS[name])
    waves = utterances(model)[0]["input_values"]
    with torch.no_grad():
        stock = model.speech_encoder.encoder(waves).last_hidden_state
        for frames in (1, 7, stock.shape[1] - 1):
            monkeypatch.setattr(speech_encoder_cmkd, "FRAMES_AT_A_TIME", frames)
            torch.testing.assert_close(model.speech_encoder(waves)[0], stock, atol=1e-4, rtol=1e-4)
    assert_batch_invariant(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL_CONFIGS if name != "cpc"])
def test_on_a_cpu_the_layers_run_for_a_few_utterances_of_like_length(name):
    """Twenty utterances score as each does alone, their gradients add up, and hardly any padding is computed."""
    model = student(ALL_CONFIGS[name], num_trainable_layers=2)
    items = utterances(model, [0.2 + 0.05 * (7 * number % 20) for number in range(20)])
    batch = padded(items, max(item[model.config.speech_input_name].shape[-1] for item in items))
    alone, lengths = [], []
    for item in items:
        output = model(**item, output_hidden_states=True)
        output.embeddings.square().sum().backward()
        alone.append((output.embeddings.detach(), [state.detach() for state in output.hidden_states]))
        lengths.append(output.hidden_states[-1].shape[1])
    gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    shapes = []
    model.speech_encoder.layers[0].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
    output = model(**batch, output_hidden_states=True)
    output.embeddings.square().sum().backward()
    shortest_first = sorted(lengths)
    assert shapes == [(8, shortest_first[7]), (8, shortest_first[15]), (4, shortest_first[19])]
    torch.testing.assert_close(output.embeddings, torch.cat([of_one for of_one, _ in alone]), atol=2e-5, rtol=0)
    assert len(output.hidden_states) == 4
    for row, (length, (_, states)) in enumerate(zip(lengths, alone, strict=True)):
        for found, state in zip(output.hidden_states, states, strict=True):
            torch.testing.assert_close(found[row, :length], state[0], atol=1e-4, rtol=0)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, atol=2e-5 * largest, rtol=1e-3)


def test_little_padding_runs_at_once():
    model = student(WAVEFORM_CONFIGS["hubert"])
    shapes = []
    model.speech_encoder.layers[0].register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[0]))
    batch = padded(utterances(model, [1.0] * 9 + [0.3]), 16007)
    with torch.no_grad():
        model(**batch)
    assert shapes == [10]


@pytest.mark.parametrize("bias", [False, True])
def test_the_statistics_of_a_convolution_are_those_of_its_output(bias):
    """Oracle: the output in double precision, of a wave that is nearly all low, which kernels of sum 0 cancel."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(1, 16, 10, 5, bias=bias)
    with torch.no_grad():
        conv.weight[:8] -= conv.weight[:8].mean(-1, keepdim=True)
    wave = 0.01 * torch.randn(3, 8000).cumsum(1)
    real = torch.tensor([1599, 301, 1])
    variance, mean = speech_encoder_cmkd._moments_of_convolution(conv, wave, real)
    assert variance.dtype == mean.dtype == torch.float32
    rows = torch.nn.functional.conv1d(
        wave.double()[:, None], conv.weight.double(), conv.bias.double() if bias else None, stride=5
    )
    for row, count in enumerate(real.tolist()):
        exact = rows[row, :, :count]
        torch.testing.assert_close(mean[row, :, 0], exact.mean(-1).float(), atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(variance[row, :, 0], exact.var(-1, correction=0).float(), atol=1e-9, rtol=1e-6)


def test_every_model_type_that_a_configuration_admits_has_a_family():
    assert {*configuration_cmkd.WAVEFORM_ENCODERS, *configuration_cmkd.SPECTROGRAM_ENCODERS} == SPEECH_ENCODERS.keys()


class UniSpeechSatSpeechEncoder(HubertSpeechEncoder):
    """A further family, whose parts are those of HuBERT."""


# What an earlier test has left may be collected in this one, and then warns.
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_further_family_is_a_class_and_an_entry(monkeypatch, tmp_path):
    known = (*configuration_cmkd.WAVEFORM_ENCODERS, "unispeech-sat")
    monkeypatch.setattr(configuration_cmkd, "WAVEFORM_ENCODERS", known)
    monkeypatch.setitem(SPEECH_ENCODERS, "unispeech-sat", UniSpeechSatSpeechEncoder)
    AutoModel.from_config(UniSpeechSatConfig(**SMALL)).save_pretrained(tmp_path / "speech")
    for options in ({}, {"num_trainable_layers": 1, "use_weighted_layer_sum": True}, {"num_trainable_layers": -1}):
        torch.manual_seed(0)
        model = CMKDStudentModel.from_pretrained_encoder(str(tmp_path / "speech"), **options)
        assert_batch_invariant(model)
        batch = padded(utterances(model), 40000)
        with torch.no_grad():
            alone, expected = batch["input_values"][:1, :20807], model(**batch)
            hidden, mask = model.speech_encoder(alone)
            stock = model.speech_encoder.encoder(alone, output_hidden_states=True)
            if not options.get("use_weighted_layer_sum"):
                torch.testing.assert_close(hidden, stock.last_hidden_state, atol=1e-4, rtol=1e-4)
            if model.speech_encoder.has_frozen_part:
                features, mask = model.extract_speech_features(batch["input_values"], batch["attention_mask"])
                found = model(speech_features=features, attention_mask=mask)
                torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
        model.train()(**batch).logits.sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        model.eval().save_pretrained(tmp_path / "student")
        again = CMKDStudentModel.from_pretrained(tmp_path / "student")
        with torch.no_grad():
            torch.testing.assert_close(again(**batch).logits, model(**batch).logits, atol=0, rtol=0)


@pytest.mark.parametrize("layers", [0, 1, 3, -1])
def test_moonshine_counts_the_layers_of_its_encoder_and_comes_back_from_a_folder(layers, tmp_path):
    """Its `num_hidden_layers` is the decoder's, here 1."""
    model = student(MOONSHINE, num_trainable_layers=layers)
    encoder = model.speech_encoder.encoder
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    numbers = {name.split(".")[1] for name in trained if name.startswith("layers.")}
    assert numbers == set("012"[3 - layers :] if layers >= 0 else "012")
    assert ("conv1.weight" in trained, "layer_norm.weight" in trained) == (layers == -1, layers != 0)
    batch = padded(utterances(model), 40000)
    model.train()(**batch).logits.sum().backward()
    assert {name for name, parameter in encoder.named_parameters() if parameter.grad is not None} == trained
    model.eval().save_pretrained(tmp_path)
    again = CMKDStudentModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, atol=0, rtol=0)


def test_padding_moves_the_stock_moonshine_as_it_does_not_move_ours():
    """What the class is for, and a check that these inputs would show it."""
    model = student(MOONSHINE)
    batch, item = padded(utterances(model), 40000), utterances(model)[1]["input_values"]
    with torch.no_grad():
        expected = stock_encoder(model)(item).last_hidden_state[0]
        hidden, mask = model.speech_encoder(
            **{"inputs": batch["input_values"], "attention_mask": batch["attention_mask"]}
        )
        stock = stock_encoder(model)(**batch).last_hidden_state[1, : len(expected)]
    assert mask[1].sum() == len(expected)
    torch.testing.assert_close(hidden[1][mask[1]], expected, atol=1e-5, rtol=0)
    assert (stock - expected).square().mean().sqrt() > 0.1 * expected.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moonshines_positions_stay_exact_in_half_precision(dtype):
    """A buffer of frequencies that `.to(dtype)` rounds would turn the last frames of a minute by another angle."""
    model = student(MoonshineConfig(encoder_num_hidden_layers=1))
    hidden, mask = torch.zeros(1, 2500, 288), torch.ones(1, 2500, dtype=torch.bool)
    rotary = model.speech_encoder.encoder.rotary_emb
    expected = rotary(hidden.double(), torch.arange(2500)[None])
    for values in (torch.float32, dtype):
        found = model.to(values).speech_encoder.layer_options(hidden.to(values), mask)["position_embeddings"]
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == values
            torch.testing.assert_close(one.double(), other, atol=4 * torch.finfo(values).eps + 1e-3, rtol=0)
    assert (rotary(hidden.to(dtype), torch.arange(2500)[None])[0].double() - expected[0]).abs().max() > 0.1


def test_moonshine_loads_with_its_decoder_and_without_it(tmp_path, caplog):
    torch.manual_seed(3)
    whole = MoonshineForConditionalGeneration(MOONSHINE)
    expected = whole.model.encoder.state_dict()
    whole.save_pretrained(tmp_path / "recogniser")
    whole.model.save_pretrained(tmp_path / "without-head")
    (tmp_path / "encoder").mkdir()
    MOONSHINE.save_pretrained(tmp_path / "encoder")
    weights = {f"encoder.{name}": value.half() for name, value in expected.items()}
    save_file(weights, tmp_path / "encoder/model.safetensors", metadata={"format": "pt"})
    for folder, loaded in (("recogniser", expected), ("without-head", expected), ("encoder", weights)):
        caplog.clear()
        found = load_speech_encoder(str(tmp_path / folder))
        assert type(found) is MoonshineEncoder and found.dtype == torch.float32
        assert found.state_dict().keys() == expected.keys()
        for name, value in found.state_dict().items():
            assert torch.equal(value, loaded.get(name, loaded.get(f"encoder.{name}")).float()), (folder, name)
        assert "decoder" not in caplog.text
        with torch.no_grad():
            wave = torch.randn(1, 16000)
            torch.testing.assert_close(found.eval()(wave)[0], whole.model.encoder.eval()(wave)[0], atol=2e-2, rtol=2e-2)
    weights.pop("encoder.layers.1.mlp.fc1.bias")
    save_file(weights, tmp_path / "encoder/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks encoder\.layers\.1\.mlp\.fc1\.bias: they would be random"):
        CMKDStudentModel.from_pretrained_encoder(str(tmp_path / "encoder"))


def test_a_whisper_needs_no_decoder_either(tmp_path):
    torch.manual_seed(3)
    expected = AutoModel.from_config(WHISPER).get_encoder().state_dict()
    WHISPER.save_pretrained(tmp_path)
    weights = {f"encoder.{name}": value for name, value in expected.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = CMKDStudentModel.from_pretrained_encoder(str(tmp_path)).speech_encoder.encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    weights.pop("encoder.layers.1.fc1.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks encoder\.layers\.1\.fc1\.bias: they would be random"):
        CMKDStudentModel.from_pretrained_encoder(str(tmp_path))


@pytest.mark.slow
def test_real_moonshine_weights_hear_real_speech_as_the_stock_encoder_does(shared_dir):
    """Alone, and in a batch with padding twice as long as the longest, to 1e-6 of the stock encoder alone.

    In double precision: in single, the stock encoder itself is up to 3e-5 from its own exact answer, and how it rounds
    depends on the processor.
    """
    folder = shared_dir / "models/UsefulSensors/moonshine-tiny-encoder"
    stock = MoonshineEncoder(MoonshineConfig.from_pretrained(folder)).eval()
    weights = load_file(folder / "model.safetensors")
    stock.load_state_dict({name.removeprefix("encoder."): value.float() for name, value in weights.items()})
    torch.manual_seed(0)
    model = CMKDStudentModel.from_pretrained_encoder(str(folder), num_trainable_layers=2)
    assert 7e6 < sum(parameter.numel() for parameter in model.speech_encoder.parameters()) < 8e6
    assert_batch_invariant(model)
    items = []
    for path in sorted((shared_dir / "data/crema-d").rglob("*.opus"))[:40:10]:
        samples, rate = soundfile.read(path, dtype="float32")
        items.append({"input_values": torch.from_numpy(soxr.resample(samples, rate, 16000))[None]})
    assert len(items) == 4
    batch = padded(items, 2 * max(item["input_values"].shape[1] for item in items))
    batch["input_values"] /= 30  # the padding is noise, three times as loud as anything real
    for row, item in enumerate(items):
        batch["input_values"][row, : item["input_values"].shape[1]] = item["input_values"][0]
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    stock, model, waves = stock.double(), model.double(), batch["input_values"].double()
    with torch.no_grad():
        together, mask = model.speech_encoder(waves, batch["attention_mask"])
        features, _ = model.extract_speech_features(waves, batch["attention_mask"])
        above = model.speech_encoder.states_above(features, mask)[-1]
        for row, item in enumerate(items):
            wave = item["input_values"]
            given = extractor(wave[0].numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
            assert torch.equal(given, wave)  # as it is, not scaled to unit variance
            expected = stock(wave.double()).last_hidden_state
            torch.testing.assert_close(model.speech_encoder(wave.double())[0], expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(together[row][mask[row]], expected[0], atol=1e-6, rtol=0)
            torch.testing.assert_close(above[row][mask[row]], expected[0], atol=1e-6, rtol=0)


def test_thirty_seconds_are_encoded_as_the_stock_whisper_does():
    model = student(WHISPER)
    features = torch.randn(1, 80, 3000)
    with torch.no_grad():
        hidden, _ = model.speech_encoder(features)
        stock = model.speech_encoder.encoder(features).last_hidden_state
    torch.testing.assert_close(hidden, stock, atol=1e-5, rtol=0)


def test_weighted_sum_starts_as_the_mean_of_all_hidden_states():
    model = student(WAVEFORM_CONFIGS["hubert"], use_weighted_layer_sum=True)
    waves = utterances(model)[0]["input_values"]
    with torch.no_grad():
        hidden, _ = model.speech_encoder(waves)
        states = model.speech_encoder.encoder(waves, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden, torch.stack(states).mean(0), atol=1e-4, rtol=1e-4)


def test_the_gru_is_read_at_the_last_real_frame():
    """Oracle: the cell's equations (torch.nn.GRU's documentation) in two loops, on the real frames only."""
    torch.manual_seed(0)
    summarizer = GRUSummarizer(5, 4, 2)
    features, lengths = torch.randn(3, 7, 5), [7, 1, 4]
    mask = torch.tensor([[position < length for position in range(7)] for length in lengths])
    expected = []
    for utterance, length in zip(features, lengths, strict=True):
        states = [torch.zeros(4), torch.zeros(4)]
        for frame in utterance[:length]:
            inputs = frame
            for layer in range(2):
                weights = {
                    name: getattr(summarizer.gru, f"{name}_l{layer}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                from_input = (weights["weight_ih"] @ inputs + weights["bias_ih"]).chunk(3)
                from_state = (weights["weight_hh"] @ states[layer] + weights["bias_hh"]).chunk(3)
                reset = torch.sigmoid(from_input[0] + from_state[0])
                update = torch.sigmoid(from_input[1] + from_state[1])
                new = torch.tanh(from_input[2] + reset * from_state[2])
                inputs = states[layer] = (1 - update) * new + update * states[layer]
        expected.append(states[1])
    torch.testing.assert_close(summarizer(features, mask), torch.stack(expected), atol=1e-6, rtol=0)


def test_attention_reads_each_unit_at_all_real_frames():
    """Oracle: loops over utterances, units and frames; what is behind the last real frame may be anything."""
    torch.manual_seed(0)
    summarizer = AttentionSummarizer(5, 4, 2)
    features, lengths = torch.randn(3, 7, 5), [7, 1, 4]
    mask = torch.tensor([[position < length for position in range(7)] for length in lengths])
    expected = torch.zeros(3, 4)
    for row, length in enumerate(lengths):
        states = summarizer.gru(features[row, :length])[0].detach()  # of this utterance alone
        weight, bias = summarizer.attention.weight.detach(), summarizer.attention.bias.detach()
        for unit in range(4):
            scores = [float(weight[unit] @ state + bias[unit]) for state in states]
            shares = np.exp(scores) / np.exp(scores).sum()
            expected[row, unit] = sum(share * float(state[unit]) for share, state in zip(shares, states, strict=True))
    torch.testing.assert_close(summarizer(features, mask), expected, atol=1e-6, rtol=0)
    features[1, 1:] = torch.nan
    torch.testing.assert_close(summarizer(features, mask.long())[1], expected[1], atol=1e-6, rtol=0)


def test_attention_is_in_teacher_and_student_and_survives_a_save(tmp_path):
    model = teacher(summarizer="attention")
    assert isinstance(model.speech_summarizer, AttentionSummarizer)
    assert isinstance(model.text_summarizer, AttentionSummarizer)
    heard = student(WAVEFORM_CONFIGS["hubert"], summarizer="attention")
    heard.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    item = utterances(heard)[0]
    with torch.no_grad():
        torch.testing.assert_close(again(**item).logits, heard(**item).logits, atol=1e-6, rtol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("summarizer") == "attention"
    assert CMKDStudentConfig.from_dict(config).summarizer == "last_state"  # as before there was a choice
    with pytest.raises(ValueError, match="summarizer='mean': must be one of last_state, attention"):
        CMKDStudentConfig(summarizer="mean")


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_the_network_is_the_one_of_the_paper(name):
    """Eq. 2 by hand from the encoder's output; the outputs go from standardised labels to the unit interval."""
    model = student(ALL_CONFIGS[name], label_mean=(0.1, 0.2, 0.3), label_std=(0.5, 2.0, 1.0), label_scale=(1, 7))
    item = utterances(model)[0]
    with torch.no_grad():
        output = model(**item)
        hidden, _ = model.speech_encoder(next(iter(item.values())))
        summary = model.speech_summarizer.gru(hidden)[0][:, -1]
        embedding = summary @ model.embedding_head.weight.T + model.embedding_head.bias
        standardized = embedding @ model.prediction_head.weight.T + model.prediction_head.bias
    assert (model.speech_summarizer.gru.hidden_size, model.speech_summarizer.gru.num_layers) == (128, 2)
    assert output.embeddings.shape == (1, 128)
    torch.testing.assert_close(output.embeddings, embedding)
    torch.testing.assert_close(
        output.logits, standardized * torch.tensor([0.5, 2.0, 1.0]) + torch.tensor([0.1, 0.2, 0.3])
    )
    torch.testing.assert_close(model.config.to_label_scale(output.logits), 1 + 6 * output.logits)


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_stored_features_take_the_place_of_speech(name):
    model = student(ALL_CONFIGS[name], num_trainable_layers=0 if name == "cpc" else 1)
    batch = padded(utterances(model), 2 * max(next(iter(item.values())).shape[-1] for item in utterances(model)))
    with torch.no_grad():
        features, mask = model.extract_speech_features(batch[model.config.speech_input_name], batch["attention_mask"])
        torch.testing.assert_close(
            model(speech_features=features, attention_mask=mask).logits, model(**batch).logits, atol=1e-6, rtol=0
        )


def test_num_trainable_layers_says_what_trains():
    counts = {}
    for layers in (0, 1, 3, -1):
        model = student(WAVEFORM_CONFIGS["hubert"], num_trainable_layers=layers)
        trained = {
            name for name, parameter in model.speech_encoder.encoder.named_parameters() if parameter.requires_grad
        }
        counts[layers] = {name.split(".")[2] for name in trained if name.startswith("encoder.layers.")}
        assert ("feature_extractor.conv_layers.0.conv.weight" in trained) == (layers == -1)
        model.train()
        model(**padded(utterances(model), 40000)).logits.sum().backward()
        got_gradient = {n for n, p in model.speech_encoder.encoder.named_parameters() if p.grad is not None}
        assert got_gradient == trained
    assert counts == {0: set(), 1: {"2"}, 3: {"0", "1", "2"}, -1: {"0", "1", "2"}}


def test_frozen_parts_stay_deterministic_in_training():
    config = HubertConfig(**SMALL, hidden_dropout=0.5, feat_proj_dropout=0.5, layerdrop=0.9)
    model = student(config, num_trainable_layers=1)
    waves = utterances(model)[0]["input_values"]
    expected, _ = model.extract_speech_features(waves)
    for part in (model, model.speech_encoder, model):
        part.train()
        torch.testing.assert_close(model.extract_speech_features(waves)[0], expected, atol=0, rtol=0)
    assert not torch.equal(model(input_values=waves).logits, model(input_values=waves).logits)  # dropout above it
    assert model.speech_encoder.layers[2].training and not model.speech_encoder.layers[1].training
    assert not model.eval().speech_encoder.layers[2].training


def test_the_teacher_joins_both_modalities_and_does_not_see_padding():
    model = teacher()
    waves = padded(utterances(model), 30000)
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 3, 0, 0, 0], [2, 5, 3, 11, 12]])  # the second has no words
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        batch = model(**waves, input_ids=ids, text_attention_mask=mask)
        alone = [
            model(**item, input_ids=row[None, :length])
            for item, row, length in zip(utterances(model), ids, mask.sum(1), strict=True)
        ]
        speech, text = (
            model.extract_speech_features(
                **{"inputs": waves["input_values"], "attention_mask": waves["attention_mask"]}
            ),
            model.extract_text_features(ids, mask),
        )
        stored = model(
            speech_features=speech[0], attention_mask=speech[1], text_features=text[0], text_attention_mask=text[1]
        )
    assert model.embedding_head.in_features == 256
    torch.testing.assert_close(batch.logits, torch.cat([output.logits for output in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(stored.logits, batch.logits, atol=1e-6, rtol=0)


def test_a_teacher_may_read_only_and_any_encoder_serves():
    encoder_decoder = T5Config(vocab_size=40, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    for config in (TEXT, encoder_decoder):
        model = teacher(speech=False, text_config=config)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[2, 7, 3]])).logits
        assert logits.isfinite().all() and logits.shape == (1, 3)
        assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())


LOADED_ELSEWHERE = """
import json, sys
import numpy as np, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

def look_at(folder):
    inputs = {name: torch.from_numpy(value) for name, value in np.load(folder + ".npz").items()}
    found = {"config": AutoConfig.from_pretrained(folder, trust_remote_code=True).id2label}
    for auto in (AutoModel, AutoModelForAudioClassification):
        model = auto.from_pretrained(folder, trust_remote_code=True)
        trainable = sum(parameter.requires_grad for parameter in model.speech_encoder.encoder.parameters())
        again = folder + "-" + auto.__name__
        model.save_pretrained(again)
        with torch.no_grad():
            logits = [auto.from_pretrained(path, trust_remote_code=True)(**inputs).logits for path in (folder, again)]
        found[auto.__name__] = [value.tolist() for value in logits] + [trainable, model.training]
    found["extractor"] = type(AutoFeatureExtractor.from_pretrained(folder)).__name__
    found["leaked"] = [name for name in sys.modules if name.split(".")[0].endswith("cmkd")]
    return found

print(json.dumps([look_at(folder) for folder in sys.argv[1:]]))
"""


@pytest.mark.slow
def test_folders_load_elsewhere_without_this_package(tmp_path):
    kinds = {
        "student": student(WAVEFORM_CONFIGS["wavlm"], num_trainable_layers=1, label_scale=(1, 7)),
        "moonshine-student": student(MOONSHINE, num_trainable_layers=2, label_scale=(1, 7)),
        "cpc-student": student(CPC, num_trainable_layers=-1, label_scale=(1, 7)),
        "teacher": teacher(),
    }
    expected = {}
    for kind, model in kinds.items():
        inputs = {"input_values": utterances(model)[0]["input_values"]}
        if kind == "teacher":
            inputs["input_ids"] = torch.tensor([[2, 7, 3]])
        folder = tmp_path / kind
        model.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        assert {path.suffix for path in folder.iterdir()} == {".json", ".py", ".safetensors"}
        np.savez(tmp_path / f"{kind}.npz", **{name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected[kind] = model(**inputs).logits.tolist()
    command = [sys.executable, "-c", LOADED_ELSEWHERE, *(str(tmp_path / kind) for kind in kinds)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr
    for (kind, model), found in zip(kinds.items(), json.loads(result.stdout.splitlines()[-1]), strict=True):
        assert list(found["config"].values()) == list(EMOTION_DIMENSIONS)
        assert found["extractor"] == "Wav2Vec2FeatureExtractor" and found["leaked"] == []
        trainable = sum(parameter.requires_grad for parameter in model.speech_encoder.encoder.parameters())
        for auto in ("AutoModel", "AutoModelForAudioClassification"):
            first, second, still_trainable, training = found[auto]
            assert first == [pytest.approx(row, abs=1e-6) for row in expected[kind]] and second == first, kind
            assert (still_trainable, training) == (trainable, False)


STOCK_PIPELINE_KNOWS_REGRESSION = Version(transformers.__version__) >= Version("5.23")
"""README says what to pass to earlier ones, which apply a softmax to whatever a model gives."""


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_the_stock_pipeline_gives_the_regression_values(name, tmp_path):
    model = student(ALL_CONFIGS[name])
    model.save_pretrained(tmp_path)
    extractor = whisper_extractor() if name == "whisper" else Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(tmp_path)
    generator = np.random.default_rng(0)
    waves = [generator.normal(size=samples).astype(np.float32) for samples in (20007, 9000)]
    # The stock extractors on the speech alone; Whisper's, cut to the real frames: silence must not be scored.
    with torch.no_grad():
        expected = []
        for wave in waves:
            if name == "whisper":
                mels = whisper_extractor()(wave, sampling_rate=16000, return_tensors="pt", return_attention_mask=False)
                inputs = {"input_features": mels["input_features"][:, :, : -(-len(wave) // 160)]}
            else:
                inputs = {"input_values": torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]}
            expected.append(model(**inputs).logits[0])
    for batch_size in (1, 2):
        options = {} if STOCK_PIPELINE_KNOWS_REGRESSION else {"function_to_apply": "none"}
        options |= {"trust_remote_code": True, "batch_size": batch_size}
        score = pipeline("audio-classification", model=str(tmp_path), **options)
        answers = score([{"array": wave, "sampling_rate": 16000} for wave in waves])
        for found, answer in zip(answers, expected, strict=True):
            found = {entry["label"]: entry["score"] for entry in found}
            assert [found[dimension] for dimension in EMOTION_DIMENSIONS] == pytest.approx(answer.tolist(), abs=1e-5)


def saved_student(folder: Path, damage) -> Path:
    student(WAVEFORM_CONFIGS["hubert"]).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForAudioClassification, CMKDStudentModel])
@pytest.mark.parametrize(
    "tensor",
    [
        "prediction_head.weight",
        "speech_summarizer.gru.weight_ih_l0",
        "speech_encoder.encoder.encoder.layers.0.final_layer_norm.bias",
    ],
)
def test_a_checkpoint_without_some_weight_is_refused(auto, tensor, tmp_path):
    folder = saved_student(tmp_path, lambda weights: weights.pop(tensor))
    with pytest.raises(ValueError, match=f"missing {tensor}.*from_pretrained_encoder"):
        auto.from_pretrained(folder, **({} if auto is CMKDStudentModel else {"trust_remote_code": True}))


def test_a_checkpoint_with_a_misshaped_head_is_refused(tmp_path):
    def shrink(weights):
        weights["prediction_head.weight"] = weights["prediction_head.weight"][:1].clone()

    with pytest.raises(ValueError, match="of another shape prediction_head.weight"):
        AutoModel.from_pretrained(saved_student(tmp_path, shrink), trust_remote_code=True)


def test_weights_that_are_not_safetensors_are_refused_and_the_reason_is_told(tmp_path):
    model = student(WAVEFORM_CONFIGS["hubert"])
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for auto, arguments in ((CMKDStudentModel, {}), (AutoModel, {"trust_remote_code": True})):
        with pytest.raises(OSError, match=r"has no model.safetensors. .* reading a pickle can run any code"):
            auto.from_pretrained(tmp_path, **arguments)
    with pytest.raises(ValueError, match="safetensors only"):
        CMKDStudentModel.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize("name", ["hubert", "whisper", "moonshine", "cpc"])
def test_encoders_load_from_a_folder(name, tmp_path):
    torch.manual_seed(3)
    stock = AutoModel.from_config(ALL_CONFIGS[name])
    stock.half().save_pretrained(tmp_path / "speech")
    AutoModel.from_config(TEXT).save_pretrained(tmp_path / "text")
    encoder = stock.float().get_encoder() if name in ("whisper", "moonshine") else stock.float()
    model = CMKDTeacherModel.from_pretrained_encoders(
        str(tmp_path / "speech"), str(tmp_path / "text"), label_scale=(1, 5), label_mean=(0.4, 0.5, 0.6)
    )
    loaded = model.speech_encoder.encoder.state_dict()
    stored = {key: value for key, value in encoder.state_dict().items() if key != "masked_spec_embed"}  # unused
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[key], value.float()) for key, value in stored.items())
    assert model.dtype == torch.float32 and not model.training
    assert (model.config.label_scale, model.config.label_mean) == ([1.0, 5.0], [0.4, 0.5, 0.6])
    layers = -1 if name == "cpc" else 1
    again = CMKDStudentModel.from_pretrained_encoder(str(tmp_path / "speech"), num_trainable_layers=layers)
    assert any(parameter.requires_grad for parameter in again.speech_encoder.encoder.parameters())


def test_an_incomplete_encoder_is_refused(tmp_path):
    stock = AutoModel.from_config(WAVEFORM_CONFIGS["hubert"])
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks encoder\.layers\.1\.attention\.k_proj\.weight"):
        CMKDStudentModel.from_pretrained_encoder(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["hubert", "moonshine", "cpc"])
def test_half_precision_loads_and_answers_in_fp32(name, dtype, tmp_path):
    model = student(ALL_CONFIGS[name])
    model.save_pretrained(tmp_path)
    item = utterances(model)[0]
    half = CMKDStudentModel.from_pretrained(tmp_path, dtype=dtype)
    with torch.no_grad():
        logits = half(**item).logits
        assert half.dtype == dtype and logits.dtype == torch.float32
        torch.testing.assert_close(logits, model(**item).logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["hubert", "whisper", "moonshine", "cpc"])
def test_weights_that_were_stored_in_half_precision_answer_in_fp32(name, tmp_path):
    """Half the file, and the arithmetic of before: only the weights are rounded."""
    model = student(ALL_CONFIGS[name])
    model.save_pretrained(tmp_path, state_dict={key: value.half() for key, value in model.state_dict().items()})
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    item = utterances(model)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        assert again.dtype == torch.float32
        torch.testing.assert_close(again(**item).logits, model(**item).logits, atol=1e-6, rtol=0)


def test_initial_weights_survive_a_save_and_depend_on_the_seed_only():
    first, second = student(WAVEFORM_CONFIGS["hubert"]), student(WAVEFORM_CONFIGS["hubert"])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    for module, fan_in in (
        (first.embedding_head, 128),
        (first.prediction_head, 128),
        (first.speech_summarizer.gru, 128),
    ):
        values = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        assert values.abs().max() <= fan_in**-0.5
        assert values.std() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.1)  # uniform


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_trainable_layers": 4}, "num_trainable_layers=4: must be between 0 .* and 3"),
        ({"num_trainable_layers": -2}, "num_trainable_layers=-2"),
        ({"label_scale": (7, 1)}, r"label_scale=\[7.0, 1.0\]: must be \[minimum, maximum\]"),
        ({"label_std": (1, 0, 1)}, "label_std=.*above 0"),
        ({"label_mean": (1, 0)}, "label_mean=.*one value for each of activation, valence, dominance"),
        ({"embedding_size": 0}, "embedding_size=0"),
        ({"label_std": (1, float("nan"), 1)}, "label_std=.*finite"),
        ({"speech_config": HubertConfig(**SMALL, conv_pos_batch_norm=True)}, "speech_config.conv_pos_batch_norm=True"),
        ({"speech_config": TEXT}, "speech_config.model_type='bert': must be one of hubert"),
        ({"speech_config": {"model_type": "hubertt"}}, r"speech_config\['model_type'\]='hubertt'"),
        ({"speech_config": "facebook/hubert-base-ls960"}, "must be a configuration or a dict"),
        ({"speech_config": MOONSHINE, "num_trainable_layers": 4}, "num_trainable_layers=4: must be between 0 .* and 3"),
        ({"speech_config": CPC, "num_trainable_layers": 1}, "num_trainable_layers=1: must be 0 .* or -1 .* CPC"),
        ({"speech_config": CPC, "num_trainable_layers": -2}, "num_trainable_layers=-2: must be 0 .* or -1"),
        ({"speech_config": CPC, "use_weighted_layer_sum": True}, "use_weighted_layer_sum=True: leave it out .* CPC"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        CMKDStudentConfig(**{"speech_config": WAVEFORM_CONFIGS["hubert"]} | fields)


def test_a_teacher_needs_an_encoder():
    with pytest.raises(ValueError, match="at least one encoder"):
        CMKDTeacherConfig()


def test_wrong_inputs_are_refused():
    model, both = student(WAVEFORM_CONFIGS["hubert"]), teacher()
    wave = torch.randn(1, 16000)
    with pytest.raises(ValueError, match="came as nothing: .* takes input_values"):
        model()
    with pytest.raises(ValueError, match="came as input_features: .*hubert.* takes input_values"):
        model(input_features=torch.randn(1, 80, 100))
    with pytest.raises(ValueError, match="pass input_ids"):
        both(input_values=wave)
    with pytest.raises(ValueError, match="attention_mask has padding before real positions"):
        model(input_values=wave, attention_mask=torch.cat([torch.zeros(1, 10), torch.ones(1, 15990)], 1))
    with pytest.raises(ValueError, match="text_attention_mask has padding before"):
        both(input_values=wave, input_ids=torch.tensor([[2, 3]]), text_attention_mask=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="Utterance 1 of the batch is shorter than one frame"):
        mask = torch.ones(2, 16000, dtype=torch.long)
        mask[1, 100:] = 0
        model(input_values=wave.repeat(2, 1), attention_mask=mask)
    with pytest.raises(ValueError, match="3002 frames: this Whisper encoder takes at most 3000 .30 s"):
        student(WHISPER)(input_features=torch.randn(1, 80, 3002))


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        config = HubertConfig(**SMALL, hidden_dropout=0, attention_dropout=0, activation_dropout=0, feat_proj_dropout=0)
        model = student(config, num_trainable_layers=2)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model(**utterances(model)[0]).logits.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("samples", [(20007, 9000), (15999, 1601), (16000, 800)])
def test_a_whisper_batch_padded_to_its_longest_clip_is_masked(samples):
    """The extractor's mask is over samples, and not always as many frames long as its features."""
    model, extractor = student(WHISPER), whisper_extractor()
    waves = [np.random.default_rng(count).normal(size=count).astype(np.float32) for count in samples]
    batch = extractor(waves, sampling_rate=16000, padding=True, return_tensors="pt")
    frames = batch["input_features"].shape[2]
    with torch.no_grad():
        found = model(**batch).logits
        alone = [
            model(input_features=batch["input_features"][row : row + 1, :, : min(frames, -(-count // 160))]).logits
            for row, count in enumerate(samples)
        ]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_whisper_extractor_that_is_saved_masks_the_silence(tmp_path):
    whisper_extractor().save_pretrained(tmp_path)
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path)(np.ones(1601, np.float32), sampling_rate=16000)
    assert np.sum(inputs["attention_mask"][0]) == 1601  # over samples; the model takes every 160th


def test_submodules_are_plain_torch():
    assert isinstance(student(WAVEFORM_CONFIGS["hubert"]).speech_summarizer.gru, nn.GRU)
