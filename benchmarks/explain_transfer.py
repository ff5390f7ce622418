"""Why T/S helps, or does not, on a run of `train_distill.py`: what can be learned, and how much the student learned.

    python benchmarks/explain_transfer.py runs/spoken_emobank --corpus.data_dir path/to --output docs/results/why.json

It reads the run and its corpus, trains nothing but a linear regression, and writes a JSON file with

- `perfect_ears`: the valence CCC of a ridge regression on which words are in the sentence, that is of a listener who
  makes out every word and knows none, trained on the labels and, instead, on the teacher's predictions. Strength and
  scale are chosen on validation. Also the fraction of the test split's words that are in the training split at all.
- `teacher_embedding`: the fraction of the variance of its training embeddings in the first principal components.
- `valence_ccc`: that of every system on every split, which shows what was learned and what was only memorised.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from cmkd import concordance_cc, load_corpus
from cmkd.command_line import read_arguments
from cmkd.corpora.schema import SPLITS
from cmkd.corpora.settings import corpus_options
from cmkd.corpora.spoken_emobank import WORD
from cmkd.json_files import write_json
from cmkd.scoring.evaluation import read_predictions

STRENGTHS = (1, 2, 3, 4, 6)
SCALES = (1, 1.5, 2, 3, 4)  # a CCC asks for the spread of the labels, which a ridge regression shrinks


def perfect_ears(
    words: dict[str, list[set[str]]], targets: np.ndarray, labels: dict[str, np.ndarray]
) -> dict[str, float]:
    """The valence CCC on validation and test of a ridge regression from words to `targets` of the training split."""
    vocabulary = {word: column for column, word in enumerate(Counter(word for row in words["train"] for word in row))}

    def design(rows: list[set[str]]) -> csr_matrix:
        columns = [[vocabulary[word] for word in row if word in vocabulary] for row in rows]
        ends = np.cumsum([0, *map(len, columns)])
        return csr_matrix((np.ones(ends[-1]), np.concatenate(columns).astype(int), ends), (len(rows), len(vocabulary)))

    designs = {split: design(rows) for split, rows in words.items()}
    found = []
    for strength in STRENGTHS:
        weights = lsqr(designs["train"], targets - targets.mean(), damp=strength, iter_lim=500)[0]
        for scale in SCALES:
            predictions = {split: scale * (designs[split] @ weights) + targets.mean() for split in SPLITS}
            found.append({split: ccc(predictions[split], labels[split]) for split in SPLITS})
    best = max(found, key=lambda scores: scores["validation"])
    known = [word in vocabulary for row in words["test"] for word in row]
    return best | {"known_words_in_test": float(np.mean(known)), "words_in_train": len(vocabulary)}


def words_in(sentences: Iterable[str]) -> list[set[str]]:
    """The words of each sentence, in lower case."""
    return [{word.lower() for word in WORD.findall(text)} for text in sentences]


def ccc(predictions: np.ndarray, labels: np.ndarray) -> float:
    return concordance_cc(torch.from_numpy(predictions), torch.from_numpy(labels)).item()


def explain(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    results = json.loads((run / "results.json").read_text())
    corpus = load_corpus(**results["recipe"]["corpus"] | settings)
    if corpus.report.version != results["corpus"]["version"]:
        raise ValueError(f"The corpus is {corpus.report.version}, that of the run {results['corpus']['version']}.")
    words = {split: words_in(corpus[split]["transcript"]) for split in SPLITS}
    labels = {split: np.array(corpus[split]["valence"], dtype=np.float64) for split in SPLITS}
    teacher = read_predictions(run / "predictions" / "teacher_train.parquet")
    minimum, maximum = corpus["train"]["label_scale"][0]
    taught = minimum + (maximum - minimum) * teacher.predictions[:, 1].astype(np.float64)
    embeddings = np.stack(pq.read_table(run / "teacher" / "train_embeddings.parquet")["embedding"].to_numpy())
    variances = np.linalg.svd(embeddings - embeddings.mean(0), compute_uv=False) ** 2
    return {
        "corpus": results["corpus"],
        "recipe": results["recipe"],
        "seed": results["seed"],
        "versions": results["versions"],
        "perfect_ears": {
            "from_labels": perfect_ears(words, labels["train"], labels),
            "from_teacher": perfect_ears(words, taught, labels),
        },
        "teacher_embedding": {"variance_share": (variances / variances.sum())[:10].round(4).tolist()},
        "valence_ccc": {
            system: {split: scores["ccc"]["valence"] for split, scores in splits.items()}
            for system, splits in results["systems"].items()
        },
    }


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    name = json.loads((run / "results.json").read_text(encoding="utf-8"))["recipe"]["corpus"]["name"]
    options = {"output": Path, "corpus": corpus_options(name, {}, leave_out=("name",))}
    given = read_arguments(TypedDict("Options", options), sys.argv[2:], f"explain_transfer.py {run}")
    write_json(given["output"], explain(run, given["corpus"]))
    print(f"wrote {given['output']}")
