"""What fp16 and int8 cost in CCC on human voices, and what they give in speed and size.

    python -m benchmarks.export path/to/crema-d path/to/whisper-tiny.en demo_models/speech \\
        --output docs/results/export.json

CREMA-D has no ratings: activation and valence are derived from its votes on the voice alone, A + F + H - S - N / 2 and
H - (A + D + F + S) as shares of the votes, brought to the unit interval. The student is a frozen encoder with the GRU
and the heads of the paper, trained for a few epochs on some actors and scored on others. Every system scores the same
batches, one after the other, on one thread; a speed is a ratio of medians over the batches, of processor time, which a
busy machine disturbs least. HuBERT Base at its real size has random weights: its speed does not depend on them, and its
scores are not shown. What the JSON file has of other encoders stays, so that each may be measured by a call of its own.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, HubertConfig, Wav2Vec2FeatureExtractor

from benchmarks.processor import processor
from cmkd.export.folder import FILES, export_folder
from cmkd.export.runtime import OnnxStudent
from cmkd.features.audio import read_audio
from cmkd.json_files import read_json, write_json
from cmkd.losses import ccc_loss, concordance_cc
from configuration_cmkd import CMKDStudentConfig
from modeling_cmkd import CMKDStudentModel

RATE = 16000
BATCH = 8
System = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Waves (batch, samples) and lengths (batch,) -> scores (batch, 3)."""


def derived_labels(data: Path) -> dict[str, tuple[float, float]]:
    """Activation and valence of each clip on the unit interval, from the votes of those who only heard it."""
    labels = {}
    with (data / "processedResults/tabulatedVotes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if not row[""].startswith("1"):
                continue
            share = {emotion: float(row[emotion]) / float(row["numResponses"]) for emotion in "ADFHNS"}
            activation = share["A"] + share["F"] + share["H"] - share["S"] - share["N"] / 2
            valence = share["H"] - share["A"] - share["D"] - share["F"] - share["S"]
            labels[row["fileName"]] = (activation + 1) / 2, (valence + 1) / 2
    return labels


def read_clips(data: Path, count: int, actors: range, left_out: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """So many clips of these actors, and their labels (clips, 3), NaN for dominance; the first ones may be left out."""
    labels = derived_labels(data)
    names = sorted(name for name in labels if int(name[:4]) in actors and (data / f"AudioOpus/{name}.opus").exists())
    names = [names[index] for index in np.random.default_rng(0).permutation(len(names))[left_out:][:count]]
    waves = [read_audio(data / f"AudioOpus/{name}.opus", RATE) for name in names]
    return waves, np.array([[*labels[name], np.nan] for name in names])


def train_student(encoder: Path, waves: Sequence[np.ndarray], labels: np.ndarray, epochs: int) -> CMKDStudentModel:
    """The paper's heads on a frozen encoder."""
    torch.manual_seed(0)
    model = CMKDStudentModel.from_pretrained_encoder(
        str(encoder),
        rated_dimensions=["activation", "valence"],
        label_mean=(*labels[:, :2].mean(0).tolist(), 0.0),
        label_std=(*labels[:, :2].std(0).tolist(), 1.0),
    )
    extractor = AutoFeatureExtractor.from_pretrained(encoder)
    features = []
    for wave in waves:
        inputs = extractor(wave, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt")
        with torch.no_grad():
            states, _ = model.extract_speech_features(inputs[model.config.speech_input_name], inputs["attention_mask"])
        features.append(states[0])
    targets = torch.tensor(labels, dtype=torch.float32)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(features)).split(32):
            batch = torch.nn.utils.rnn.pad_sequence([features[row] for row in rows], batch_first=True)
            lengths = torch.tensor([len(features[row]) for row in rows])
            mask = (torch.arange(batch.shape[1]) < lengths[:, None]).long()
            logits = model(speech_features=batch, attention_mask=mask).logits
            loss = ccc_loss(logits[:, :2], targets[rows, :2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def by_torch(folder: Path, dtype: torch.dtype) -> System:
    model = CMKDStudentModel.from_pretrained(folder, dtype=dtype).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    padding = {} if model.config.speech_input_name == "input_features" else {"padding": True}

    def score(waves: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows = [wave[:length] for wave, length in zip(waves, lengths, strict=True)]
        inputs = extractor(rows, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt", **padding)
        with torch.no_grad():
            return model(**inputs).logits.float().numpy()

    return score


def systems_of(folder: Path, exported: Path) -> dict[str, System]:
    """The student in torch, in fp32 and bf16, and in ONNX Runtime in every precision, each on one thread."""
    found = {"torch fp32": by_torch(folder, torch.float32), "torch bf16": by_torch(folder, torch.bfloat16)}
    for precision, name in FILES.items():
        student = OnnxStudent(exported / name, num_threads=1)
        found[f"onnx {precision}"] = lambda waves, lengths, student=student: student.run(waves, lengths)[0]
    return found


def compare(systems: Mapping[str, System], batches: Sequence[Sequence[np.ndarray]]) -> dict[str, dict[str, Any]]:
    """By system: its scores, in the order of the batches, and its processor seconds per batch."""
    found: dict[str, dict[str, Any]] = {name: {"scores": [], "seconds": []} for name in systems}
    for number, rows in enumerate([batches[0], *batches]):  # the first only warms up
        lengths = np.array([len(row) for row in rows])
        waves = np.zeros((len(rows), lengths.max()), np.float32)
        for target, row in zip(waves, rows, strict=True):
            target[: len(row)] = row
        for name, system in systems.items():
            begun = time.process_time()
            scores = system(waves, lengths)
            if number:
                found[name]["seconds"].append(time.process_time() - begun)
                found[name]["scores"].append(scores)
    return found


def speeds(found: Mapping[str, dict[str, Any]], exported: Path) -> dict[str, dict[str, Any]]:
    base = np.array(found["torch fp32"]["seconds"])
    table = {}
    for name, entry in found.items():
        table[name] = {"times_torch_fp32": round(float(np.median(base / np.array(entry["seconds"]))), 2)}
        if name.startswith("onnx "):
            size = (exported / FILES[name.removeprefix("onnx ")]).stat().st_size
            table[name]["megabytes"] = round(size / 1e6, 1)
    return table


def costs(found: Mapping[str, dict[str, Any]], labels: np.ndarray) -> dict[str, dict[str, Any]]:
    def ccc(name: str) -> np.ndarray:
        scores = torch.tensor(np.concatenate(found[name]["scores"])[:, :2])
        return np.array([concordance_cc(scores[:, index], torch.tensor(labels[:, index])).item() for index in (0, 1)])

    reference, expected = ccc("torch fp32"), np.concatenate(found["torch fp32"]["scores"])[:, :2]
    table = {}
    for name, entry in found.items():
        values = ccc(name)
        difference = np.abs(np.concatenate(entry["scores"])[:, :2] - expected)
        table[name] = {
            "ccc_activation": round(float(values[0]), 4),
            "ccc_valence": round(float(values[1]), 4),
            "largest_loss_of_ccc": round(float((reference - values).max()), 5),
            "largest_difference_of_a_score": float(f"{difference.max():.2g}"),
        }
    return table


def on_voices(
    data: Path, encoder: Path, train_clips: int, test_clips: int, left_out: int, epochs: int
) -> dict[str, Any]:
    waves, labels = read_clips(data, train_clips, range(1001, 1071))
    model = train_student(encoder, waves, labels, epochs)
    waves, labels = read_clips(data, test_clips, range(1071, 1092), left_out)
    order = sorted(range(len(waves)), key=lambda row: len(waves[row]))
    batches = [[waves[row] for row in order[first : first + BATCH]] for first in range(0, len(order), BATCH)]
    with tempfile.TemporaryDirectory() as temporary:
        folder, exported = Path(temporary, "student"), Path(temporary, "onnx")
        model.save_pretrained(folder)
        AutoFeatureExtractor.from_pretrained(encoder).save_pretrained(folder)
        export_folder(str(folder), exported, tuple(FILES))
        found = compare(systems_of(folder, exported), batches)
        table = costs(found, labels[order])
        for name, entry in speeds(found, exported).items():
            table[name] |= entry
    return {
        "encoder": "/".join(encoder.parts[-2:]),
        "train_clips": train_clips,
        "test_clips": len(waves),
        "test_clips_left_out": left_out,
        "systems": table,
    }


def at_real_size(num_batches: int) -> dict[str, Any]:
    """HuBERT Base with random weights: four utterances of 6 s in a batch."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder, exported = Path(temporary, "student"), Path(temporary, "onnx")
        CMKDStudentModel(CMKDStudentConfig(speech_config=HubertConfig())).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        export_folder(str(folder), exported, tuple(FILES))
        batches = [
            [(0.1 * generator.normal(size=6 * RATE)).astype(np.float32) for _ in range(4)] for _ in range(num_batches)
        ]
        found = compare(systems_of(folder, exported), batches)
        return {"encoder": "HuBERT Base, random weights", "systems": speeds(found, exported)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of CREMA-D, with AudioOpus and processedResults")
    parser.add_argument("encoders", type=Path, nargs="*", help="folders of pretrained encoders, a student on each")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument("--train_clips", type=int, default=1200)
    parser.add_argument("--test_clips", type=int, default=400)
    parser.add_argument("--left_out", type=int, default=0, help="the first test clips, which a choice was made on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--hubert_batches", type=int, default=5, help="of HuBERT Base; 0 leaves it out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "processor": processor(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "transformers")},
        "threads": 1,
        "voices": [],
    }
    if arguments.output is not None and arguments.output.exists():
        before = read_json(arguments.output, "remove it.")
        report = before | report | {"voices": before["voices"]}
    for encoder in arguments.encoders:
        numbers = arguments.train_clips, arguments.test_clips, arguments.left_out, arguments.epochs
        found = on_voices(arguments.data, encoder, *numbers)
        others = [entry for entry in report["voices"] if entry["encoder"] != found["encoder"]]
        report["voices"] = sorted([*others, found], key=lambda entry: str(entry["encoder"]))
        say(report, arguments.output)
    if arguments.hubert_batches:
        report["hubert_base"] = at_real_size(arguments.hubert_batches)
        say(report, arguments.output)


def say(report: dict[str, Any], output: Path | None) -> None:
    """After each part, so that what was measured is not lost with what was not."""
    print(json.dumps(report, indent=2), flush=True)
    if output is not None:
        write_json(output, report)


if __name__ == "__main__":
    main()
