"""The tests of an audit, each one function from the answers of a model to findings, with threshold, unit and source.

Where a source is "this package", the threshold is its convention, not a result of research: docs/audit.md says so too.
A finding has one of five verdicts:

- "passed" and "failed": the value keeps or breaks the threshold;
- "undecided": the interval of a difference between groups reaches to both sides of the threshold, so that the corpus
  cannot tell;
- "not applicable": the value cannot be computed, and the note says why;
- "reported": the test has no threshold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np

from cmkd.audit.intervals import (
    Statistic,
    ccc,
    correlation_interval,
    difference_of_groups,
    indicators,
    interval,
    mean_absolute_error,
    mean_error,
    pearson,
    share_explained,
    within_slope,
)
from cmkd.scoring.confidence import ccc_interval, speaker_clusters
from configuration_cmkd import EMOTION_DIMENSIONS

GROUPS = ("correctness", "robustness", "batch and length", "fairness", "what it listens to", "cost")
VERDICTS = ("failed", "undecided", "passed", "reported", "not applicable")

MINIMUM_SPEAKERS = 6
"""Of each group of a fairness test: the fewest whose lying all on one side is by chance rarer than .05 (2 of 2^6)."""

MINIMUM_UTTERANCES = 10
"""Of a speaker, for the error of its mean."""

SAME = 1e-6
"""Scores that are closer than this are the same."""

_ROUNDING = 1e-9

Rule = Literal["at least", "at most", "within", "reported"]


@dataclass(frozen=True)
class Cost:
    """What scoring takes.

    Attributes:
        real_time_factor: Seconds to score a second of speech.
        reference: That of HuBERT Base of transformers with random weights, measured right after.
        parameters, reference_parameters: How many; None where it is not known.
        memory, reference_memory: Bytes at most, besides the weights; None where it is not known.
        device: Where both ran.
    """

    real_time_factor: float
    reference: float
    parameters: int | None
    reference_parameters: int
    memory: int | None
    reference_memory: int | None
    device: str


@dataclass(frozen=True)
class WordAnswers:
    """What a model answered to m sentences that were spoken without any expression.

    Attributes:
        valence: (m,), the ratings of the words, on the unit interval.
        voices: m names of who spoke.
        answers: (m, 3).
    """

    valence: np.ndarray
    voices: Sequence[str]
    answers: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """What a model answered on n utterances.

    Attributes:
        dimensions: Those that it answers.
        labels: (n, 3), on the unit interval, NaN where not rated.
        clean: (n, 3), to the utterances as they are.
        disturbed: By disturbance, (n, 3).
        batched: (n, 3), in batches; None if it takes one utterance at a time.
        once, ten_times: (n, 3), to a second of each utterance, and to the same second ten times in a row.
        speakers: n names, "" where unknown.
        columns: By column, n values by which utterances are grouped, "" where unknown.
        said: n times the words, or what stands for them, "" where unknown.
        acted: n emotions that were acted, "" where unknown; None if this is known of none.
        words: What it answered to sentences whose words were rated; None if it was not asked.
        cost: What scoring takes; None if it was not measured.
    """

    dimensions: tuple[str, ...]
    labels: np.ndarray
    clean: np.ndarray
    disturbed: Mapping[str, np.ndarray]
    batched: np.ndarray | None
    once: np.ndarray | None
    ten_times: np.ndarray | None
    speakers: Sequence[str]
    columns: Mapping[str, Sequence[str]]
    said: Sequence[str]
    acted: Sequence[str] | None
    words: WordAnswers | None
    cost: Cost | None

    def rated(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """By dimension that is both answered and rated: labels, answers, and which utterances they are of."""
        for index, dimension in enumerate(EMOTION_DIMENSIONS):
            rows = ~np.isnan(self.labels[:, index])
            if dimension in self.dimensions and rows.any():
                yield dimension, self.labels[rows, index], self.clean[rows, index], rows

    def answered(self, answers: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """By dimension that is answered, a column (n,) of answers (n, 3)."""
        for dimension in self.dimensions:
            yield dimension, answers[:, EMOTION_DIMENSIONS.index(dimension)]


@dataclass(frozen=True)
class Finding:
    """One value of a test.

    Attributes:
        of: The dimension, pair of dimensions, or "model".
        condition: The disturbance or the group; "" where there is none.
        value: In the unit of the test; None if it cannot be computed.
        interval: [low, high], its 95 % interval over speakers.
        note: Why there is no value, or what else belongs to it.
    """

    of: str
    condition: str
    value: float | None
    interval: list[float] | None = None
    note: str = ""


@dataclass(frozen=True)
class AuditTest:
    """A test.

    Attributes:
        name: As audit.json has it.
        group: One of `GROUPS`.
        about: What is computed, in sentences.
        unit: Of the values and the threshold.
        rule: "at least" or "at most" the threshold; "within": the whole interval lies from minus to plus the threshold;
            or "reported", without one.
        threshold: See `rule`.
        source: Where test and threshold come from.
        measure: The function.
    """

    name: str
    group: str
    about: str
    unit: str
    rule: Rule
    threshold: float | None
    source: str
    measure: Callable[[Evidence], list[Finding]] = field(repr=False)

    def run(self, evidence: Evidence) -> dict[str, Any]:
        """The entry of audit.json: what the test is, and each finding with its verdict."""
        findings = [
            {
                "of": found.of,
                "condition": found.condition,
                "value": found.value,
                "interval": found.interval,
                "verdict": self.verdict(found),
                "note": found.note,
            }
            for found in self.measure(evidence)
        ]
        names = ("name", "group", "about", "unit", "rule", "threshold", "source")
        return {name: getattr(self, name) for name in names} | {"findings": findings}

    def verdict(self, found: Finding) -> str:
        if found.value is None:
            return "not applicable"
        if self.threshold is None:
            return "reported"
        limit = self.threshold + _ROUNDING
        if self.rule == "at least":
            return "passed" if found.value >= self.threshold - _ROUNDING else "failed"
        if self.rule == "at most":
            return "passed" if found.value <= limit else "failed"
        low, high = found.interval or (found.value, found.value)
        if -limit <= low and high <= limit:
            return "passed"
        return "failed" if low > limit or high < -limit else "undecided"


TESTS: dict[str, AuditTest] = {}
"""All tests by name, in the order in which they are shown."""

OURS = "this package"
_SER_TESTS = "Derington et al. 2023, arXiv 2312.06270 (ser-tests)"


def audit_test(
    group: str, unit: str, rule: Rule, threshold: float | None, source: str
) -> Callable[[Callable[[Evidence], list[Finding]]], Callable[[Evidence], list[Finding]]]:
    """Makes a function a test; its docstring says what is computed."""

    def register(function: Callable[[Evidence], list[Finding]]) -> Callable[[Evidence], list[Finding]]:
        about = " ".join(inspect.cleandoc(function.__doc__ or "").split())
        TESTS[function.__name__] = AuditTest(function.__name__, group, about, unit, rule, threshold, source, function)
        return function

    return register


@audit_test("correctness", "CCC, -1 to 1", "at least", 0.5, f"Lin 1989; threshold: {OURS}")
def concordance(evidence: Evidence) -> list[Finding]:
    """Lin's concordance correlation coefficient with the labels; 0 for a constant."""
    labels = np.full_like(evidence.labels, np.nan)
    for dimension, of_it, _, rows in evidence.rated():
        labels[rows, EMOTION_DIMENSIONS.index(dimension)] = of_it
    ends = ccc_interval(labels, np.nan_to_num(evidence.clean), evidence.speakers)
    return [Finding(dimension, "", ccc(of_it, p), ends[dimension]) for dimension, of_it, p, _ in evidence.rated()]


@audit_test("correctness", "Pearson's r, -1 to 1", "at least", 0.5, OURS)
def correlation(evidence: Evidence) -> list[Finding]:
    """Pearson's correlation with the labels, which a wrong mean or spread does not lower."""
    findings = []
    for dimension, labels, predictions, rows in evidence.rated():
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            what = "labels" if np.ptp(labels) == 0 else "answers"
            findings.append(Finding(dimension, "", None, note=f"The {what} are constant: there is no correlation."))
            continue
        ends = correlation_interval(labels, predictions, speaker_clusters(evidence.speakers)[rows])
        findings.append(Finding(dimension, "", pearson(labels, predictions), ends))
    return findings


@audit_test("correctness", "share of the scale", "at most", 0.1, OURS)
def absolute_error(evidence: Evidence) -> list[Finding]:
    """The mean absolute difference from the labels, on the unit interval."""
    clusters = speaker_clusters(evidence.speakers)
    return [
        Finding(
            dimension,
            "",
            mean_absolute_error(labels, predictions),
            interval(mean_absolute_error, labels, predictions, clusters[rows]),
        )
        for dimension, labels, predictions, rows in evidence.rated()
    ]


@audit_test("correctness", "share of the scale", "at most", 0.1, f"{_SER_TESTS}; threshold: {OURS}")
def speaker_error(evidence: Evidence) -> list[Finding]:
    """How far the mean answer of a speaker is from the speaker's mean label: the mean over speakers with 10 utterances
    or more."""
    findings = []
    names = np.array(evidence.speakers, dtype=object)
    for dimension, labels, predictions, rows in evidence.rated():
        own = names[rows]
        known = [name for name in dict.fromkeys(own) if name and (own == name).sum() >= MINIMUM_UTTERANCES]
        if not known:
            note = f"No speaker has {MINIMUM_UTTERANCES} rated utterances."
            findings.append(Finding(dimension, "", None, note=note))
            continue
        errors = [abs(mean_error(labels[own == name], predictions[own == name])) for name in known]
        note = f"Over {len(known)} speakers; the largest is {max(errors):.3f}."
        findings.append(Finding(dimension, "", float(np.mean(errors)), note=note))
    return findings


@audit_test("correctness", "share of the clips", "at most", 0.01, OURS)
def out_of_range(evidence: Evidence) -> list[Finding]:
    """How many answers lie outside of the scale, below 0 or above 1."""
    return [
        Finding(dimension, "", float(np.mean((values < -SAME) | (values > 1 + SAME))))
        for dimension, values in evidence.answered(evidence.clean)
    ]


@audit_test("correctness", "ratio", "at least", 0.25, OURS)
def spread(evidence: Evidence) -> list[Finding]:
    """The standard deviation of the answers divided by that of the labels: near 0 for a model that answers the same to
    everything."""
    return [
        Finding(dimension, "", float(predictions.std() / labels.std()))
        if np.ptp(labels)
        else Finding(dimension, "", None, note="The labels are constant.")
        for dimension, labels, predictions, _ in evidence.rated()
    ]


@audit_test("correctness", "share of the clips", "at most", 0.01, OURS)
def ties(evidence: Evidence) -> list[Finding]:
    """How many clips get the same score in two dimensions."""
    columns = dict(evidence.answered(evidence.clean))
    return [
        Finding(f"{one} and {other}", "", float(np.mean(np.abs(columns[one] - columns[other]) < SAME)))
        for one, other in combinations(evidence.dimensions, 2)
    ]


@audit_test("correctness", "difference of correlations", "at most", 0.3, OURS)
def entanglement(evidence: Evidence) -> list[Finding]:
    """How much more two dimensions correlate in the answers than in the labels: the absolute correlation of the answers
    minus that of the labels."""
    findings = []
    for one, other in combinations(evidence.dimensions, 2):
        columns = [EMOTION_DIMENSIONS.index(name) for name in (one, other)]
        rows = ~np.isnan(evidence.labels[:, columns]).any(axis=1)
        pairs = [values[rows][:, columns] for values in (evidence.clean, evidence.labels)]
        if not rows.any() or any(np.ptp(pair, axis=0).min() == 0 for pair in pairs):
            note = "Answers or labels of one of them are constant, or no clip is rated in both."
            findings.append(Finding(f"{one} and {other}", "", None, note=note))
            continue
        answers, labels = (abs(np.corrcoef(pair.T)[0, 1]) for pair in pairs)
        note = f"{answers:.3f} in the answers, {labels:.3f} in the labels."
        findings.append(Finding(f"{one} and {other}", "", float(answers - labels), note=note))
    return findings


def _changes(evidence: Evidence) -> Iterator[tuple[str, str, np.ndarray]]:
    for name, answers in evidence.disturbed.items():
        for dimension, values in evidence.answered(np.abs(answers - evidence.clean)):
            yield name, dimension, values


@audit_test("robustness", "share of the scale", "at most", 0.05, f"{_SER_TESTS}: 0.05 is where an answer has changed")
def mean_change(evidence: Evidence) -> list[Finding]:
    """The mean over the clips of the absolute change of the score under a disturbance."""
    return [Finding(dimension, name, float(values.mean())) for name, dimension, values in _changes(evidence)]


@audit_test("robustness", "share of the scale", "at most", 0.15, OURS)
def large_change(evidence: Evidence) -> list[Finding]:
    """The 95th percentile over the clips of the absolute change of the score under a disturbance."""
    return [
        Finding(dimension, name, float(np.quantile(values, 0.95))) for name, dimension, values in _changes(evidence)
    ]


@audit_test("robustness", "CCC", "at most", 0.05, OURS)
def lost_concordance(evidence: Evidence) -> list[Finding]:
    """The CCC of the clips as they are minus that under a disturbance; negative if the disturbance helps."""
    findings = []
    for name, answers in evidence.disturbed.items():
        for dimension, labels, predictions, rows in evidence.rated():
            under = ccc(labels, answers[rows, EMOTION_DIMENSIONS.index(dimension)])
            note = f"CCC is {under:.3f}."
            findings.append(Finding(dimension, name, ccc(labels, predictions) - under, note=note))
    return findings


@audit_test("batch and length", "share of the scale", "at most", 1e-3, OURS)
def batch_change(evidence: Evidence) -> list[Finding]:
    """The largest absolute difference of a score between a clip alone and the same clip in a batch with others."""
    if evidence.batched is None:
        return [Finding("model", "", None, note="The model takes one utterance at a time.")]
    return [
        Finding(dimension, "", float(values.max()))
        for dimension, values in evidence.answered(np.abs(evidence.batched - evidence.clean))
    ]


@audit_test("batch and length", "share of the scale", "at most", 0.05, OURS)
def length_change(evidence: Evidence) -> list[Finding]:
    """The mean absolute difference of the score between one second of a clip and the same second ten times in a row."""
    if evidence.once is None or evidence.ten_times is None:
        return []
    return [
        Finding(dimension, "", float(values.mean()))
        for dimension, values in evidence.answered(np.abs(evidence.once - evidence.ten_times))
    ]


@audit_test("fairness", "CCC", "within", 0.1, OURS)
def concordance_gap(evidence: Evidence) -> list[Finding]:
    """The CCC of a group of speakers minus that of all other groups; a group of fewer than 6 speakers, or that leaves
    fewer to compare with, gets no claim."""
    return _gaps(evidence, ccc)


@audit_test("fairness", "share of the scale", "within", 0.05, OURS)
def error_gap(evidence: Evidence) -> list[Finding]:
    """The mean error (answer minus label) of a group of speakers minus that of all other groups: above 0 if the model
    rates the group too high. Groups of fewer than 6 speakers get no claim."""
    return _gaps(evidence, mean_error)


def _gaps(evidence: Evidence, statistic: Statistic) -> list[Finding]:
    findings = []
    clusters = speaker_clusters(evidence.speakers)
    known_speaker = np.array([speaker != "" for speaker in evidence.speakers])
    for column, values in evidence.columns.items():
        of_rows = np.array(values, dtype=object)
        for dimension, _, _, rated in evidence.rated():
            rows = rated & known_speaker & (of_rows != "")
            groups = sorted(set(of_rows[rows]))
            if len(groups) < 2:
                note = f"{column} has {len(groups)} groups among the rated clips of known speakers: two are needed."
                findings.append(Finding(dimension, column, None, note=note))
                continue
            index = EMOTION_DIMENSIONS.index(dimension)
            arrays = evidence.labels[rows, index], evidence.clean[rows, index], clusters[rows]
            for group in groups[:1] if len(groups) == 2 else groups:
                others = groups[1] if len(groups) == 2 else "all others"
                condition = f"{column}: {group} against {others}"
                in_group = of_rows[rows] == group
                counts = [len(set(arrays[2][part])) for part in (in_group, ~in_group)]
                if set(arrays[2][in_group]) & set(arrays[2][~in_group]):
                    note = "Some speakers are in both, so that their errors are not independent."
                elif min(counts) < MINIMUM_SPEAKERS:
                    note = f"{counts[0]} and {counts[1]} speakers: {MINIMUM_SPEAKERS} of each are needed for a claim."
                else:
                    value, ends = difference_of_groups(statistic, *arrays, in_group)
                    note = f"{counts[0]} and {counts[1]} speakers."
                    findings.append(Finding(dimension, condition, value, ends, note))
                    continue
                findings.append(Finding(dimension, condition, None, note=note))
    return findings


@audit_test("what it listens to", "share of the variance, adjusted", "reported", None, OURS)
def follows_acting(evidence: Evidence) -> list[Finding]:
    """How much of the variance of the score, among clips of the same words, the acted emotion explains: the partial R²
    of the emotion given the words, adjusted for their numbers, so that it is 0 on average for a model that hears words
    alone. The interval is over speakers."""
    if evidence.acted is None:
        return []
    known = np.array([said != "" and acted != "" for said, acted in zip(evidence.said, evidence.acted, strict=True)])
    said, acted = (np.array(names, dtype=str)[known] for names in (evidence.said, evidence.acted))
    clusters = speaker_clusters(evidence.speakers)[known]
    sentences, emotions = len(set(said)), len(set(acted))
    note = f"{len(said)} clips: {sentences} sentences, {emotions} emotions, {len(set(clusters))} speakers."
    if emotions < 2 or len(said) <= sentences + emotions:
        note += " There must be two emotions or more, and more clips than sentences and emotions together."
        return [Finding(dimension, "", None, note=note) for dimension in evidence.dimensions]
    design = np.column_stack([np.unique(said, return_inverse=True)[1], indicators(acted)])
    return [
        _share(dimension, design, scores[known], clusters, note)
        for dimension, scores in evidence.answered(evidence.clean)
    ]


@audit_test("what it listens to", "share of the variance, adjusted", "reported", None, OURS)
def follows_words(evidence: Evidence) -> list[Finding]:
    """How much of the variance of the score, among sentences that the same voice speaks without expression, the rated
    valence of the words explains: the partial R² of the rating given the voice, adjusted, so that it is 0 on average
    for a model that does not hear the words. The interval is over sentences."""
    if evidence.words is None:
        return []
    spoken = evidence.words
    voices = np.unique(spoken.voices, return_inverse=True)[1]
    design = np.column_stack([voices, spoken.valence])
    findings = []
    for dimension, scores in evidence.answered(spoken.answers):
        rises = within_slope(design, scores)
        note = (
            f"{len(scores)} sentences, {voices.max() + 1} voices. From the lowest to the highest rating the score "
            f"{'rises' if rises >= 0 else 'falls'} by {abs(rises) * np.ptp(spoken.valence):.3f}."
        )
        findings.append(_share(dimension, design, scores, np.arange(len(scores)), note))
    return findings


def _share(dimension: str, design: np.ndarray, scores: np.ndarray, clusters: np.ndarray, note: str) -> Finding:
    if np.ptp(scores) < SAME:
        return Finding(dimension, "", None, note=f"The answers are constant: there is nothing to explain. {note}")
    ends = interval(share_explained, design, scores, clusters)
    return Finding(dimension, "", share_explained(design, scores), ends, note)


@audit_test("cost", "parameters", "reported", None, OURS)
def parameters(evidence: Evidence) -> list[Finding]:
    """How many parameters the model has."""
    if evidence.cost is None:
        return []
    count = evidence.cost.parameters
    note = f"HuBERT Base has {evidence.cost.reference_parameters:,}."
    if count is None:
        return [Finding("model", "", None, note="The model does not say.")]
    return [Finding("model", "", float(count), note=note)]


@audit_test("cost", "seconds per second of speech", "at most", 1.0, f"real time; {OURS}")
def real_time_factor(evidence: Evidence) -> list[Finding]:
    """How long it takes to score a second of speech, of 10 s at once: the median of three."""
    if evidence.cost is None:
        return []
    note = f"On {evidence.cost.device}; HuBERT Base takes {evidence.cost.reference:.3g}."
    return [Finding("model", "", evidence.cost.real_time_factor, note=note)]


@audit_test("cost", "times HuBERT Base", "reported", None, OURS)
def relative_time(evidence: Evidence) -> list[Finding]:
    """How long scoring takes beside HuBERT Base of transformers, with random weights, on the same machine in the same
    run."""
    if evidence.cost is None:
        return []
    return [Finding("model", "", evidence.cost.real_time_factor / evidence.cost.reference)]


@audit_test("cost", "MB", "reported", None, OURS)
def working_memory(evidence: Evidence) -> list[Finding]:
    """The most memory that scoring 10 s takes besides the weights, which take 4 bytes per parameter in 32 bits."""
    if evidence.cost is None:
        return []
    cost = evidence.cost
    if cost.memory is None or cost.reference_memory is None:
        return [Finding("model", "", None, note="It is known on Linux with glibc and on GPUs of torch.cuda only.")]
    note = f"On {cost.device}; HuBERT Base takes {cost.reference_memory / 1e6:.0f}."
    return [Finding("model", "", cost.memory / 1e6, note=note)]
