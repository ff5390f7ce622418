"""How much of the valence of a sentence can be learned from the pieces of words that are heard, and from those said.

    python -m benchmarks.heard_pieces recipes/open/student.yaml "the student's=students/cmkd-open" \\
        "23 h=runs/open/kokoro_ears/lexical" --run runs/open/student/seed_1 \\
        --pieces runs/open/kokoro_ears/lexical/word_pieces.json --emobank path/to/emobank.csv --kokoro path/to/kokoro \\
        --sentences all_sentences.txt --text_encoder sentence-transformers/all-MiniLM-L6-v2 \\
        --output docs/results/heard_pieces.json --corpus.spoken-emobank.data_dir path/to/emobank.csv …

It trains nothing but ridge regressions from how often each piece is in a sentence, weighed as a student weighs it, to
its valence: what a student could learn from its ears, were all that it knows of a sentence the sum of its pieces. Each
of the systems is a student with ears, or the folder of a stage `lexical` that has taught them; `said` has ears that
make no mistake, with the pieces of the file `--pieces`. The rows:

- `labels`: learned from the rated sentences of the recipe's SpokenEmoBank, in espeak-ng's voices.
- `judged`: from these and from the recipe's unlabelled speech, with the valence that the teacher of `--run` gave it.
- `texts`, of `said` alone: from the rated sentences and from so many hours of other sentences, whose valence a ridge
  regression on the text encoder's mean state judges, as in `benchmarks.open_hours`. No speech is needed for these, so
  that there can be more of them. What was learned is asked about pieces said, and about those that the systems with
  the same pieces hear.

Asked are the test sentences, in espeak-ng's voices and in Kokoro's. Strength and scale of each regression are chosen on
validation, of the same ears. `ccc` is that of valence, `interval` is over the speakers. `alike` is the mean cosine of
the pieces heard and said, of systems with the same pieces. What follows the options above are settings of the recipe.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import AutoFeatureExtractor

from benchmarks.explain_transfer import ccc
from benchmarks.open_hours import SENTENCES_PER_HOUR, other_sentences, ridges, text_judge
from cmkd.corpora import load_corpus
from cmkd.corpora.schema import SPLITS
from cmkd.features.inputs import SpeechInputs
from cmkd.features.word_pieces import load_word_pieces, names_of, numbers_of
from cmkd.identity import folder_digest
from cmkd.json_files import write_json
from cmkd.runs.ears import load_ears, pieces_heard, read_ears, take_ears
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.runs.stage import build_model, input_columns
from cmkd.scoring.confidence import ccc_interval
from cmkd.stages import STAGES
from modeling_cmkd import CMKDStudentModel, WordPieceSummarizer

CORPUS = "spoken-emobank"
STRENGTHS = (3, 10, 30, 100, 300, 1000, 3000, 10000)
HOURS = (0, 3, 10, 20)
ASKED = {"espeak-ng": "test", "Kokoro": "kokoro"}


def heard_in_waves(student: CMKDStudentModel, waves: Sequence[torch.Tensor]) -> np.ndarray:
    """How often each piece is expected to be in each utterance, (n, pieces)."""
    return np.stack([student.word_counts(input_values=wave[None])[0].numpy() for wave in waves])


def pieces_said(tokenizer: Tokenizer, sentences: Sequence[str]) -> np.ndarray:
    """How often each piece is in each sentence, (n, pieces)."""
    size = tokenizer.get_vocab_size()
    return np.stack([np.bincount(numbers_of(tokenizer, text), minlength=size) for text in sentences]).astype(float)


def weighed(counts: np.ndarray) -> np.ndarray:
    """What a student makes of the counts, (n, pieces)."""
    return WordPieceSummarizer.weighted(torch.from_numpy(counts)).numpy()


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """The mean cosine of the rows."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean((one * other).sum(1) / np.maximum(norms, 1e-9)))


def score(
    regressions: Sequence[Callable[[np.ndarray], np.ndarray]], asked: dict[str, np.ndarray], rows: dict[str, Dataset]
) -> dict[str, Any]:
    """The regression that is best on validation, on the sentences of `ASKED`."""
    labels = {split: np.array(of_split["valence"]) for split, of_split in rows.items() if split != "unlabelled"}
    best = max(regressions, key=lambda regression: ccc(regression(asked["validation"]), labels["validation"]))
    scores = {}
    for voices, split in ASKED.items():
        answers = best(asked[split])
        rated = np.full((len(answers), 3), np.nan)
        rated[:, 1] = labels[split]
        interval = ccc_interval(rated, np.stack([answers] * 3, axis=1), rows[split]["speaker"])["valence"]
        scores[voices] = {"ccc": ccc(answers, labels[split]), "interval": interval}
    return {"validation": ccc(best(asked["validation"]), labels["validation"]), **scores}


def systems(recipe: Recipe, names: dict[str, str], rows: dict[str, Dataset]) -> dict[str, dict[str, np.ndarray]]:
    """By system and split, the pieces that are heard."""
    student, feature_extractor, _ = build_model(STAGES["ts"], recipe, np.eye(3), [0.0, 1.0])
    students = {name: copy.deepcopy(student).eval() for name in names}
    for name, of_name in students.items():
        theirs = load_ears(names[name])
        if theirs.config.num_layers_of_ears != 0:
            raise ValueError(f"{names[name]}: layers of its encoder were trained, but those of the recipe are frozen.")
        take_ears(of_name, theirs)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for split, of_split in rows.items():
        if split == ASKED["Kokoro"]:
            continue
        features = input_columns(student, of_split, feature_extractor, None, recipe)["speech_features"]
        for name, of_name in students.items():
            found[name][split] = pieces_heard(of_name, features, of_split["duration"]).astype(float)
            print(name, split, len(of_split), flush=True)
    kokoro = rows[ASKED["Kokoro"]]
    waves = SpeechInputs(kokoro, AutoFeatureExtractor.from_pretrained(recipe.locate(recipe.student_speech_encoder)))
    for name, of_name in students.items():
        found[name][ASKED["Kokoro"]] = heard_in_waves(of_name, waves)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="that of the student")
    parser.add_argument("systems", nargs="+", metavar="NAME=FOLDER", help="students with ears, or stages lexical")
    parser.add_argument(
        "--run", type=Path, required=True, help="whose teacher has judged the recipe's unlabelled speech"
    )
    parser.add_argument("--pieces", type=Path, required=True, help="word_pieces.json of a stage lexical")
    parser.add_argument("--emobank", type=Path, required=True, help="emobank.csv")
    parser.add_argument("--kokoro", type=Path, help="the folder of Kokoro's files; else from the Hub")
    parser.add_argument("--kokoro_speech", type=Path, help="the folder of what Kokoro has spoken already")
    parser.add_argument("--sentences", type=Path, required=True, help="other sentences, one a line")
    parser.add_argument("--text_encoder", required=True, help="name or folder of the teacher's")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    options, settings = parser.parse_known_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe, [*settings, "--output_dir", str(options.run)], "benchmarks.heard_pieces")
    corpus = recipe.load_corpus()
    rows = {
        split: corpus[split].select([row for row, name in enumerate(corpus[split]["corpus"]) if name == CORPUS])
        for split in SPLITS
    } | {"unlabelled": corpus["unlabelled"]}
    spoken = {"voices": "kokoro", "models_dir": options.kokoro, "speech_dir": options.kokoro_speech}
    rows[ASKED["Kokoro"]] = load_corpus(CORPUS, options.emobank, only_split="test", **spoken)["test"]
    tokenizer = load_word_pieces(options.pieces)
    texts = {split: list(of_split["transcript"]) for split, of_split in rows.items()}
    names = dict(given.split("=", 1) for given in options.systems)
    heard = systems(recipe, names, rows)
    said = {split: pieces_said(tokenizer, of_split) for split, of_split in texts.items()}

    judged = pq.read_table(options.run / "conditioning" / "unlabelled.parquet").to_pylist()
    valence = {row["id"]: row["predicted_valence"] for row in judged}
    minimum, maximum = rows["train"]["label_scale"][0]
    rated = np.array(rows["train"]["valence"])
    by_teacher = np.array([minimum + (maximum - minimum) * valence[id] for id in rows["unlabelled"]["id"]])
    results: dict[str, Any] = {}
    for name, counts in {**heard, "said": said}.items():
        bags = {split: weighed(of_split) for split, of_split in counts.items()}
        both = np.concatenate([bags["train"], bags["unlabelled"]])
        results[name] = {
            "labels": score(ridges(bags["train"], rated, STRENGTHS), bags, rows),
            "judged": score(ridges(both, np.concatenate([rated, by_teacher]), STRENGTHS), bags, rows),
        }
        if name in names:
            results[name] |= {"folder_digest": folder_digest(Path(names[name]))}
            if list(read_ears(names[name]).word_pieces) == names_of(tokenizer):
                results[name]["alike"] = {split: alike(counts[split], said[split]) for split in counts}
        print(name, results[name], flush=True)

    known = {split: texts[split] for split in SPLITS}
    others = other_sentences(options.sentences.read_text(encoding="utf-8").splitlines(), known)
    scores, judge = text_judge(
        known, {split: np.array(rows[split]["valence"]) for split in SPLITS}, options.text_encoder
    )
    counts_said, by_judge = pieces_said(tokenizer, others), judge(others)
    results["texts"] = {}
    asked = {"said": said, **{name: of for name, of in heard.items() if "alike" in results[name]}}
    for hours in HOURS:
        more = round(hours * SENTENCES_PER_HOUR)
        if more > len(others):
            break
        learned = ridges(
            weighed(np.concatenate([said["train"], counts_said[:more]])),
            np.concatenate([rated, by_judge[:more]]),
            STRENGTHS,
        )
        results["texts"][hours] = {
            name: score(learned, {split: weighed(of) for split, of in counts.items()}, rows)
            for name, counts in asked.items()
        }
        print(hours, results["texts"][hours], flush=True)
    write_json(
        options.output,
        {
            "systems": results,
            "judge": scores,
            "sentences": {split: len(of_split) for split, of_split in rows.items()} | {"others": len(others)},
            "word_pieces": len(names_of(tokenizer)),
            "corpus": corpus.report.to_dict(),
            "versions": {name: version(name) for name in ("cmkd", "torch", "transformers", "numpy", "scipy")},
        },
    )
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
