"""What students learn of the words from speech that only the teacher judges, by its hours.

    python -m benchmarks.open_hours "0 h=runs/s0/ts,runs/s1/ts,runs/s2/ts" "10.4 h=runs/t0/ts,runs/t1/ts,runs/t2/ts" \\
        --finetuned runs/s0/finetune runs/s1/finetune runs/s2/finetune \\
        --teachers runs/s0/teacher runs/s1/teacher runs/s2/teacher \\
        --emobank path/to/emobank.csv --kokoro path/to/kokoro --sentences sentences.txt \\
        --text_encoder sentence-transformers/all-MiniLM-L6-v2 --output docs/results/open_hours.json

Each row is one system with several seeds, on sentences and voices that no training had: the test split of SpokenEmoBank
in Kokoro's voices, or with `--voices espeak` in those of espeak-ng. Another system than T/S has its name after its
hours, as "10.4 h, cT/S", and is beside the curve. `ccc` is the mean over the seeds, the interval is that of the mean
over the speakers, and `against` has the paired test against fine-tuning, as `cmkd table` has them. `gap` is the share
of the way from fine-tuning to the teacher in valence. A row of fewer seeds is compared with the first as many of these.
Two rows are controls: the teacher that is given the words of another sentence, and the teacher that hears silence.

`perfect_ears` bounds what can be learned from so many sentences, whatever the ears: a listener who makes out every word
and knows none beforehand, a ridge regression on which words are said, from the rated sentences and as many others as
have the hours, whose valence is judged by a ridge regression on the text encoder's mean state, fitted to the rated
sentences (`judge`). Strength and scale of each are chosen on validation. An hour has as many sentences as flite speaks
in one.
"""

import argparse
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import AutoModel, AutoTokenizer

from benchmarks.explain_transfer import SCALES, ccc, perfect_ears, words_in
from cmkd.corpora import load_corpus
from cmkd.corpora.schema import SPLITS
from cmkd.corpora.spoken_emobank import SPEAKERS
from cmkd.json_files import write_json
from cmkd.reporting.figures import DIMENSION_COLOURS
from cmkd.runs.answers import answer, load_checkpoint
from cmkd.scoring.evaluation import Predictions, evaluate_predictions
from cmkd.scoring.scores import compare, interval_of

RATE = 16_000
SENTENCES_PER_HOUR = 13_061 / 10.37
"""Of the sentences of recipes/open in the voices of flite."""
EARS = (0, 3, 10, 30, 100)
"""Hours at which the listener with perfect ears is shown; as far as there are sentences."""
TEXT_STRENGTHS = (10, 30, 100, 300, 1000, 3000)


def answers_of(folders: Sequence[str], rows: Any) -> Predictions:
    """The answers of checkpoints, one a seed; `predictions` is (seeds, n, 3)."""
    found = [answer(load_checkpoint(folder, None, None), rows)[0] for folder in folders]
    return replace(found[0], predictions=np.stack([one.predictions for one in found]))


def scored(answers: Predictions) -> dict[str, Any]:
    each = [evaluate_predictions(of_seed, answers.labels)["ccc"] for of_seed in answers.predictions]
    mean = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    return {"ccc": mean, "each": each, "interval": interval_of(answers)}


def with_wrong_words(rows: Dataset) -> Dataset:
    """Each utterance with the transcript of another one, in one random cycle through all."""
    cycle = np.random.default_rng(0).permutation(len(rows))
    words = np.array(rows["transcript"], dtype=object)
    words[cycle] = words[np.roll(cycle, 1)]
    return rows.remove_columns("transcript").add_column("transcript", words.tolist())


def with_silence(rows: Dataset) -> Dataset:
    """Each utterance as zeros of its length."""
    sounds = []
    for duration in rows["duration"]:
        file = io.BytesIO()
        soundfile.write(file, np.zeros(round(duration * RATE)), RATE, format="FLAC")
        sounds.append({"bytes": file.getvalue(), "path": None})
    return rows.remove_columns("audio").add_column("audio", sounds, feature=rows.features["audio"])


def text_states(sentences: Sequence[str], encoder: str) -> np.ndarray:
    """The text encoder's mean state of each sentence."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    order = np.argsort([len(text) for text in sentences])
    found = np.zeros((len(sentences), model.config.hidden_size))
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        inputs = tokenizer([sentences[row] for row in rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        found[rows] = ((states * mask).sum(1) / mask.sum(1)).double().numpy()
    return found


def ridges(
    inputs: np.ndarray, targets: np.ndarray, strengths: Sequence[float]
) -> list[Callable[[np.ndarray], np.ndarray]]:
    """The ridge regressions of these strengths and all `SCALES`, functions from (n, inputs) to (n,)."""
    mean, centre = inputs.mean(0), targets.mean()
    gram, products = (inputs - mean).T @ (inputs - mean), (inputs - mean).T @ (targets - centre)
    found = []
    for strength in strengths:
        weights = np.linalg.solve(gram + strength * np.eye(len(gram)), products)
        found += [
            lambda asked, scale=scale, weights=weights: centre + scale * ((asked - mean) @ weights) for scale in SCALES
        ]
    return found


def text_judge(
    texts: dict[str, list[str]], labels: dict[str, np.ndarray], encoder: str
) -> tuple[dict[str, float], Callable[[Sequence[str]], np.ndarray]]:
    """The ridge regression `judge` of the module's documentation.

    Args:
        texts: by split, the sentences.
        labels: by split, their valence as rated.
        encoder: the text encoder.

    Returns:
        Its CCC on validation and test, and the function from other sentences to their valence.
    """
    states = {split: text_states(of_split, encoder) for split, of_split in texts.items()}
    mean, std = states["train"].mean(0), states["train"].std(0)
    std[std == 0] = 1  # MiniLM has a state that never changes
    standard = {split: (of_split - mean) / std for split, of_split in states.items()}
    judges = [
        ({split: ccc(judge(standard[split]), labels[split]) for split in ("validation", "test")}, judge)
        for judge in ridges(standard["train"], labels["train"], TEXT_STRENGTHS)
    ]
    scores, best = max(judges, key=lambda judge: judge[0]["validation"])
    return scores, lambda others: best((text_states(others, encoder) - mean) / std)


def other_sentences(sentences: Sequence[str], texts: dict[str, list[str]]) -> list[str]:
    """Those that are in no split, in an order drawn once for all."""
    others = sorted(set(sentences) - {text for of_split in texts.values() for text in of_split})
    np.random.default_rng(0).shuffle(others)
    return others


def listeners(corpus: Any, sentences: Sequence[str], encoder: str) -> dict[str, Any]:
    """`judge` and `perfect_ears` of the module's documentation."""
    texts = {split: list(corpus[split]["transcript"]) for split in SPLITS}
    labels = {split: np.array(corpus[split]["valence"], dtype=np.float64) for split in SPLITS}
    others = other_sentences(sentences, texts)
    scores, judge = text_judge(texts, labels, encoder)
    judged = judge(others)
    words, rated = words_in(others), {split: words_in(of_split) for split, of_split in texts.items()}
    curve = {}
    for hours in EARS:
        count = round(hours * SENTENCES_PER_HOUR)
        if count > len(others):
            break
        targets = np.concatenate([labels["train"], judged[:count]])
        learned = rated | {"train": rated["train"] + words[:count]}
        curve[hours] = perfect_ears(learned, targets, labels | {"train": targets})
        print(f"perfect ears, {hours} h", curve[hours], flush=True)
    return {"judge": scores, "perfect_ears": curve, "sentences": len(others)}


def draw(rows: dict[str, Any], teacher: float, finetuned: float, ears: dict[int, Any], picture: Path) -> None:
    """Valence on new sentences and voices by hours, seeds as dots, with what it lies between."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colour = DIMENSION_COLOURS["valence"]
    beside = {name: row for name, row in rows.items() if "," in name}
    curve = [row for name, row in rows.items() if name not in beside]
    hours = [row["hours"] for row in curve]
    axes.axhline(teacher, color="0.4", linestyle="--", label="teacher, which reads")
    axes.plot(
        list(ears),
        [of_hours["test"] for of_hours in ears.values()],
        color="0.4",
        marker="s",
        label="perfect ears, no words known",
    )
    axes.plot(hours, [row["ccc"]["valence"] for row in curve], color=colour, marker="o", label="T/S, mean")
    for row in curve:
        axes.plot(
            [row["hours"]] * len(row["each"]), [one["valence"] for one in row["each"]], ".", color=colour, alpha=0.5
        )
    for marker, (name, row) in zip(cycle("x+dv^"), beside.items(), strict=False):
        axes.plot([row["hours"]], [row["ccc"]["valence"]], marker, color="0.2", label=name)
    axes.axhline(finetuned, color=colour, linestyle=":", label="fine-tuned, no teacher")
    axes.set_xscale("symlog", linthresh=3)
    ticks = sorted({*hours, *(at for at in ears if all(abs(at - hour) > 1 for hour in hours))})  # no two on one place
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(
        xlabel="hours that only the teacher judged", ylabel="valence CCC, new sentences, new voices", ylim=(0, 0.8)
    )
    axes.minorticks_off()
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="HOURS=FOLDER,…", help="a T/S system, a checkpoint a seed")
    parser.add_argument("--finetuned", nargs="+", required=True, help="checkpoints, one a seed")
    parser.add_argument("--teachers", nargs="+", required=True, help="checkpoints, one a seed")
    parser.add_argument("--emobank", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--voices", choices=tuple(SPEAKERS), default="kokoro", help="who speaks the test sentences")
    parser.add_argument("--kokoro", type=Path, help="the folder of Kokoro's files; else from the Hub")
    parser.add_argument("--kokoro_speech", type=Path, help="the folder of what Kokoro has spoken already")
    parser.add_argument(
        "--sentences", type=Path, required=True, help="sentences that the teacher may judge, one a line"
    )
    parser.add_argument("--text_encoder", required=True, help="name or folder of the teacher's")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file; a picture of its name is beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spoken = {"voices": options.voices, "models_dir": options.kokoro, "speech_dir": options.kokoro_speech}
    corpus = load_corpus("spoken-emobank", options.emobank, only_split="test", **spoken)
    finetuned, teachers = (answers_of(folders, corpus["test"]) for folders in (options.finetuned, options.teachers))
    low, high = scored(finetuned), scored(teachers)
    controls = {
        "teacher, words of another sentence": scored(answers_of(options.teachers, with_wrong_words(corpus["test"]))),
        "teacher, silence": scored(answers_of(options.teachers, with_silence(corpus["test"]))),
    }
    print(controls, flush=True)
    rows = {}
    for entry in options.systems:
        name, folders = entry.split("=", 1)
        hours = re.match(r"([\d.]+) h(?:, .+)?$", name)
        if hours is None:
            parser.error(f"{entry!r} does not begin with hours, as in '10.4 h=runs/a/ts' or '10.4 h, cT/S=runs/a/cts'")
        ours = answers_of(folders.split(","), corpus["test"])
        first = slice(len(ours.predictions))
        row = scored(ours) | {"hours": float(hours[1])}
        row["against"] = compare(ours, replace(finetuned, predictions=finetuned.predictions[first]))
        start, end = (np.mean([one["valence"] for one in of["each"][first]]) for of in (low, high))
        rows[name] = row | {"gap": float((row["ccc"]["valence"] - start) / (end - start))}
        print(name, row["ccc"], f"{rows[name]['gap']:.0%} of the gap", flush=True)
    sentences = options.sentences.read_text(encoding="utf-8").splitlines()
    heard = listeners(load_corpus("spoken-emobank", options.emobank), sentences, options.text_encoder)
    write_json(
        options.output,
        {
            "fine-tuned": low,
            "teacher": high,
            "controls": controls,
            "T/S": rows,
            **heard,
            "corpus": corpus.report.to_dict(),
            "versions": {name: version(name) for name in ("cmkd", "torch", "transformers", "numpy", "scipy")},
        },
    )
    draw(rows, high["ccc"]["valence"], low["ccc"]["valence"], heard["perfect_ears"], options.output.with_suffix(".png"))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
