"""Trains the systems of a folder of recipes/beyond/ with several seeds, and compares each with what it has to beat.

    python -m benchmarks.beyond recipes/beyond/spoken_demo --seeds 0 1 2 --output docs/results/beyond_demo.json
    python -m benchmarks.beyond recipes/beyond/spoken_demo --seeds 0 1 2 --output_dir runs/tenth --corpus.train 140

The recipes run one after the other, the teacher first, in the folders of `--output_dir` that bear their names; what is
complete is not repeated. `--only ts cts_hard` takes some of them, and `--table` only reads what is there. All
other arguments are settings of the recipes. The table has the test CCC of each system, mean ± standard deviation over
the seeds, and its difference from fine-tuning, from T/S and from the paper's rule, each with the p of the paired test
over speakers; the JSON file has the intervals too, and how many updates of the weights each system took.
"""

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import train_distill
from cmkd.json_files import read_json, write_json
from cmkd.runs.seeds import read_answers
from cmkd.scoring.evaluation import Predictions, read_predictions
from cmkd.scoring.scores import compare, format_p
from cmkd.stages import STAGES, SYSTEM_NAMES, describe_variant
from configuration_cmkd import EMOTION_DIMENSIONS

TO_BEAT = ("finetune", "ts", "cts")
"""The stages that others are compared with, as the paper has them."""

READINGS = ("norm", "squared_norm", "mean_squared")
"""The embedding distances that Eq. 6 may mean; the one that most runs have is no variant."""


@dataclass(frozen=True)
class System:
    """One system of a run: a stage, as its recipe trained it.

    Attributes:
        folder: the run.
        stage: the name of the stage.
        results: the run's results.json.
        reading: the distance that counts as Eq. 6 here, one of `READINGS`.
        says_unlabelled: whether only some of the runs hear speech without labels, so that a name has to say which.
    """

    folder: Path
    stage: str
    results: Mapping[str, Any]
    reading: str
    says_unlabelled: bool

    @property
    def variant(self) -> str:
        """In which ways it is not what the others are compared with."""
        recipe = self.results["recipe"]
        start = self.results.get("starts_from", {}).get(self.stage)
        parts = [f"after {start}" if start else "", describe_variant(self.stage, recipe)]
        if STAGES[self.stage].needs_teacher and recipe["embedding_distance"] in set(READINGS) - {self.reading}:
            parts.insert(1, recipe["embedding_distance"])
        if self.says_unlabelled and STAGES[self.stage].learns_unlabelled and _hears_unlabelled(self.results):
            parts.append("and unlabelled speech")
        return ", ".join(filter(None, parts))

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (SYSTEM_NAMES[self.stage], self.variant)))

    @property
    def seeds(self) -> list[int]:
        return self.results.get("seeds", [self.results.get("seed")])

    @property
    def answers(self) -> Predictions:
        """On test; of several seeds `predictions` is (seeds, n, 3)."""
        if "seeds" in self.results:
            return read_answers(self.folder, self.seeds, self.stage, "test")
        return read_predictions(self.folder / "predictions" / f"{self.stage}_test.parquet")

    @property
    def each(self) -> list[dict[str, float | None]]:
        """The CCC on test by seed and dimension."""
        scores = self.results["systems"][self.stage]["test"]
        return scores["each"] if "seeds" in self.results else [scores["ccc"]]

    @property
    def updates(self) -> int:
        recipe = self.results["recipe"]
        step = recipe["batch_size"] * recipe["gradient_accumulation_steps"] * self.results["cost"]["processes"]
        return recipe["num_epochs"] * math.ceil(self.results["corpus"]["utterances"]["train"] / step)


def systems_of(runs: Sequence[Path]) -> list[System]:
    """All systems of complete runs: the paper's in the order of their stages, then the variants, controls last.

    Raises:
        FileNotFoundError: a folder has no results.json.
        ValueError: there is no run, or two were made with other seeds or from other corpora.
    """
    read = {run: read_json(run / "results.json", "train it, without --table.") for run in runs}
    distances = Counter(results["recipe"]["embedding_distance"] for results in read.values())
    reading = max(READINGS, key=lambda name: distances[name])
    mixed = len({_hears_unlabelled(results) for results in read.values()}) > 1
    found = [
        System(run, stage, results, reading, mixed) for run, results in read.items() for stage in results["systems"]
    ]
    if not found:
        raise ValueError("there is no run to compare: name a folder that has recipes.")
    first = found[0]
    for other in found:
        if (other.seeds, other.results["corpus"]["version"]) != (first.seeds, first.results["corpus"]["version"]):
            raise ValueError(
                f"{first.folder} has the seeds {first.seeds} and the corpus {first.results['corpus']['version']}, "
                f"{other.folder} {other.seeds} and {other.results['corpus']['version']}: compare like with like."
            )
    order = list(STAGES)
    return sorted(found, key=lambda one: ("control" in one.results, one.variant != "", order.index(one.stage)))


def compare_systems(systems: Sequence[System]) -> list[dict[str, Any]]:
    """A row for each system: its scores on test, and its paired tests against those of `TO_BEAT` that are there.

    Returns:
        Entries with `system`, `run`, `stage`, `seeds`, `updates`, `ccc` (the mean), `std` over the seeds (None of one),
        `each`, `interval` over speakers, and `against`, by the name of the other system `difference`, `interval`, `p`,
        `smallest_p`, as `cmkd.paired_test` returns them, `std` and `each`; all by dimension.
    """
    answers = {id(system): system.answers for system in systems}
    bases = [system for system in systems if system.stage in TO_BEAT and not system.variant]
    rows = []
    for system in systems:
        ours, scores = answers[id(system)], system.results["systems"][system.stage]["test"]
        against = {}
        for base in bases:
            if base is system:
                continue
            each = [_difference(one, other) for one, other in zip(system.each, base.each, strict=True)]
            test = compare(ours, answers[id(base)])
            against[base.name] = test | {"std": _std(each), "each": each}
        rows.append(
            {
                "system": system.name,
                "run": system.folder.name,
                "stage": system.stage,
                "seeds": system.seeds,
                "updates": system.updates,
                "ccc": scores["ccc"],
                "std": _std(system.each),
                "each": system.each,
                "interval": scores["interval"],
                "against": against,
            }
        )
    return rows


def _hears_unlabelled(results: Mapping[str, Any]) -> bool:
    return bool(results["corpus"]["utterances"].get("unlabelled"))


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the rows: all dimensions, and the difference in valence from what is to be beaten."""
    bases = list(dict.fromkeys(name for row in rows for name in row["against"]))
    header = ["system", "updates", *(name[0].upper() for name in EMOTION_DIMENSIONS)]
    lines = [[*header, *(f"V less {base}" for base in bases)]]
    for row in rows:
        scores = [_with_std(row["ccc"][name], row["std"], name, "") for name in EMOTION_DIMENSIONS]
        lines.append([row["system"], f"{row['updates']:,}", *scores, *(_against(row, base) for base in bases)])
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _against(row: Mapping[str, Any], base: str) -> str:
    if base not in row["against"]:
        return ""
    entry = row["against"][base]
    shown = _with_std(entry["difference"]["valence"], entry["std"], "valence", "+")
    return shown if entry["p"]["valence"] is None else f"{shown}, p = {format_p(entry['p']['valence'])}"


def _with_std(value: float | None, std: Mapping[str, float | None] | None, dimension: str, sign: str) -> str:
    if value is None:
        return "n/a"
    return f"{value:{sign}.3f}" + (f" ± {std[dimension]:.3f}" if std is not None else "")


def _difference(ours: Mapping[str, float | None], others: Mapping[str, float | None]) -> dict[str, float | None]:
    pairs = {name: (ours[name], others[name]) for name in EMOTION_DIMENSIONS}
    return {name: None if one is None or other is None else one - other for name, (one, other) in pairs.items()}


def _std(each: Sequence[Mapping[str, float | None]]) -> dict[str, float | None] | None:
    if len(each) < 2:
        return None
    columns = {name: [one[name] for one in each] for name in EMOTION_DIMENSIONS}
    return {
        name: None if None in values else stdev(value for value in values if value is not None)
        for name, values in columns.items()
    }


def recipes_of(folder: Path, only: Sequence[str] | None) -> list[Path]:
    """The recipes of a folder, the teacher first.

    Raises:
        ValueError: `only` names one that is not there.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != "common"}
    unknown = [name for name in only or () if name not in found]
    if unknown or not found:
        raise ValueError(f"{folder} has no recipe {', '.join(unknown) or 'at all'}; it has {', '.join(found)}.")
    chosen = [path for stem, path in found.items() if only is None or stem in only]
    return sorted(chosen, key=lambda path: path.stem != "teacher")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path)
    options, settings = parser.parse_known_args(arguments)
    runs = options.output_dir or Path("runs", options.folder.resolve().name)
    seeds = [str(seed) for seed in options.seeds]
    paths = recipes_of(options.folder, options.only)
    for path in () if options.table else paths:
        print(f"\n=== {path.stem}", flush=True)
        several = ["--seed", *seeds] if len(seeds) == 1 else ["--seeds", *seeds]
        train_distill.main([str(path), "--output_dir", str(runs / path.stem), *several, *settings])
    rows = compare_systems(systems_of([runs / path.stem for path in paths]))
    print(f"\n{format_rows(rows)}")
    if options.output is not None:
        first = read_json(runs / rows[0]["run"] / "results.json", "")
        about = {"corpus": first["corpus"], "versions": first["versions"], "settings": settings}
        write_json(options.output, about | {"rows": rows})


if __name__ == "__main__":
    main()
