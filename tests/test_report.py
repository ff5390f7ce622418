import json
import struct

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmkd.reporting.report import format_systems, valence_gap_closed, write_report
from cmkd.scoring.evaluation import write_predictions

DIMENSIONS = ("activation", "valence", "dominance")
# Valence CCC on test of a complete run: the gap is .600 -> .900, T/S closes two thirds of it, cT/S falls behind.
VALENCE = {"audio": 0.45, "text": 0.85, "teacher": 0.9, "finetune": 0.6, "ts": 0.8, "cts": 0.54}


def make_results(valence, student="ts"):
    """results.json of a run of the systems in `valence`, whose validation scores are .01 higher than those on test."""
    systems = {}
    for system, score in valence.items():
        systems[system] = {
            split: {
                "n": 40,
                "ccc": {"activation": 0.7 + shift, "valence": score + shift, "dominance": None},
                "pearson": {"activation": 0.8 + shift, "valence": score + shift + 0.002, "dominance": None},
                "mae": dict.fromkeys(DIMENSIONS, 0.1),
                "interval": {"activation": [0.6, 0.8], "valence": [score - 0.05, score + 0.0494], "dominance": None},
                "by_gender": {},
            }
            for split, shift in (("validation", 0.01), ("test", 0.0), ("train", 0.05))
        }
    results = {
        "corpus": {
            "name": "spoken-demo",
            "version": "1.0.0",
            "label_scale": [1.0, 5.0],
            "utterances": {"train": 1376, "validation": 40, "test": 40},
            "hours": {"train": 1.234, "validation": 0.1, "test": 0.1},
            "speakers": {"train": 8, "validation": 2, "test": 2},
            "skipped": {"empty audio": 3},
            "notes": ["The speech is synthetic."],
        },
        "seed": 7,
        "recipe": {"embedding_distance": "norm", "word_pieces": None},
        "versions": {"cmkd": "0.1.0", "torch": "2.13.0"},
        "cost": {
            "seconds": {"teacher": 12.4, "ts": 1034.6},
            "sessions": {"teacher": 1, "ts": 3},
            "peak_memory_gb": 1.25,
            "peak_device_memory_gb": 3.5,
            "processes": 2,
            "device": "cuda",
        },
        "precision": {"teacher": "bf16", "ts": "bf16"},
        "encoders": {
            "student_speech_encoder": {"name": "user/speech", "revision": "v1", "commit": "0123456"},
            "text_encoder": {"name": "user/text", "revision": None, "commit": "789abcd"},
        },
        "systems": systems,
        "comparisons": [
            {
                "system": system,
                "baseline": baseline,
                "split": "test",
                "difference": {"activation": 0.0, "valence": valence[system] - valence[baseline], "dominance": None},
                "interval": {"activation": None, "valence": [-0.01, 0.2], "dominance": None},
                "p": {"activation": 1.0, "valence": 0.3125, "dominance": None},
                "smallest_p": {"activation": 1.0, "valence": 0.0625, "dominance": None},
            }
            for system, baseline in (("ts", "finetune"), ("cts", "finetune"), ("cts", "ts"))
            if system in valence and baseline in valence
        ],
        "confidence": {
            "level": 0.95,
            "permutations": 10000,
            "seed": 0,
            "splits": {
                "train": {"speakers": 8, "utterances_without_speaker": 0},
                "validation": {"speakers": 2, "utterances_without_speaker": 0},
                "test": {"speakers": 2, "utterances_without_speaker": 1234},
            },
        },
    }
    if "teacher" in valence:
        results["conditioning"] = {
            "discarded_fraction": 0.25,
            "residual_threshold": 2.0,
            "residual_std": {"activation": 0.1, "valence": 0.2, "dominance": 0.05},
        }
    if student in valence:
        results["student"] = {"stage": student, "reason": "better mean CCC on validation"}
    return results


def write_run(folder, valence, epochs=3, count=40):
    """A run folder with all that `write_report` reads."""
    generator = np.random.default_rng(0)
    (folder / "results.json").write_text(json.dumps(make_results(valence)))
    for system in valence:
        labels = generator.uniform(size=(count, 3))
        labels[::7, 2] = np.nan
        predictions = generator.uniform(size=(count, 3))
        write_predictions(
            folder / f"predictions/{system}_test.parquet",
            list(map(str, range(count))),
            predictions,
            labels,
            ["anna"] * count,
            ["female"] * count,
        )
        log = [
            {
                "epoch": epoch + 1.0,
                "train_loss": 1 / (epoch + 1),
                "eval_loss": 0.5,
                "eval_ccc": 0.2,
                "learning_rate": 5e-4,
            }
            | {f"eval_ccc_{dimension}": 0.1 * epoch for dimension in ("activation", "valence")}
            for epoch in range(epochs)
        ]
        (folder / system).mkdir()
        (folder / system / "training_log.json").write_text(json.dumps(log))
    if "teacher" in valence:
        residuals = np.zeros((8, 3))
        residuals[0] = [0.21, 0.0, 0.0]  # over 2 x .1
        residuals[1] = [-0.3, 0.39, -0.2]  # activation and dominance over, valence just under 2 x .2
        residuals[2, 2] = np.nan
        columns = {f"residual_{dimension}": residuals[:, column] for column, dimension in enumerate(DIMENSIONS)}
        weights = np.array([0, 0, 1, 1, 1, 1, 1, 1], dtype=np.float32)
        (folder / "conditioning").mkdir()
        pq.write_table(
            pa.table({"id": list("abcdefgh"), **columns, "weight": weights}), folder / "conditioning/train.parquet"
        )
    return folder


@pytest.fixture(scope="module")
def complete_report(tmp_path_factory):
    """The report of a run of all stages, and the folder with its figures."""
    folder = write_run(tmp_path_factory.mktemp("run"), VALENCE)
    assert write_report(folder) == folder / "report.md"
    return (folder / "report.md").read_text(encoding="utf-8"), folder / "figures"


def cells(report, first_cell):
    """The cells after the first of the only table row that starts with `first_cell`."""
    (row,) = [line for line in report.splitlines() if line.startswith(f"| {first_cell} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_head_says_what_was_run_on_what(complete_report):
    report, _ = complete_report
    assert report.startswith("# spoken-demo 1.0.0, seed 7\n\n> **Note:** The speech is synthetic.\n")
    assert cells(report, "train") == ["1,376", "1.23", "8"]
    assert "rated from 1 to 5" in report
    assert "3 (empty audio)" in report
    assert "cmkd 0.1.0, torch 2.13.0" in report


def test_systems_are_listed_in_the_order_of_the_stages(complete_report):
    report, _ = complete_report
    assert cells(report, "system") == [
        "A validation",
        "V validation",
        "D validation",
        "A test",
        "V test",
        "D test",
    ]
    names = ["audio only, frozen", "text only, frozen", "teacher: audio and text", "audio only, fine-tuned"]
    positions = [report.index(f"| {name} |") for name in [*names, "T/S student (kept)", "cT/S student"]]
    assert positions == sorted(positions)
    assert cells(report, "audio only, fine-tuned") == [
        "0.710 [0.600, 0.800]",
        "0.610 [0.550, 0.649]",
        "n/a",
        "0.700 [0.600, 0.800]",
        "0.600 [0.550, 0.649]",
        "n/a",
    ]
    assert (
        "In brackets the 95% interval over the 2 speakers of validation and the 2 speakers of test and 1,234 "
        "utterances whose speaker is unknown (jackknife with the t distribution). Each utterance of an unknown speaker "
        "counts as a speaker, so that it is too narrow. This is one training" in report
    )
    assert "`student/` holds the T/S student: better mean CCC on validation." in report


def test_differences_come_with_interval_and_p_value(complete_report):
    report, _ = complete_report
    compared = report[report.index("## Is the difference more than chance?") :]
    assert cells(compared, "T/S student less audio only, fine-tuned, test") == [
        "+0.000 (one speaker)",
        "+0.200 [-0.010, +0.200], p = 0.312 (at least 0.0625)",
        "n/a",
    ]
    assert "With these speakers it cannot be below 0.0625 to 1, however large the difference." in compared
    assert cells(compared, "cT/S student less T/S student, test")[1].startswith("-0.260 ")


def test_gap_closed_is_the_share_between_baseline_and_teacher(complete_report):
    report, _ = complete_report
    gap = report[report.index("## How much of the valence gap") :]
    assert "is 0.300 above" in gap
    assert cells(gap, "T/S student (kept)") == ["0.800", "+0.200", "66.7%"]
    assert cells(gap, "cT/S student") == ["0.540", "-0.060", "-20.0%: worse than without a teacher"]
    assert valence_gap_closed(make_results(VALENCE), "ts") == pytest.approx(2 / 3)
    assert valence_gap_closed(make_results(VALENCE), "cts") == pytest.approx(-0.2)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [0.6, 0.55])
def test_teacher_that_is_no_better_leaves_no_gap(tmp_path, teacher):
    valence = {"teacher": teacher, "finetune": 0.6, "ts": 0.8}
    report = write_report(write_run(tmp_path, valence)).read_text(encoding="utf-8")
    assert f"There is no gap to close: the teacher ({teacher:.3f}) is not above" in report
    gap = report[report.index("## How much of the valence gap") :]
    assert cells(gap, "T/S student (kept)") == ["0.800", "+0.200", "no gap"]
    assert valence_gap_closed(make_results(valence), "ts") is None


def test_teacher_on_its_training_split_as_in_table_1(complete_report):
    report, _ = complete_report
    assert cells(report, "CCC") == ["0.750", "0.950", "n/a"]
    assert cells(report, "Pearson") == ["0.850", "0.952", "n/a"]


def test_conditioning_counts_utterances_and_shares(complete_report):
    report, _ = complete_report
    assert "On 2 of 8 training utterances (25.0%)" in report
    assert cells(report, "residual, standard deviation") == ["0.100", "0.200", "0.050"]
    assert cells(report, "over 2 standard deviations") == ["25.0%", "0.0%", "14.3%"]  # dominance: 1 of 7 rated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("valence", (1056, 418)),
        ("residuals", (1056, 396)),
        ("predictions", (1056, 1364)),
        ("learning_curves", (1056, 792)),
    ],
)
def test_figures_are_shown_and_are_png_files(complete_report, name, size):
    report, figures = complete_report
    content = (figures / f"{name}.png").read_bytes()
    assert f"(figures/{name}.png)" in report
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == size
    assert content.endswith(b"IEND\xaeB`\x82")


def test_drawing_changes_nothing_global(tmp_path):
    before = dict(matplotlib.rcParams)
    write_report(write_run(tmp_path, {"finetune": 0.6}))
    assert dict(matplotlib.rcParams) == before


def test_stages_that_were_not_run_are_said_to_be(tmp_path):
    folder = write_run(tmp_path, {"finetune": 0.6}, epochs=1)
    report = write_report(folder).read_text(encoding="utf-8")
    assert cells(report, "cT/S student") == ["not run"] * 6
    assert cells(report, "audio only, fine-tuned")[4] == "0.600 [0.550, 0.649]"
    assert "Not known: it takes two of fine-tuned, T/S and cT/S." in report
    assert "Not known: this needs both the teacher and the fine-tuned baseline" in report
    assert "`student/` holds" not in report
    assert not (folder / "figures" / "residuals.png").exists()
    assert "||" not in report.replace(" ", "")


def make_learned():
    """The entry `lexical`: of 200 sentences of test, that is .5 % and 2.5 % and place 100.5 by chance."""
    chance = {"recall_at_1": 0.005, "recall_at_5": 0.025, "median_rank": 100.5, "mean_reciprocal_rank": 0.03}
    found = {"recall_at_1": 0.25, "recall_at_5": 0.625, "median_rank": 3.0, "mean_reciprocal_rank": 0.4}
    scores = {"n": 1240, "sentences": 200, **found, "chance": chance}
    lines = {
        entry: {
            "strength": {"activation": 0.1, "valence": 1.0, "dominance": None},
            "ccc": {split: {"activation": 0.1, "valence": ccc, "dominance": None} for split in ("validation", "test")},
            "pearson": {},
        }
        for entry, ccc in (("ridge", 0.3), ("ridge_from_words", 0.6))
    }
    return {"retrieval": {"validation": scores, "test": scores}, **lines}


@pytest.mark.slow
def test_what_the_words_are_worth_stands_apart_from_the_scores(tmp_path):
    folder = write_run(tmp_path, VALENCE)
    results = make_results(VALENCE) | {"lexical": make_learned(), "starts_from": {"ts": "lexical", "cts": "lexical"}}
    (folder / "results.json").write_text(json.dumps(results))
    report = write_report(folder).read_text(encoding="utf-8")
    section = report[report.index("## What the stage lexical learned") : report.index("## How well the teacher")]
    assert "It saw no ratings and gives none" in section
    assert "With its weights began: T/S student and cT/S student." in section
    assert cells(section, "test") == ["1,240", "200", "25.0% (0.5%)", "62.5% (2.5%)", "3 (100.5)"]
    assert cells(section, "the student's embedding") == ["0.100", "0.300", "n/a"] * 2
    assert cells(section, "the text encoder") == ["0.100", "0.600", "n/a"] * 2
    said = "Not as in the paper: T/S student: after lexical; cT/S student: after lexical."
    assert "lexical" not in report[: report.index("## What the stage lexical")].replace(said, "")
    assert format_systems(results).splitlines()[-1] == (
        "the stage lexical: of 200 test sentences it puts the right one first for 25.0% of the utterances (0.5% by "
        "chance), among the first 5 for 62.5% (2.5%), and at place 3 in the median (100.5)"
    )


def test_what_is_not_the_papers_is_said_below_the_scores(tmp_path):
    few = {"teacher": 0.9, "finetune": 0.6, "cts": 0.8}
    folder = write_run(tmp_path, few)
    assert "Not as in the paper" not in write_report(folder).read_text(encoding="utf-8")
    results = make_results(few)
    results["recipe"] |= {"embedding_distance": "cosine", "quality": "label_noise", "ears": "../students/listener"}
    (folder / "results.json").write_text(json.dumps(results))
    assert (
        "\n\nNot as in the paper: audio only, fine-tuned: ears of listener; cT/S student: cosine, label noise, ears of "
        "listener.\n\n"
    ) in write_report(folder).read_text(encoding="utf-8")


def test_students_without_the_other_are_compared_alone(tmp_path):
    report = write_report(write_run(tmp_path, {"teacher": 0.9, "finetune": 0.6, "ts": 0.8})).read_text(encoding="utf-8")
    gap = report[report.index("## How much of the valence gap") :]
    assert cells(gap, "cT/S student") == ["not run"] * 3


@pytest.mark.parametrize(
    "name", ["results.json", "predictions/teacher_test.parquet", "ts/training_log.json", "conditioning/train.parquet"]
)
def test_missing_file_is_named(tmp_path, name):
    (write_run(tmp_path, VALENCE) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", "{", "results.json is not valid JSON"),
        (
            "results.json",
            '{"seed": 0}',
            "results.json lacks corpus, versions, systems, comparisons, confidence, recipe; it has seed",
        ),
        ("ts/training_log.json", "[]", "ts/training_log.json holds no epoch"),
        ("ts/training_log.json", '[{"epoch": 1.0}]', "ts/training_log.json lacks train_loss, eval_ccc"),
    ],
)
def test_unusable_file_is_named(tmp_path, name, content, message):
    (write_run(tmp_path, VALENCE) / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)


def test_terminal_table():
    table = format_systems(make_results({"teacher": 0.9, "ts": 0.8})).splitlines()
    assert table == [
        "CCC, one seed              A val    V val    D val   A test   V test   D test",
        "audio only, frozen       not run  not run  not run  not run  not run  not run",
        "text only, frozen        not run  not run  not run  not run  not run  not run",
        "teacher: audio and text    0.710    0.910      n/a    0.700    0.900      n/a",
        "audio only, fine-tuned   not run  not run  not run  not run  not run  not run",
        "T/S student *              0.710    0.810      n/a    0.700    0.800      n/a",
        "cT/S student             not run  not run  not run  not run  not run  not run",
        "* the student that is kept: better mean CCC on validation",
    ]


@pytest.mark.slow
def test_what_it_cost_and_by_what_it_was_made_is_said(tmp_path):
    results = make_results(VALENCE)
    said = (
        "Time: teacher 12 s, ts 1,035 s in 3 sessions, on 2 processes (cuda). Memory: at most 1.2 GB, and 3.5 GB of "
        "the device's. Precision: bf16. Encoders: user/speech at 0123456; user/text at 789abcd."
    )
    write_run(tmp_path, VALENCE)
    assert said in write_report(tmp_path).read_text()
    del results["precision"], results["encoders"]  # as an earlier version wrote them
    for name in ("sessions", "peak_device_memory_gb"):
        del results["cost"][name]
    (tmp_path / "results.json").write_text(json.dumps(results))
    said = "Memory: at most 1.2 GB. Precision: not recorded. Encoders: not recorded."
    assert said in write_report(tmp_path).read_text()
