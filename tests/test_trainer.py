"""The trainer on a network that is small enough to compute by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import ModelOutput

from cmkd import CMKDTrainer, CMKDTrainingArguments
from cmkd.collator import collate_utterances
from cmkd.features import UtteranceDataset

NO_EVALUATION = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": {},
}


@dataclass
class Output(ModelOutput):
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class Linear(nn.Module):
    """Not a CMKD model: the trainer needs logits and embeddings only."""

    def __init__(self):
        super().__init__()
        self.speech_encoder = nn.ModuleDict({"encoder": nn.Linear(4, 5)})
        self.speech_encoder["frozen"] = nn.Linear(2, 2).requires_grad_(False)
        self.prediction = nn.Linear(5, 3)

    def forward(self, inputs):
        embeddings = self.speech_encoder["encoder"](inputs)
        return Output(logits=self.prediction(embeddings), embeddings=embeddings)


def ccc(predictions, labels):
    covariance = np.cov(predictions, labels, bias=True)
    return 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (predictions.mean() - labels.mean()) ** 2)


def dataset(size: int, distilled: bool = False) -> UtteranceDataset:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(size, 4)).astype(np.float32)
    columns = {"inputs": inputs, "labels": (inputs[:, :3] + 0.1 * generator.normal(size=(size, 3))).astype(np.float32)}
    columns["labels"][1, 2] = np.nan
    if distilled:
        columns["teacher_embeddings"] = generator.normal(size=(size, 5)).astype(np.float32)
        columns["quality_weights"] = (np.arange(size) % 3 > 0).astype(np.float32)
    return UtteranceDataset(columns)


def trainer(
    folder, model=None, train=None, train_durations=None, trainer_class=CMKDTrainer, **arguments
) -> CMKDTrainer:
    torch.manual_seed(0)
    train = dataset(10) if train is None else train
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    return trainer_class(
        model=Linear() if model is None else model,
        args=CMKDTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **settings | arguments),
        train_dataset=train,
        eval_dataset=dataset(10),
        data_collator=collate_utterances,
        train_durations=train_durations,
    )


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
        ("weight_decay", 0.1, "weight_decay=0.1: must be 0"),
        ("encoder_learning_rate_factor", 0.0, "encoder_learning_rate_factor=0.0: must be above 0"),
    ],
)
def test_a_wrong_argument_is_refused(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CMKDTrainingArguments(str(tmp_path), **{field: value})


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
