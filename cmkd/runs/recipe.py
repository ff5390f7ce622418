"""Recipes: YAML files that name every setting of a training run."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PrivateAttr, ValidationError, model_validator

from cmkd.command_line import option, paragraphs, read_arguments, shown
from cmkd.corpora.settings import corpus_options
from cmkd.features.cache import StoredDtype
from cmkd.spelling import did_you_mean, enumerated
from cmkd.stages import STAGES, STUDENTS, TEACHER

if TYPE_CHECKING:  # a type checker takes no Literal that is made from a table
    StageName: TypeAlias = str
    KeptStudent: TypeAlias = str
else:
    StageName = Literal[tuple(STAGES)]
    KeptStudent = Literal[("better", *STUDENTS)]


_OUTPUT_DIR = "default: runs/FOLDER/NAME, after the recipe's file"


class Recipe(BaseModel):
    """Every setting of a run of `train_distill.py`; the defaults are the paper's.

    Encoders are Hub names or folders. One that begins with `./` or `../` is a folder relative to the recipe's; all
    other relative paths (`output_dir`, `models_dir`, `data_dir` of the corpus) are relative to the current folder.

    A file may begin with `inherits: common.yaml`, the name of another in the same folder, and then says only what
    differs from that one.
    """

    _folder: Path = PrivateAttr(default=Path())

    model_config = ConfigDict(extra="forbid", frozen=True)

    corpus: dict[str, Any] = Field(description="`name`, and what `cmkd.load_corpus` takes for it, such as `data_dir`.")
    output_dir: str = Field(description="Folder of the run; if a file does not say, runs/<its folder>/<its name>.")
    stages: list[StageName] = Field(
        default=list(STAGES), description="Which stages to run; always in the order of STAGES."
    )
    overwrite: bool = Field(default=False, description="Repeat stages that are already complete.")
    seed: int = Field(default=0, ge=0, description="Of initial weights, dropout and the order of the batches.")
    seeds: list[NonNegativeInt] | None = Field(
        default=None,
        min_length=2,
        description="Instead of `seed`: a training with each, in seed_0 and so on, and a summary; the corpus stays.",
    )

    student_speech_encoder: str = Field(default="facebook/hubert-base-ls960", description="Of the audio-only systems.")
    teacher_speech_encoder: str = Field(default="facebook/hubert-large-ll60k", description="Of the teacher; frozen.")
    text_encoder: str = Field(default="bert-base-uncased", description="Of the teacher; frozen.")
    student_speech_encoder_revision: str | None = Field(
        default=None, description="Branch, tag or commit of student_speech_encoder on the Hub; None: its main branch."
    )
    teacher_speech_encoder_revision: str | None = Field(
        default=None, description="Branch, tag or commit of teacher_speech_encoder on the Hub; None: its main branch."
    )
    text_encoder_revision: str | None = Field(
        default=None, description="Branch, tag or commit of text_encoder on the Hub; None: its main branch."
    )
    models_dir: str | None = Field(default=None, description="Folder that holds encoders under their Hub names.")
    teacher_run: str | None = Field(
        default=None,
        description=f"Run whose teacher the stages {enumerated(STUDENTS)} learn from, relative to output_dir; "
        "None: this run's own.",
    )
    num_trainable_layers: int = Field(default=6, ge=-1, description="Top layers of the student's encoder; -1 all.")
    use_weighted_layer_sum: bool = Field(default=False, description="Learn which layers to listen to.")

    batch_size: int = Field(default=32, ge=1, description="Utterances a device and accumulation step.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Batches between two updates of the weights.")
    group_by_length: bool = Field(default=True, description="Utterances of like length in a step: less padding.")
    loss_over: Literal["step", "batch"] = Field(default="step", description="See CMKDTrainingArguments.")
    num_epochs: int = Field(default=50, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    encoder_learning_rate_factor: float = Field(default=0.25, gt=0, le=1)
    plateau_factor: float = Field(default=0.75, gt=0, lt=1, description="What the learning rate is multiplied by.")
    plateau_patience: int = Field(default=2, ge=0, description="Epochs without a better validation CCC before that.")
    cache_dir: str | None = Field(
        default=None, description="Where the output of frozen encoders is stored; None: in output_dir. May be shared."
    )
    cache_dtype: StoredDtype = Field(default="float32", description="As what; bfloat16 takes half the space.")
    cache_limit_gb: float | None = Field(
        default=None, ge=0, description="The most it may take; beyond that it is computed anew in every epoch."
    )
    dataloader_workers: int | None = Field(
        default=None, ge=0, description="Processes that read and decode ahead; None: 4 where there is a GPU, else none."
    )

    distillation_weight: float = Field(default=30.0, ge=0, description="lambda of Eq. 7.")
    embedding_distance: Literal["norm", "squared_norm", "mean_squared"] = Field(
        default="norm", description="How L_STU is taken; see cmkd.embedding_distance."
    )
    residual_threshold: float = Field(default=2.0, gt=0, description="In standard deviations; over it, left out.")
    kept_student: KeptStudent = Field(
        default="better", description="Which stage `student/` is; `better` by mean CCC on validation."
    )

    hub_model_id: str | None = Field(
        default=None, description="Where `student/` is pushed to when the run is complete, as by `cmkd push`."
    )
    hub_private: bool = Field(default=True, description="Whether it is to be private if it has to be made.")

    @model_validator(mode="after")
    def _has_one_teacher(self) -> "Recipe":
        if self.teacher_run is not None and TEACHER in self.stages:
            raise ValueError(
                f"teacher_run is {self.teacher_run!r}, trained elsewhere, but stages has a teacher of this run too: "
                "take out one of the two."
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
        """Where an encoder is: beside the recipe, in `models_dir` if it is there, else what was given."""
        if encoder.startswith(("./", "../")):
            return str(self._folder / encoder)
        folder = Path(self.models_dir or "") / encoder
        return str(folder) if self.models_dir is not None and folder.is_dir() else encoder

    def pinned(self, commits: Mapping[str, str]) -> "Recipe":
        """This recipe with the commits of encoders on the Hub as their revisions, so that all stages load the same.

        Args:
            commits: by the names of `cmkd.stages.ENCODERS`, as far as they are known, as
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
        ValueError: the file is no mapping, or a key in it is unknown (the nearest name is suggested), or a setting has
            a wrong value.
        FileNotFoundError: there is no such recipe.
        SystemExit: help was asked for, or an argument is unknown or cannot be read.
    """
    path = Path(path)
    settings = _read_with_inherited(path)
    given = read_arguments(_options(settings, _corpus_name(settings, arguments)), arguments, f"{command} {path}")
    corpus = settings.get("corpus", {}) | given.pop("corpus", {})
    settings = _less_replaced(settings, given) | given | ({"corpus": corpus} if corpus else {})
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
        if name == "corpus":
            options[name] = corpus_options(corpus, settings.get("corpus", {}))
            continue
        default = (
            "default: runs/FOLDER/NAME of the file" if field.is_required() else f"default: {shown(field.get_default())}"
        )
        default = f"in the recipe: {shown(settings[name])}" if name in settings else default
        options[name] = option(field.annotation, field.description or "", default)
    return cast(Any, TypedDict)("RecipeOptions", options, total=False)


def _corpus_name(settings: Mapping[str, Any], arguments: Sequence[str]) -> str | None:
    """Of the corpus that a recipe names, or else the command line, whose options depend on it."""
    name = settings.get("corpus", {}).get("name")
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
        corpus = inherited.get("corpus", {}) | settings.get("corpus", {})
        settings = _less_replaced(inherited, settings) | settings | {"corpus": corpus}
    for key in settings:
        if key not in Recipe.model_fields:
            raise ValueError(f"{path}: there is no setting {key!r}.{did_you_mean(key, Recipe.model_fields)}")
    return settings


def _less_replaced(settings: dict[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
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
    if not isinstance(settings, dict) or not isinstance(settings.get("corpus", {}), dict):
        raise ValueError(f"{path}: a recipe is a mapping of settings to values, and so is its corpus.")
    return settings
