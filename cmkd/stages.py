"""The stages of the method. Each is defined here once, in the order in which they run and are shown.

Everything that differs from stage to stage is read from here: which encoders are loaded, which settings affect what is
learned, whether a teacher is needed, what the result is compared with, and what people call it. CONTRIBUTING.md says
how to add a stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

TEACHER = "teacher"
"""The stage that the students learn from."""

BASELINE = "finetune"
"""The stage that a student has to beat: the same network, trained without a teacher."""

LEXICAL = "lexical"
"""The stage in which a student learns what the words say, before its teacher says what they mean."""

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
    "summarizer",
    "corpus_sampling",
    "ccc_within",
    "labelled_share",
    "labelled_seed",
)
"""The settings that change what any stage learns, but for those below."""

_OF_MIXTURES = ("corpus_sampling", "ccc_within", "unlabelled_ratio")
"""Those without effect on a stage that learns words and no ratings: all of its speech is alike."""


@dataclass(frozen=True)
class Stage:
    """One stage: a system that is trained and scored, with a folder of its own in a run.

    Settings and encoders are given by the names of the fields of [`cmkd.runs.recipe.Recipe`].

    Attributes:
        name: what recipes, folders and results.json call it.
        label: what reports and figures call it.
        short_name: what sentences call it.
        speech_encoder: the setting that names the speech encoder that it loads; None: it does not hear the speech.
        text_encoder: the setting that names the text encoder that it loads; None: it does not read the words.
        own_settings: those that change what it learns, besides the encoders and what is common to all stages.
        needs_teacher: whether it is pulled towards the embeddings of the stage `TEACHER`. Such stages come last.
        is_conditional: whether it is pulled only where the teacher was judged good (Eq. 8), and not everywhere.
        learns_words: whether it learns where the text encoder puts the sentence, and no ratings. Its network does not
            read, and it is not scored against ratings, but on what it learned: see `cmkd.scoring.lexical`.
        starts_from: the stage whose weights it begins with, if that stage is in the recipe or complete in the run;
            None: it always begins anew.
        is_of_paper: whether it is in the paper. A recipe that names no stages has these.
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
    learns_words: bool = False
    starts_from: str | None = None
    is_of_paper: bool = True
    compared_with: tuple[str, ...] = ()
    builds_on: str | None = None

    @property
    def encoders(self) -> tuple[str, ...]:
        """The settings that name the encoders that it loads."""
        return tuple(name for name in (self.speech_encoder, self.text_encoder) if name is not None)

    def pretrained(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The settings that name what it loads, of those of a recipe: its encoders, and whose ears it has if any."""
        return (*self.encoders, *([EARS] if self.takes_ears and settings.get(EARS) is not None else []))

    @property
    def takes_ears(self) -> bool:
        """Whether its network may have the ears of another student."""
        return EARS in self.own_settings

    @property
    def all_encoders(self) -> tuple[str, ...]:
        """The settings that name the encoders that it loads, and those of its teacher."""
        return (*self.encoders, *(STAGES[TEACHER].encoders if self.needs_teacher else ()))

    @property
    def only_hears(self) -> bool:
        """Whether its network is a `CMKDStudentModel`; else it is a `CMKDTeacherModel`."""
        return self.text_encoder is None or self.learns_words

    @property
    def settings(self) -> tuple[str, ...]:
        """All settings that change what it learns."""
        names = (*_COMMON_SETTINGS, *self.all_encoders, *self.own_settings)
        return tuple(name for name in names if not (self.learns_words and name in _OF_MIXTURES))

    @property
    def trains_encoder(self) -> bool:
        """Whether the top layers of its speech encoder are trained; else all of it is frozen."""
        return "num_trainable_layers" in self.own_settings

    @property
    def learns_unlabelled(self) -> bool:
        """Whether it learns from speech without labels too."""
        return "unlabelled" in self.own_settings


EARS = "ears"
"""The setting that names a student that hears pieces of words, and whose ears other students take over."""

_TUNING = ("use_weighted_layer_sum", "num_trainable_layers", "encoder_learning_rate_factor")
_DISTILLATION = ("distillation_weight", "embedding_distance", "contrastive_temperature", "prediction_weight", "control")
_JUDGEMENT = ("residual_threshold", "quality", "cross_fitting")
_UNLABELLED = ("unlabelled", "unlabelled_rest", "unlabelled_hours", "unlabelled_ratio", "same_sentences")

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
            own_settings=(*_TUNING, EARS),
            builds_on="audio",
            colour="#D55E00",
            line_style="-",
        ),
        Stage(
            name=LEXICAL,
            label="lexical: the words, no ratings",
            short_name="lexical",
            speech_encoder="student_speech_encoder",
            text_encoder="text_encoder",
            own_settings=(
                *_TUNING,
                *("word_pieces", "lexical_epochs", "lexical_learning_rate", "lexical_temperature"),
                *_UNLABELLED,
            ),
            learns_words=True,
            is_of_paper=False,
            colour="#56B4E9",
            line_style="-.",
        ),
        Stage(
            name="ts",
            label="T/S student",
            short_name="T/S",
            speech_encoder="student_speech_encoder",
            text_encoder=None,
            own_settings=(*_TUNING, "word_pieces", EARS, *_DISTILLATION, *_UNLABELLED),
            needs_teacher=True,
            starts_from=LEXICAL,
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
            own_settings=(*_TUNING, "word_pieces", EARS, *_DISTILLATION, *_JUDGEMENT, *_UNLABELLED),
            needs_teacher=True,
            is_conditional=True,
            starts_from=LEXICAL,
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

PAPER_STAGES = tuple(name for name, stage in STAGES.items() if stage.is_of_paper)
"""The names of the stages of the paper, which a recipe has if it does not say."""

SYSTEM_NAMES = {name: stage.label for name, stage in STAGES.items() if not stage.learns_words}
"""What reports and figures call each stage that rates, in order."""

ENCODERS = tuple(dict.fromkeys(encoder for stage in STAGES.values() for encoder in stage.encoders))
"""The settings that name an encoder; each has a revision, such as `text_encoder_revision`."""

COMPARISONS = tuple((name, baseline) for name, stage in STAGES.items() for baseline in stage.compared_with)
"""What is tested: each system with the one to beat."""

CONTROLS: Mapping[str, str] = {
    "shuffled_teacher": "each utterance is taught what the teacher knows about another one",
    "random_quality": "the quality weights are dealt out to the utterances at random",
    "no_distillation": "the teacher has no weight in the loss",
}
"""What can be taken from a student to see whether that is what helped: the setting `control` of a recipe."""


def describe_control(control: str) -> str:
    """What a report or a card says about a system of a control run.

    >>> describe_control("no_distillation")
    'Control: no_distillation, the teacher has no weight in the loss; not a system to use'
    """
    return f"Control: {control}, {CONTROLS[control]}; not a system to use"


READINGS = ("norm", "squared_norm", "mean_squared")
"""The embedding distances that Eq. 6 of the paper may mean, which does not say."""


def describe_variant(stage: str, results: Mapping[str, Any], reading: str | None = None) -> dict[str, str]:
    """In which ways a system of a run is not the paper's, each in a few words; empty if it is.

    Args:
        stage: the name of the stage.
        results: the content of results.json. What the run's version did not have, its systems do without.
        reading: the distance of `READINGS` that Eq. 6 stands for, so that the others are variants, as where several
            runs are compared; None: all of them are the paper's.

    Returns:
        The words by what they are about, in the order in which a name says them: "starts_from", "embedding_distance",
        "quality", "cross_fitting", "prediction_weight", "control", "ears" and "unlabelled".

    >>> recipe = {"quality": "soft", "cross_fitting": 5, "embedding_distance": "norm", "ears": "user/listener"}
    >>> results = {"recipe": recipe, "starts_from": {"ts": "lexical"}, "corpus": {}}
    >>> describe_variant("cts", results)
    {'quality': 'soft', 'cross_fitting': 'cross-fitted', 'ears': 'ears of listener'}
    >>> describe_variant("ts", results, reading="mean_squared")
    {'starts_from': 'after lexical', 'embedding_distance': 'norm', 'ears': 'ears of listener'}
    >>> describe_variant("teacher", results)
    {}
    """
    about, settings = STAGES[stage], results["recipe"]
    ways = {}
    start = results.get("starts_from", {}).get(stage)
    if start is not None:
        pieces = settings.get("word_pieces")
        heard = "" if pieces is None else f" with {pieces:,} pieces"
        ways["starts_from"] = f"after {STAGES[start].short_name}{heard}"
    if about.needs_teacher:
        distance = settings["embedding_distance"]
        if distance != reading and (reading is not None or distance not in READINGS):
            ways["embedding_distance"] = distance
        if about.is_conditional and settings.get("quality", "hard") != "hard":
            ways["quality"] = settings["quality"].replace("_", " ")
        if about.is_conditional and settings.get("cross_fitting") is not None:
            ways["cross_fitting"] = "cross-fitted"
        if settings.get("prediction_weight", 0):
            ways["prediction_weight"] = "predictions by dimension"
        if settings.get("control") is not None:
            ways["control"] = f"control {settings['control']}"
    if about.takes_ears and settings.get(EARS) is not None:
        folder = PurePath(settings[EARS])
        is_in_run = folder.name in (LEXICAL, "student") and folder.parent.name not in ("", "..")
        ways["ears"] = f"ears of {folder.parent.name if is_in_run else folder.name}"
    if about.learns_unlabelled and "unlabelled" in results["corpus"]:
        ways["unlabelled"] = "and unlabelled speech"
    return ways


def most_common_reading(runs: Iterable[Mapping[str, Any]]) -> str:
    """The reading of Eq. 6 that most of some runs with students have, the first of `READINGS` of equally many.

    Args:
        runs: the content of the results.json of each.
    """
    distances = [results["recipe"]["embedding_distance"] for results in runs if set(STUDENTS) & set(results["systems"])]
    return max(READINGS, key=distances.count)


def system_name(stage: str, ways: Mapping[str, str]) -> str:
    """What a table calls a system that is not the paper's in these ways.

    >>> system_name("ts", {"embedding_distance": "cosine", "unlabelled": "and unlabelled speech"})
    'T/S student, cosine, and unlabelled speech'
    """
    return ", ".join((SYSTEM_NAMES[stage], *ways.values()))


def followers(name: str) -> tuple[str, ...]:
    """The stages that start anew when this one does, because they learn from it or begin with its weights.

    >>> followers("teacher"), followers("lexical"), followers("finetune")
    (('ts', 'cts'), ('ts', 'cts'), ())
    """
    return tuple(
        other
        for other, stage in STAGES.items()
        if stage.starts_from == name or (name == TEACHER and stage.needs_teacher)
    )
