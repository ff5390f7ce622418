"""Cards for the Hub, made from results.json, configuration and recipe with the templates in `hub_cards/`.

No figure is written by hand: a field that results.json lacks, or a figure that is not a number, is an error when the
card is made. If something is not defined (a score that nobody rated, an interval over one speaker), the template says
so in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined, UndefinedError

from cmkd.corpora.licences import OF_THE_EARS, is_known, strictest
from cmkd.identity import is_folder_digest
from cmkd.places import of_root
from cmkd.scoring.scores import describe_intervals, describe_test, format_p
from cmkd.stages import BASELINE, EARS, LEXICAL, STAGES, TEACHER, describe_control
from configuration_cmkd import EMOTION_DIMENSIONS

if TYPE_CHECKING:
    from cmkd.corpora.report import CorpusReport

TEMPLATES = of_root("hub_cards")

NOTICE = "NOTICE"
"""The file with what must travel with the weights, in a repository that has one."""

GRADIO = "6.31.0"
"""The version of Gradio with which the page of the metric was tested."""


@dataclass(frozen=True)
class Licence:
    """The terms under which a corpus, and what is derived from it, may be used.

    Attributes:
        identifier: the licence's name on the Hub.
        text: what it allows, in a sentence or two.
    """

    identifier: str
    text: str


OPEN_CORPORA = {
    "spoken-demo": Licence(
        "apache-2.0",
        "The sentences are CMKD's (Apache-2.0), spoken by espeak-ng, a synthesiser. They may be used for anything.",
    ),
    "spoken-emobank": Licence(
        "cc-by-sa-4.0",
        "The sentences and their valence are EmoBank's (Sven Buechel and Udo Hahn, 2017, "
        "https://github.com/JULIELab/EmoBank), CC-BY-SA 4.0, spoken by a synthesiser: "
        "attribute EmoBank, and share what is derived from it under the same licence. Activation and dominance are not "
        "ratings: they are settings, by which the voice was made faster, higher, wider or louder.",
    ),
}
"""Corpora that CMKD makes itself, all of synthetic speech."""

KNOWN_LICENCES = OPEN_CORPORA | {
    "crema-d": Licence(
        "odbl",
        "CREMA-D (Houwei Cao and others, 2014, https://github.com/CheyneyComputerScience/CREMA-D) is under the Open "
        "Database License: attribute it, and share a database that is derived from it under the same licence. This "
        "repository holds none of its clips, votes or sentences. Its actors say twelve sentences in given emotions, "
        "and its labels are derived: its listeners voted for categories, and nobody rated activation, valence or "
        "dominance.",
    ),
}
"""Of corpora whose licence is the same for everybody."""

_AGAIN = "results.json is of another version of cmkd, or of a run that is not complete: run cmkd train again."

SYNTHETIC_CORPORA = (*OPEN_CORPORA, "spoken-sentences")
"""Corpora in which nobody speaks."""

ENGLISH_CORPORA = (*SYNTHETIC_CORPORA, "msp-podcast", "iemocap", "crema-d")


@dataclass(frozen=True)
class TrainingSource:
    """A corpus that a model was trained on.

    Attributes:
        name: what it is called in the run.
        corpus: its entry in results.json.
        is_labelled: whether its labels were used.
        licence: what is known about its licence.
    """

    name: str
    corpus: Mapping[str, Any]
    is_labelled: bool
    licence: Licence

    @property
    def is_synthetic(self) -> bool:
        """Whether nobody speaks in it."""
        return self.corpus["name"] in SYNTHETIC_CORPORA

    @property
    def terms(self) -> str:
        """What the recipe says about it, if anything, and its licence."""
        return " ".join(filter(None, [self.corpus.get("about"), self.licence.text]))

    @property
    def scale(self) -> str:
        """Its rating scale, such as "1 to 7"."""
        low, high = self.corpus["label_scale"]
        return f"{low:g} to {high:g}"

    @property
    def labels(self) -> dict[str, tuple[float, float] | None]:
        """Mean and standard deviation of its training labels by dimension, on the unit interval; None if not rated."""
        low, high = self.corpus["label_scale"]
        found: dict[str, tuple[float, float] | None] = {}
        for dimension in EMOTION_DIMENSIONS:
            of_it = self.corpus["labels"]["train"][dimension]
            rated = of_it["mean"] is not None
            found[dimension] = ((of_it["mean"] - low) / (high - low), of_it["std"] / (high - low)) if rated else None
        return found

    @property
    def language(self) -> str:
        """The language of its speech, as the recipe states it or the package knows it; "" if neither does."""
        return self.corpus.get("language") or ("en" if self.corpus["name"] in ENGLISH_CORPORA else "")


def training_sources(corpus: Mapping[str, Any]) -> list[TrainingSource]:
    """The corpora that a model was trained on, those with labels first.

    Args:
        corpus: the entry `corpus` in results.json.

    Raises:
        ValueError: there are several, and the licence of one is not known.
    """
    labelled = corpus.get("corpora") or {corpus["name"]: corpus}
    without = corpus["unlabelled"]["corpora"] if "unlabelled" in corpus else {}
    named = [(name, one, True) for name, one in labelled.items()]
    named += [(name, one, False) for name, one in without.items()]
    sources = [TrainingSource(name, one, is_labelled, training_licence(one)) for name, one, is_labelled in named]
    unknown = [source.name for source in sources if source.licence.identifier == "other" and not _is_stated(source)]
    if len(sources) > 1 and unknown:
        raise ValueError(
            f"the licence of {' and '.join(unknown)} is not known, and the card of a model that was trained on several "
            "corpora takes the strictest: state it with the setting licence of that corpus in the recipe, and run cmkd "
            "train again, which trains nothing anew."
        )
    return sources


def _is_stated(source: TrainingSource) -> bool:
    return bool(source.corpus["terms"] or source.corpus.get("licence"))


def _licence_of_all(sources: Sequence[TrainingSource]) -> tuple[str, str | None]:
    """The Hub's identifier of the strictest licence, and its own name where the Hub has none."""
    if len(sources) == 1:
        (source,) = sources
        is_other = source.licence.identifier == "other"
        return source.licence.identifier, _licence_name(source.corpus) if is_other else None
    most = strictest(source.licence.identifier for source in sources)
    if most == ["other"]:
        names = [_licence_name(source.corpus) for source in sources if source.licence.identifier == "other"]
        return "other", "-and-".join(dict.fromkeys(names))
    return (most[0], None) if len(most) == 1 else ("other", "-and-".join(most))


def _with_that_of_ears(
    licence: tuple[str, str | None], of_ears: Mapping[str, str | None] | None
) -> tuple[str, str | None]:
    """The licence of a student whose ears another one has learned, whose own licence counts, too.

    Args:
        licence: that of the student's own data.
        of_ears: `identifier` and `name` of the other one, None if it is not known.

    >>> _with_that_of_ears(("apache-2.0", None), {"identifier": "other", "name": "odbl-and-cc-by-sa-4.0"})
    ('other', 'odbl-and-cc-by-sa-4.0')
    >>> _with_that_of_ears(("apache-2.0", None), None)
    ('other', 'apache-2.0-and-that-of-the-ears')
    """
    names = [*_names(*licence), *([OF_THE_EARS] if of_ears is None else _names(**of_ears))]
    known = strictest(names) if all(map(is_known, names)) else list(dict.fromkeys(names))
    return (known[0], None) if len(known) == 1 and is_known(known[0]) else ("other", "-and-".join(known))


def _names(identifier: str | None, name: str | None) -> list[str]:
    """The names of which a licence is made up, as `_licence_of_all` puts them together."""
    return name.split("-and-") if identifier == "other" and name is not None else [str(identifier)]


def training_licence(corpus: Mapping[str, Any]) -> Licence:
    """What is known about the licence of a corpus that a model was trained on.

    Args:
        corpus: its entry in results.json, with `name`, `terms`, and `licence` as the recipe states it.
    """
    if corpus["terms"]:
        return Licence(
            "other",
            f"{corpus['terms'].rstrip('.')}. This repository holds none of it, but weights, scores and settings. "
            "Whether a model trained on it may be passed on or used commercially is for that agreement to say: read "
            "yours before you do either.",
        )
    unknown = Licence(
        "other",
        "The licence of the training data is not recorded. Whoever trained the model knows it: ask before you pass the "
        "model on.",
    )
    if stated := corpus.get("licence"):
        text = f"Its licence is {stated}, as whoever trained the model states it."
        if stated == "other":
            text = "It has a licence of its own, which whoever trained the model knows: ask before you pass it on."
        return Licence(stated, text)
    return KNOWN_LICENCES.get(corpus["name"], unknown)


def model_card(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Sequence[str],
    repo_id: str,
    revision: str,
    is_teacher: bool = False,
    licence: str | None = None,
) -> ModelCard:
    """The card of a student, or of a teacher.

    Args:
        results: the content of results.json.
        config: the content of the checkpoint's config.json.
        files: the names of the files in the repository, which tell whether a pipeline and a `NOTICE` are among them.
        repo_id: "user/name", for the code that the card shows.
        revision: the revision that this code pins.
        is_teacher: whether it is the teacher.
        licence: the Hub's identifier of the model's licence; None is that of the training data.

    Raises:
        ValueError: results.json lacks something that the card shows, or a figure is not a number.
    """
    try:
        return _model_card(results, config, files, repo_id, revision, is_teacher, licence)
    except KeyError as error:
        raise ValueError(f"results.json has no {error}, which the card needs. {_AGAIN}") from None


def dataset_card_text(
    report: CorpusReport, plain_report: str, permission: str | None, repo_id: str, revision: str
) -> str:
    """The card of a corpus; see `cmkd.hub.corpus`.

    Args:
        report: the report of the corpus.
        plain_report: the table of its sizes, as text.
        permission: the sentence that permits a licensed corpus to be public.
        repo_id: "user/name", for the code that the card shows.
        revision: the revision that this code pins.
    """
    licence = "other" if report.terms else None
    if report.name in KNOWN_LICENCES:
        licence = KNOWN_LICENCES[report.name].identifier
    return render(
        "dataset.md",
        name=report.name,
        terms=report.terms,
        licence=licence,
        licence_text=KNOWN_LICENCES[report.name].text if report.name in KNOWN_LICENCES else None,
        permission=permission,
        plain_report=plain_report,
        label_scale=report.label_scale,
        repo_id=repo_id,
        revision=revision,
    )


def metric_card(title: str, description: str, inputs: str, citation: str) -> str:
    """The README.md of the Space of an `evaluate` metric, from the fields of its `MetricInfo`.

    >>> metric_card("CCC", "How well two agree.", "predictions: numbers", "@article{}").splitlines()[1]
    'title: "CCC"'
    """
    return render("metric.md", gradio=GRADIO, title=title, description=description, inputs=inputs, citation=citation)


def space_card(repo_id: str, revision: str, licence: str | None) -> str:
    """The README.md of a Space that holds a model of one commit, in a page without a server.

    >>> "user/student" in space_card("user/student", "0123abc", "apache-2.0")
    True
    """
    return render("space.md", repo_id=repo_id, revision=revision, licence=licence)


def render(template: str, **values: Any) -> str:
    """Fills a template of `hub_cards/`.

    Raises:
        ValueError: a value that the template needs is missing, or is not a number although it is shown as one.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "interval": _interval, "percent": _percent}
    environment.filters["p_value"] = _p_value
    try:
        return environment.get_template(template).render(**values)
    except UndefinedError as error:
        raise ValueError(
            f"hub_cards/{template}: {error.message}. The card would have an empty place. {_AGAIN}"
        ) from None


def _model_card(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Sequence[str],
    repo_id: str,
    revision: str,
    is_teacher: bool,
    licence: str | None,
) -> ModelCard:
    stage = TEACHER if is_teacher else results["student"]["stage"]
    corpus = results["corpus"]
    if stage not in results["systems"]:
        raise ValueError(f"results.json has no scores of {stage!r}: a card needs them; run the stage {stage}.")
    sources = training_sources(corpus)
    ears = None if is_teacher else results.get("encoders", {}).get(EARS)
    of_data = _licence_of_all(sources)
    identifier, licence_name = _with_that_of_ears(of_data, ears.get("licence")) if ears else of_data
    shown = licence or identifier
    has_notice = NOTICE in files
    languages = list(dict.fromkeys(source.language for source in sources))
    comparisons = {
        entry["split"]: entry
        for entry in results["comparisons"]
        if (entry["system"], entry["baseline"]) == (stage, BASELINE)
    }
    values = {
        "results": results,
        "config": config,
        "speech_layers": _speech_layers(config),
        "stage": stage,
        "is_conditional": STAGES[stage].is_conditional,
        "ears": ears,
        "num_word_pieces": len(config.get("word_pieces") or ()),
        "learned_words": results.get("starts_from", {}).get(stage) == LEXICAL,
        "short_name": STAGES[stage].short_name,
        "control": "control" in results and not is_teacher and describe_control(results["control"]),
        "system": results["systems"][stage],
        "comparisons": comparisons,
        "about_intervals": describe_intervals(results["confidence"], ("validation", "test")),
        "about_test": describe_test(
            [value for entry in comparisons.values() for value in entry["smallest_p"].values()],
            results["confidence"]["permutations"],
        ),
        "has_baseline": BASELINE in results["systems"],
        "has_teacher": TEACHER in results["systems"],
        "sources": sources,
        "is_synthetic": all(source.is_synthetic for source in sources),
        "languages": languages if all(languages) else [],
        "has_pipeline": "pipeline_cmkd.py" in files,
        "has_notice": has_notice,
        "stated_licence": licence,
        "code_files": [name for name in files if name.endswith(".py")],
        "repo_id": repo_id,
        "revision": revision,
        "dimensions": EMOTION_DIMENSIONS,
    }
    metadata = ModelCardData(
        model_name=repo_id.split("/")[-1],
        language=(languages[0] if len(languages) == 1 else languages) if all(languages) else None,
        license=shown,
        license_name=licence_name if shown == "other" else None,
        license_link=NOTICE if has_notice and shown == "other" else None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["cmkd", "speech-emotion-recognition", "arxiv:2112.00158"],
        base_model=_base_models(config, ears),
        eval_results=_eval_results(sources, results["systems"][stage]["test"]),
    )
    text = render("model_teacher.md" if is_teacher else "model_student.md", metadata=metadata.to_yaml(), **values)
    return ModelCard(text)


def _number(value: Any, digits: int = 3) -> str:
    return f"{_checked(value):.{digits}f}"


def _signed(value: Any) -> str:
    return f"{_checked(value):+.3f}"


def _p_value(value: Any) -> str:
    return format_p(_checked(value))


def _percent(value: Any) -> str:
    return f"{_checked(value):.1%}"


def _interval(value: Sequence[float]) -> str:
    low, high = value
    return f"[{_number(low)}, {_number(high)}]"


def _checked(value: Any) -> float:
    if isinstance(value, Undefined):
        str(value)  # raises UndefinedError, which names it
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} stands where a card shows a figure: it must be a finite number.")
    return value


def _licence_name(corpus: Mapping[str, Any]) -> str:
    if corpus["terms"] or corpus.get("licence"):
        return f"{corpus['name']}-terms"
    return "not-recorded"


def _speech_layers(config: Mapping[str, Any]) -> int | None:
    """The number of layers of the speech encoder, for which Moonshine has a field of its own; None if there is none."""
    speech = config.get("speech_config")
    if not speech:
        return None
    return speech["encoder_num_hidden_layers" if speech["model_type"] == "moonshine" else "num_hidden_layers"]


def _base_models(config: Mapping[str, Any], ears: Mapping[str, Any] | None) -> list[str] | None:
    """The names of the encoders, and of whose ears it has, on the Hub; what was read from a folder has none."""
    parts = [config[name] for name in ("speech_config", "text_config") if config.get(name)]
    names = [part.get("_name_or_path", "") for part in parts]
    if ears is not None and not is_folder_digest(ears["commit"] or ""):
        names.append(ears["name"])
    return [name for name in names if name.count("/") == 1 and not name.startswith((".", "/"))] or None


def _eval_results(sources: Sequence[TrainingSource], scores: Mapping[str, Any]) -> list[EvalResult]:
    labelled = {source.name: source.corpus for source in sources if source.is_labelled}
    by_corpus = scores["by_corpus"] if len(labelled) > 1 else dict.fromkeys(labelled, scores)
    return [result for name, of_it in by_corpus.items() for result in _eval_results_of(name, labelled[name], of_it)]


def _eval_results_of(name: str, corpus: Mapping[str, Any], scores: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="dimensional speech emotion recognition",
            dataset_type=corpus["name"],
            dataset_name=f"{name} {corpus['version']}",
            dataset_config=name if name != corpus["name"] else None,  # which of several of that name it is
            dataset_split="test",
            metric_type="concordance_cc",
            metric_name=f"CCC of {dimension}",
            metric_config=dimension,
            metric_value=round(_checked(value), 4),
        )
        for dimension, value in scores["ccc"].items()
        if value is not None
    ]
