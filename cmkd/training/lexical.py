"""The trainers of the stage `lexical`, by which a student learns what the words are.

It learns to put an utterance where the text encoder puts its sentence, or to hear the pieces of its words.
"""

from collections.abc import Callable, Mapping, Sequence
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
"""What the best epoch is chosen by: 1 divided by the place at which the right sentence is found, on average, and of
several corpora the mean of theirs."""


@dataclass
class ProjectedOutput(ModelOutput):
    """What [`ProjectedStudent`] returns, and with another meaning [`SpellingStudent`], which says it.

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


class SpellingStudent(nn.Module):
    """A student that learns to hear pieces of words by CTC (Graves et al. 2006), and nothing else.

    What it returns as `embeddings` has the loss of each utterance, so that [`CMKDTrainer`] takes the loss over the
    whole step, on any number of devices.

    Args:
        student: with `config.word_pieces`. All of it is frozen that does not serve to hear them.
    """

    accepts_loss_kwargs = False

    def __init__(self, student: Any):
        super().__init__()
        self.student = student
        for name, module in student.named_children():
            if name != "speech_encoder":
                module.requires_grad_(name == "word_summarizer")
        if student.speech_encoder.layer_weights is not None:
            student.speech_encoder.layer_weights.requires_grad_(False)
        self._no_split_modules = student._no_split_modules

    def forward(self, pieces: torch.Tensor, **inputs: Any) -> ProjectedOutput:
        """The loss of each utterance, and how often each piece is heard.

        Args:
            pieces (`torch.Tensor` of shape `(batch, longest)`): the numbers of the pieces that are said, from 0, and -1
                after the last one.
            inputs: the speech, as for `CMKDStudentModel`.

        Returns:
            `embeddings` (batch, 2), CTC's negative log likelihood divided by the number of pieces, and 1; or 0 and 0
            for an utterance that is too short for what it is said to say; `student_embeddings` (batch, pieces), how
            often each piece is heard; `logits` (batch, 3), 0.
        """
        scores, mask = self.student.piece_logits(**inputs)
        scores = scores.float()
        lengths = (pieces >= 0).sum(1)
        losses = nn.functional.ctc_loss(
            scores.log_softmax(-1).transpose(0, 1),
            pieces.clamp(min=0) + 1,
            mask.sum(1),
            lengths,
            reduction="none",
            zero_infinity=True,
        )
        # CTC has to hear "none" between two pieces that are the same.
        needed = lengths + ((pieces[:, 1:] == pieces[:, :-1]) & (pieces[:, 1:] >= 0)).sum(1)
        fits = (needed <= mask.sum(1)).to(losses.dtype)
        return ProjectedOutput(
            logits=scores.new_zeros(len(scores), 3),
            embeddings=torch.stack([losses / lengths.clamp(min=1), fits], dim=1),
            student_embeddings=self.student.word_summarizer.counts(scores, mask),
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
        eval_corpora: the corpus of each of its utterances, if there are several.

    Raises:
        ValueError: as `CMKDTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        temperature: float,
        eval_sentences: Mapping[str, np.ndarray],
        eval_corpora: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        metrics = partial(self.metrics, corpora=eval_corpora, **eval_sentences)
        super().__init__(*args, compute_metrics=metrics, **kwargs)
        self.temperature = temperature

    @property
    def metrics(self) -> Callable[..., dict[str, float]]:
        """What is told about a split at the end of an epoch."""
        return sentence_metrics

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


class SpellingTrainer(LexicalTrainer):
    """A [`LexicalTrainer`] of a [`SpellingStudent`].

    `sentences` (batch, pieces) is how often each piece is said, by which the sentence is to be found again.
    """

    @property
    def metrics(self) -> Callable[..., dict[str, float]]:
        return spelling_metrics

    def loss(  # type: ignore[override]
        self,
        logits: torch.Tensor,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        sentences: torch.Tensor,
        sentence_groups: torch.Tensor,
        has_words: torch.Tensor,
    ) -> torch.Tensor:
        """The mean of the CTC losses over the utterances with words, and long enough for them."""
        return weighted_mean(embeddings[:, 0], has_words * embeddings[:, 1].detach())


def sentence_metrics(evaluation: EvalPrediction, corpora: Sequence[str], **columns: np.ndarray) -> dict[str, float]:
    """How well the sentences of the split are found, see [`cmkd.scoring.lexical.retrieval_scores`].

    `loss` takes the place of Trainer's mean over batches. It is the mean squared error alone, over the whole split:
    InfoNCE depends on how many utterances there are to tell apart.

    Args:
        evaluation: of all utterances of the split, in their order.
        corpora: the corpus of each; what the best epoch is chosen by is then the mean over the corpora. Else one that
            says few sentences often would outweigh the others.
        columns: `sentences`, `sentence_groups` and `has_words` of the split.
    """
    heard = columns["has_words"] > 0
    found = evaluation.predictions[1]
    error = np.square(found[heard] - columns["sentences"][heard]).mean()
    return {"loss": float(error)} | _shown(found, corpora, **columns)


def spelling_metrics(evaluation: EvalPrediction, corpora: Sequence[str], **columns: np.ndarray) -> dict[str, float]:
    """As [`sentence_metrics`], by which pieces are heard; `loss` is the mean of the CTC losses."""
    _, losses_and_fits, counts = evaluation.predictions
    losses, fits = losses_and_fits.T
    counted = columns["has_words"] * fits > 0
    return {"loss": float(losses[counted].mean())} | _shown(counts, corpora, **columns)


def _shown(
    found: np.ndarray,
    corpora: Sequence[str],
    sentences: np.ndarray,
    sentence_groups: np.ndarray,
    has_words: np.ndarray,
) -> dict[str, float]:
    heard = has_words > 0

    def scores(rows: np.ndarray) -> dict[str, float]:
        return retrieval_scores(found[rows], sentences[rows], sentence_groups[rows])

    together = scores(heard)
    shown = {name: together[name] for name in (METRIC, "recall_at_1", "recall_at_5", "median_rank")}
    if corpora:
        of_each = np.array(corpora)
        by_corpus = [scores(heard & (of_each == name))[METRIC] for name in np.unique(of_each[heard])]
        shown[METRIC] = float(np.mean(by_corpus))
    return shown
