"""How well a recogniser hears SpokenEmoBank, and what its errors cost the teacher.

    python benchmarks/asr_cost.py --data_dir path/to/emobank.csv --models_dir path/to/models \\
        --output docs/results/asr.json

First every utterance is transcribed (resumable, like `cmkd transcribe`), and the word error rate is taken by jiwer,
after both texts have gone through Whisper's English normaliser (lower case, no punctuation, numbers as digits,
contractions written out; British spellings stay). Then train_distill.py trains the stages `text` and `teacher` of
recipes/spoken_emobank/common.yaml, with the true sentences and with the recognised ones, in all splits. Synthetic
speech.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from cmkd.corpora import load_corpus
from cmkd.corpora.intelligibility import word_errors
from cmkd.corpora.transcripts import read_transcripts
from cmkd.json_files import write_json
from cmkd.runs.folder import versions
from cmkd.transcription.transcribe import transcribe

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("text", "teacher")


def train(arguments: argparse.Namespace, seed: int, words: str, sidecar: Path) -> dict[str, Any]:
    """The test and validation CCC of both stages, from results.json of a run of train_distill.py."""
    run = arguments.work / f"{words}_{seed}"
    command = [sys.executable, str(ROOT / "train_distill.py"), str(arguments.recipe), "--stages", *STAGES]
    command += ["--seed", str(seed), "--output_dir", str(run), "--corpus.data_dir", str(arguments.data_dir)]
    command += ["--corpus.max_utterances", str(arguments.max_utterances), "--models_dir", str(arguments.models_dir)]
    if words == "recognised":
        command += ["--corpus.transcripts", str(sidecar), "--corpus.prefer_transcripts", "asr"]
    subprocess.run(command, check=True)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    systems = {
        stage: {split: results["systems"][stage][split]["ccc"] for split in ("validation", "test")} for stage in STAGES
    }
    return {"seed": seed, "corpus_version": results["corpus"]["version"], "ccc": systems}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--models_dir", type=Path, required=True, help="folder of models under their Hub names")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--model", default="openai/whisper-tiny.en", help="the recogniser")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/spoken_emobank/common.yaml")
    parser.add_argument("--max_utterances", type=int, default=1500, help="the most utterances of each split")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of initial weights and order, each with a run"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/asr_cost"), help="folder of transcripts and runs")
    arguments = parser.parse_args()

    corpus = load_corpus("spoken-emobank", arguments.data_dir, max_utterances=arguments.max_utterances)
    sidecar = arguments.work / "transcripts.parquet"
    done = transcribe(corpus, arguments.model, sidecar, models_dir=str(arguments.models_dir))
    print(done, flush=True)
    table = read_transcripts(sidecar)
    heard = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    errors = {
        split: word_errors(list(rows["transcript"]), [heard[identifier] for identifier in rows["id"]])
        for split, rows in corpus.items()
    }
    for split, found in errors.items():
        print(f"{split:12} word error rate {found['word_error_rate']:.1%} of {found['words']:,} words", flush=True)
    runs = {
        words: [train(arguments, seed, words, sidecar) for seed in arguments.seeds] for words in ("true", "recognised")
    }
    valence = {
        words: {
            stage: {
                split: mean(run["ccc"][stage][split]["valence"] for run in of_words) for split in ("validation", "test")
            }
            for stage in STAGES
        }
        for words, of_words in runs.items()
    }
    write_json(
        arguments.output,
        {
            "corpus": corpus.report.to_dict(),
            "max_utterances": arguments.max_utterances,
            "recogniser": {"model": table["model"][0].as_py(), "revision": table["revision"][0].as_py()},
            "normaliser": "transformers EnglishTextNormalizer, without spelling table",
            "word_errors": errors,
            "recipe": arguments.recipe.name,
            "seeds": arguments.seeds,
            "runs": runs,
            "mean_valence_ccc": valence,
            "versions": versions() | {"jiwer": version("jiwer")},
        },
    )
    for stage in STAGES:
        true, recognised = (valence[words][stage]["test"] for words in ("true", "recognised"))
        print(f"{stage:8} test valence CCC {true:.3f} with the true words, {recognised:.3f} with the recognised ones")


if __name__ == "__main__":
    main()
