"""The paper's tables with our figures beside the published ones, from the folders of runs.

A stage of a run fills the row that has its stage and its encoders. Runs on a corpus that the paper does not have fill a
table of their own, by stage, without published figures: those are about other speech.

Ours is the CCC over the whole split, with the interval that results.json holds. A cross-validation has two figures: the
mean over its folds, with their standard deviation, and the CCC over the predictions of all folds together ("pooled"),
which is the one that has an interval and is tested. A run of several seeds has the mean of their CCC, with its standard
deviation; interval and test are of the mean, see `cmkd.runs.seeds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cmkd.atomic import written_whole
from cmkd.corpora.schema import SPLITS
from cmkd.formats import check_version, with_version
from cmkd.json_files import read_json, write_json
from cmkd.reporting.figures import draw_valence_gap, figure_style
from cmkd.reporting.paper import LATER, LATER_RELEASE, TABLE_1, TABLE_2, TABLES, PublishedRow, PublishedTable
from cmkd.reporting.table_text import ResultsTable, Scores, TableRow, format_latex, format_markdown
from cmkd.runs.recipe import Recipe
from cmkd.runs.seeds import read_answers
from cmkd.scoring.evaluation import Predictions, read_predictions
from cmkd.scoring.scores import compare, describe_confidence, describe_intervals, describe_test
from cmkd.stages import (
    CONTROLS,
    EARS,
    ENCODERS,
    STAGES,
    STUDENTS,
    SYSTEM_NAMES,
    TEACHER,
    describe_control,
    describe_variant,
    most_common_reading,
    system_name,
)
from configuration_cmkd import EMOTION_DIMENSIONS

_SHOWN_APART = {"corpus", "unlabelled", "seed", "cache_dtype", *ENCODERS, EARS}
_SETTINGS = tuple(
    dict.fromkeys(setting for stage in STAGES.values() for setting in stage.settings if setting not in _SHOWN_APART)
)
"""The settings whose defaults a run is compared with."""

_SETTINGS_NOTE = "By run, the settings that are not the defaults, which are the paper's where it gives one:"
_METRICS = {"ccc": "CCC", "pearson": "Pearson"}
_FIGURE_CAPTION = (
    "Valence CCC with its interval, and the published figures as rings. Of a cross-validation the dot and the interval "
    "are of the pooled CCC; the upright stroke is the mean over the folds, which the table compares with the ring. Of "
    "several seeds the dot and the interval are of the mean; the small dots are the seeds."
)
_RUN_AGAIN = "it is of another version of cmkd, or of a run that is not complete: give its command again."


@dataclass(frozen=True, eq=False)
class _Run:
    folder: Path
    results: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def corpus(self) -> str:
        return self.results["corpus"]["name"]

    @property
    def release(self) -> str:
        """The release of the corpus, without its transcripts and the digest of this copy."""
        return self.results["corpus"]["release"]

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.results["recipe"]

    @property
    def seeds(self) -> list[int]:
        """The seeds of its trainings, one or several."""
        return self.results["seeds"] if self.is_repeated else [self.results["seed"]]

    @property
    def is_repeated(self) -> bool:
        return "seeds" in self.results

    def stages(self, split: str) -> list[str]:
        return [stage for stage in STAGES if split in self.results["systems"].get(stage, {})]

    def answers(self, stage: str, split: str) -> Predictions:
        """The answers of a stage; for a run of several seeds `predictions` is (seeds, n, 3)."""
        if self.is_repeated:
            return read_answers(self.folder, self.seeds, stage, split)
        return read_predictions(self.folder / "predictions" / f"{stage}_{split}.parquet")

    def encoders(self, stage: str) -> list[str]:
        return [self.recipe[setting] for setting in STAGES[stage].all_encoders]

    def ears(self, stage: str) -> str | None:
        """Whose ears the system has, None if nobody else's; recipes of earlier versions do not say, and had none."""
        return self.recipe.get(EARS) if STAGES[stage].takes_ears else None


def gather_tables(runs: Sequence[Path]) -> list[ResultsTable]:
    """Reads runs and fills the tables of their corpora.

    Args:
        runs: folders of `cmkd train`, of one seed or several, or of `cmkd crossval`, with results.json and
            predictions.

    Returns:
        Tables 1 and 2 if there is a run on msp-podcast, Table 3 if there is one on iemocap, and for each other corpus
        the rows of Table 2, and of Table 1 if its teacher was scored on train.

    Raises:
        FileNotFoundError: a folder has no results.json, or lacks predictions.
        ValueError: there are no runs, or one is named twice; results.json cannot be read or lacks something; two runs
            fill the same row; or runs of one table are on different releases or were scored on different test sets.
    """
    if not runs:
        raise ValueError("runs is empty: name at least one folder of a run.")
    twice = [str(folder) for folder, times in Counter(folder.resolve() for folder in runs).items() if times > 1]
    if twice:
        raise ValueError(f"runs names {', '.join(twice)} more than once: name each folder once.")
    read = [_read_run(folder) for folder in runs]
    tables = []
    for corpus in sorted({run.corpus for run in read}, key=_corpus_order):
        chosen = [run for run in read if run.corpus == corpus]
        _require_one_release(chosen)
        published = [table for table in TABLES if table.corpus == corpus] or _rows_elsewhere(chosen)
        tables += [_fill(table, chosen) for table in published]
    return tables


def format_tables(tables: Sequence[ResultsTable]) -> str:
    """The tables in Markdown, aligned for a terminal."""
    return "\n\n".join(format_markdown(table) for table in tables)


def write_tables(tables: Sequence[ResultsTable], output: Path) -> list[Path]:
    """Writes tables.md, tables.tex, tables.json and valence_gap.png.

    Args:
        tables: as `gather_tables` returns them.
        output: a folder, which is made if it does not exist.

    Returns:
        The files.
    """
    markdown, latex, numbers, figure = (
        output / name for name in ("tables.md", "tables.tex", "tables.json", "valence_gap.png")
    )
    picture = f"![The valence gap]({figure.name})\n\n{_FIGURE_CAPTION}"
    _write_text(markdown, f"{format_tables(tables)}\n\n{picture}\n")
    _write_text(
        latex,
        "\n\n".join(["% needs \\usepackage{adjustbox,booktabs}", *(format_latex(table) for table in tables)]) + "\n",
    )
    write_json(numbers, with_version("tables.json", {"tables": [asdict(table) for table in tables]}))
    with figure_style(), written_whole(figure) as unfinished:
        panels = {table.heading: _gap_systems(table) for table in tables if table.gap}
        draw_valence_gap(panels).savefig(unfinished, format="png")
    return [markdown, latex, numbers, figure]


def _read_run(folder: Path) -> _Run:
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no results.json: name the folder of a run that is complete.")
    results = read_json(path, _RUN_AGAIN)
    check_version(path, results)
    _require(path, results, ("corpus", "versions", "systems", "recipe", "cost", "confidence"))
    if "seeds" not in results:
        _require(path, results, ("seed",))
    _require(path, results["confidence"], ("permutations",), "confidence")  # older intervals differ
    _require(path, results["corpus"], ("name", "version", "release", "utterances", "notes"), "corpus")
    for stage, splits in results["systems"].items():
        _require(path, results["recipe"], STAGES[stage].all_encoders, "recipe")
        for split, scores in splits.items():
            wanted = ("ccc", "pearson", "interval", *(("std", "each") if "seeds" in results else ()))
            _require(path, scores, wanted, f"systems.{stage}.{split}")
        if "folds" in results:
            _require(path, results["folds"], ("number", "mean", "std"), "folds")
            for name in ("mean", "std"):
                _require(path, results["folds"][name], (stage,), f"folds.{name}")
    run = _Run(folder, results)
    if not run.stages("test"):
        raise ValueError(
            f"{path} has no scores on the split test, which the tables show: run a stage on a corpus that has one."
        )
    return run


def _require(path: Path, entry: Mapping[str, Any], keys: Iterable[str], where: str = "") -> None:
    missing = [f"{where}.{key}".lstrip(".") for key in keys if key not in entry]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: {_RUN_AGAIN}")


def _require_one_release(runs: Sequence[_Run]) -> None:
    first = runs[0]
    for run in runs:
        if run.release != first.release:
            raise ValueError(
                f"{first.folder} is on {first.corpus} {first.release}, {run.folder} on {run.release}: a table takes "
                "runs on one version. Make a table of each."
            )


def _corpus_order(corpus: str) -> tuple[int, str]:
    known = [table.corpus for table in TABLES]
    return known.index(corpus) if corpus in known else len(known), corpus


def _rows_elsewhere(runs: Sequence[_Run]) -> list[PublishedTable]:
    """The rows of Tables 1 and 2 for a corpus that the paper does not have; whatever encoders a run has fill them."""

    def elsewhere(row: PublishedRow, system: str) -> PublishedRow:
        base = 6 if row.builds_on == 7 else row.builds_on  # the one frozen audio-only row
        return replace(row, system=system, scores=None, encoders={}, builds_on=base)

    def table(original: PublishedTable, rows: Iterable[PublishedRow]) -> PublishedTable:
        synthetic = ", synthetic speech" if corpus.startswith("spoken-") else ""
        name, title = f"The rows of {original.name}", f"{original.title}{synthetic}"
        return replace(original, name=name, title=title, corpus=corpus, rows=tuple(rows), release=None, utterances=None)

    corpus = runs[0].corpus
    fit = table(TABLE_1, (elsewhere(row, f"teacher, {_METRICS[row.metric]}") for row in TABLE_1.rows))
    chosen = (row for row in TABLE_2.rows if row.number in (6, 8, 9, 10, 11, 12))
    systems = table(TABLE_2, (elsewhere(row, SYSTEM_NAMES[str(row.stage)]) for row in chosen))
    return [fit, systems] if any(TEACHER in run.stages("train") for run in runs) else [systems]


@dataclass(frozen=True)
class _Slot:
    """A row before its figures are looked up.

    Attributes:
        number: as in `TableRow`.
        row: what the paper has there; without figures for a system that it does not have.
        run: the run that fills it, if any.
        base: the number of the row that it is tested against, if any.
        ways: in which ways the system is not the paper's, as `describe_variant` returns them.
    """

    number: str
    row: PublishedRow
    run: _Run | None = None
    base: str | None = None
    ways: Mapping[str, str] = field(default_factory=dict)

    @property
    def adds_to_ts(self) -> bool:
        """Whether it is not the paper's by more than whose ears it has, so that T/S is what it has to beat."""
        return bool(set(self.ways) - {EARS})


def _fill(table: PublishedTable, runs: Sequence[_Run]) -> ResultsTable:
    """Puts each run into its row, and systems without a row below them."""
    slots = _slots(table, runs)
    filled = list(dict.fromkeys(slot.run for slot in slots if slot.run))
    answers = _read_answers(table, slots)
    runs_by_row = {slot.number: slot.run for slot in slots}
    rows = [
        _table_row(table.split, slot, _paired(slot, runs_by_row, answers) if table.split == "test" else None)
        for slot in slots
    ]
    numbers = [row.number for row in rows]
    gap = {}
    for stage, candidates in table.gap.items():
        was_run = [str(number) for number in candidates if str(number) in answers]
        gap[stage] = numbers.index(was_run[0] if was_run else str(candidates[0]))
    if gap:
        teacher = gap.pop(TEACHER)
        gap |= {slot.number: numbers.index(slot.number) for slot in slots if slot.ways}
        gap[TEACHER] = teacher
    return ResultsTable(
        name=table.name,
        title=table.title,
        corpus=table.corpus,
        release=runs[0].release,
        split=table.split,
        rows=rows,
        notes=[
            *_notes(table, filled, rows, answers),
            *_notes_on_teachers(slots),
            *([_SETTINGS_NOTE] if filled else []),
        ],
        runs=[_describe_run(run, [slot for slot in slots if slot.run is run]) for run in filled],
        gap=gap,
    )


def _slots(table: PublishedTable, runs: Sequence[_Run]) -> list[_Slot]:
    """The rows of the paper, then systems that it does not have, then later work.

    Raises:
        ValueError: two runs fill the same row, or have systems of the same name.
    """
    owners: dict[int, _Run] = {}
    further: dict[str, tuple[_Run, str, dict[str, str]]] = {}
    reading = most_common_reading(run.results for run in runs)
    for run in runs:
        for stage in run.stages(table.split):
            ways = describe_variant(stage, run.results, reading)
            places = [] if ways else [place for place, row in enumerate(table.rows) if _is_row(run, stage, row)]
            for place in places:
                if place in owners:
                    row = table.rows[place]
                    _refuse(owners[place], run, f"fill row {row.number} of {table.name} ({row.system})")
                owners[place] = run
            if not places and table.split == "test":
                shown = f"{system_name(stage, ways)} ({_encoder_names(run, stage)})"
                if shown in further:
                    _refuse(further[shown][0], run, f"have a system {shown}")
                further[shown] = run, stage, ways
    slots = [
        _Slot(str(row.number), row, owners.get(place), None if row.builds_on is None else str(row.builds_on))
        for place, row in enumerate(table.rows)
    ]
    order = list(STAGES)
    in_order = sorted(
        further.values(),
        key=lambda entry: (
            order.index(entry[1]),
            "control" in entry[2],
            entry[0].encoders(entry[1]),
            len(entry[2]),
            entry[0].name,
        ),
    )
    for index, (run, stage, ways) in enumerate(in_order, start=1):
        row = PublishedRow(None, system_name(stage, ways), None, stage)
        slots.append(_Slot(f"+{index}", row, run, ways=ways))
    slots = [replace(slot, base=_further_base(slot, slots)) if slot.number.startswith("+") else slot for slot in slots]
    if table is TABLE_2:
        slots += [_Slot("", row) for row in LATER]
    return slots


def _refuse(one: _Run, other: _Run, do_what: str) -> NoReturn:
    seeds = f" with the seeds {_listed(one.seeds)} and {_listed(other.seeds)}" if one.seeds != other.seeds else ""
    raise ValueError(
        f"{one.folder} and {other.folder} both {do_what}{seeds}: a row shows one run. Make a table of each, or one run "
        "with `seeds` of both."
    )


def _is_row(run: _Run, stage: str, row: PublishedRow) -> bool:
    """Whether a system that is the paper's has the stage and the encoders of a row."""
    return stage == row.stage and all(run.recipe[setting] == value for setting, value in row.encoders.items())


def _further_base(slot: _Slot, slots: Sequence[_Slot]) -> str | None:
    """The row of the stage before that hears as it does, if there is exactly one; of a variant, that of T/S."""
    stage = str(slot.row.stage)
    base = "ts" if slot.adds_to_ts else STAGES[stage].builds_on
    bases = [
        other.number
        for other in slots
        if slot.run
        and other.run
        and other.row.stage == base
        and not other.adds_to_ts
        and other.run.recipe["student_speech_encoder"] == slot.run.recipe["student_speech_encoder"]
        and (other.run.ears(str(base)) == slot.run.ears(stage) or not STAGES[str(base)].takes_ears)
    ]
    return bases[0] if len(bases) == 1 else None


def _read_answers(table: PublishedTable, slots: Sequence[_Slot]) -> dict[str, Predictions]:
    """The predictions of each row that was run, by its number.

    Raises:
        ValueError: two are about different utterances or labels.
    """
    answers: dict[str, Predictions] = {}
    first: tuple[_Run, Predictions] | None = None
    for slot in slots:
        if slot.run is None:
            continue
        answer = slot.run.answers(str(slot.row.stage), table.split)
        first = first or (slot.run, answer)
        if answer.ids != first[1].ids or not np.array_equal(answer.labels, first[1].labels, equal_nan=True):
            raise ValueError(
                f"{first[0].folder} and {slot.run.folder} were scored on different utterances or labels of "
                f"{table.split}: one table takes one test set. Run both on the same data, or make a table of each."
            )
        answers[slot.number] = answer
    return answers


def _table_row(split: str, slot: _Slot, paired: Mapping[str, Any] | None) -> TableRow:
    row, run = slot.row, slot.run
    if run is None or row.stage is None:
        return TableRow(slot.number, row.system, row.stage, row.scores)
    scores = run.results["systems"][row.stage][split]
    folds = None
    if "folds" in run.results and split == "test":
        of_run = run.results["folds"]
        folds = {"number": of_run["number"], "mean": of_run["mean"][row.stage], "std": of_run["std"][row.stage]}
    return TableRow(
        number=slot.number,
        system=row.system if row.scores else f"{row.system} ({_encoder_names(run, row.stage)})",
        stage=row.stage,
        published=row.scores,
        run=run.name,
        score=scores[row.metric],
        interval=scores["interval"] if row.metric == "ccc" else None,
        folds=folds,
        seeds=_seeds_of_row(run, scores if row.metric == "ccc" else {"std": None, "each": None}),
        difference=_difference(folds["mean"] if folds else scores[row.metric], row.scores) if row.scores else None,
        paired=paired,
        ways=slot.ways,
    )


def _seeds_of_row(run: _Run, scores: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"numbers": run.seeds, "std": scores["std"], "each": scores["each"]} if run.is_repeated else None


def _paired(slot: _Slot, runs: Mapping[str, _Run | None], answers: Mapping[str, Predictions]) -> dict[str, Any] | None:
    """The paired test of a row that was run against the one it builds on."""
    if slot.run is None or slot.base is None:
        return None
    base = runs.get(slot.base)
    if base is None:
        return {"against": slot.base, "reason": f"row {slot.base} was not run"}
    if (slot.run.is_repeated or base.is_repeated) and slot.run.seeds != base.seeds:
        return {"against": slot.base, "reason": f"row {slot.base} has other seeds"}
    ours = answers[slot.number]
    return {"against": slot.base} | compare(ours, answers[slot.base])


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _difference(scores: Scores, others: Scores) -> dict[str, float | None]:
    pairs = {dimension: (scores[dimension], others[dimension]) for dimension in EMOTION_DIMENSIONS}
    return {name: None if ours is None or theirs is None else ours - theirs for name, (ours, theirs) in pairs.items()}


def _encoder_names(run: _Run, stage: str) -> str:
    """The names of the encoders, without the owner on the Hub or the folder they are in."""
    speech, *others = (Path(encoder).name for encoder in run.encoders(stage))
    if STAGES[stage].trains_encoder:
        layers = run.recipe["num_trainable_layers"]
        speech += ", all layers" if layers == -1 else f", top {layers} layers"
    return f"{speech}; teacher {' + '.join(others)}" if stage in STUDENTS else " + ".join([speech, *others])


def _notes(
    table: PublishedTable, runs: Sequence[_Run], rows: Sequence[TableRow], answers: Mapping[str, Predictions]
) -> list[str]:
    notes = []
    if answers:
        first = next(iter(answers.values()))
        confidence = describe_confidence({table.split: first.speakers})
        notes.append(
            f"Ours: over the {len(first.ids):,} utterances of {table.split}. "
            f"{describe_intervals(confidence, [table.split])}"
        )
    if any(row.seeds for row in rows):
        notes.append(
            "Of several seeds: the mean of their CCC ± its standard deviation over the seeds (divisor one less), which "
            "says what another training would bring. Interval and p are of the mean over these trainings, for other "
            "speakers; a difference is of trainings with the same seed."
        )
    if any(row.folds for row in rows):
        notes.append(
            "A cross-validation has two figures: the mean over its folds ± their standard deviation (divisor n - 1), "
            "and, pooled, the CCC over the predictions of all folds together, with its interval. The paper does not "
            "say which of the two it reports. The difference from its figure is of the mean; p is of the pooled CCC."
        )
    if any(row.difference for row in rows):
        notes.append("Difference: ours less published. The published figures come without an interval.")
    tests = [row.paired for row in rows if row.paired and "p" in row.paired]
    if tests:
        smallest = [value for test in tests for value in test["smallest_p"].values()]
        notes.append(f"Each row is compared with the one named before its p. {describe_test(smallest)}")
    if any(row.stage is None and row.number for row in rows):
        numbers = ", ".join(f"row {row.number}" for row in rows if row.stage is None and row.number)
        notes.append(f"Quoted by the paper from others: {numbers}.")
    if any(not row.number for row in rows):
        notes.append(f"Rows without number: other papers' later figures, on another release ({LATER_RELEASE}).")
    if any(row.number.startswith("+") for row in rows):
        notes.append("Rows with +: systems that the paper does not have.")
    controls = {run.recipe.get("control") for run in runs} - {None}
    notes += [f"{describe_control(control)}." for control in CONTROLS if control in controls]
    if table.release and runs and runs[0].release != table.release:
        notes.append(
            f"Another release: the paper has {table.corpus} {table.release}, these runs {runs[0].release}. Differences "
            "are of training and test data too."
        )
    sizes = {run.name: sum(run.results["corpus"]["utterances"].get(split, 0) for split in SPLITS) for run in runs}
    others = [f"{name} {size:,}" for name, size in sizes.items() if size != table.utterances]
    if table.utterances and others:
        notes.append(f"Utterances of all splits, where the paper has {table.utterances:,}: {', '.join(others)}.")
    if table.corpus == "iemocap":
        single = [
            f"{run.name} (fold {run.recipe['corpus'].get('fold', 1)})" for run in runs if "folds" not in run.results
        ]
        notes += [f"One fold alone, not a cross-validation: {', '.join(single)}."] if single else []
    return notes


def _notes_on_teachers(slots: Sequence[_Slot]) -> list[str]:
    """Which students did not learn from the teacher that stands in the table."""
    notes = []
    taught = [(slot, slot.run.results["teacher"]) for slot in slots if slot.run and "teacher" in slot.run.results]
    for teacher, fingerprint in taught:
        if teacher.row.stage == TEACHER:
            others = [slot.number for slot, of_slot in taught if slot.row.stage in STUDENTS and of_slot != fingerprint]
            notes += [
                f"Row {number} learnt from another teacher than that of row {teacher.number}." for number in others
            ]
    return notes


def _describe_run(run: _Run, slots: Sequence[_Slot]) -> dict[str, Any]:
    stages = [STAGES[str(slot.row.stage)] for slot in slots]
    settings = {}
    for setting in _SETTINGS:
        default = Recipe.model_fields[setting].default
        value = run.recipe.get(setting, default)  # one that did not exist then
        if value != default and any(setting in stage.settings for stage in stages):
            settings[setting] = [value, default]
    batches = run.recipe["gradient_accumulation_steps"] * run.results["cost"]["processes"]
    step, default = run.recipe["batch_size"] * batches, Recipe.model_fields["batch_size"].default
    if step != default:
        settings["utterances a step"] = [step, default]
    corpus = run.results["corpus"]
    if "unlabelled" in corpus["utterances"] and any(stage.needs_teacher for stage in stages):
        settings["unlabelled utterances"] = [corpus["utterances"]["unlabelled"], 0]
    return {
        "folder": run.name,
        "rows": list(dict.fromkeys(slot.number for slot in slots)),
        "seeds": run.seeds,
        "corpus_version": corpus["version"],
        "versions": run.results["versions"],
        "folds": run.results["folds"]["number"] if "folds" in run.results else None,
        "settings": settings,
        "transcripts": [
            note
            for note in corpus["notes"]
            if note.startswith("transcripts: ") and any("text_encoder" in stage.all_encoders for stage in stages)
        ],
    }


def _gap_systems(table: ResultsTable) -> dict[str, dict[str, Any]]:
    systems = {}
    for stage, index in table.gap.items():
        row = table.rows[index]
        of_stage = stage if stage in STAGES else str(row.stage)
        name = ", ".join((STAGES[of_stage].short_name, *row.ways.values()))
        systems[stage] = {
            "stage": of_stage,
            "name": f"{name} (row {row.number})",
            "published": row.published["valence"] if row.published else None,
            "ccc": row.score["valence"] if row.score else None,
            "interval": row.interval["valence"] if row.interval else None,
            "fold_mean": row.folds["mean"]["valence"] if row.folds else None,
            "seeds": [one["valence"] for one in row.seeds["each"]] if row.seeds else [],
        }
    return systems


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
