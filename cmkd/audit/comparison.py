"""Two audits of the same clips side by side: `cmkd audit --compare`.

CCC is compared by the paired test of `cmkd.scoring.confidence`, under every condition that both were audited under;
p-values are not corrected for the number of conditions and dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmkd.atomic import written_whole
from cmkd.audit.report import NAME
from cmkd.audit.run import CLEAN, check_output
from cmkd.formats import check_version, with_version
from cmkd.json_files import read_json, write_json
from cmkd.scoring.confidence import paired_test
from cmkd.scoring.evaluation import Predictions, evaluate_predictions, read_predictions
from cmkd.spelling import enumerated
from configuration_cmkd import EMOTION_DIMENSIONS

COMPARISON = "comparison.json"


def compare_audits(first: Path, second: Path) -> dict[str, Any]:
    """Compares two audits.

    Args:
        first, second: their folders.

    Returns:
        The content of comparison.json: `models`, the two names; `clips`; `conditions`, by condition and dimension `ccc`
        of both, and `difference`, `interval`, `p` and `smallest_p` of [`cmkd.scoring.confidence.paired_test`], first
        minus second; and `verdicts`, by test, what it is of and the condition, the two verdicts where they differ.

    Raises:
        FileNotFoundError: a folder holds no audit.
        ValueError: they are about other clips, other labels or other definitions of the disturbances, or answer no
            dimension in common.
    """
    results = [_read(folder) for folder in (first, second)]
    _check_same(first, second, results)
    dimensions = [name for name in results[0]["model"]["dimensions"] if name in results[1]["model"]["dimensions"]]
    if not dimensions:
        raise ValueError(f"{first} and {second} answer no dimension in common: there is nothing to compare.")
    shared = [name for name, about in results[0]["conditions"].items() if results[1]["conditions"].get(name) == about]
    conditions = {name: _compare(*_answers(first, second, name), dimensions) for name in (CLEAN, *shared)}
    return with_version(
        COMPARISON,
        {
            "models": [result["model"]["name"] for result in results],
            "corpus": results[0]["corpus"],
            "split": results[0]["settings"]["split"],
            "clips": results[0]["clips"],
            "conditions": conditions,
            "verdicts": _other_verdicts(*results),
        },
    )


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    one, other = comparison["models"]
    corpus = f"{comparison['corpus']['name']} {comparison['corpus']['version']}"
    smallest = max(entry["smallest_p"] for entry in comparison["conditions"][CLEAN].values())
    lines = [
        f"# {one} against {other}",
        "",
        f"On {comparison['clips']:,} clips of {comparison['split']} of {corpus}. The difference is the CCC of {one} "
        f"minus that of {other}, with the 95 % interval and p of the paired test over speakers; p is not corrected for "
        f"the number of rows and dimensions, and on the clips as they are cannot fall below {smallest:.4f}.",
        "",
        f"| condition | dimension | {one} | {other} | difference | p |",
        "|---|---|---|---|---|---|",
    ]
    for condition, by_dimension in comparison["conditions"].items():
        for dimension, entry in by_dimension.items():
            ends = entry["interval"]
            shown = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
            cells = [condition, dimension, *(f"{ccc:.3f}" for ccc in entry["ccc"])]
            lines.append("| " + " | ".join([*cells, f"{entry['difference']:+.3f}{shown}", f"{entry['p']:.4f}"]) + " |")
    if comparison["verdicts"]:
        lines += [
            "",
            "Verdicts that differ:",
            "",
            f"| test | of | condition | {one} | {other} |",
            "|---|---|---|---|---|",
        ]
        lines += [
            "| " + " | ".join([entry["test"], entry["of"], entry["condition"], *entry["verdicts"]]) + " |"
            for entry in comparison["verdicts"]
        ]
    return "\n".join(lines) + "\n"


def write_comparison(comparison: Mapping[str, Any], output: Path) -> None:
    """Writes comparison.json and comparison.md into a folder.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if not (output / COMPARISON).is_file():
        check_output(output)
    write_json(output / COMPARISON, comparison)
    with written_whole(output / "comparison.md") as unfinished:
        unfinished.write_text(format_comparison(comparison), encoding="utf-8")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    content: dict[str, Any] = read_json(path, "--compare takes two folders that `cmkd audit --output` wrote.")
    check_version(path, content)
    return content


def _answers(first: Path, second: Path, condition: str) -> tuple[Predictions, Predictions]:
    one, other = first / "answers" / f"{condition}.parquet", second / "answers" / f"{condition}.parquet"
    return read_predictions(one), read_predictions(other)


def _check_same(first: Path, second: Path, results: list[dict[str, Any]]) -> None:
    one, other = _answers(first, second, CLEAN)
    if one.ids != other.ids:
        splits = [f"{result['clips']:,} of {result['settings']['split']}" for result in results]
        raise ValueError(
            f"{first} and {second} are about other clips ({enumerated(splits)}): audit both models on the same split "
            "of the same corpus, both with --quick or both without."
        )
    if results[0]["corpus"]["digest"] != results[1]["corpus"]["digest"]:
        raise ValueError(f"{first} and {second} are of corpora that differ: audit both models on the same one.")


def _compare(one: Predictions, other: Predictions, dimensions: list[str]) -> dict[str, Any]:
    labels = one.labels.copy()
    for index, name in enumerate(EMOTION_DIMENSIONS):
        if name not in dimensions:
            labels[:, index] = float("nan")
    tests = paired_test(labels, one.predictions, other.predictions, one.speakers)
    scores = [evaluate_predictions(answers.predictions, labels)["ccc"] for answers in (one, other)]
    return {
        name: {"ccc": [score[name] for score in scores], **test} for name, test in tests.items() if test is not None
    }


def _other_verdicts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    def by_key(results: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
        return {
            (name, finding["of"], finding["condition"]): finding["verdict"]
            for name, test in results["tests"].items()
            for finding in test["findings"]
        }

    first, second = by_key(one), by_key(other)
    return [
        {"test": test, "of": of, "condition": condition, "verdicts": [verdict, second[test, of, condition]]}
        for (test, of, condition), verdict in first.items()
        if second.get((test, of, condition), verdict) != verdict
    ]
