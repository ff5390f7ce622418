"""The trainer of the stage `lexical`: a student learns to put an utterance where the text encoder puts its sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, TrainerState, TrainingArguments
from transformers.utils import ModelOutput

from cmkd.losses import info_nce, weighted_mean
from cmkd.scoring.lexical import retrieval_scores
from cmkd.training.trainer import CMKDTrainer

METRIC = "mean_reciprocal_rank"
"""What the best epoch is chosen by: 1 divided by the place at which the right sentence is found, on average."""


@dataclass
class ProjectedOutput(ModelOutput):
    """What [`ProjectedStudent`] returns.

    Args:
        logits (`torch.Tensor` of shape `(batch, 3)`): those of the student, of which nothing is learned.
        embeddings (`torch.Tensor` of shape `(batch, size of the sentences)`): the projection.
        student_embeddings (`torch.Tensor` of shape `(batch, embedding_size)`): what is projected.
    """

    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    student_embeddings: torch.Tensor | None = None


class ProjectedStudent(nn.Module):
    """A student and a linear map from its embedding to where a text encoder puts sentences.

    The map is linear so that what it reads is in the embedding itself, where the layers after it can read it too; it is
    needed for this stage only, and is not kept. What it gives is called `embeddings`, so that [`CMKDTrainer`] takes the
    loss of it over the whole step, on any number of devices.

    Args:
        student: returns `logits` and `embeddings`. Its `prediction_head`, which learns nothing here, is frozen.
        size: of the sentences.
    """

    accepts_loss_kwargs = False  # `forward` takes any input of the student's, and none of the loss

    def __init__(self, student: Any, size: int):
        super().__init__()
        self.student = student
        self.student.prediction_head.requires_grad_(False)
        self.projection = nn.Linear(student.config.embedding_size, size)
        self._no_split_modules = student._no_split_modules  # which FSDP shards separately

    def forward(self, **inputs: Any) -> ProjectedOutput:
        output = self.student(**inputs)
        return ProjectedOutput(
            logits=output.logits, embeddings=self.projection(output.embeddings), student_embeddings=output.embeddings
        )


class LexicalTrainer(CMKDTrainer):
    """A [`CMKDTrainer`] whose loss is about sentences and not about ratings.

    A batch holds the inputs of a [`ProjectedStudent`], `labels` (batch, 3), which are not looked at, `sentences`
    (batch, size), where the text encoder puts the words, `sentence_groups` (batch,), the same number for the same
    words, and `has_words` (batch,), 1 or 0.

    Args:
        args, kwargs: as for `CMKDTrainer`, but without `compute_metrics`.
        temperature: that of InfoNCE, see [`cmkd.info_nce`].
        eval_sentences: by name the columns `sentences`, `sentence_groups` and `has_words` of the evaluation split.

    Raises:
        ValueError: as `CMKDTrainer`.
    """

    def __init__(self, *args: Any, temperature: float, eval_sentences: Mapping[str, np.ndarray], **kwargs: Any) -> None:
        super().__init__(*args, compute_metrics=partial(sentence_metrics, **eval_sentences), **kwargs)
        self.temperature = temperature

    def loss(  # type: ignore[override]
        self,
        logits: torch.Tensor,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        sentences: torch.Tensor,
        sentence_groups: torch.Tensor,
        has_words: torch.Tensor,
    ) -> torch.Tensor:
        """The mean squared error of the projection, plus InfoNCE, both over the utterances with words.

        Of standardised sentences the first is 1 for a projection that knows nothing and answers 0.
        """
        error = (embeddings - sentences.to(embeddings.dtype)).square().mean(-1)
        apart = info_nce(embeddings, sentences, self.temperature, has_words, sentence_groups)
        return weighted_mean(error, has_words) + apart

    def epoch_line(self, args: TrainingArguments, state: TrainerState, logs: Mapping[str, float]) -> str:
        """Loss and retrieval where CMKDTrainer has loss and CCC."""
        return (
            f"{self.epoch_and_loss(args, state)}  validation sentences found: first {logs['eval_recall_at_1']:.3f}  "
            f"among 5 {logs['eval_recall_at_5']:.3f}  median rank {logs['eval_median_rank']:.0f}"
        )


def sentence_metrics(
    evaluation: EvalPrediction, sentences: np.ndarray, sentence_groups: np.ndarray, has_words: np.ndarray
) -> dict[str, float]:
    """How well the sentences of the split are found, see [`cmkd.scoring.lexical.retrieval_scores`].

    `loss` takes the place of Trainer's mean over batches. It is the mean squared error alone, over the whole split:
    InfoNCE depends on how many utterances there are to tell apart.
    """
    heard = has_words > 0
    found, wanted = evaluation.predictions[1][heard], sentences[heard]
    scores = retrieval_scores(found, wanted, sentence_groups[heard])
    shown = {name: scores[name] for name in (METRIC, "recall_at_1", "recall_at_5", "median_rank")}
    return {"loss": float(np.square(found - wanted).mean())} | shown
