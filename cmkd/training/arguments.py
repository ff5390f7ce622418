"""Arguments of [`CMKDTrainer`]."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

from transformers import SchedulerType, TrainingArguments

from cmkd.losses import Distance


def plateau_schedule(factor: float = 0.75, patience: int = 2) -> dict[str, Any]:
    """`lr_scheduler_kwargs`: multiply the rate by `factor` after more than `patience` epochs without a better CCC."""
    return {"mode": "max", "factor": factor, "patience": patience}


_SET = {
    "optim": ("adamw_torch", "without weight decay this is the paper's Adam; CMKDTrainer(optimizers=…) takes another"),
    "optim_args": (None, "CMKDTrainer(optimizers=…) takes an optimizer with other settings"),
    "optim_target_modules": (None, "CMKDTrainer(optimizers=…) takes an optimizer of other parameters"),
    "weight_decay": (0, "this is plain Adam, as in the paper"),
    "label_smoothing_factor": (0, "the loss is Eq. 7"),
    "train_sampling_strategy": ("random", "CMKDTrainer(train_durations=…) puts utterances of similar length together"),
    "dataloader_drop_last": (False, "no utterance is left out of an epoch or of an evaluation"),
    "data_seed": (None, "seed orders the utterances too"),
    "auto_find_batch_size": (False, "out of memory, the error says what to do"),
}
"""Arguments of `TrainingArguments` that [`CMKDTrainer`] would ignore: the value that each must have, and why."""

_WITHOUT_WARMUP = ("reduce_lr_on_plateau", "constant", "greedy")
_WITHOUT_KWARGS = ("constant", "constant_with_warmup")


@dataclass
class CMKDTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's settings as defaults, and those of Eq. 7.

    Args:
        distillation_weight (`float`, *optional*, defaults to 30.0):
            lambda, the weight of the distance between student and teacher (Eq. 7).
        embedding_distance (`str`, *optional*, defaults to `"norm"`):
            How the distance is measured: `"norm"`, `"squared_norm"`, `"mean_squared"`, `"cosine"` or `"contrastive"`,
            see [`cmkd.embedding_distance`].
        contrastive_temperature (`float`, *optional*, defaults to 0.1):
            The temperature of `"contrastive"`.
        prediction_weight (`float`, *optional*, defaults to 0.0):
            The weight of the distance between the predictions of student and teacher, see
            [`cmkd.prediction_distance`], which the paper does not have.
        encoder_learning_rate_factor (`float`, *optional*, defaults to 0.25):
            Learning rate of the speech encoder's trainable layers, as a fraction of `learning_rate`.
        loss_over (`str`, *optional*, defaults to `"step"`):
            The utterances that the loss is computed over. `"step"`: all utterances between two updates of the weights,
            on all devices and accumulation steps, which is Eq. 7 for that many utterances. `"batch"`: each device's
            batch alone, averaged over devices and accumulation steps, as is usual; this is cheaper with accumulation,
            but the loss and its gradient are different.

    Defaults that differ from `TrainingArguments`: batch 32, 50 epochs, Adam (`"adamw_torch"` without weight decay is
    the same) at 5e-4 without gradient clipping, times 0.75 when the validation CCC has not improved for more than
    two epochs (over a whole split the mean CCC is 1 - L_EMO, so this is the paper's validation loss); evaluation and
    checkpoint every epoch, the best by mean CCC kept; columns are left to the collator; a NaN loss is not hidden; no
    reports to outside services.
    `lr_scheduler_kwargs` default to those of [`plateau_schedule`] for `"reduce_lr_on_plateau"`, and to none for any
    other scheduler.

    Raises:
        ValueError: a value is out of its range or would be ignored. Ignored would be all those that name an optimizer,
            an order of the utterances or another loss, since [`CMKDTrainer`] has its own, and settings of the learning
            rate that the scheduler does not have.
    """

    distillation_weight: float = 30.0
    embedding_distance: Distance = "norm"
    contrastive_temperature: float = 0.1
    prediction_weight: float = 0.0
    encoder_learning_rate_factor: float = 0.25
    loss_over: Literal["step", "batch"] = "step"

    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = 50.0
    learning_rate: float = 5e-4
    max_grad_norm: float = 0.0
    optim: str = "adamw_torch"
    lr_scheduler_type: str = "reduce_lr_on_plateau"
    lr_scheduler_kwargs: dict | None = None
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    metric_for_best_model: str = "ccc"
    greater_is_better: bool = True
    label_names: list[str] = field(default_factory=lambda: ["labels"])
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    report_to: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distillation_weight < 0:
            raise ValueError(f"distillation_weight={self.distillation_weight}: must be at least 0; the paper's is 30.")
        if self.embedding_distance not in get_args(Distance):
            raise ValueError(
                f"embedding_distance={self.embedding_distance!r}: must be one of {', '.join(get_args(Distance))}."
            )
        if not self.contrastive_temperature > 0:
            raise ValueError(f"contrastive_temperature={self.contrastive_temperature}: must be above 0; 0.1 is usual.")
        if self.prediction_weight < 0:
            raise ValueError(f"prediction_weight={self.prediction_weight}: must be at least 0.")
        if self.loss_over not in ("step", "batch"):
            raise ValueError(f"loss_over={self.loss_over!r}: must be 'step' or 'batch'.")
        for name, (value, reason) in _SET.items():
            given = vars(self)[name]
            if given != value:
                shown = given.value if isinstance(given, Enum) else given
                raise ValueError(f"{name}={shown!r}: must be {value!r}, since it would be ignored: {reason}.")
        if self.torch_empty_cache_steps is not None and self.loss_over == "step":
            raise ValueError(
                f"torch_empty_cache_steps={self.torch_empty_cache_steps}: would be ignored with loss_over='step': "
                "leave it out, or use loss_over='batch'."
            )
        self._check_schedule()
        if not 0 < self.encoder_learning_rate_factor <= 1:
            raise ValueError(
                f"encoder_learning_rate_factor={self.encoder_learning_rate_factor}: must be above 0 and at most 1; "
                "the paper's is 0.25."
            )

    def _check_schedule(self) -> None:
        schedule = SchedulerType(self.lr_scheduler_type).value
        if self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = plateau_schedule() if schedule == "reduce_lr_on_plateau" else {}
        if self.warmup_steps and schedule in _WITHOUT_WARMUP:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: would be ignored, since lr_scheduler_type={schedule!r} has no "
                "warm-up: leave it out, or take another scheduler, such as 'constant_with_warmup'."
            )
        if self.lr_scheduler_kwargs and schedule in _WITHOUT_KWARGS:
            raise ValueError(
                f"lr_scheduler_kwargs={self.lr_scheduler_kwargs}: would be ignored, since "
                f"lr_scheduler_type={schedule!r} has none: leave them out."
            )
