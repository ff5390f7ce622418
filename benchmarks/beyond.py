"""Trains the systems of a folder of recipes/beyond/ with several seeds, and compares each with what it has to beat.

    python -m benchmarks.beyond recipes/beyond/spoken_demo --seeds 0 1 2 --output docs/results/beyond_demo.json
    python -m benchmarks.beyond recipes/beyond/spoken_demo --seeds 0 1 2 --output_dir runs/tenth --corpus.train 140

The recipes run one after the other, the teacher first, in the folders of `--output_dir` that bear their names; what is
complete is not repeated. `--only ts cts_hard` takes some of them, and `--table` only reads what is there. `--test` asks
all systems about the test split of another corpus in place of their own, which is given in YAML as under `corpus` of a
recipe: `--test "{name: spoken-emobank, data_dir: path/to/emobank.csv, voices: kokoro, only_split: test}"`.
All other arguments are settings of the recipes. The table has the test CCC of each system, mean ± standard deviation
over the seeds, and its difference from fine-tuning, from T/S and from the paper's rule, each with the p of the paired
test over speakers; the JSON file has the intervals too, and of each system how many updates of its weights it took, the
settings of its recipe, what it learned from, how it was judged, and whose ears it has.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from statistics import stdev
from typing import Any

import yaml

import train_distill
from benchmarks.open_hours import answers_of, scored
from cmkd.corpora import load_corpus
from cmkd.json_files import read_json, write_json
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.runs.seeds import read_answers, seed_folder
from cmkd.scoring.evaluation import Predictions, read_predictions
from cmkd.scoring.scores import compare, format_p
from cmkd.stages import EARS, STAGES, describe_variant, most_common_reading, system_name
from configuration_cmkd import EMOTION_DIMENSIONS

TO_BEAT = ("finetune", "ts", "cts")
"""The stages that others are compared with, as the paper has them."""

_NO_SETTINGS_OF_A_SYSTEM = {"stages", "seed", "seeds", "overwrite", "kept_student"}


@dataclass(frozen=True)
class System:
    """One system of a run: a stage, as its recipe trained it.

    Attributes:
        folder: the run.
        stage: the name of the stage.
        results: the run's results.json.
        each_results: those of its seeds, one or several, in their order.
        ways: in which ways it is not what the others are compared with, as `cmkd.stages.describe_variant` returns them.
        elsewhere: its answers to another test split than that of its run, (seeds, n, 3); None: that of its run counts.
    """

    folder: Path
    stage: str
    results: Mapping[str, Any]
    each_results: Sequence[Mapping[str, Any]]
    ways: Mapping[str, str]
    elsewhere: Predictions | None = None

    @property
    def name(self) -> str:
        return system_name(self.stage, self.ways)

    @property
    def seeds(self) -> list[int]:
        return self.results.get("seeds", [self.results.get("seed")])

    @property
    def checkpoints(self) -> list[str]:
        """The folders of its weights, one a seed."""
        runs = [seed_folder(self.folder, seed) for seed in self.seeds] if "seeds" in self.results else [self.folder]
        return [str(run / self.stage) for run in runs]

    @property
    def answers(self) -> Predictions:
        """On test; of several seeds `predictions` is (seeds, n, 3)."""
        if self.elsewhere is not None:
            return self.elsewhere
        if "seeds" in self.results:
            return read_answers(self.folder, self.seeds, self.stage, "test")
        return read_predictions(self.folder / "predictions" / f"{self.stage}_test.parquet")

    @property
    def test(self) -> dict[str, Any]:
        """Its CCC on test, `ccc` (the mean over the seeds), `each` and `interval` over speakers, all by dimension."""
        if self.elsewhere is not None:
            return scored(self.elsewhere)
        scores = self.results["systems"][self.stage]["test"]
        return {"ccc": scores["ccc"], "each": self._each_on("test"), "interval": scores["interval"]}

    def _each_on(self, split: str) -> list[dict[str, float | None]]:
        scores = self.results["systems"][self.stage][split]
        return scores["each"] if "seeds" in self.results else [scores["ccc"]]

    @property
    def updates(self) -> int:
        recipe = self.results["recipe"]
        step = recipe["batch_size"] * recipe["gradient_accumulation_steps"] * self.results["cost"]["processes"]
        return recipe["num_epochs"] * math.ceil(self.results["corpus"]["utterances"]["train"] / step)

    @property
    def settings(self) -> dict[str, Any]:
        """What its recipe has otherwise than a recipe that says nothing; of a path on some machine the last name."""
        defaults = {name: field.default for name, field in Recipe.model_fields.items() if not field.is_required()}
        return {
            name: _without_folders(value)
            for name, value in self.results["recipe"].items()
            if name not in _NO_SETTINGS_OF_A_SYSTEM and (name not in defaults or value != defaults[name])
        }

    @property
    def train(self) -> dict[str, Any] | None:
        """Its CCC on the training split, mean, `std` over the seeds and each; None if it was not scored there."""
        scores = self.results["systems"][self.stage].get("train")
        if scores is None:
            return None
        each = self._each_on("train")
        return {"ccc": scores["ccc"], "std": _std(each), "each": each}

    @property
    def conditioning(self) -> list[dict[str, Any]] | None:
        """By seed, how the training utterances were judged by which it was conditioned; None if it was not."""
        return [one["conditioning"] for one in self.each_results] if STAGES[self.stage].is_conditional else None

    @property
    def lexical(self) -> list[dict[str, Any]] | None:
        """By seed, what the stage that it starts from learned by itself; None if it starts anew."""
        return [one["lexical"] for one in self.each_results] if "starts_from" in self.ways else None

    @property
    def labelled(self) -> dict[str, Any]:
        """How many `utterances` with labels it learned from, and their `hours`."""
        return self._size_of("train")

    @property
    def unlabelled(self) -> dict[str, Any] | None:
        """The same of speech without labels, and `judged`: by seed, how good the teacher is there; None without any."""
        if not STAGES[self.stage].learns_unlabelled or "unlabelled" not in self.results["corpus"]:
            return None
        return self._size_of("unlabelled") | {"judged": [one.get("unlabelled") for one in self.each_results]}

    def _size_of(self, split: str) -> dict[str, Any]:
        return {size: self.results["corpus"][size][split] for size in ("utterances", "hours")}

    @property
    def ears(self) -> dict[str, Any] | None:
        """Whose ears it has: `name`, `revision` and `commit`, of a folder a SHA-256; None if nobody else's.

        Raises:
            ValueError: its seeds had different ones.
        """
        if not STAGES[self.stage].takes_ears or self.results["recipe"].get(EARS) is None:
            return None
        first, *others = (_without_folders(one["encoders"][EARS]) for one in self.each_results)
        for other in others:
            if other != first:
                raise ValueError(f"the seeds of {self.folder} had different ears, {first} and {other}: train it anew.")
        return first


def systems_of(runs: Sequence[Path]) -> list[System]:
    """All systems of complete runs: the paper's in the order of their stages, then the variants, controls last.

    Raises:
        FileNotFoundError: a folder has no results.json.
        ValueError: there is no run; two were made with other seeds or from other corpora, or have systems of the same
            name.
    """
    read = {run: read_json(run / "results.json", "train it, without --table.") for run in runs}
    reading = most_common_reading(read.values())
    found = []
    for run, results in read.items():
        each = [results]
        if "seeds" in results:
            each = [read_json(seed_folder(run, seed) / "results.json", "train it anew.") for seed in results["seeds"]]
        for stage in results["systems"]:
            found.append(System(run, stage, results, each, describe_variant(stage, results, reading)))
    if not found:
        raise ValueError("there is no run to compare: name a folder that has recipes.")
    first = found[0]
    for other in found:
        if (other.seeds, other.results["corpus"]["version"]) != (first.seeds, first.results["corpus"]["version"]):
            raise ValueError(
                f"{first.folder} has the seeds {first.seeds} and the corpus {first.results['corpus']['version']}, "
                f"{other.folder} {other.seeds} and {other.results['corpus']['version']}: compare like with like."
            )
    found = _without_what_all_have(found)
    names: dict[str, Path] = {}
    for system in found:
        if system.name in names:
            raise ValueError(
                f"{names[system.name]} and {system.folder} both have a system {system.name!r}, so that a table "
                "cannot tell them apart: leave one out with --only."
            )
        names[system.name] = system.folder
    order = list(STAGES)
    return sorted(found, key=lambda one: ("control" in one.results, bool(one.ways), order.index(one.stage)))


def _without_what_all_have(systems: Sequence[System]) -> list[System]:
    """The same, where ears and unlabelled speech make no variant if no system that could have them does otherwise."""
    unsaid = set()
    if len({one.results["recipe"].get(EARS) for one in systems if STAGES[one.stage].takes_ears}) == 1:
        unsaid.add(EARS)
    if len({"unlabelled" in one.ways for one in systems if STAGES[one.stage].learns_unlabelled}) == 1:
        unsaid.add("unlabelled")
    return [replace(one, ways={way: words for way, words in one.ways.items() if way not in unsaid}) for one in systems]


def compare_systems(systems: Sequence[System]) -> list[dict[str, Any]]:
    """A row for each system: its scores on test, and its paired tests against those of `TO_BEAT` that are there.

    Returns:
        Entries with `system`, `run`, `stage`, `seeds`, `updates`; `ways`, `settings`, `labelled`, `unlabelled`, `ears`,
        `conditioning`, `lexical` and `train` as `System` has them; `ccc` (the mean), `std` over the seeds (None of
        one), `each`, `interval` over speakers, and `against`, by the name of the other system `difference`, `interval`,
        `p`, `smallest_p`, as `cmkd.paired_test` returns them, `std` and `each`; all by dimension.
    """
    answers = {id(system): system.answers for system in systems}
    scores = {id(system): system.test for system in systems}
    bases = [system for system in systems if system.stage in TO_BEAT and not system.ways]
    rows = []
    for system in systems:
        ours, test = answers[id(system)], scores[id(system)]
        against = {}
        for base in bases:
            if base is system:
                continue
            pairs = zip(test["each"], scores[id(base)]["each"], strict=True)
            each = [_difference(one, other) for one, other in pairs]
            compared: dict[str, Any] = compare(ours, answers[id(base)])
            against[base.name] = compared | {"std": _std(each), "each": each}
        rows.append(
            {
                "system": system.name,
                "run": system.folder.name,
                "stage": system.stage,
                "seeds": system.seeds,
                "updates": system.updates,
                "ways": dict(system.ways),
                "settings": system.settings,
                "labelled": system.labelled,
                "unlabelled": system.unlabelled,
                "ears": system.ears,
                "conditioning": system.conditioning,
                "lexical": system.lexical,
                "train": system.train,
                "ccc": test["ccc"],
                "std": _std(test["each"]),
                "each": test["each"],
                "interval": test["interval"],
                "against": against,
            }
        )
    return rows


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


def _without_folders(value: Any) -> Any:
    """The same, with the last name of each absolute path alone: where a corpus or a model lies is nobody's business."""
    if isinstance(value, Mapping):
        return {name: _without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


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


def check_recipes(paths: Sequence[Path], settings: Sequence[str]) -> None:
    """Checks that no training is asked for twice.

    Raises:
        ValueError: two recipes are the same but for their folders, once `settings` are applied to both.
    """
    trainings: dict[str, Path] = {}
    for path in paths:
        recipe = load_recipe(path, settings)
        has_no_rest = recipe.labelled_share == 1  # so that it does not matter what is done with the rest
        described = recipe.model_dump_json(exclude={"output_dir"} | ({"unlabelled_rest"} if has_no_rest else set()))
        if described in trainings:
            raise ValueError(
                f"{trainings[described]} and {path} are the same training"
                + (", since with labelled_share 1 there is no rest for unlabelled_rest" if has_no_rest else "")
                + ": leave one out with --only."
            )
        trainings[described] = path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--test", type=yaml.safe_load, help="a corpus in YAML, as under `corpus` of a recipe")
    parser.add_argument("--output", type=Path)
    options, settings = parser.parse_known_args(arguments)
    runs = options.output_dir or Path("runs", options.folder.resolve().name)
    if not isinstance(options.test, dict | None):
        parser.error(f"--test is {options.test!r}, but must be YAML such as '{{name: manifest, data_dir: corpus}}'")
    asked = None if options.test is None else load_corpus(**options.test)  # before hours of training
    seeds = [str(seed) for seed in options.seeds]
    paths = recipes_of(options.folder, options.only)
    if not options.table:
        check_recipes(paths, settings)
    for path in () if options.table else paths:
        print(f"\n=== {path.stem}", flush=True)
        several = ["--seed", *seeds] if len(seeds) == 1 else ["--seeds", *seeds]
        train_distill.main([str(path), "--output_dir", str(runs / path.stem), *several, *settings])
    systems = systems_of([runs / path.stem for path in paths])
    if asked is not None:
        systems = [replace(one, elsewhere=answers_of(one.checkpoints, asked["test"])) for one in systems]
    rows = compare_systems(systems)
    print(f"\n{format_rows(rows)}")
    if options.output is not None:
        first = read_json(runs / rows[0]["run"] / "results.json", "")
        about = {"corpus": first["corpus"], "versions": first["versions"], "settings": settings}
        tested = {} if asked is None else {"tested_on": asked.report.to_dict()}
        write_json(options.output, about | tested | {"rows": rows})


if __name__ == "__main__":
    main()
