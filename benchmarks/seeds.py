"""Puts runs of one recipe with several seeds side by side: a JSON file and its Markdown table.

    for seed in 0 1 2; do
      python train_distill.py recipes/demo.yaml --seed $seed --corpus.seed $seed --output_dir runs/demo_$seed
    done
    python benchmarks/seeds.py runs/demo_0 runs/demo_1 runs/demo_2 --output docs/results/demo.json

The gap is the teacher's valence CCC on test less that of the fine-tuned audio-only system; the share that a student
closes is (student - fine-tuned) / (teacher - fine-tuned), of the means over seeds.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cmkd.figures import SYSTEM_NAMES
from cmkd.run_folder import write_json
from configuration_cmkd import EMOTION_DIMENSIONS


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs' results.json files say together."""
    systems = {
        system: {name: [run["systems"][system]["test"]["ccc"][name] for run in runs] for name in EMOTION_DIMENSIONS}
        for system in SYSTEM_NAMES
        if all(system in run["systems"] for run in runs)
    }
    valence = {system: values["valence"] for system, values in systems.items()}
    valence["kept"] = [run["systems"][run["student"]["stage"]]["test"]["ccc"]["valence"] for run in runs]
    gap = mean(valence["teacher"]) - mean(valence["finetune"])
    students = [system for system in ("ts", "cts", "kept") if system in valence]
    return {
        "seeds": [run["seed"] for run in runs],
        "corpus": [run["corpus"] for run in runs],
        "versions": runs[0]["versions"],
        "recipe": {key: value for key, value in runs[0]["recipe"].items() if key != "seed"},
        "kept": [run["student"]["stage"] for run in runs],
        "discarded_fraction": [run["conditioning"]["discarded_fraction"] for run in runs],
        "cost": [run["cost"] for run in runs],
        "test_ccc": systems | {"kept": {"valence": valence["kept"]}},
        "valence_gap": gap,
        "valence_gap_closed": {
            system: (mean(valence[system]) - mean(valence["finetune"])) / gap for system in students
        },
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """The test CCC of every system: mean over seeds, and valence of each seed."""
    seeds = summary["seeds"]
    header = ["system", "A", "V", "D", *(f"V, seed {seed}" for seed in seeds), *(["V, std"] if len(seeds) > 1 else [])]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for system, values in summary["test_ccc"].items():
        valence = values["valence"]
        means = [f"{mean(values[name]):.3f}" if name in values else "" for name in EMOTION_DIMENSIONS]
        spread = [f"{stdev(valence):.3f}"] if len(seeds) > 1 else []
        name = SYSTEM_NAMES.get(system, f"kept student ({', '.join(summary['kept'])})")
        rows.append([name, *means, *(f"{value:.3f}" for value in valence), *spread])
    closed = ", ".join(
        f"{SYSTEM_NAMES.get(system, 'kept student')} {share:.0%}"
        for system, share in summary["valence_gap_closed"].items()
    )
    left_out = ", ".join(f"{share:.1%}" for share in summary["discarded_fraction"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"Valence gap {summary['valence_gap']:.3f}; closed: {closed}. Left out of cT/S: {left_out}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of train_distill.py")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file; the table goes beside it as .md")
    arguments = parser.parse_args()
    summary = summarize([json.loads((run / "results.json").read_text(encoding="utf-8")) for run in arguments.runs])
    write_json(arguments.output, summary)
    arguments.output.with_suffix(".md").write_text(to_markdown(summary), encoding="utf-8")
    print(to_markdown(summary))


if __name__ == "__main__":
    main()
