"""The trainer on a network that is small enough to compute by hand."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from formulas import ccc
from linear_trainer import Linear, dataset, trainer
from transformers import TrainerCallback

from cmkd import CMKDTrainer, CMKDTrainingArguments
from cmkd.features.inputs import UtteranceDataset
from cmkd.training.collator import collate_utterances

NO_EVALUATION = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": {},
}


@pytest.mark.parametrize("distance", ["norm", "squared_norm", "mean_squared"])
def test_the_loss_is_equation_7(distance, tmp_path):
    batch = collate_utterances([dataset(10, distilled=True)[index] for index in range(10)])
    job = trainer(tmp_path, distillation_weight=2.5, embedding_distance=distance)
    loss, outputs = job.compute_loss(job.model, batch, return_outputs=True)
    logits, embeddings = outputs["logits"].detach().numpy(), outputs["embeddings"].detach().numpy()
    labels = batch["labels"].numpy()
    emotion = 0.0
    for dimension in range(3):
        rated = ~np.isnan(labels[:, dimension])
        emotion += (1 - ccc(logits[rated, dimension], labels[rated, dimension])) / 3
    squares = ((embeddings - batch["teacher_embeddings"].numpy()) ** 2).sum(1)
    distances = {"norm": np.sqrt(squares), "squared_norm": squares, "mean_squared": squares / 5}[distance]
    kept = batch["quality_weights"].numpy() > 0
    assert loss.item() == pytest.approx(emotion + 2.5 * distances[kept].mean(), rel=1e-5)
    assert set(batch) == {"inputs", "labels", "teacher_embeddings", "quality_weights"}  # not emptied


def test_the_terms_that_the_paper_does_not_have_are_added_with_their_weights(tmp_path):
    batch = collate_utterances([dataset(10, distilled=True)[index] for index in range(10)])
    kept = batch["quality_weights"] > 0
    batch["teacher_predictions"] = batch["teacher_embeddings"][:, :3].double()
    batch["dimension_weights"] = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)).double()
    settings = {"embedding_distance": "contrastive", "contrastive_temperature": 0.3, "distillation_weight": 2.5}
    job = trainer(tmp_path, prediction_weight=0.7, **settings)
    loss, outputs = job.compute_loss(job.model, batch, return_outputs=True)
    logits, embeddings = outputs["logits"].detach().numpy(), outputs["embeddings"].detach()
    emotion, predicted = 0.0, 0.0
    for dimension in range(3):
        labels = batch["labels"][:, dimension].numpy()
        rated = ~np.isnan(labels)
        emotion += (1 - ccc(logits[rated, dimension], labels[rated])) / 3
        taught, weights = (batch[name][:, dimension].numpy() for name in ("teacher_predictions", "dimension_weights"))
        moments = np.cov(logits[:, dimension], taught, aweights=weights, ddof=0)
        bias = np.average(logits[:, dimension] - taught, weights=weights)
        predicted += (1 - 2 * moments[0, 1] / (moments.trace() + bias**2)) / 3
    directions = [values / values.norm(dim=1, keepdim=True) for values in (embeddings, batch["teacher_embeddings"])]
    similarity = (directions[0] @ directions[1].T / 0.3)[kept][:, kept]
    contrastive = torch.nn.functional.cross_entropy(similarity, torch.arange(len(similarity)))
    assert loss.item() == pytest.approx(emotion + 2.5 * contrastive.item() + 0.7 * predicted, rel=1e-5)
    del batch["dimension_weights"]
    with pytest.raises(ValueError, match="prediction_weight is 0.7, but the data has no teacher_predictions or no dim"):
        job.compute_loss(job.model, batch)


def test_a_teacher_without_weights_is_refused(tmp_path):
    batch = collate_utterances([dataset(10, distilled=True)[index] for index in range(10)])
    del batch["quality_weights"]
    job = trainer(tmp_path)
    with pytest.raises(ValueError, match="teacher_embeddings come without quality_weights"):
        job.compute_loss(job.model, batch)


def test_without_a_teacher_the_loss_is_the_emotion_loss(tmp_path):
    batch = collate_utterances([dataset(10)[index] for index in range(10)])
    job = trainer(tmp_path)
    logits, labels = job.model(batch["inputs"]).logits.detach().numpy(), batch["labels"].numpy()
    values = [ccc(logits[r, d], labels[r, d]) for d in range(3) for r in [~np.isnan(labels[:, d])]]
    assert job.compute_loss(job.model, batch).item() == pytest.approx(1 - np.mean(values), rel=1e-5)


def test_evaluation_is_that_of_the_whole_split(tmp_path):
    """Ten utterances in batches of four: a mean over batches would be another number."""
    job = trainer(tmp_path)
    found = job.evaluate()
    columns = dataset(10).columns
    with torch.no_grad():
        logits = job.model(torch.from_numpy(columns["inputs"])).logits.numpy()
    values = []
    for dimension in range(3):
        rated = ~np.isnan(columns["labels"][:, dimension])
        values.append(ccc(logits[rated, dimension], columns["labels"][rated, dimension]))
    names = ("eval_ccc_activation", "eval_ccc_valence", "eval_ccc_dominance")
    assert [found[name] for name in names] == pytest.approx(values, abs=1e-6)
    assert found["eval_ccc"] == pytest.approx(np.mean(values), abs=1e-6)
    assert found["eval_loss"] == pytest.approx(1 - np.mean(values), abs=1e-6)


def test_the_first_step_is_adams_with_a_lower_rate_for_the_encoder(tmp_path):
    """Adam's first step is lr * g / (|g| + eps): nearly the learning rate, whatever the gradient."""
    model = Linear()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    job = trainer(tmp_path, model, max_steps=1, learning_rate=1e-2, **NO_EVALUATION)
    job.train()
    steps = {name: (parameter.detach() - before[name]).abs() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(steps["prediction.weight"], torch.full((3, 5), 1e-2), rtol=1e-3, atol=0)
    torch.testing.assert_close(steps["speech_encoder.encoder.weight"], torch.full((5, 4), 2.5e-3), rtol=1e-3, atol=0)
    assert steps["speech_encoder.frozen.weight"].max() == 0


def test_the_rate_falls_after_more_than_two_epochs_without_a_better_ccc(tmp_path):
    scores = iter([0.5, 0.4, 0.6, 0.6, 0.5, 0.55, 0.5, 0.7])
    job = trainer(tmp_path, num_train_epochs=8)
    job.compute_metrics = lambda evaluation: {"ccc": next(scores)}
    rates = []

    class Record(TrainerCallback):
        def on_epoch_begin(self, args, state, control, optimizer=None, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    job.add_callback(Record)
    job.train()
    # Best so far: .5 .5 .6 .6 .6 .6(third without a better one) ... .7
    assert rates == pytest.approx([5e-4] * 6 + [3.75e-4] * 2)


@pytest.mark.parametrize("loss_over", ["step", "batch"])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched(loss_over, tmp_path):
    train = dataset(10)
    train.columns["inputs"][3, 0] = np.nan
    train.columns["id"] = [f"utterance-{row}" for row in range(10)]
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 10, "loss_over": loss_over, **NO_EVALUATION}
    job = trainer(tmp_path, train=train, **settings)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="loss of training step 1 is nan.*utterances.*utterance-3") as error:
        job.train()
    if loss_over == "step":  # where the outputs are known, it names the culprits alone
        assert "utterance-4" not in str(error.value)
    for name, value in job.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_says_what_helps(error, tmp_path, monkeypatch):
    job = trainer(tmp_path, train_durations=[1.0] * 9 + [7.5], **NO_EVALUATION)

    def fail(inputs):
        raise error

    monkeypatch.setattr(job.model, "forward", fail)
    with pytest.raises(MemoryError, match=r"step 1, .* [34] utterances; the longest .* 7.5 s.*batch_size \(it is 4\)"):
        job.train()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("distillation_weight", -1.0, "distillation_weight=-1.0: must be at least 0"),
        ("embedding_distance", "l2", "embedding_distance='l2': must be one of norm, squared_norm, mean_squared"),
        ("contrastive_temperature", 0.0, "contrastive_temperature=0.0: must be above 0"),
        ("prediction_weight", -0.5, "prediction_weight=-0.5: must be at least 0"),
        ("weight_decay", 0.1, "weight_decay=0.1: must be 0"),
        ("encoder_learning_rate_factor", 0.0, "encoder_learning_rate_factor=0.0: must be above 0"),
        ("optim", "adafactor", "optim='adafactor': must be 'adamw_torch', since it would be ignored"),
        ("optim_args", "lr=3", "optim_args='lr=3': must be None, since it would be ignored"),
        ("optim_target_modules", "all-linear", "optim_target_modules='all-linear': must be None"),
        ("label_smoothing_factor", 0.1, "label_smoothing_factor=0.1: must be 0, .* the loss is Eq. 7"),
        ("train_sampling_strategy", "group_by_length", r"must be 'random', .*CMKDTrainer\(train_durations=…\)"),
        ("dataloader_drop_last", True, "dataloader_drop_last=True: must be False"),
        ("data_seed", 3, "data_seed=3: must be None"),
        ("auto_find_batch_size", True, "auto_find_batch_size=True: must be False"),
        ("torch_empty_cache_steps", 2, "torch_empty_cache_steps=2: would be ignored with loss_over='step'"),
        ("warmup_steps", 10, "warmup_steps=10: would be ignored, since lr_scheduler_type='reduce_lr_on_plateau'"),
    ],
)
def test_a_wrong_argument_is_refused(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CMKDTrainingArguments(str(tmp_path), **{field: value})


def test_settings_of_the_learning_rate_that_a_scheduler_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lr_scheduler_kwargs={'factor': 0.5}: would be ignored"):
        CMKDTrainingArguments(str(tmp_path), lr_scheduler_type="constant", lr_scheduler_kwargs={"factor": 0.5})
    arguments = CMKDTrainingArguments(str(tmp_path), lr_scheduler_type="linear", warmup_steps=10)
    assert arguments.lr_scheduler_kwargs == {}
    job = trainer(tmp_path, lr_scheduler_type="linear", warmup_steps=2, num_train_epochs=1)
    job.create_optimizer_and_scheduler(4)
    rates = []
    for _ in range(4):
        rates.append(job.lr_scheduler.get_last_lr()[0])
        job.optimizer.step()
        job.lr_scheduler.step()
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, 2.5e-4])


def test_an_optimizer_is_taken_or_refused_but_not_replaced(tmp_path):
    model = Linear()
    given = torch.optim.SGD(model.prediction.parameters(), lr=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1} | NO_EVALUATION
    options = {"args": CMKDTrainingArguments(str(tmp_path), **arguments), "data_collator": collate_utterances}
    job = CMKDTrainer(model=model, train_dataset=dataset(10), optimizers=(given, None), **options)
    job.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"prediction.weight", "prediction.bias"}
    with pytest.raises(ValueError, match=r"optimizer_cls_and_kwargs is given, but would be ignored.*optimizers="):
        CMKDTrainer(model=model, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1}), **options)
    with pytest.raises(ValueError, match=r"compute_loss_func is given, but would be ignored.*CMKDTrainer\.loss"):
        CMKDTrainer(model=model, compute_loss_func=lambda *_: 0, **options)


def test_what_optim_says_is_what_it_is(tmp_path):
    """`adamw_torch`, made by torch itself, takes the same steps as the trainer's optimizer."""
    job = trainer(tmp_path, encoder_learning_rate_factor=1.0)
    assert job.args.optim == "adamw_torch" and job.args.weight_decay == 0
    twin = Linear()
    twin.load_state_dict(job.model.state_dict())
    stock_class, options = CMKDTrainer.get_optimizer_cls_and_kwargs(job.args)
    stock = stock_class(twin.parameters(), weight_decay=job.args.weight_decay, **options)
    for _ in range(5):
        for model, optimizer in ((job.model, job.create_optimizer()), (twin, stock)):
            optimizer.zero_grad()
            model(torch.arange(8.0).reshape(2, 4)).logits.square().sum().backward()
            optimizer.step()
    for name, value in twin.state_dict().items():
        assert torch.equal(job.model.state_dict()[name], value)


def test_checkpoints_are_rotated_by_their_steps_and_silently(tmp_path, caplog, monkeypatch):
    """Several in less than a second, about whose time of change Trainer warns; each is on the disk before one goes."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    events = []
    for owner, name in ((os, "fsync"), (shutil, "rmtree")):
        original = getattr(owner, name)

        def record(what, *args, name=name, original=original, **kwargs):
            place = Path(f"/proc/self/fd/{what}").readlink() if name == "fsync" else str(what)
            events.append((name, Path(place).name))
            return original(what, *args, **kwargs)

        monkeypatch.setattr(owner, name, record)
    job = trainer(tmp_path, num_train_epochs=4, load_best_model_at_end=False)
    job.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{job.state.global_step}"]
    assert job.args.save_total_limit == 1
    assert "mtime" not in caplog.text
    removed = events.index(("rmtree", "checkpoint-3"))
    assert events.index(("fsync", "checkpoint-6")) < removed
    assert ("fsync", "trainer_state.json") in events[:removed]


def test_the_defaults_are_the_papers(tmp_path):
    arguments = CMKDTrainingArguments(str(tmp_path))
    found = (arguments.per_device_train_batch_size, arguments.num_train_epochs, arguments.learning_rate)
    assert found == (32, 50, 5e-4)
    assert (arguments.distillation_weight, arguments.encoder_learning_rate_factor) == (30, 0.25)
    assert arguments.lr_scheduler_kwargs == {"mode": "max", "factor": 0.75, "patience": 2}


def test_a_step_has_utterances_of_like_length(tmp_path):
    lengths = [1, 9] * 32
    columns = dataset(64).columns | {"inputs": np.array(lengths, dtype=np.float32)[:, None].repeat(4, 1)}
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    job = trainer(tmp_path, train=UtteranceDataset(columns), train_durations=lengths, **settings)
    found = [batch["inputs"][:, 0].tolist() for batch in job.get_train_dataloader()]
    steps = [first + second for first, second in zip(found[::2], found[1::2], strict=True)]
    assert sorted(length for step in steps for length in step) == sorted(lengths)
    assert sum(len(set(step)) > 1 for step in steps) <= 2  # one for each of the two pools; by chance it were 14 of 16


def test_every_utterance_has_a_length(tmp_path):
    with pytest.raises(ValueError, match="lengths has 3 values for 10 utterances"):
        trainer(tmp_path, train_durations=[1, 2, 3]).train()


def test_the_loss_is_taken_in_fp32_under_autocast(tmp_path):
    """The model computes in bf16; its outputs are not rounded to bf16 once more on their way to the loss."""
    seen = []

    class Watching(CMKDTrainer):
        def loss(self, *args, **kwargs):
            seen.append({name: values.dtype for name, values in kwargs.items()})
            return super().loss(*args, **kwargs)

    data = dataset(10, distilled=True)
    arguments = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    job = trainer(tmp_path, train=data, trainer_class=Watching, bf16=True, **arguments, **NO_EVALUATION)
    hidden = []
    job.model.speech_encoder["encoder"].register_forward_hook(lambda *call: hidden.append(call[-1].dtype))
    job.train()
    assert set(hidden) == {torch.bfloat16}
    assert seen == [dict.fromkeys(seen[0], torch.float32)]
    assert set(seen[0]) == {"logits", "embeddings", "labels", "teacher_embeddings", "quality_weights"}
