"""Going on from a checkpoint: what has `requires_grad` trains, whoever asks, and docs/finetuning.md runs."""

import copy
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from local_hub import USER, LocalHub
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import ALL_CONFIGS, CPC, SMALL, TEXT, WAVEFORM_CONFIGS, WHISPER, padded, student, utterances
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    HubertConfig,
    RobertaConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
    WavLMModel,
)

from cmkd.losses import ccc_loss as training_ccc_loss
from configuration_cmkd import CMKDStudentConfig, CMKDTeacherConfig
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel, ccc_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning"),  # the stock WavLM's
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # called by peft
]

TEXT_CONFIGS = {
    "bert": TEXT,
    "minilm": BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=3, num_attention_heads=4),
    "roberta": RobertaConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    ),
    "distilbert": DistilBertConfig(vocab_size=40, dim=24, n_layers=2, n_heads=2, hidden_dim=32),
    "t5": T5Config(vocab_size=40, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2),
}
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 3, 11, 12]])


def whole_batch(model) -> dict[str, torch.Tensor]:
    items = utterances(model)
    return padded(items, max(next(iter(item.values())).shape[-1] for item in items))


def assert_gradient_where_it_is_required(model, **inputs):
    model(**inputs)["logits"].square().sum().backward()
    required = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == required
    zero = {name for name in required if not model.get_parameter(name).grad.any()}
    return {name for name in zero if not name.endswith("k_proj.bias")}  # a bias of the keys never changes attention


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_all_of_an_encoder_trains_once_it_requires_gradient(name, mode):
    model = student(ALL_CONFIGS[name])
    model.train(mode).requires_grad_(True)
    batch = whole_batch(model)
    zero = assert_gradient_where_it_is_required(model, **batch)
    # Whisper's positions and WavLM's distances beyond the utterance are rows of a table, not parameters.
    assert not zero
    assert model.speech_encoder.encoder.training == mode


@pytest.mark.parametrize("name", [name for name in ALL_CONFIGS if name != "cpc"])
def test_one_parameter_in_the_middle_trains_alone(name):
    model = student(ALL_CONFIGS[name])
    model.requires_grad_(False)
    layer = model.speech_encoder.layers[1]
    chosen = (layer.post_attention_layernorm if name == "moonshine" else layer.final_layer_norm).weight
    chosen.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    assert not assert_gradient_where_it_is_required(model, **whole_batch(model))
    # Oracle: the change of the output for a small step, to first order.
    step = 1e-2 * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0)).double()
    model.double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in whole_batch(model).items()}
    with torch.no_grad():
        values = []
        for sign in (1e-3, -1e-3):
            model.load_state_dict(before)
            chosen.add_(sign * step)
            embeddings = model(**batch).embeddings
            head = model.prediction_head
            values.append((embeddings @ head.weight.T + head.bias).square().sum())
    difference = (values[0] - values[1]) / 2e-3
    assert (chosen.grad * step).sum().item() == pytest.approx(difference.item(), rel=1e-2, abs=1e-6)


def test_the_number_of_layers_is_read_when_encoders_are_frozen():
    model = student(WAVEFORM_CONFIGS["hubert"])
    for layers, trained in ((2, {"1", "2"}), (0, set()), (1, {"2"})):
        model.config.num_trainable_layers = layers
        model.freeze_encoders()
        names = {name for name, parameter in model.speech_encoder.encoder.named_parameters() if parameter.requires_grad}
        assert {name.split(".")[2] for name in names} == trained
        model.train()
        assert [layer.training for layer in model.speech_encoder.layers] == [str(i) in trained for i in range(3)]
    model.config.num_trainable_layers = 4
    with pytest.raises(ValueError, match="num_trainable_layers=4: must be between 0 .* and 3"):
        model.freeze_encoders()


def test_the_number_of_layers_can_be_said_on_loading(tmp_path):
    student(CPC).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True, num_trainable_layers=-1)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="num_trainable_layers=1: must be 0 .* or -1 .* CPC"):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True, num_trainable_layers=1)


def test_modes_follow_what_trains_in_whatever_order_it_is_said():
    config = HubertConfig(**SMALL, hidden_dropout=0.5, feat_proj_dropout=0.5)
    model = student(config)
    waves = utterances(model)[0]["input_values"]
    with torch.no_grad():
        expected, _ = model.extract_speech_features(waves)
        model.train()
        model.requires_grad_(True)  # after train()
        assert not torch.equal(model.speech_encoder(waves)[0], model.speech_encoder(waves)[0])  # dropout
        assert model.speech_encoder.encoder.feature_projection.dropout.training
        model.freeze_encoders()
        torch.testing.assert_close(model.extract_speech_features(waves)[0], expected, atol=0, rtol=0)
        assert not model.speech_encoder.encoder.feature_projection.dropout.training
        model.speech_encoder.layers[1].requires_grad_(True)
        model(input_values=waves)
        assert [layer.training for layer in model.speech_encoder.layers] == [False, True, True]


@pytest.mark.parametrize("layers", [0, 1, -1])
def test_stored_features_are_refused_where_something_below_them_would_train(layers):
    model = student(WAVEFORM_CONFIGS["hubert"], num_trainable_layers=max(layers, 0))
    batch = whole_batch(model)
    features, mask = model.extract_speech_features(batch["input_values"], batch["attention_mask"])
    model.config.num_trainable_layers = layers
    model.speech_encoder.encoder.feature_projection.projection.requires_grad_(True)
    message = f"num_trainable_layers={layers} .*feature_projection.projection.*requires_grad=True"
    with pytest.raises(ValueError, match=message):
        model(speech_features=features, attention_mask=mask)
    with pytest.raises(ValueError, match=message):
        model.extract_speech_features(batch["input_values"])
    model.speech_encoder.requires_grad_(False)
    if layers != -1:
        torch.testing.assert_close(
            model(speech_features=features, attention_mask=mask).logits, model(**batch).logits, atol=1e-6, rtol=0
        )


def test_stored_features_serve_while_only_layers_above_them_train():
    gradients = []
    model = student(WAVEFORM_CONFIGS["hubert"], num_trainable_layers=2)
    batch = whole_batch(model)
    features, mask = model.extract_speech_features(batch["input_values"], batch["attention_mask"])
    model.speech_encoder.layers[1].requires_grad_(False)
    for inputs in (batch, {"speech_features": features, "attention_mask": mask}):
        model.zero_grad()
        assert not assert_gradient_where_it_is_required(model, **inputs)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_the_text_encoder_of_a_teacher_trains_once_it_requires_gradient(name):
    torch.manual_seed(0)
    model = CMKDTeacherModel(CMKDTeacherConfig(text_config=TEXT_CONFIGS[name]))
    features, mask = model.extract_text_features(IDS)
    model.train()
    assert not model.text_encoder.encoder.training
    model.text_encoder.requires_grad_(True)
    assert_gradient_where_it_is_required(model, input_ids=IDS)
    assert model.text_encoder.encoder.training
    with pytest.raises(ValueError, match="text_features .* its .* has requires_grad=True"):
        model(text_features=features, text_attention_mask=mask)
    with pytest.raises(ValueError, match="text_features .* has requires_grad=True"):
        model.extract_text_features(IDS)
    model.freeze_encoders()
    assert not model.text_encoder.encoder.training
    assert model(text_features=features, text_attention_mask=mask).logits.isfinite().all()


def test_gradient_reaches_the_waveform():
    model = student(WAVEFORM_CONFIGS["hubert-stable"])
    wave = utterances(model)[0]["input_values"].requires_grad_()
    model(input_values=wave).logits.sum().backward()
    assert wave.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("name", ["hubert", "hubert-stable", "wav2vec2", "wavlm", "data2vec", "whisper", "moonshine"])
def test_lora_trains_in_every_layer_is_saved_loaded_and_merged(name, task, tmp_path):
    base = student(ALL_CONFIGS[name])
    pristine = copy.deepcopy(base)
    batch = whole_batch(base) | {"labels": torch.rand(3, 3, generator=torch.Generator().manual_seed(3))}
    config = LoraConfig(
        task_type=task,
        r=2,
        init_lora_weights=False,  # so that both matrices get a gradient at once
        target_modules=["q_proj", "v_proj", "o_proj" if name == "moonshine" else "out_proj"],
        modules_to_save=["embedding_head", "prediction_head", "speech_summarizer"],
    )
    model = get_peft_model(base, config)
    model.train()
    model(**batch).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {re.search(r"layers\.(\d)", name)[1] for name in trained if "lora_" in name} == {"0", "1", "2"}
    assert sum("lora_" in name for name in trained) == 3 * 3 * 2
    assert all(model.get_parameter(name).grad.any() for name in trained)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(**batch).logits
        assert (expected - pristine(**batch).logits).abs().max() > 1e-3
        again = PeftModel.from_pretrained(copy.deepcopy(pristine), tmp_path / "adapter").eval()
        torch.testing.assert_close(again(**batch).logits, expected, atol=1e-6, rtol=0)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=0)
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModel.from_pretrained(tmp_path / "merged", trust_remote_code=True)
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["hubert", "wavlm"])
def test_adapters_on_convolutions_take_effect(name):
    """Oracle: merged into the weights, of which the model knows nothing special."""
    base = student(ALL_CONFIGS[name])
    batch = whole_batch(base)
    model = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, target_modules=r".*conv_layers\.\d\.conv"))
    assert_gradient_where_it_is_required(model, **batch)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        torch.testing.assert_close(model.merge_and_unload()(**batch).logits, expected, atol=1e-5, rtol=0)


def test_a_group_norm_that_was_replaced_is_refused():
    model = get_peft_model(
        student(WAVEFORM_CONFIGS["hubert"]), LoraConfig(target_modules=["q_proj"], modules_to_save=["layer_norm"])
    )
    with pytest.raises(ValueError, match="group norm .* replaced by a ModulesToSaveWrapper.* modules_to_save"):
        model(**whole_batch(model.get_base_model()))


def test_a_teacher_takes_adapters_in_both_encoders():
    torch.manual_seed(0)
    teacher = CMKDTeacherModel(CMKDTeacherConfig(speech_config=WAVEFORM_CONFIGS["hubert"], text_config=TEXT))
    config = LoraConfig(
        r=2, target_modules=["q_proj", "query"], task_type="FEATURE_EXTRACTION", init_lora_weights=False
    )
    model = get_peft_model(teacher, config)
    model.train()
    waves = torch.randn(2, 8000)
    assert not assert_gradient_where_it_is_required(model, input_values=waves, input_ids=IDS)


def test_adapters_train_with_gradient_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        config = HubertConfig(**SMALL, hidden_dropout=0, attention_dropout=0, activation_dropout=0, feat_proj_dropout=0)
        base = student(config)
        if checkpointing:
            base.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False))
        model.train()
        assert_gradient_where_it_is_required(model, **whole_batch(base))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_wavlm_attends_as_the_stock_one_does_in_training_too():
    """Dropout 0: the same values and the same gradient, where the stock attention goes past its projections."""
    config = WAVEFORM_CONFIGS["wavlm"].__class__(**SMALL, hidden_dropout=0, attention_dropout=0, activation_dropout=0)
    config.feat_proj_dropout = config.layerdrop = config.mask_time_prob = 0.0
    model = student(config, num_trainable_layers=-1).train()
    stock = WavLMModel(config).train()
    stock.load_state_dict(model.speech_encoder.encoder.state_dict(), strict=False)
    wave = utterances(model)[0]["input_values"]
    ours, theirs = model.speech_encoder(wave)[0], stock(wave).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for hidden in (ours, theirs):
        hidden.square().sum().backward()
    for name, parameter in model.speech_encoder.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, stock.get_parameter(name).grad, atol=1e-3, rtol=1e-3)


def test_head_modules_have_names_of_their_own():
    names = set()
    for config in ALL_CONFIGS.values():
        names |= {name for name, _ in student(config).speech_encoder.named_modules()}
    for config in TEXT_CONFIGS.values():
        names |= {
            name for name, _ in CMKDTeacherModel(CMKDTeacherConfig(text_config=config)).text_encoder.named_modules()
        }
    model = CMKDTeacherModel(CMKDTeacherConfig(speech_config=WHISPER, text_config=TEXT))
    heads = [name for name, _ in model.named_children() if not name.endswith("encoder")]
    assert heads == ["speech_summarizer", "text_summarizer", "embedding_head", "prediction_head"]
    assert len(names) > 200
    # peft matches the end of a name
    assert not [(name, head) for name in names for head in heads if name.endswith(head) or head.endswith(f".{name}")]


LABELS = torch.tensor([[0.1, 0.2, 0.3], [0.5, float("nan"), 0.3], [0.9, 0.8, 0.3], [0.4, 0.6, 0.3]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["rated", "nan", "constant", "one", "unrated"])
def test_the_loss_is_the_one_of_training(case, dtype):
    generator = torch.Generator().manual_seed(0)
    predictions, labels = torch.rand(2, 9, 3, generator=generator, dtype=torch.float64)
    if case == "nan":
        labels[[0, 3, 4], [0, 1, 1]] = torch.nan
    if case == "constant":
        predictions[:, 0] = 0.3
        labels[:, 2] = 0.7
    if case == "one":
        predictions, labels = predictions[:1], labels[:1]
    if case == "unrated":
        labels[:, 1] = torch.nan
    values, gradients = [], []
    for loss in (ccc_loss, training_ccc_loss):
        leaf = predictions.to(dtype).requires_grad_()
        value = loss(leaf, labels.to(dtype))
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-7)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_logit_that_is_nan_where_nothing_is_rated_counts_for_nothing():
    logits = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    expected, found = (logits.clone().requires_grad_() for _ in range(2))
    with torch.no_grad():
        found[1, 1] = torch.nan
    for leaf in (expected, found):
        ccc_loss(leaf, LABELS).backward()
    assert ccc_loss(found, LABELS).item() == ccc_loss(expected, LABELS).item()
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_forward_returns_the_loss_of_the_batch(name):
    """Oracle: Lin's formula in numpy."""
    model = student(ALL_CONFIGS[name])
    batch = whole_batch(model)
    labels = LABELS[:3]
    output = model(**batch, labels=labels)
    predictions, truth, losses = output.logits.detach().double().numpy(), labels.double().numpy(), []
    for p, y in zip(predictions.T, truth.T, strict=True):
        p, y = p[~np.isnan(y)], y[~np.isnan(y)]
        covariance = np.mean((p - p.mean()) * (y - y.mean()))
        losses.append(1 - 2 * covariance / (p.var() + y.var() + (p.mean() - y.mean()) ** 2))
    assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
    assert list(output) == ["loss", "logits", "embeddings"]
    as_tuple = model(**batch, labels=labels, return_dict=False)
    assert [value.tolist() for value in as_tuple] == [value.tolist() for value in output.values()]
    assert list(model(**batch)) == ["logits", "embeddings"]


def test_labels_and_arguments_that_cannot_be_meant_are_refused():
    model = student(WAVEFORM_CONFIGS["hubert"], label_scale=(1, 7))
    batch = whole_batch(model)
    for labels, message in (
        (torch.full((3, 3), 3.5), r"labels hold 3.5: .*unit interval.*\[1.0, 7.0\].*to_unit_interval"),
        (torch.full((3, 3), float("inf")), "labels hold inf"),
        (torch.rand(3, 2), r"labels has shape \(3, 2\): must be \(3, 3\), a column for each of activation, valence"),
        (torch.rand(3), r"labels has shape \(3,\)"),
        (torch.zeros(3, 3, dtype=torch.long), "labels are torch.int64: must be floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**batch, labels=labels)
    for arguments, message in (
        ({"input_ids": IDS}, "input_ids was given, which this student does not take"),
        ({"inputs_embeds": torch.rand(1, 2, 3)}, "inputs_embeds was given"),
        ({"output_attentions": True}, "output_attentions=True: this model does not return attention maps"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**batch, **arguments)
    ratings = torch.tensor([1.0, 4.0, 7.0, float("nan")])
    torch.testing.assert_close(
        model.config.to_unit_interval(ratings), torch.tensor([0.0, 0.5, 1.0, float("nan")]), equal_nan=True
    )


class Rows(torch.utils.data.Dataset):
    def __init__(self, count: int):
        generator = torch.Generator().manual_seed(0)
        self.rows = [
            {"input_values": torch.randn(4000, generator=generator), "labels": torch.rand(3, generator=generator)}
            for _ in range(count)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def plain_dropout_free(**config):
    kind = HubertConfig(**SMALL, hidden_dropout=0, attention_dropout=0, activation_dropout=0, feat_proj_dropout=0)
    return student(kind, **config)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_stock_trainer_takes_the_mean_of_the_batches_losses(adapted, tmp_path):
    """Oracle: the same two batches and a step of SGD by hand."""
    rows, models = Rows(8), []
    for by_hand in (True, False):
        model = plain_dropout_free(num_trainable_layers=1)
        if adapted:
            torch.manual_seed(1)
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        if by_hand:
            model.train()
            for start in (0, 4):
                batch = torch.utils.data.default_collate([rows[index] for index in range(start, start + 4)])
                (model(**batch).loss / 2).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.sub_(0.5 * parameter.grad)
        else:
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=str(tmp_path),
                    optim="sgd",
                    learning_rate=0.5,
                    lr_scheduler_type="constant",
                    max_grad_norm=0,
                    per_device_train_batch_size=4,
                    per_device_eval_batch_size=4,
                    gradient_accumulation_steps=2,
                    max_steps=1,
                    train_sampling_strategy="sequential",
                    save_strategy="no",
                    report_to="none",
                    use_cpu=True,
                    disable_tqdm=True,
                ),
                train_dataset=rows,
                eval_dataset=rows,
            )
            assert trainer.label_names == ["labels"]
            trainer.train()
            found = trainer.predict(rows)
            assert [values.shape for values in found.predictions] == [(8, 3), (8, 128)]
            assert 0 <= trainer.evaluate()["eval_loss"] <= 2
        models.append({name: parameter.detach() for name, parameter in model.named_parameters()})
    for name, parameter in models[0].items():
        torch.testing.assert_close(models[1][name], parameter, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_the_states_of_the_layers_are_those_of_the_stock_encoder(name):
    model = student(ALL_CONFIGS[name], num_trainable_layers=0 if name == "cpc" else 1)
    batch = whole_batch(model)
    alone = utterances(model)
    with torch.no_grad():
        together = model(**batch, output_hidden_states=True)
        for row, item in enumerate(alone):
            output = model(**item, output_hidden_states=True)
            assert output.hidden_states_mask.all() and len(output.hidden_states) == (1 if name == "cpc" else 4)
            if name not in ("cpc", "whisper"):
                stock = AutoModel.from_config(model.config.speech_config, dtype=torch.float32).eval()
                stock = stock.get_encoder() if name == "moonshine" else stock
                stock.load_state_dict(model.speech_encoder.encoder.state_dict(), strict=False)
                expected = stock(item["input_values"], output_hidden_states=True)
                states = [*expected.hidden_states[:-1], expected.last_hidden_state]
                for found, state in zip(output.hidden_states, states, strict=True):
                    torch.testing.assert_close(found, state, atol=1e-4, rtol=1e-4)
            for state, of_batch in zip(output.hidden_states, together.hidden_states, strict=True):
                real = together.hidden_states_mask[row]
                torch.testing.assert_close(of_batch[row][real], state[0], atol=1e-4, rtol=1e-4)
        features, mask = model.extract_speech_features(batch[model.config.speech_input_name], batch["attention_mask"])
        stored = model(speech_features=features, attention_mask=mask, output_hidden_states=True)
        for found, state in zip(stored.hidden_states[::-1], together.hidden_states[::-1], strict=False):
            torch.testing.assert_close(found, state, atol=1e-5, rtol=1e-5)
        assert len(stored.hidden_states) == (1 if name == "cpc" else 2)
        assert torch.equal(stored.hidden_states_mask, together.hidden_states_mask)


def test_whisper_states_are_those_of_30_stock_seconds():
    model = student(WHISPER)
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(input_features=features, output_hidden_states=True).hidden_states
        stock = model.speech_encoder.encoder(features, output_hidden_states=True)
    for state, expected in zip(found, [*stock.hidden_states[:-1], stock.last_hidden_state], strict=True):
        torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_a_teacher_returns_the_states_of_both_encoders():
    torch.manual_seed(0)
    config = CMKDTeacherConfig(speech_config=WAVEFORM_CONFIGS["hubert"], text_config=TEXT, use_weighted_layer_sum=True)
    model = CMKDTeacherModel(config).eval()
    waves = torch.randn(2, 8000)
    with torch.no_grad():
        model.config.output_hidden_states = True
        output = model(input_values=waves, input_ids=IDS)
        stock = model.text_encoder.encoder(input_ids=IDS, output_hidden_states=True).hidden_states
        speech, text = model.extract_speech_features(waves), model.extract_text_features(IDS)
        stored = model(speech_features=speech[0], text_features=text[0])
        silent = model(input_values=waves, input_ids=IDS, output_hidden_states=False)
    assert len(output.hidden_states) == 4 and len(stored.hidden_states) == 4  # all of them are stored for the sum
    for found, expected in zip(output.text_hidden_states, stock, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(stored.text_hidden_states[0], stock[-1])
    assert list(silent) == ["logits", "embeddings"]
    torch.testing.assert_close(stored.logits, output.logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 2}, "num_labels=2: a CMKD model has the three outputs activation, valence, dominance"),
        ({"id2label": {0: "negative", 1: "neutral", 2: "positive"}}, "id2label={0: 'negative'.* three outputs"),
        ({"label2id": {"negative": 0, "neutral": 1, "positive": 2}}, "label2id={'negative': 0.* three outputs"),
        ({"problem_type": "single_label_classification"}, "problem_type='single_label_classification'.*'regression'"),
    ],
)
def test_other_outputs_than_the_three_dimensions_are_refused_wherever_they_are_asked_for(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CMKDStudentConfig(speech_config=CPC, **fields)
    model = student(CPC)
    model.save_pretrained(tmp_path / "good")
    loaders = [CMKDStudentConfig.from_pretrained, CMKDStudentModel.from_pretrained]
    for auto in (AutoModel, AutoModelForAudioClassification):
        loaders.append(lambda *args, auto=auto, **kwargs: auto.from_pretrained(*args, trust_remote_code=True, **kwargs))
    for load in loaders:
        load(tmp_path / "good")
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "good", **fields)
    for name, value in fields.items():
        setattr(model.config, name, value)
    message = message.replace("num_labels=2", "id2label={0: 'LABEL_0', 1: 'LABEL_1'}")
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "bad")
    with pytest.raises(ValueError, match=message):
        CMKDStudentModel(model.config)
    assert not list((tmp_path / "bad").glob("*.safetensors"))


def test_the_three_dimensions_may_be_said():
    names = {0: "activation", 1: "valence", 2: "dominance"}
    config = CMKDStudentConfig(speech_config=CPC, num_labels=3, id2label=names, problem_type="regression")
    assert config.id2label == names and config.num_labels == 3
    assert CMKDStudentConfig.from_dict(json.loads(config.to_json_string())).id2label == names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert", "wav2vec2-stable", "wavlm", "data2vec", "whisper", "moonshine", "cpc"])
def test_a_model_exports_with_any_number_of_utterances(name):
    """Fixed length, because torch unrolls the GRU: shorter utterances are padded, which changes nothing."""
    model = student(ALL_CONFIGS[name], gru_hidden_size=8, gru_num_layers=1)
    batch = whole_batch(model)
    kind = model.config.speech_input_name
    length = 30 if name == "whisper" else 4000
    speech, mask = batch[kind][..., :length], torch.ones(3, length, dtype=torch.long)
    mask[1, mask.shape[1] // 2 :] = 0
    inputs = {kind: speech[:2], "attention_mask": mask[:2]}
    count = torch.export.Dim("count", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes={key: {0: count} for key in inputs})
        found = program.module()(**{kind: speech, "attention_mask": mask})
        expected = model(**{kind: speech, "attention_mask": mask})
        short = model(**{kind: speech[1:2, ..., : mask.shape[1] // 2]})
    torch.testing.assert_close(found["logits"], expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["logits"][1:2], short.logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert", "wavlm", "data2vec", "whisper", "moonshine"])
def test_an_encoder_exports_with_any_length(name):
    encoder = student(ALL_CONFIGS[name]).speech_encoder
    generator = torch.Generator().manual_seed(0)
    shape, longer = ((2, 80, 60), (3, 80, 131)) if name == "whisper" else ((2, 8000), (3, 21003))
    mask = torch.ones(shape[0], shape[-1], dtype=torch.long)
    auto = torch.export.Dim.AUTO
    inputs = {"inputs": torch.randn(shape, generator=generator), "attention_mask": mask}
    shapes = {"inputs": {0: auto, len(shape) - 1: auto}, "attention_mask": {0: auto, 1: auto}}
    with torch.no_grad():
        program = torch.export.export(encoder, (), inputs, dynamic_shapes=shapes)
        mask = torch.ones(longer[0], longer[-1], dtype=torch.long)
        mask[1, longer[-1] // 2 :] = 0
        other = {"inputs": torch.randn(longer, generator=generator), "attention_mask": mask}
        (found, real), (expected, expected_real) = program.module()(**other), encoder(**other)
    assert torch.equal(real, expected_real)
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


def test_nothing_that_is_saved_names_a_folder(tmp_path, monkeypatch):
    place = tmp_path / "my-private-folder"
    for name, config in (("speech", WAVEFORM_CONFIGS["hubert"]), ("text", TEXT)):
        AutoModel.from_config(config).save_pretrained(place / "user" / name)
    monkeypatch.chdir(place)
    for speech, text in ((place / "user/speech", place / "user/text"), ("user/speech", "user/text")):
        model = CMKDTeacherModel.from_pretrained_encoders(str(speech), str(text))
        model.save_pretrained(tmp_path / "model")
        CMKDTeacherModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
        for folder in ("model", "again"):
            for path in (tmp_path / folder).iterdir():
                assert b"my-private-folder" not in path.read_bytes(), path.name
                assert str(tmp_path).encode() not in path.read_bytes(), path.name
            config = json.loads((tmp_path / folder / "config.json").read_text())
            assert not config["speech_config"].get("_name_or_path") and not config["text_config"].get("_name_or_path")
    model.config.speech_config.name_or_path = "facebook/hubert-base-ls960"
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["speech_config"]["_name_or_path"] == "facebook/hubert-base-ls960"


@pytest.mark.slow
def test_push_to_hub_of_the_model_alone_names_no_folder(python, tmp_path):
    place = tmp_path / "my-private-folder"
    AutoModel.from_config(WAVEFORM_CONFIGS["hubert"]).save_pretrained(place / "user/speech")
    CMKDStudentModel.from_pretrained_encoder(str(place / "user/speech")).save_pretrained(place / "student")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(place / "student")
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what"]))
    BertTokenizer(vocab=str(place / "vocab.txt")).save_pretrained(place / "student")
    code = f"""
from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer
for auto, more in (
    (AutoModel, {{"trust_remote_code": True}}), (AutoFeatureExtractor, {{}}), (AutoTokenizer, {{}}),
):
    auto.from_pretrained({str(place / "student")!r}, **more).push_to_hub("{USER}/further")
"""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with LocalHub() as hub:
        environment |= hub.environment(tmp_path / "cache")
        result = subprocess.run(
            [python.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, result.stderr
        files = hub.files("models", f"{USER}/further")
    assert files.keys() >= {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json"}
    for name, content in files.items():
        assert b"my-private-folder" not in content and str(tmp_path).encode() not in content, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert", "hubert-stable", "wavlm", "data2vec", "whisper", "moonshine", "cpc"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_trace_serves_any_number_and_length(name):
    """As the older of torch's two ONNX exporters takes a model."""

    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, speech, mask):
            return self.model(**{self.model.config.speech_input_name: speech, "attention_mask": mask}).logits

    model = Logits(student(ALL_CONFIGS[name]))
    generator = torch.Generator().manual_seed(0)
    shape, longer = ((2, 80, 60), (3, 80, 131)) if name == "whisper" else ((2, 8000), (3, 21003))
    mask = torch.ones(longer[0], longer[-1], dtype=torch.long)
    mask[1, longer[-1] // 2 :] = 0
    speech = torch.randn(longer, generator=generator)
    example = (torch.randn(shape, generator=generator), torch.ones(shape[0], shape[-1], dtype=torch.long))
    with torch.no_grad():
        trace = torch.jit.trace(model, example, check_trace=False)
        torch.testing.assert_close(trace(speech, mask), model(speech, mask), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_page_on_further_training_runs(tmp_path):
    """Every Python block of docs/finetuning.md, in order, as one program that a user would copy."""
    torch.manual_seed(0)
    config = CMKDStudentConfig(
        speech_config=HubertConfig(**SMALL), num_trainable_layers=1, gru_hidden_size=8, embedding_size=8
    )
    CMKDStudentModel(config).save_pretrained(tmp_path / "student")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "student")
    (tmp_path / "clips").mkdir()
    generator = np.random.default_rng(0)
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "activation", "valence", "dominance"])
        for index in range(24):
            soundfile.write(tmp_path / f"clips/{index:02}.wav", generator.normal(0, 0.1, 4000 + 80 * index), 16000)
            ratings = [f"{value:.1f}" for value in generator.uniform(1, 5, 3)]
            writer.writerow([f"clips/{index:02}.wav", *ratings[:2], ratings[2] if index % 5 else ""])
    page = (Path(__file__).parent.parent / "docs/finetuning.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    blocks.insert(2, "assert all(parameter.requires_grad for parameter in model.parameters())\n")
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    result = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "eval_ccc_valence" in result.stdout
    assert "page.py" not in result.stderr  # no warning of our own lines
    before = AutoModel.from_pretrained(tmp_path / "student", trust_remote_code=True)
    for folder in ("further/student", "merged", "loop"):
        model = AutoModel.from_pretrained(tmp_path / folder, trust_remote_code=True)
        assert model.config.label_scale == [1.0, 5.0]
        assert not torch.equal(model.prediction_head.weight, before.prediction_head.weight)
        assert isinstance(model.speech_summarizer.gru, nn.GRU)
        assert str(tmp_path).encode() not in (tmp_path / folder / "config.json").read_bytes()
