"""How good students are on open corpora of human and of synthetic voices, how large they are, and how fast.

    python -m benchmarks.open_student "student=students/cmkd-open" "fine-tuned=runs/open/student/finetune" \\
        "demo=runs/demo/student" --crema_d path/to/crema-d --disturbed path/to/crema-d-disturbed \\
        --emobank path/to/emobank.csv --kokoro path/to/kokoro --speech path/to/librispeech \\
        --output docs/results/open_student.json

Human voices are CREMA-D's test actors, whose labels are derived from votes for categories, as they were recorded and in
the copy that recipes/open/disturb.py writes; synthetic ones are those of Kokoro in the test split of SpokenEmoBank,
whose sentences and voices no training had. A constant has a CCC of 0, and the mean absolute error is beside it. Of a
student that listens for words there is the share of the words of synthetic voices that it gets wrong
(`word_error_rate`): the likeliest piece at each step, without a language model. The clips of `--speech`, of people,
need no transcripts: there the words are those that `--recognizer` hears (`words_of_people`), which is not always right
itself. Speed is that of one thread in fp32, one file at a time, on these clips, alternating between the models; the
ratio is to the first. The timeline is of all of them joined. Models whose weights are in `--output` already are not
asked about the same corpora again.
"""

import argparse
import hashlib
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline

from benchmarks.ears import RATE, SOUND, word_error_rate, words_of_people
from benchmarks.processor import processor
from cmkd.corpora import load_corpus
from cmkd.corpora.schema import Corpus
from cmkd.features.audio import read_audio
from cmkd.json_files import read_json, write_json
from cmkd.reporting.evaluation_report import evaluate_checkpoint
from cmkd.reporting.figures import DIMENSION_COLOURS
from cmkd.runs.answers import load_checkpoint
from configuration_cmkd import EMOTION_DIMENSIONS


def scores(model: str, corpora: dict[str, Corpus]) -> dict[str, Any]:
    """By corpus, what `cmkd evaluate` says of its test split."""
    checkpoint = load_checkpoint(model, None, None)
    found = {}
    for name, corpus in corpora.items():
        result = evaluate_checkpoint(checkpoint, corpus, ["test"])
        test = result["splits"]["test"]
        found[name] = {key: test[key] for key in ("n", "ccc", "interval", "pearson", "mae", "by_gender")}
        found[name]["confidence"] = result["confidence"]
        if name.startswith("SpokenEmoBank"):
            found[name]["word_error_rate"] = word_error_rate(model, corpus)
    return found


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def answered(output: Path, corpora: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run has found, by the digest of the weights, if it asked about the same corpora."""
    if not output.is_file():
        return {}
    earlier = read_json(output, "it is a result of this benchmark; remove it to begin anew.")
    versions = {name: report["version"] for name, report in corpora.items()}
    if {name: report["version"] for name, report in earlier["corpora"].items()} != versions:
        return {}
    return {model["sha256"]: model["test"] for model in earlier["models"].values() if "sha256" in model}


def constant(corpora: dict[str, Corpus]) -> dict[str, Any]:
    """The mean absolute error of the best constant that knows the test labels, their median, on the unit interval."""
    found = {}
    for name, corpus in corpora.items():
        low, high = corpus.report.label_scale
        errors = {}
        for dimension in EMOTION_DIMENSIONS:
            labels = np.array(corpus["test"][dimension], dtype=float)
            errors[dimension] = float(np.nanmean(np.abs(labels - np.nanmedian(labels))) / (high - low))
        found[name] = {"ccc": dict.fromkeys(EMOTION_DIMENSIONS, 0.0), "mae": errors}
    return found


def speeds(models: dict[str, str], files: list[Path]) -> dict[str, dict[str, float]]:
    """By model, the median of its processor seconds per second of speech, and the ratio to the first model's."""
    pipelines = {name: pipeline(model=folder, trust_remote_code=True) for name, folder in models.items()}
    found: dict[str, list[float]] = {name: [] for name in models}
    for number, path in enumerate([files[0], *files]):  # the first only warms up
        wave = read_audio(path, RATE)
        for name, score in pipelines.items():
            begun = time.process_time()
            score({"raw": wave, "sampling_rate": RATE})
            if number:
                found[name].append((time.process_time() - begun) / (len(wave) / RATE))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    first = medians[next(iter(models))]
    return {name: {"real_time_factor": value, "of_the_first": value / first} for name, value in medians.items()}


def timeline(model: str, files: list[Path], picture: Path) -> dict[str, Any]:
    """Scores the files joined with half a second of silence between them, and draws the scores over the sound."""
    gap = np.zeros(RATE // 2, np.float32)
    wave = np.concatenate([part for path in files for part in (read_audio(path, RATE), gap)])
    answer = pipeline(model=model, trust_remote_code=True)({"raw": wave, "sampling_rate": RATE})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for dimension in EMOTION_DIMENSIONS:
        middle = [(window["start"] + window["end"]) / 2 for window in answer["timeline"]]
        values = [window["scores"][dimension] for window in answer["timeline"]]
        axes.plot(middle, values, marker="o", markersize=3, label=dimension, color=DIMENSION_COLOURS[dimension])
    axes.set_ylabel("score, 0 to 1")
    axes.legend(ncols=3, frameon=False, loc="upper right")
    axes.margins(y=0.25)
    block = RATE // 20
    loudness = np.abs(wave[: len(wave) // block * block]).reshape(-1, block).max(1)
    below.fill_between(np.arange(len(loudness)) / 20, -loudness, loudness, color="0.6", linewidth=0)
    below.set(xlabel="seconds", yticks=[])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
        below.spines[side].set_visible(False)
    figure.savefig(picture, dpi=110)
    return {"seconds": len(wave) / RATE, "windows": len(answer["timeline"]), "scores": answer["scores"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="what to call a student, and where it is")
    parser.add_argument("--crema_d", type=Path, required=True, help="the folder of CREMA-D")
    parser.add_argument(
        "--sentences", type=Path, help="the file of CREMA-D's twelve sentences, if its README is missing"
    )
    parser.add_argument("--disturbed", type=Path, required=True, help="the copy of it by recipes/open/disturb.py")
    parser.add_argument("--emobank", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--kokoro", type=Path, required=True, help="the folder of Kokoro's files")
    parser.add_argument("--kokoro_speech", type=Path, help="the folder of what Kokoro has spoken already")
    parser.add_argument("--speech", type=Path, required=True, help="a folder of sound files of people")
    parser.add_argument("--recognizer", default="openai/whisper-tiny.en", help="what tells the words of --speech")
    parser.add_argument(
        "--output", type=Path, required=True, help="a JSON file; a picture of the same name is beside it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = dict(entry.split("=", 1) for entry in arguments.models)
    sentences = {} if arguments.sentences is None else {"sentences": arguments.sentences}
    kokoro = {"voices": "kokoro", "models_dir": arguments.kokoro, "speech_dir": arguments.kokoro_speech}
    corpora = {
        "CREMA-D": load_corpus("crema-d", arguments.crema_d, **sentences),
        "CREMA-D, disturbed": load_corpus("crema-d", arguments.disturbed),
        "SpokenEmoBank, Kokoro's voices": load_corpus("spoken-emobank", arguments.emobank, only_split="test", **kokoro),
        "SpokenEmoBank, espeak's voices": load_corpus("spoken-emobank", arguments.emobank),
    }
    reports = {name: corpus.report.to_dict() for name, corpus in corpora.items()}
    known = answered(arguments.output, reports)
    files = sorted(path for path in arguments.speech.iterdir() if path.suffix in SOUND)
    speed = speeds(models, files)
    picture = arguments.output.with_suffix(".png")
    digests = {name: digest(Path(folder, "model.safetensors")) for name, folder in models.items()}
    results = {
        "models": {
            name: {
                "bytes": sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")),
                "sha256": digests[name],
                **speed[name],
                "test": known.get(digests[name]) or scores(folder, corpora),
            }
            for name, folder in models.items()
        },
        "constant": constant(corpora),
        "corpora": reports,
        "words_of_people": words_of_people(models, files, arguments.recognizer),
        "timeline": timeline(next(iter(models.values())), files, picture),
        "processor": processor(),
        "versions": {name: version(name) for name in ("cmkd", "torch", "transformers", "numpy", "soundfile")},
    }
    write_json(arguments.output, results)
    for name, model in results["models"].items():
        for corpus, test in model["test"].items():
            print(name, corpus, {dimension: value and round(value, 3) for dimension, value in test["ccc"].items()})
    for name, share in results["words_of_people"]["word_error_rate"].items():
        if share is not None:
            print(name, f"hears {share:.1%} of the words of people otherwise than {arguments.recognizer}")
    print(f"wrote {arguments.output} and {picture}")


if __name__ == "__main__":
    main()
