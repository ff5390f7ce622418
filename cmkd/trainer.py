"""The trainer of teacher and student."""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from cmkd.evaluation import evaluate_predictions
from cmkd.losses import ccc_loss, embedding_distance, weighted_mean
from cmkd.sampler import LengthGroupedSampler
from cmkd.training_args import CMKDTrainingArguments


class CMKDTrainer(Trainer):
    """A `Trainer` whose loss is Eq. 7 and whose metrics are those of the whole split.

    It trains any model that returns `logits` (batch, 3) and `embeddings` (batch, size). A batch holds the model's
    inputs, `labels` (batch, 3) with NaN where not rated, and for a student also `teacher_embeddings` (batch, size) and
    `quality_weights` (batch,) in [0, 1]; without these two the loss is L_EMO alone.

    Args:
        *args, **kwargs: as for `Trainer`.
        train_lengths (sequence of `float`, *optional*):
            Lengths of the training utterances, in any unit; those of a batch are then of like length, see
            [`cmkd.sampler.LengthGroupedSampler`]. Without them the order is random.
    """

    args: CMKDTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(self, *args, train_lengths: Sequence[float] | None = None, **kwargs):
        kwargs.setdefault("compute_metrics", split_metrics)
        super().__init__(*args, **kwargs)
        if train_lengths is not None and len(train_lengths) != len(self.train_dataset):
            raise ValueError(
                f"train_lengths has {len(train_lengths)} values, but train_dataset has {len(self.train_dataset)} "
                "utterances: give one length an utterance."
            )
        self.train_lengths = train_lengths
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)
        self.add_callback(EpochLines if self.args.disable_tqdm else EpochProgress)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """L_TOTAL = L_EMO + lambda * L_STU (Eq. 7), L_STU being the weighted mean over the utterances that are kept."""
        inputs = dict(inputs)
        labels, teacher, weights = (
            inputs.pop(name, None) for name in ("labels", "teacher_embeddings", "quality_weights")
        )
        outputs = model(**inputs)
        loss = ccc_loss(outputs["logits"], labels)
        if teacher is not None:
            distance = embedding_distance(outputs["embeddings"], teacher, self.args.embedding_distance)
            loss = loss + self.args.distillation_weight * weighted_mean(distance, weights)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        """Batches of like length; Trainer's own order by length is the same in every epoch of a small corpus."""
        if self.train_lengths is None:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthGroupedSampler(self.train_lengths, step, args.seed)

    def create_optimizer(self, model=None):
        """Adam with two learning rates; Trainer's own has one."""
        if self.optimizer is None:
            head: list[torch.nn.Parameter] = []
            encoder: list[torch.nn.Parameter] = []
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    (encoder if "speech_encoder.encoder." in name else head).append(parameter)
            rate = self.args.learning_rate
            groups = [{"params": head, "lr": rate}]
            if encoder:
                groups.append({"params": encoder, "lr": rate * self.args.encoder_learning_rate_factor})
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.Adam(groups, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer


def split_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """Loss and CCC over the whole split; `loss` takes the place of Trainer's mean over batches."""
    logits = evaluation.predictions[0]
    scores = evaluate_predictions(logits, evaluation.label_ids)["ccc"]
    ccc = {name: value for name, value in scores.items() if value is not None}  # None: nobody rated this dimension
    mean = sum(ccc.values()) / len(ccc)
    return {"loss": 1 - mean, "ccc": mean} | {f"ccc_{name}": value for name, value in ccc.items()}


class EpochLines(TrainerCallback):
    """One readable line an epoch, where Trainer prints dictionaries."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs is not None and "eval_ccc" in logs:
            tqdm.write(epoch_line(args, state, logs))


class EpochProgress(ProgressCallback):
    """Trainer's progress bar, with the same line an epoch above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        EpochLines.on_log(self, args, state, control, logs)


def epoch_line(args, state, logs: dict[str, float]) -> str:
    """What a person wants to see of an epoch."""
    loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), float("nan"))
    scores = (f"{key.removeprefix('eval_ccc_')} {value:.3f}" for key, value in logs.items() if "eval_ccc_" in key)
    return (
        f"  epoch {state.epoch:3.0f}/{args.num_train_epochs:.0f}  training loss {loss:8.4f}  "
        f"validation CCC  {'  '.join(scores)}"
    )
