"""Recipes: YAML files that name every setting of a training run."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PrivateAttr, ValidationError, model_validator

from cmkd.command_line import option, paragraphs, read_arguments, shown
from cmkd.corpora import CORPORA
from cmkd.corpora.settings import SOURCE_SETTINGS, SOURCES, corpus_options, corpus_settings
from cmkd.features.cache import StoredDtype
from cmkd.spelling import did_you_mean, enumerated
from cmkd.stages import BASELINE, CONTROLS, LEXICAL, PAPER_STAGES, STAGES, STUDENTS, TEACHER, followers

if TYPE_CHECKING:  # a type checker takes no Literal that is made from a table
    from cmkd.corpora.schema import Corpus

    StageName: TypeAlias = str
    KeptStudent: TypeAlias = str
    Control: TypeAlias = str
else:
    StageName = Literal[tuple(STAGES)]
    KeptStudent = Literal[("better", *STUDENTS)]
    Control = Literal[tuple(CONTROLS)]


_OUTPUT_DIR = "default: runs/FOLDER/NAME, after the recipe's file"


class Recipe(BaseModel):
    """Every setting of `cmkd train`; the defaults are the paper's.

    Encoders are Hub names or folders. One that begins with `./` or `../` is a folder relative to the recipe's; all
    other relative paths (`output_dir`, `models_dir`, `data_dir` of the corpus) are relative to the current folder.

    A file may begin with `inherits: common.yaml`, the name of another in the same folder, and then says only what
    differs from that one.
    """

    _folder: Path = PrivateAttr(default=Path())

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: dict[str, Any] | list[dict[str, Any]] = Field(
        description="The corpus: its `name`, and what `cmkd.load_corpus` takes for it, such as `data_dir`. Or a list "
        "of two or more of these, which are learned together."
    )
    corpus_sampling: Literal["proportional", "equal"] = Field(
        default="proportional",
        description="How often several corpora occur: by their sizes, each utterance once per epoch (`proportional`), "
        "or equally often in every step, where those of the largest corpus occur once per epoch (`equal`). The stage "
        f"{LEXICAL} hears each utterance once per epoch all the same.",
    )
    ccc_within: Literal["corpus", "all"] = Field(
        default="corpus",
        description="What the CCC of the loss is computed within: each corpus (`corpus`), or all of them together "
        "(`all`), in which case the student gains by telling corpora apart. This goes for the distance between the "
        "predictions of student and teacher too. Without effect where one corpus is all that is heard.",
    )
    labelled_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the training utterances that keep their labels. A larger share has all utterances of a "
        "smaller one.",
    )
    labelled_seed: int = Field(default=0, ge=0, description="Seed that draws which utterances keep their labels.")
    unlabelled: dict[str, Any] | list[dict[str, Any]] | None = Field(
        default=None,
        description="Speech with words and without ratings, on which the students learn from the teacher alone: a "
        "corpus as under `corpus`, or a list. Its split train is used, and ratings are dropped. Null stands for none.",
    )
    unlabelled_rest: bool = Field(
        default=True,
        description="Whether the training utterances that labelled_share takes the labels from are unlabelled speech; "
        "else they are left out.",
    )
    unlabelled_hours: float | None = Field(
        default=None,
        gt=0,
        description="How many hours of the unlabelled speech are used, drawn like labelled_share; null stands for all.",
    )
    unlabelled_ratio: float = Field(
        default=1.0,
        gt=0,
        description="Unlabelled utterances for each labelled one in every step of a student. They come on top of "
        f"batch_size. Without effect on the stage {LEXICAL}, for which all speech is alike.",
    )
    same_sentences: Literal["refuse", "leave_out", "allow"] = Field(
        default="refuse",
        description="What to do about unlabelled speech that says a sentence of validation or test: refuse it, leave "
        "those utterances out, or allow them.",
    )
    output_dir: str = Field(
        description="Folder that the run is written to. A file that does not say is run in runs/FOLDER/NAME, after its "
        "own folder and name."
    )
    stages: list[StageName] = Field(
        default=list(PAPER_STAGES),
        min_length=1,
        description=f"Stages to run, of {', '.join(STAGES)}; whatever their order here, they run in this one. After "
        f"{LEXICAL}, {enumerated(followers(LEXICAL))} begin with its weights.",
    )
    overwrite: bool = Field(
        default=False, description="Whether to repeat the stages even if they are complete; what they made is removed."
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the initial weights, of dropout and of the order of the utterances."
    )
    seeds: list[NonNegativeInt] | None = Field(
        default=None,
        min_length=2,
        description="Two or more seeds, in the place of `seed`: one training with each, in the folders seed_0 and so "
        "on of output_dir, and a summary of all. The corpus is the same for all.",
    )

    student_speech_encoder: str = Field(
        default="facebook/hubert-base-ls960",
        description="Speech encoder of the systems that only hear, the students among them: Hub name or folder. A "
        "folder that begins with ./ or ../ is relative to the recipe's file.",
    )
    teacher_speech_encoder: str = Field(
        default="facebook/hubert-large-ll60k",
        description="Speech encoder of the teacher, which is not trained: Hub name or folder, as for the student.",
    )
    text_encoder: str = Field(
        default="bert-base-uncased",
        description="Text encoder of the teacher, which is not trained: Hub name or folder, as for the student.",
    )
    student_speech_encoder_revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of student_speech_encoder on the Hub; null stands for its main branch.",
    )
    teacher_speech_encoder_revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of teacher_speech_encoder on the Hub; null stands for its main branch.",
    )
    text_encoder_revision: str | None = Field(
        default=None, description="Branch, tag or commit of text_encoder on the Hub; null stands for its main branch."
    )
    models_dir: str | None = Field(
        default=None,
        description="Folder that holds encoders, and ears, under their Hub names; what is not in it is taken from the "
        "Hub.",
    )
    teacher_run: str | None = Field(
        default=None,
        description=f"Run whose teacher the stages {enumerated(STUDENTS)} learn from, relative to output_dir; null "
        "stands for the teacher of this run.",
    )
    ears: str | None = Field(
        default=None,
        description="Student that has learned to hear pieces of words, as word_pieces says, with the encoder "
        "student_speech_encoder or with layers trained from it: Hub name or folder, as for the encoder, or the folder "
        f"of the stage {LEXICAL} of another run. The stages {enumerated([BASELINE, *STUDENTS])} listen for the same "
        "pieces with its ears, and with those layers, which stay as they are. Null "
        f"stands for none but those that the stage {LEXICAL} of the run gives to {enumerated(followers(LEXICAL))}.",
    )
    ears_revision: str | None = Field(
        default=None, description="Branch, tag or commit of ears on the Hub; null stands for its main branch."
    )
    num_trainable_layers: int = Field(
        default=6,
        ge=-1,
        description="How many of the top layers of the student's speech encoder are trained; -1 stands for all of the "
        "encoder.",
    )
    use_weighted_layer_sum: bool = Field(
        default=False,
        description="Whether to learn how much each layer of the speech encoder counts, instead of using the last.",
    )
    summarizer: Literal["last_state", "attention"] = Field(
        default="last_state",
        description="How the GRU's outputs become one summary of the utterance: the output at the last frame, as in "
        "the paper, or a weighted mean over all frames with learned weights.",
    )

    batch_size: int = Field(
        default=32, ge=1, description="Utterances per device and accumulation step, unlabelled ones not counted."
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Batches of each device between two updates of the weights."
    )
    group_by_length: bool = Field(
        default=True,
        description="Whether the utterances between two updates are of like length, which saves padding, or drawn at "
        "random.",
    )
    loss_over: Literal["step", "batch"] = Field(
        default="step",
        description="What the loss is computed over: all utterances between two updates of the weights, on all devices "
        "(`step`, which is Eq. 7), or each device's batch on its own, averaged (`batch`).",
    )
    num_epochs: int = Field(
        default=50,
        ge=1,
        description="How many times each stage goes through the training split, unlabelled speech not counted.",
    )
    learning_rate: float = Field(
        default=5e-4, gt=0, description="Learning rate of Adam at the start, for all but the speech encoder's layers."
    )
    encoder_learning_rate_factor: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Learning rate of the speech encoder's trainable layers, as a share of learning_rate.",
    )
    plateau_factor: float = Field(
        default=0.75,
        gt=0,
        lt=1,
        description="Factor that multiplies the learning rate when the validation CCC no longer improves.",
    )
    plateau_patience: int = Field(
        default=2, ge=0, description="Epochs without a better validation CCC before the learning rate falls."
    )
    cache_dir: str | None = Field(
        default=None,
        description="Folder for the stored output of frozen encoders, which several runs may share; null stands for "
        "`cache` in output_dir.",
    )
    cache_dtype: StoredDtype = Field(
        default="float32",
        description="Number format that the output of frozen encoders is stored in; bfloat16 takes half the space.",
    )
    cache_limit_gb: float | None = Field(
        default=None,
        ge=0,
        description="The most that the stored output of frozen encoders may take, in 10^9 bytes; where it would take "
        "more, it is computed anew in every epoch. Null stands for no limit.",
    )
    dataloader_workers: int | None = Field(
        default=None,
        ge=0,
        description="Processes that read and decode sound ahead; null stands for 4 where there is a GPU, else none.",
    )

    distillation_weight: float = Field(
        default=30.0,
        ge=0,
        description="Weight of the distance between student and teacher in the loss, the lambda of Eq. 7.",
    )
    embedding_distance: Literal["norm", "squared_norm", "mean_squared", "cosine", "contrastive"] = Field(
        default="norm",
        description="Distance between the embeddings of student and teacher: the Euclidean norm of their difference, "
        "its square, the mean of the squares over the dimensions, 1 less their cosine, or InfoNCE over the step, which "
        "asks which of the teacher's embeddings is the utterance's own.",
    )
    contrastive_temperature: float = Field(
        default=0.1, gt=0, description="Temperature of the contrastive embedding_distance."
    )
    prediction_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the distance between the predictions of student and teacher in the loss, which is "
        "weighted by dimension, so that an utterance that is poor in one still teaches the others. The paper has none.",
    )
    residual_threshold: float = Field(
        default=2.0,
        gt=0,
        description="How far the teacher may be off, in standard deviations of its residuals (Eq. 8), for cts to learn "
        "from it on an utterance; with a soft quality, where the weight is a half.",
    )
    quality: Literal["hard", "soft", "label_noise"] = Field(
        default="hard",
        description="How a residual becomes the weight with which cts learns from the teacher: 1 up to "
        "residual_threshold and 0 above it, the paper's rule (hard); falling smoothly, to a half at residual_threshold "
        "(soft); or so, in units that know how far the annotators of the utterance were apart (label_noise).",
    )
    cross_fitting: int | None = Field(
        default=None,
        ge=2,
        description="Number of folds of the training speakers for which further teachers are trained, so that the "
        "residuals of each utterance are those of a teacher that has not heard its speaker; null takes those of the "
        "teacher itself, as the paper does. With teacher_run that run has them.",
    )
    control: Control | None = Field(
        default=None,
        description="For experiments, what is taken from the students to see whether it helped: the teacher's outputs "
        "are those of another utterance (shuffled_teacher), the quality weights are dealt out at random "
        "(random_quality), or the teacher has no weight in the loss (no_distillation). Not for systems to use.",
    )
    lexical_epochs: int | None = Field(
        default=None,
        ge=1,
        description=f"How many times the stage {LEXICAL} goes through all of its speech, the training split and "
        "unlabelled speech, each utterance once; null stands for num_epochs.",
    )
    lexical_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description=f"Learning rate of the stage {LEXICAL}; null stands for learning_rate.",
    )
    word_pieces: int | None = Field(
        default=None,
        ge=2,
        description=f"How many pieces of words the stage {LEXICAL} teaches the student to hear, by CTC on the words of "
        "its corpora; the students after it then listen for them besides. Null teaches where the text encoder puts the "
        "sentence instead.",
    )
    lexical_temperature: float = Field(
        default=0.1,
        gt=0,
        description=f"What similarities are divided by where the stage {LEXICAL} has to tell the sentences of a step "
        "apart: a small one counts those that are nearly alike, a large one all of them.",
    )
    kept_student: KeptStudent = Field(
        default="better",
        description="Stage whose student is put into `student/`; `better` stands for the one with the better mean CCC "
        "on the validation split.",
    )

    hub_model_id: str | None = Field(
        default=None,
        description="Repository on the Hub, user/name, that `student/` is pushed to once the run is complete, as `cmkd "
        "push` does it; null pushes nothing.",
    )
    hub_private: bool = Field(
        default=True, description="Whether the repository hub_model_id is private, if it has to be made."
    )

    @model_validator(mode="after")
    def _has_one_teacher(self) -> "Recipe":
        if self.teacher_run is not None and TEACHER in self.stages:
            raise ValueError(
                f"teacher_run is {self.teacher_run!r}, trained elsewhere, but stages has a teacher of this run too: "
                "take out one of the two."
            )
        return self

    @model_validator(mode="after")
    def _has_ears_of_one_kind(self) -> "Recipe":
        if self.ears is not None and (self.word_pieces is not None or LEXICAL in self.stages):
            other = f"stages has {LEXICAL}" if self.word_pieces is None else f"word_pieces is {self.word_pieces}"
            raise ValueError(
                f"ears is {self.ears!r}, whose students have learned the words elsewhere, but {other}, which teaches "
                "them here: take out one of the two."
            )
        if self.ears is None and self.ears_revision is not None:
            raise ValueError(f"ears_revision is {self.ears_revision!r}, but ears is null: name the ears too.")
        return self

    @model_validator(mode="after")
    def _has_a_control_with_effect(self) -> "Recipe":
        students = [stage for stage in STUDENTS if stage in self.stages]
        without_weights = [stage for stage in students if not STAGES[stage].is_conditional]
        if self.control == "random_quality" and without_weights:
            raise ValueError(
                f"control is 'random_quality', but the weights of {enumerated(without_weights)} are all 1, so that "
                "nothing would change there: take it out of stages."
            )
        if self.control is not None and not students:
            raise ValueError(
                f"control is {self.control!r}, but stages has none of {enumerated(STUDENTS)}, which alone it changes: "
                "add one, or leave control out."
            )
        return self

    @model_validator(mode="after")
    def _has_several_corpora_in_a_list(self) -> "Recipe":
        if isinstance(self.corpus, list) and len(self.corpus) < 2:
            raise ValueError(
                f"corpus is a list of {len(self.corpus)}: a list is for two or more corpora, and one is a mapping."
            )
        return self

    @model_validator(mode="after")
    def _has_the_unlabelled_speech_that_it_speaks_of(self) -> "Recipe":
        if self.unlabelled is not None or (self.labelled_share < 1 and self.unlabelled_rest):
            return self
        for name in ("unlabelled_hours", "unlabelled_ratio"):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(
                    f"{name} is {value:g}, but there is no unlabelled speech: unlabelled is null, and labelled_share "
                    f"{self.labelled_share:g}{'' if self.unlabelled_rest else ' with unlabelled_rest false'} leaves "
                    f"none. Name some, or set {name} to {shown(default)}."
                )
        return self

    @model_validator(mode="after")
    def _has_one_kind_of_seed(self) -> "Recipe":
        if self.seeds is None:
            return self
        if "seed" in self.model_fields_set:
            raise ValueError(f"seed is {self.seed} and seeds is {self.seeds}: give one of the two.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds is {self.seeds}, but no seed may be given twice: the same seed gives the same training."
            )
        return self

    def load_corpus(self) -> "Corpus":
        """Builds everything that is learned from, see [`cmkd.corpora.sources.load_run_corpus`]."""
        from cmkd.corpora.sources import load_run_corpus  # imports torch, for which help does not wait

        return load_run_corpus(
            self.corpus,
            self.unlabelled,
            labelled_share=self.labelled_share,
            labelled_seed=self.labelled_seed,
            unlabelled_rest=self.unlabelled_rest,
            unlabelled_hours=self.unlabelled_hours,
            same_sentences=self.same_sentences,
        )

    def of_seed(self, seed: int) -> "Recipe":
        """The recipe of one training of a recipe with `seeds`: in a folder of its own, with the same cache.

        Its `teacher_run` is the training of the same seed in that run, and it is not pushed.
        """
        folder = Path(self.output_dir, f"seed_{seed}")
        settings: dict[str, Any] = {"seeds": None, "seed": seed, "output_dir": str(folder), "hub_model_id": None}
        settings["cache_dir"] = self.cache_dir or str(Path(self.output_dir, "cache"))
        if self.teacher_run is not None:
            settings["teacher_run"] = os.path.relpath(self.teacher_folder / f"seed_{seed}", folder)
        return self.model_copy(update=settings)

    @property
    def trainings(self) -> "list[Recipe]":
        """The recipe of each training: itself, or one for each of its `seeds`."""
        return [self] if self.seeds is None else [self.of_seed(seed) for seed in self.seeds]

    @property
    def teacher_folder(self) -> Path:
        """The run that has the teacher."""
        return Path(os.path.normpath(Path(self.output_dir, self.teacher_run or "")))

    @property
    def folder(self) -> Path:
        """Where the recipe's file is."""
        return self._folder

    def locate(self, encoder: str) -> str:
        """Where an encoder is, or `ears`: beside the recipe, in `models_dir` if it is there, else what was given."""
        if encoder.startswith(("./", "../")):
            return str(self._folder / encoder)
        folder = Path(self.models_dir or "") / encoder
        return str(folder) if self.models_dir is not None and folder.is_dir() else encoder

    def pinned(self, commits: Mapping[str, str]) -> "Recipe":
        """This recipe with the commits of encoders on the Hub as their revisions, so that all stages load the same.

        Args:
            commits: of the encoders and of `ears`, by the names of these settings, as far as they are known, as
                `cmkd.identity.read_encoder` gives them.
        """
        named = self.model_dump(include=set(commits))
        on_the_hub = [encoder for encoder, name in named.items() if not Path(self.locate(name)).is_dir()]
        return self.model_copy(update={f"{encoder}_revision": commits[encoder] for encoder in on_the_hub})


def load_recipe(path: str | Path, arguments: Sequence[str] = (), command: str = "cmkd train") -> Recipe:
    """Reads a recipe and puts command-line arguments over it.

    Args:
        path: a YAML file.
        arguments: `--key value`, `--key=value`, `--flag`, `--list a b`, and `--corpus.key value` for a setting of the
            corpus, as [`cmkd.command_line.read_arguments`] reads them. A relative path on the command line is relative
            to the current folder.
        command: the command as it was typed, less the recipe, for help and messages.

    Raises:
        ValueError: the file is not a mapping, or a key in it is unknown (the nearest name is suggested), or a setting
            has a wrong value.
        FileNotFoundError: there is no such recipe.
        SystemExit: help was asked for, or an argument is unknown or cannot be read.
    """
    path = Path(path)
    settings = _read_with_inherited(path)
    name = _corpus_name(settings, arguments)
    if name is None and settings.get("corpus") is not None and not isinstance(settings["corpus"], list):
        raise ValueError(f"{path}: corpus.name is missing: it must be one of {', '.join(CORPORA)}.")
    for field in SOURCES:
        _check_sources(path, field, settings.get(field), name if field == "corpus" else None)
    given = read_arguments(_options(settings, name), arguments, f"{command} {path}")
    sources = {field: _with_given(settings.get(field), given.pop(field, None)) for field in SOURCES}
    _check_sources(path, "unlabelled", sources["unlabelled"])
    settings = _without_replaced(settings, given) | given | {key: value for key, value in sources.items() if value}
    settings.setdefault("output_dir", str(Path("runs", path.resolve().parent.name, path.stem)))
    if isinstance(settings.get("stages"), str):
        settings["stages"] = [settings["stages"]]
    try:
        recipe = Recipe(**settings)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in problem['loc'])} is missing"
            if problem["type"] == "missing"
            else f"  {'.'.join(str(part) for part in problem['loc'])} = {problem['input']!r}: {problem['msg']}"
            if problem["loc"]
            else f"  {problem['msg']}"
            for problem in error.errors()
        ]
        advice = f"`{command} {path} --help` says what each setting is."
        raise ValueError("\n".join([f"{path}: these settings are wrong:", *lines, advice])) from None
    recipe._folder = path.parent
    return recipe


def split_recipe(arguments: Sequence[str], command: str, about: str) -> tuple[Path, Sequence[str]]:
    """The recipe that the arguments of a command begin with, and the rest, for [`load_recipe`].

    Args:
        arguments: what stands behind the command.
        command: the command as it was typed.
        about: what help says that it does.

    Raises:
        SystemExit: help was asked for, or there is no recipe.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"{paragraphs(about)}\n")
    if not arguments or arguments[0].startswith("-"):
        read_arguments(
            _options({}, None), [word for word in arguments if word in ("-h", "--help")], f"{command} RECIPE"
        )
        print(f"{command}: the first argument must be a recipe, as in {command} recipes/demo.yaml.", file=sys.stderr)
        sys.exit(2)
    return Path(arguments[0]), arguments[1:]


def _options(settings: Mapping[str, Any], corpus: str | None) -> Any:
    """The options of a recipe, a type for [`cmkd.command_line.read_arguments`], with the values of its file in help."""
    options = {}
    for name, field in Recipe.model_fields.items():
        if name in SOURCES and isinstance(settings.get(name), list):
            options[name] = _options_of_several(name, settings[name])
            continue
        if name == "corpus":
            options[name] = corpus_options(corpus, settings.get("corpus", {}), more=SOURCE_SETTINGS)
            continue
        if name == "unlabelled" and settings.get(name) is not None:
            options[name] = corpus_options(settings[name]["name"], settings[name], more=SOURCE_SETTINGS)
            continue
        if name == "unlabelled":
            options[name] = option(Mapping[str, str | None] | None, field.description or "", "default: null")
            continue
        default = (
            "default: runs/FOLDER/NAME of the file" if field.is_required() else f"default: {shown(field.get_default())}"
        )
        default = f"in the recipe: {shown(settings[name])}" if name in settings else default
        options[name] = option(field.annotation, field.description or "", default)
    return cast(Any, TypedDict)("RecipeOptions", options, total=False)


def _check_sources(path: Path, field: str, given: Any, name: str | None = None) -> None:
    """Checks that each mapping of `corpus` or `unlabelled` names a corpus, and has settings that it knows."""
    for source in given if isinstance(given, list) else [given or {}]:
        place = f"{field} {source_name(source)}" if isinstance(given, list) else field
        of_source = source.get("name", name)
        if source and of_source is None:
            raise ValueError(f"{path}: {place}.name is missing: it must be one of {', '.join(CORPORA)}.")
        known = ["name", *SOURCE_SETTINGS, *(corpus_settings(of_source) if of_source is not None else ())]
        for key in source:
            if key not in known:
                raise ValueError(
                    f"{path}: there is no setting '{place}.{key}' of {of_source}.{did_you_mean(key, known)}"
                )


def source_name(source: Mapping[str, Any]) -> str:
    """What a corpus of several is called in the run and on the command line."""
    return str(source.get("alias") or source.get("name"))


def _options_of_several(field: str, sources: Sequence[Mapping[str, Any]]) -> Any:
    """The options `--corpus.NAME.KEY` of several corpora, each under its own name."""
    options = {
        source_name(source): corpus_options(source["name"], source, ("name", "alias"), more=SOURCE_SETTINGS)
        for source in sources
    }
    kind = cast(Any, TypedDict)(f"{field.title()}Options", options, total=False)
    kind.__doc__ = "Settings of each corpus, under its name."
    return kind


def _with_given(sources: Any, given: Mapping[str, Any] | None) -> Any:
    """The mapping or list of a recipe with what the command line gives over it."""
    if not isinstance(sources, list):
        return {**(sources or {}), **(given or {})}
    return [{**source, **(given or {}).get(source_name(source), {})} for source in sources]


def _corpus_name(settings: Mapping[str, Any], arguments: Sequence[str]) -> str | None:
    """Of the corpus that a recipe names, or else the command line, whose options depend on it."""
    if isinstance(settings.get("corpus"), list):
        return None
    name = (settings.get("corpus") or {}).get("name")
    for word, following in zip(arguments, [*arguments[1:], None], strict=False):
        if word == "--corpus.name":
            name = following
        elif word.startswith("--corpus.name="):
            name = word.partition("=")[2]
    return name


def _read_with_inherited(path: Path) -> dict[str, Any]:
    """The settings of a recipe's file, over those of the one that it inherits from."""
    settings = _read(path)
    base = settings.pop("inherits", None)
    if base is not None:
        if not isinstance(base, str) or Path(base).name != base or not (path.parent / base).is_file():
            raise ValueError(f"{path}: inherits is {base!r}, but must be the name of a recipe in the same folder.")
        inherited = _read(path.parent / base)
        if "inherits" in inherited:
            raise ValueError(f"{path}: inherits is {base!r}, which inherits itself; one level is all there is.")
        both = [field for field in SOURCES if field in inherited and field in settings]
        sources = {field: _over_inherited(inherited[field], settings[field]) for field in both}
        settings = _without_replaced(inherited, settings) | settings | sources
    for key in settings:
        if key not in Recipe.model_fields:
            raise ValueError(f"{path}: there is no setting {key!r}.{did_you_mean(key, Recipe.model_fields)}")
    return settings


def _over_inherited(inherited: Any, own: Any) -> Any:
    """Settings of a mapping come over those of the inherited one; a list, or null for none, stands for itself."""
    return inherited | own if isinstance(inherited, dict) and isinstance(own, dict) else own


def _without_replaced(settings: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Without `seed` where what comes later names `seeds`, and the other way round."""
    left_out = {old for old, new in (("seed", "seeds"), ("seeds", "seed")) if later.get(new) is not None}
    return {key: value for key, value in settings.items() if key not in left_out}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {str(path)!r}; recipes/ of the project holds some.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: a recipe is a mapping of settings to values.")
    for field in SOURCES:
        given = settings.get(field)
        sources = given if isinstance(given, list) else [] if given is None else [given]
        if field in settings and not (sources and all(isinstance(source, dict) for source in sources)):
            if field == "unlabelled" and given is None:
                continue
            raise ValueError(
                f"{path}: {field} is {given!r}, but must be a mapping of settings to values, or a list of such "
                "mappings."
            )
        names = [source_name(source) for source in sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{path}: {field} has {twice!r} twice: give each corpus an alias of its own.")
    return settings
