"""The stages of the method. Each is defined here once, in the order in which they run and are shown.

Everything that differs from stage to stage is read from here: which encoders are loaded, which settings affect what is
learned, whether a teacher is needed, what the result is compared with, and what people call it. CONTRIBUTING.md says
how to add a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TEACHER = "teacher"
"""The stage that the students learn from."""

BASELINE = "finetune"
"""The stage that a student has to beat: the same network, trained without a teacher."""

_COMMON_SETTINGS = (
    "corpus",
    "seed",
    "cache_dtype",
    "num_epochs",
    "learning_rate",
    "plateau_factor",
    "plateau_patience",
    "loss_over",
    "group_by_length",
    "corpus_sampling",
    "ccc_within",
    "labelled_share",
    "labelled_seed",
)
"""The settings that change what any stage learns."""


@dataclass(frozen=True)
class Stage:
    """One stage: a system that is trained and scored, with a folder of its own in a run.

    Settings and encoders are given by the names of the fields of [`cmkd.runs.recipe.Recipe`].

    Attributes:
        name: what recipes, folders and results.json call it.
        label: what reports and figures call it.
        short_name: what sentences call it.
        speech_encoder: the setting that names the speech encoder that it loads; None: it does not hear the speech.
        text_encoder: the setting that names the text encoder that it loads; None: it does not read the words. A stage
            that reads words has a `CMKDTeacherModel`, any other a `CMKDStudentModel`.
        own_settings: those that change what it learns, besides the encoders and what is common to all stages.
        needs_teacher: whether it is pulled towards the embeddings of the stage `TEACHER`. Such stages come last.
        is_conditional: whether it is pulled only where the teacher was judged good (Eq. 8), and not everywhere.
        compared_with: the stages that it is tested against.
        builds_on: the stage that it adds one thing to.
        colour: the colour of its line and dots in figures.
        line_style: the style of its line in figures, as matplotlib writes it.
    """

    name: str
    label: str
    short_name: str
    speech_encoder: str | None
    text_encoder: str | None
    own_settings: tuple[str, ...]
    colour: str
    line_style: str
    needs_teacher: bool = False
    is_conditional: bool = False
    compared_with: tuple[str, ...] = ()
    builds_on: str | None = None

    @property
    def encoders(self) -> tuple[str, ...]:
        """The settings that name the encoders that it loads."""
        return tuple(name for name in (self.speech_encoder, self.text_encoder) if name is not None)

    @property
    def all_encoders(self) -> tuple[str, ...]:
        """The settings that name the encoders that it loads, and those of its teacher."""
        return (*self.encoders, *(STAGES[TEACHER].encoders if self.needs_teacher else ()))

    @property
    def settings(self) -> tuple[str, ...]:
        """All settings that change what it learns."""
        return (*_COMMON_SETTINGS, *self.all_encoders, *self.own_settings)

    @property
    def trains_encoder(self) -> bool:
        """Whether the top layers of its speech encoder are trained; else all of it is frozen."""
        return "num_trainable_layers" in self.own_settings


_TUNING = ("use_weighted_layer_sum", "num_trainable_layers", "encoder_learning_rate_factor")
_DISTILLATION = (
    "distillation_weight",
    "embedding_distance",
    "unlabelled",
    "unlabelled_rest",
    "unlabelled_hours",
    "unlabelled_ratio",
    "same_sentences",
)

STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="audio",
            label="audio only, frozen",
            short_name="audio only",
            speech_encoder="student_speech_encoder",
            text_encoder=None,
            own_settings=("use_weighted_layer_sum",),
            colour="#7f7f7f",
            line_style=":",
        ),
        Stage(
            name="text",
            label="text only, frozen",
            short_name="text only",
            speech_encoder=None,
            text_encoder="text_encoder",
            own_settings=(),
            colour="#E69F00",
            line_style=":",
        ),
        Stage(
            name=TEACHER,
            label="teacher: audio and text",
            short_name="teacher",
            speech_encoder="teacher_speech_encoder",
            text_encoder="text_encoder",
            own_settings=("use_weighted_layer_sum",),
            colour="#0072B2",
            line_style="--",
        ),
        Stage(
            name=BASELINE,
            label="audio only, fine-tuned",
            short_name="fine-tuned",
            speech_encoder="student_speech_encoder",
            text_encoder=None,
            own_settings=_TUNING,
            builds_on="audio",
            colour="#D55E00",
            line_style="-",
        ),
        Stage(
            name="ts",
            label="T/S student",
            short_name="T/S",
            speech_encoder="student_speech_encoder",
            text_encoder=None,
            own_settings=(*_TUNING, *_DISTILLATION),
            needs_teacher=True,
            compared_with=(BASELINE,),
            builds_on=BASELINE,
            colour="#009E73",
            line_style="-",
        ),
        Stage(
            name="cts",
            label="cT/S student",
            short_name="cT/S",
            speech_encoder="student_speech_encoder",
            text_encoder=None,
            own_settings=(*_TUNING, *_DISTILLATION, "residual_threshold"),
            needs_teacher=True,
            is_conditional=True,
            compared_with=(BASELINE, "ts"),
            builds_on="ts",
            colour="#CC79A7",
            line_style="-",
        ),
    )
}
"""The stages by their names, in the order in which they run and are shown."""

STUDENTS = tuple(name for name, stage in STAGES.items() if stage.needs_teacher)
"""The names of the stages that learn from the teacher."""

SYSTEM_NAMES = {name: stage.label for name, stage in STAGES.items()}
"""What reports and figures call each stage, in order."""

ENCODERS = tuple(dict.fromkeys(encoder for stage in STAGES.values() for encoder in stage.encoders))
"""The settings that name an encoder; each has a revision, such as `text_encoder_revision`."""

COMPARISONS = tuple((name, baseline) for name, stage in STAGES.items() for baseline in stage.compared_with)
"""What is tested: each system with the one to beat."""
