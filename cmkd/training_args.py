"""Arguments of [`CMKDTrainer`]."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from cmkd.losses import Distance


def plateau_schedule(factor: float = 0.75, patience: int = 2) -> dict[str, Any]:
    """`lr_scheduler_kwargs`: multiply the rate by `factor` after more than `patience` epochs without a better CCC."""
    return {"mode": "max", "factor": factor, "patience": patience}


@dataclass
class CMKDTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's settings as defaults, and those of Eq. 7.

    Args:
        distillation_weight (`float`, *optional*, defaults to 30.0):
            lambda, the weight of the distance between student and teacher (Eq. 7).
        embedding_distance (`str`, *optional*, defaults to `"norm"`):
            `"norm"`, `"squared_norm"` or `"mean_squared"`, see [`cmkd.embedding_distance`].
        encoder_learning_rate_factor (`float`, *optional*, defaults to 0.25):
            Learning rate of the speech encoder's trainable layers, as a share of `learning_rate`.

        loss_over (`str`, *optional*, defaults to `"step"`):
            What the loss is a statistic of. `"step"`: all utterances between two updates of the weights, on all devices
            and accumulation steps, which is Eq. 7 of that many. `"batch"`: each device's batch alone, averaged over
            devices and accumulation steps, as usual; cheaper with accumulation, but another loss and gradient.

    Defaults that differ from `TrainingArguments`: batch 32, 50 epochs, Adam at 5e-4 without weight decay or gradient
    clipping, times 0.75 when the validation CCC has not improved for more than two epochs (over a whole split the
    mean CCC is 1 - L_EMO, so this is the paper's validation loss); evaluation and checkpoint every epoch, the best
    by mean CCC kept; columns are left to the collator; a NaN loss is not hidden; no reports to outside services.
    """

    distillation_weight: float = 30.0
    embedding_distance: Distance = "norm"
    encoder_learning_rate_factor: float = 0.25
    loss_over: Literal["step", "batch"] = "step"

    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = 50.0
    learning_rate: float = 5e-4
    max_grad_norm: float = 0.0
    lr_scheduler_type: str = "reduce_lr_on_plateau"
    lr_scheduler_kwargs: dict = field(default_factory=plateau_schedule)
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int = 1
    load_best_model_at_end: bool = True
    metric_for_best_model: str = "ccc"
    greater_is_better: bool = True
    label_names: list[str] = field(default_factory=lambda: ["labels"])
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    report_to: str = "none"

    def __post_init__(self):
        super().__post_init__()
        if self.distillation_weight < 0:
            raise ValueError(f"distillation_weight={self.distillation_weight}: must be at least 0; the paper's is 30.")
        if self.embedding_distance not in get_args(Distance):
            raise ValueError(
                f"embedding_distance={self.embedding_distance!r}: must be one of {', '.join(get_args(Distance))}."
            )
        if self.loss_over not in ("step", "batch"):
            raise ValueError(f"loss_over={self.loss_over!r}: must be 'step' or 'batch'.")
        if self.weight_decay != 0:
            raise ValueError(f"weight_decay={self.weight_decay}: must be 0; this is plain Adam, as in the paper.")
        if not 0 < self.encoder_learning_rate_factor <= 1:
            raise ValueError(
                f"encoder_learning_rate_factor={self.encoder_learning_rate_factor}: must be above 0 and at most 1; "
                "the paper's is 0.25."
            )
