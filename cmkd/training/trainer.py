"""The trainer of teacher and student."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule, StateDictType
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from cmkd.atomic import sync
from cmkd.losses import ccc_loss, embedding_distance, prediction_distance, weighted_mean
from cmkd.processes import READING_TIMEOUT
from cmkd.scoring.evaluation import ccc_by_which_to_choose
from cmkd.training.arguments import CMKDTrainingArguments
from cmkd.training.out_of_memory import is_out_of_memory
from cmkd.training.sampler import DeviceBatchSampler, Mixture, StepSampler
from cmkd.training.whole_step import OUTPUTS, RandomState, backward, loss_and_output_gradients

TARGETS = (
    *("labels", "teacher_embeddings", "quality_weights", "teacher_predictions", "dimension_weights"),
    "corpora",
    *("sentences", "sentence_groups", "has_words"),  # of `cmkd.training.lexical`
)

_REFUSED = {
    "optimizer_cls_and_kwargs": "this is Adam with two learning rates. Pass optimizers=(your optimizer, None) instead.",
    "compute_loss_func": "the loss is Eq. 7, see CMKDTrainer.loss, which a subclass may replace.",
}
"""Arguments of Trainer that its overridden methods would have read, and what to do instead."""


_Pass = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]
"""One batch after the model: its outputs, what the loss compares them with, and the names of the utterances."""


class CMKDTrainer(Trainer):
    """A `Trainer` whose loss is Eq. 7, over the whole step, and whose metrics are those of the whole split.

    It trains any model that returns `logits` (batch, 3) and `embeddings` (batch, size). A batch holds the model's
    inputs and `labels` (batch, 3), with NaN where not rated, and for a student also `teacher_embeddings` (batch, size)
    and `quality_weights` (batch,) in [0, 1]; without these two the loss is L_EMO alone. With a `prediction_weight`
    above 0 a student also needs `teacher_predictions` (batch, 3), on the scale of the labels, and `dimension_weights`
    (batch, 3) in [0, 1]. `id`, a list of names, is for error messages. `docs/training.md` has an example with a model
    of one's own. With several corpora it may also hold `corpora` (batch,), the number of each utterance's corpus, and
    L_EMO and L_PRE are then taken within each ([`cmkd.losses.ccc_loss`]). An utterance whose labels are all NaN counts
    in the other terms only.

    The loss and its gradient are those of all utterances of a step, however many devices and accumulation steps they
    are spread over (see `cmkd.training.whole_step`). If `args.loss_over` is "batch", the loss is the mean of the losses
    of the batches instead.

    Args:
        args, kwargs: as for `Trainer`, except `optimizer_cls_and_kwargs` and `compute_loss_func`. An optimizer or
            scheduler in `optimizers` is taken as it is: its learning rates are used, and those in `args` are not.
        train_durations (sequence of `float`, *optional*):
            Durations of the training utterances in seconds; those of a step are then of similar length, see
            [`cmkd.training.sampler.StepSampler`]. Without them the order is random.
        train_mixture ([`cmkd.training.sampler.Mixture`], *optional*):
            Of which corpora the training utterances are, and which have no labels.

    Raises:
        ValueError: an argument is given that would be ignored.
    """

    args: CMKDTrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        train_durations: Sequence[float] | None = None,
        train_mixture: Mixture | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("compute_metrics", split_metrics)
        for argument, instead in _REFUSED.items():
            if kwargs.get(argument) is not None:
                raise ValueError(f"{argument} is given, but would be ignored: {instead}")
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            check_sharding(self.accelerator.state.fsdp_plugin)
        if self.args.gradient_accumulation_steps > 1 and self.args.loss_over == "step":
            RandomState(self.args.device)  # refuses a device whose generators cannot be set back, before training
        self.train_durations = train_durations
        self.train_mixture = train_mixture
        self._batches: list[dict[str, Any]] = []
        self._second_passes: list[tuple[RandomState, dict[str, torch.Tensor]]] = []
        self._step_loss = torch.tensor(0.0)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)
        self.add_callback(EpochOrder)
        self.add_callback(OwnClassName)
        line = self.epoch_line
        self.add_callback(EpochLines(line) if self.args.disable_tqdm else EpochProgress(line))

    def loss(
        self,
        logits: torch.Tensor,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        teacher_embeddings: torch.Tensor | None = None,
        quality_weights: torch.Tensor | None = None,
        teacher_predictions: torch.Tensor | None = None,
        dimension_weights: torch.Tensor | None = None,
        corpora: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """L_TOTAL = L_EMO + lambda * L_STU (Eq. 7), L_STU being the weighted mean over the utterances that are kept.

        With a `prediction_weight` kappa, which the paper does not have, + kappa * L_PRE.
        """
        loss = ccc_loss(logits, labels, groups=corpora)
        if teacher_embeddings is None:
            return loss
        if quality_weights is None:
            raise ValueError(
                "teacher_embeddings come without quality_weights: give weights of 1 to keep every utterance."
            )
        args = self.args
        distance = embedding_distance(
            embeddings, teacher_embeddings, args.embedding_distance, quality_weights, args.contrastive_temperature
        )
        loss = loss + args.distillation_weight * weighted_mean(distance, quality_weights)
        if args.prediction_weight > 0:
            if teacher_predictions is None or dimension_weights is None:
                raise ValueError(
                    f"prediction_weight is {args.prediction_weight}, but the data has no teacher_predictions or no "
                    "dimension_weights: add both columns, with weights of 1 to learn from every prediction."
                )
            predicted = prediction_distance(logits, teacher_predictions, dimension_weights, groups=corpora)
            loss = loss + args.prediction_weight * predicted
        return loss

    def epoch_line(self, args: TrainingArguments, state: TrainerState, logs: Mapping[str, float]) -> str:
        """One line about an epoch: its number, the training loss and the validation CCC of each dimension."""
        scores = (f"{key.removeprefix('eval_ccc_')} {value:.3f}" for key, value in logs.items() if "eval_ccc_" in key)
        return f"{self.epoch_and_loss(args, state)}  validation CCC  {'  '.join(scores)}"

    @staticmethod
    def epoch_and_loss(args: TrainingArguments, state: TrainerState) -> str:
        """How the line of an epoch begins."""
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), float("nan"))
        return f"  epoch {state.epoch:3.0f}/{args.num_train_epochs:.0f}  training loss {loss:8.4f}"

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one batch, which evaluation needs, and training if `loss_over` is "batch"."""
        inputs, targets, _ = split_batch(inputs)
        outputs = model(**inputs)
        loss = self.loss(outputs["logits"], outputs["embeddings"], **targets)
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """Keeps the batches of the step that is about to begin."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._batches = list(batches)
        return batches, num_items

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Trains on one batch with the gradient of the whole step's loss, where Trainer takes that of the batch."""
        try:
            if self.args.loss_over == "batch":
                return self._batch_training_step(model, inputs, num_items_in_batch)
            return self._step_training_step(model, inputs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(self._advice_on_memory(inputs)) from error
            raise

    def _batch_training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not loss.isfinite():
            self._refuse_loss(loss, split_batch(inputs)[2])
        return loss

    def _step_training_step(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        model.train()
        if len(self._batches) == 1:
            one_pass = self._run(model, inputs)
            outputs, (gradients,) = one_pass[0], self._finish_outputs([one_pass])
        else:
            if not self._second_passes:
                self._first_passes(model)
            state, gradients = self._second_passes.pop(0)
            state.restore()
            outputs, _, _ = self._run(model, inputs)
        backward(self.accelerator, outputs, gradients)
        return self._step_loss / len(self._batches)  # Trainer adds up the batches of a step

    def _advice_on_memory(self, inputs: dict[str, Any]) -> str:
        batch = self.args.per_device_train_batch_size
        longest = ""
        if self.train_durations is not None:
            longest = f"; the longest training utterance has {max(self.train_durations):.1f} s"
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return (
            f"Out of memory at training step {self.state.global_step + 1}, with a batch of {len(inputs['labels'])} "
            f"utterances{longest}; shapes {shapes}. A smaller batch_size (it is {batch}) with correspondingly more "
            "gradient_accumulation_steps gives the same loss and gradient. Fewer num_trainable_layers, shorter "
            "utterances, or bf16 (accelerate launch --mixed_precision bf16) help too."
        )

    def _run(self, model: torch.nn.Module, batch: dict[str, Any]) -> _Pass:
        inputs, targets, ids = split_batch(self._prepare_inputs(batch))
        with self.compute_loss_context_manager():
            outputs = model(**inputs)
        return {name: outputs[name] for name in OUTPUTS}, targets, ids

    def _first_passes(self, model: torch.nn.Module) -> None:
        states, passes = [], []
        with torch.no_grad():
            for batch in self._batches:
                states.append(RandomState(self.args.device))
                passes.append(self._run(model, batch))
        self._second_passes = list(zip(states, self._finish_outputs(passes), strict=True))

    def _finish_outputs(self, passes: Sequence[_Pass]) -> list[dict[str, torch.Tensor]]:
        batches = [outputs | targets for outputs, targets, _ in passes]
        self._step_loss, gradients = loss_and_output_gradients(self.accelerator, self.loss, batches)
        if not self._step_loss.isfinite():
            ids = [identifier for _, _, of_batch in passes for identifier in of_batch]
            finite = torch.cat([_are_finite(outputs, targets["labels"]) for outputs, targets, _ in passes])
            bad = gather_object([ids[row] for row in (~finite).nonzero().flatten().tolist()])  # of all devices
            self._refuse_loss(self._step_loss, bad or gather_object(ids))
        return gradients

    def _refuse_loss(self, loss: torch.Tensor, ids: list[str]) -> None:
        raise FloatingPointError(
            f"The loss of training step {self.state.global_step + 1} is {loss.item()} because of one or more of the "
            f"utterances {', '.join(ids)}. The weights are as they were before this step. Check the audio and labels "
            "of these utterances, lower the learning rate, or train in bf16 or fp32 if you are using fp16."
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of similar length, in steps that are the same on any number of devices (`cmkd.training.sampler`)."""
        args = self.args
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = StepSampler(len(self.train_dataset), size, args.seed, self.train_durations, self.train_mixture)
        batches = DeviceBatchSampler(steps, args.gradient_accumulation_steps, args.world_size, args.process_index)
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            timeout=READING_TIMEOUT if args.dataloader_num_workers else 0,
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Trainer's own, with a limit on how long a batch may take to be read, which its arguments do not have."""
        return _with_reading_limit(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Trainer's own, with the same limit."""
        return _with_reading_limit(super().get_test_dataloader(test_dataset))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Saves as Trainer does, but deletes older checkpoints, chosen by step, only once this one is on the disk.

        Trainer deletes them earlier and chooses them by the modification times of the folders, which it warns may not
        be reliable when two checkpoints are less than a second apart.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            folder = self._get_output_dir(trial)
            sync(Path(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"))
            rotate_checkpoints(folder, limit, self.state.best_model_checkpoint, use_mtime=False)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates Adam with two learning rates, where Trainer has one."""
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


def _are_finite(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Which utterances (batch,) have finite outputs in every dimension that has a label to compare them with."""
    return (outputs["logits"].isfinite() | labels.isnan()).all(1) & outputs["embeddings"].isfinite().all(1)


def check_sharding(plugin: Any) -> None:
    """Checks that FSDP is set up as [`CMKDTrainer`] and the models need it, which `launch/fsdp.yaml` does.

    Raises:
        ValueError: a setting does not fit.
    """
    policy = getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy)
    wrong = {
        "fsdp_version": (plugin.fsdp_version, 2, plugin.fsdp_version == 2),
        "fsdp_auto_wrap_policy": (
            "SIZE_BASED_WRAP",
            "TRANSFORMER_BASED_WRAP",
            policy is not size_based_auto_wrap_policy,
        ),
        "fsdp_state_dict_type": (
            plugin.state_dict_type.name,
            "FULL_STATE_DICT",
            plugin.state_dict_type == StateDictType.FULL_STATE_DICT,
        ),
        "fsdp_cpu_ram_efficient_loading": (True, False, not plugin.cpu_ram_efficient_loading),
    }
    for name, (value, expected, fits) in wrong.items():
        if not fits:
            raise ValueError(f"{name} is {value}, but must be {expected}: launch with --config_file launch/fsdp.yaml.")


def split_batch(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[str]]:
    """Splits a batch into the model's inputs, what the loss compares its outputs with, and the utterances' names."""
    inputs = dict(batch)
    targets = {name: inputs.pop(name) for name in TARGETS if name in inputs}
    ids = inputs.pop("id", None) or [f"number {row} of its batch" for row in range(len(targets["labels"]))]
    return inputs, targets, ids


def split_metrics(evaluation: EvalPrediction, corpora: Sequence[str] = ()) -> dict[str, float]:
    """Loss and CCC over the whole split; `loss` takes the place of Trainer's mean over batches.

    Args:
        evaluation: of all utterances of the split, in their order.
        corpora: the corpus of each; the CCC of a dimension is then the mean over the corpora that rate it.
    """
    logits = evaluation.predictions[0]
    scores = ccc_by_which_to_choose(logits, evaluation.label_ids, corpora)
    ccc = {name: value for name, value in scores.items() if value is not None}  # None: nobody rated this dimension
    mean = sum(ccc.values()) / len(ccc)
    return {"loss": 1 - mean, "ccc": mean} | {f"ccc_{name}": value for name, value in ccc.items()}


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        train_dataloader.batch_sampler.set_epoch(int(state.epoch))


class OwnClassName(TrainerCallback):
    """Gives the class that FSDP generates for a model the name of the model's own class, as checkpoints record it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if isinstance(model, FSDPModule):
            made_up, own = type(model), type(model).__bases__[1]
            made_up.__name__, made_up.__module__ = own.__name__, own.__module__


class EpochLines(TrainerCallback):
    """Prints one readable line per epoch, where Trainer prints dictionaries.

    Args:
        line: makes the line, from the arguments, the state and the logs.
    """

    def __init__(self, line: Callable[..., str]):
        super().__init__()
        self.line = line

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs is not None and f"eval_{args.metric_for_best_model}" in logs:
            tqdm.write(self.line(args, state, logs))


class EpochProgress(ProgressCallback):
    """Trainer's progress bar, with the same line per epoch above it."""

    def __init__(self, line: Callable[..., str]):
        super().__init__()
        self.lines = EpochLines(line)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.lines.on_log(args, state, control, logs)


def _with_reading_limit(loader: DataLoader) -> DataLoader:
    """The loader, which raises RuntimeError when its processes give no batch for `READING_TIMEOUT` seconds."""
    if loader.num_workers:
        shard: Any = loader  # accelerate's DataLoaderShard, which iterates over its `base_dataloader`
        shard.base_dataloader.timeout = READING_TIMEOUT
    return loader
