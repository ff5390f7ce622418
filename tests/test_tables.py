"""The paper's tables from run folders with drawn predictions: every figure against a second formula or a literal."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from cmkd.reporting import tables
from cmkd.reporting.figures import draw_valence_gap
from cmkd.reporting.paper import LATER, TABLE_1, TABLE_2, TABLE_3
from cmkd.reporting.table_text import format_latex
from cmkd.reporting.tables import format_tables, gather_tables, write_tables
from cmkd.runs.recipe import Recipe, load_recipe
from cmkd.runs.seeds import gather_seeds
from cmkd.scoring.confidence import paired_test
from cmkd.scoring.evaluation import Predictions, write_predictions
from cmkd.scoring.scores import score_systems
from cmkd.stages import STAGES

DIMENSIONS = ("activation", "valence", "dominance")
BASE, LARGE, BERT = "facebook/hubert-base-ls960", "facebook/hubert-large-ll60k", "bert-base-uncased"
DIGEST = "0123456789ab"
SPEAKERS, EACH = 6, 5
RECIPES = Path(__file__).parents[1] / "recipes"


def draw(stage, noise, seed=0):
    """Ids, predictions (30, 3), labels and speakers; everything but the predictions is the same for all stages."""
    labels = np.random.default_rng(1).uniform(size=(SPEAKERS * EACH, 3))
    generator = np.random.default_rng([seed, sum(map(ord, stage))])
    predictions = labels + noise * generator.normal(size=labels.shape)
    return (
        [f"u{row}" for row in range(len(labels))],
        predictions,
        labels,
        [f"s{row % SPEAKERS}" for row in range(len(labels))],
    )


def write_run(folder, stages, corpus="msp-podcast", version=f"1.6-{DIGEST}", seed=0, folds=None, **recipe):
    """A run folder whose stages answer with this much noise."""
    scored = {"train": {}, "test": {}}
    for split, answers in scored.items():
        for stage, noise in stages.items():
            ids, predictions, labels, speakers = draw(stage, noise, seed)
            genders = [""] * len(ids)
            path = folder / f"predictions/{stage}_{split}.parquet"
            write_predictions(path, ids, predictions, labels, speakers, genders)
            answers[stage] = Predictions(ids, predictions, labels, speakers, genders)
    results = {
        "corpus": {
            "name": corpus,
            "version": version,
            "release": version.partition("+")[0].removesuffix(f"-{DIGEST}"),
            "utterances": {"train": 34_280, "validation": 5_958, "test": 10_124},
            "notes": ["transcripts: 50,362 by openai/whisper-small.en (1a2b) from words.parquet", f"in {folder}"],
        },
        "seed": seed,
        "versions": {"cmkd": "0.1.0"},
        **score_systems(scored),
        "recipe": Recipe(corpus={"name": corpus}, output_dir=str(folder), **recipe).model_dump(mode="json"),
        "cost": {"seconds": dict.fromkeys(stages, 1.5), "peak_memory_gb": 1.0, "processes": 1, "device": "cpu"},
    }
    if folds is not None:  # as cmkd crossval writes it
        results |= {"folds": folds, "cost": {"seconds": {}, "processes": 1}}
        results["systems"] = {stage: {"test": splits["test"]} for stage, splits in results["systems"].items()}
        results["corpus"]["utterances"] = {"test": 10_039}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def edit_results(folder, edit):
    results = json.loads((folder / "results.json").read_text())
    edit(results)
    (folder / "results.json").write_text(json.dumps(results))


def direct_ccc(predictions, labels):
    """(…, 3) of (…, n, 3), by the definition."""
    covariance = (predictions * labels).mean(-2) - predictions.mean(-2) * labels.mean(-2)
    bias = predictions.mean(-2) - labels.mean(-2)
    return 2 * covariance / (predictions.var(-2) + labels.var(-2) + bias**2)


def row_of(table, number):
    (row,) = [row for row in table.rows if row.number == number]
    return row


def cells(text, number):
    """The cells of the only line of a Markdown text that begins with this number."""
    (line,) = [line for line in text.splitlines() if re.match(rf"\| {re.escape(number)} +\|", line)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_published_figures_are_those_of_the_specification(shared_dir):
    if not (shared_dir / "paper.md").is_file():
        pytest.skip(f"no paper.md in {shared_dir}")
    text = (shared_dir / "paper.md").read_text(encoding="utf-8")
    listed = {
        name: [
            tuple(cell.strip() for cell in line.strip("|").split("|"))
            for line in re.search(rf"^{name}, .*?\n((?:\|.*\n)+)", text, re.MULTILINE).group(1).splitlines()[2:]
        ]
        for name in ("Table 2", "Table 3")
    }
    for table in (TABLE_2, TABLE_3):
        ours = [
            (str(row.number), row.system, *(f"{row.scores[name]:.3f}".lstrip("0") for name in DIMENSIONS))
            for row in table.rows
        ]
        assert ours == listed[table.name]
    a, v, d, *pearson = re.search(r"CCC A (\S+) V (\S+) D (\S+); Pearson A (\S+) V (\S+) D (\d*\.\d+)", text).groups()
    assert [list(row.scores.values()) for row in TABLE_1.rows] == [
        [float(a), float(v), float(d)],
        [*map(float, pearson)],
    ]
    wagner, best = LATER
    assert f"V {wagner.scores['valence']:.3f}".replace("0.", ".") in text
    assert " ".join(f"{name[0].upper()} {best.scores[name]:.3f}" for name in DIMENSIONS).replace("0.", ".") in text


def test_some_published_figures_and_what_trains_them():
    by_number = {row.number: row for row in TABLE_2.rows}
    assert list(by_number) == list(range(1, 13))
    assert by_number[12].scores == {"activation": 0.757, "valence": 0.627, "dominance": 0.671}
    assert by_number[8].scores == {"activation": 0.317, "valence": 0.563, "dominance": 0.290}
    assert by_number[3].encoders == {"student_speech_encoder": "cpc/60k"}
    assert [row.stage for row in TABLE_2.rows] == [None] * 2 + ["audio"] * 5 + [
        "text",
        "teacher",
        "finetune",
        "ts",
        "cts",
    ]
    assert {row.number: row.builds_on for row in TABLE_2.rows if row.builds_on} == {9: 7, 10: 6, 11: 10, 12: 11}
    assert {row.number: row.builds_on for row in TABLE_3.rows if row.builds_on} == {4: 2, 5: 2, 6: 5}
    assert TABLE_3.rows[5].scores == {"activation": 0.645, "valence": 0.481, "dominance": 0.528}
    assert TABLE_3.rows[5].encoders == {
        "student_speech_encoder": BASE,
        "teacher_speech_encoder": BASE,
        "text_encoder": BERT,
    }
    assert TABLE_1.rows[1].scores == {"activation": 0.764, "valence": 0.699, "dominance": 0.717}


def test_a_student_of_another_teacher_is_said(tmp_path):
    runs = [write_run(tmp_path / stage, {stage: 0.3}) for stage in ("teacher", "ts", "cts")]
    for run, fingerprint in zip(runs, ("aa", "aa", "bb"), strict=True):
        results = json.loads((run / "results.json").read_text()) | {"teacher": fingerprint}
        (run / "results.json").write_text(json.dumps(results))
    notes = gather_tables(runs)[1].notes
    assert [note for note in notes if "another teacher" in note] == [
        "Row 12 learnt from another teacher than that of row 9."
    ]


def test_row_has_published_ours_and_difference(tmp_path):
    run = write_run(tmp_path / "t2_12", {"cts": 0.3})
    write_tables(gather_tables([run]), tmp_path / "out")
    _, predictions, labels, _ = draw("cts", 0.3)
    expected = direct_ccc(predictions, labels)
    interval = json.loads((run / "results.json").read_text())["systems"]["cts"]["test"]["interval"]

    row = json.loads((tmp_path / "out/tables.json").read_text())["tables"][1]["rows"][11]
    assert (row["number"], row["system"], row["run"]) == ("12", "cT/S, teacher 9, student 6", "t2_12")
    assert list(row["score"].values()) == pytest.approx(expected, abs=1e-12)
    assert row["interval"] == interval
    published = np.array([0.757, 0.627, 0.671])
    assert list(row["difference"].values()) == pytest.approx(expected - published, abs=1e-12)

    shown = cells((tmp_path / "out/tables.md").read_text(), "12")
    assert shown[2] == "0.757 0.627 0.671"
    ranges = [f"[{interval[name][0]:.3f}, {interval[name][1]:.3f}]" for name in DIMENSIONS]
    assert shown[3:6] == [f"{value:.3f} {range_}" for value, range_ in zip(expected, ranges, strict=True)]
    assert shown[6] == " ".join(f"{value:+.3f}" for value in expected - published)


def test_what_was_not_run_is_said_to_be_and_quoted_figures_stay_alone(tmp_path):
    table_1, table_2 = gather_tables([write_run(tmp_path / "run", {"cts": 0.3})])
    shown = format_tables([table_2])
    assert cells(shown, "10")[2:] == ["0.730 0.533 0.644", "not run", "not run", "not run", "", ""]
    assert cells(shown, "1")[1:] == ["attention baseline (Lin & Busso 2020)", "0.695 0.307 0.613", "", "", "", "", ""]
    assert cells(shown, "12")[-1] == "on 11: row 11 was not run"
    assert "Quoted by the paper from others: row 1, row 2." in shown
    assert format_tables([table_1]).count("not run") == 6
    assert table_1.runs == [] and table_1.notes == []


def test_a_row_is_tested_against_the_one_it_builds_on(tmp_path):
    runs = [write_run(tmp_path / "ts", {"ts": 0.30}), write_run(tmp_path / "cts", {"cts": 0.25})]
    found = dict(row_of(gather_tables(runs)[1], "12").paired)
    _, weaker, labels, speakers = draw("ts", 0.30)
    expected = paired_test(labels, draw("cts", 0.25)[1], weaker, speakers)
    assert found.pop("against") == "11"
    assert set(found) == {"difference", "interval", "p", "smallest_p"}
    for field, values in found.items():
        assert values == {name: expected[name][field] for name in DIMENSIONS}
    shown = format_tables(gather_tables(runs))
    p_values = " ".join(f"{expected[name]['p']:.3g}" for name in DIMENSIONS)
    assert cells(shown, "12")[-1] == f"on 11: {p_values} (at least 0.0312)"
    assert "With these speakers it cannot be below 0.0312, however large the difference." in shown


def write_seeds_run(folder, stages, seeds=(0, 1, 2), **arguments):
    """A run of several seeds whose stages answer with this much noise."""
    for seed in seeds:
        write_run(folder / f"seed_{seed}", stages, seed=seed, **arguments)
    gather_seeds(folder, list(seeds))
    return folder


def test_runs_of_several_seeds_show_mean_and_spread_and_are_tested_together(tmp_path):
    runs = [write_seeds_run(tmp_path / name, {name: 0.3}) for name in ("ts", "cts")]
    _, table = gather_tables(runs)
    assert table.heading == "Table 2 on msp-podcast 1.6: CCC on test"
    row = row_of(table, "12")
    _, _, labels, speakers = draw("cts", 0.3)
    ours, theirs = (np.stack([draw(name, 0.3, seed)[1] for seed in range(3)]) for name in ("cts", "ts"))
    each = direct_ccc(ours, labels)
    assert list(row.score.values()) == pytest.approx(each.mean(0))
    assert list(row.seeds["std"].values()) == pytest.approx(each.std(0, ddof=1)) and row.seeds["numbers"] == [0, 1, 2]
    expected = paired_test(labels, ours, theirs, speakers)
    assert row.paired["p"] == {name: expected[name]["p"] for name in DIMENSIONS}
    shown = format_tables([table])
    low, high = row.interval["valence"]
    assert cells(shown, "12")[4] == f"{each.mean(0)[1]:.3f} ± {each.std(0, ddof=1)[1]:.3f} [{low:.3f}, {high:.3f}]"
    assert "Row 12: cts, seeds 0, 1, 2, corpus" in shown and "Of several seeds: the mean" in shown
    assert "± " in write_tables([table], tmp_path / "out")[0].read_text()
    systems = tables._gap_systems(table)
    assert systems["cts"]["seeds"] == pytest.approx(each[:, 1]) and systems["audio"]["seeds"] == []
    (panel,) = draw_valence_gap({"two": systems}).axes
    drawn = {line.get_marker(): list(line.get_xdata()) for line in panel.lines if len(line.get_xdata()) == 3}
    assert drawn == {"o": pytest.approx(each[:, 1])}


def test_a_table_of_one_seed_says_so_in_its_first_line(tmp_path):
    single = write_run(tmp_path / "finetune", {"finetune": 0.3})
    several = write_seeds_run(tmp_path / "ts", {"ts": 0.3})
    assert format_tables(gather_tables([single])[1:]).splitlines()[0].endswith(": CCC on test; one seed")
    table = gather_tables([single, several])[1]
    assert format_tables([table]).splitlines()[0].endswith(": CCC on test; one seed in row 10")
    assert row_of(table, "11").paired == {"against": "10", "reason": "row 10 has other seeds"}
    with pytest.raises(ValueError, match="with the seeds 0, 1, 2 and 4: a row shows one run"):
        gather_tables([several, write_run(tmp_path / "again", {"ts": 0.3}, seed=4)])


def test_latex_rows_have_as_many_cells_as_the_table_has_columns(tmp_path):
    runs = [write_seeds_run(tmp_path / name, {name: 0.3}) for name in ("ts", "cts")]
    for text in map(format_latex, gather_tables([*runs, write_run(tmp_path / "t", {"teacher": 0.2})])):
        columns = len(re.search(r"begin\{tabular\}\{rp\{5cm\}(r+)\}", text)[1]) + 2
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        for line in body.splitlines()[1:]:
            spans = [int(number) - 1 for number in re.findall(r"multicolumn\{(\d)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == columns, line
    assert "at least 0.0312" in text


def test_equal_systems_have_p_1_and_a_far_better_one_the_smallest_there_is(tmp_path):
    runs = [write_run(tmp_path / "10", {"finetune": 3.0}), write_run(tmp_path / "11", {"ts": 0.01})]
    runs.append(write_run(tmp_path / "12", {"cts": 0.01}))
    ids, predictions, labels, speakers = draw("ts", 0.01)
    write_predictions(runs[2] / "predictions/cts_test.parquet", ids, predictions, labels, speakers, [""] * len(ids))
    table = gather_tables(runs)[1]
    assert row_of(table, "12").paired["p"] == dict.fromkeys(DIMENSIONS, 1.0)
    assert row_of(table, "11").paired["p"] == dict.fromkeys(DIMENSIONS, 2 / 2**SPEAKERS)


def test_teacher_fills_table_1_with_its_training_split(tmp_path):
    table_1, table_2 = gather_tables([write_run(tmp_path / "run", {"teacher": 0.2})])
    _, predictions, labels, _ = draw("teacher", 0.2)
    pearson = [np.corrcoef(predictions[:, column], labels[:, column])[0, 1] for column in range(3)]
    ccc_row, pearson_row = table_1.rows
    assert list(ccc_row.score.values()) == pytest.approx(direct_ccc(predictions, labels), abs=1e-12)
    assert list(pearson_row.score.values()) == pytest.approx(pearson, abs=1e-12)
    assert list(pearson_row.difference.values()) == pytest.approx(np.subtract(pearson, [0.764, 0.699, 0.717]))
    assert pearson_row.interval is None
    assert row_of(table_2, "9").run == "run"


def test_one_run_of_several_stages_fills_several_rows(tmp_path):
    run = write_run(tmp_path / "run", dict.fromkeys(("audio", "text", "teacher", "finetune", "ts", "cts"), 0.3))
    table = gather_tables([run])[1]
    assert [row.number for row in table.rows if row.run] == ["6", "8", "9", "10", "11", "12"]
    large = write_run(tmp_path / "large", {"audio": 0.3}, student_speech_encoder=LARGE)
    both = gather_tables([run, large])[1]
    assert row_of(both, "7").run == "large"
    assert row_of(both, "9").paired["against"] == "7"
    assert format_tables([both]) == format_tables([gather_tables([large, run])[1]])


def test_systems_that_the_paper_lacks_stand_below_with_later_work(tmp_path):
    robust = {"student_speech_encoder": "facebook/wav2vec2-large-robust", "num_trainable_layers": -1}
    runs = [
        write_run(tmp_path / "students", {"ts": 0.3, "cts": 0.2}, **robust),
        write_run(tmp_path / "alone", {"finetune": 0.3}, **robust),
        write_run(tmp_path / "row_10", {"finetune": 0.4}),
    ]
    table = gather_tables(runs)[1]
    added = table.rows[12:]
    assert [(row.number, row.run) for row in added] == [
        ("+1", "alone"),
        ("+2", "students"),
        ("+3", "students"),
        ("", None),
        ("", None),
    ]
    assert added[0].system == "audio only, fine-tuned (wav2vec2-large-robust, all layers)"
    assert added[2].system == (
        "cT/S student (wav2vec2-large-robust, all layers; teacher hubert-large-ll60k + bert-base-uncased)"
    )
    assert [row.paired["against"] if row.paired else None for row in added] == [None, "+1", "+2", None, None]
    assert added[0].published is None and added[0].difference is None
    assert added[3].published == {"activation": None, "valence": 0.638, "dominance": None}
    assert "– 0.638 –" in format_tables([table])
    assert "another release (MSP-Podcast 1.7, test-1)" in format_tables([table])


def make_folds(stages):
    """Five folds whose scores have nothing to do with the predictions, so that neither is taken for the other."""
    each = [
        {stage: {name: 0.1 * fold + 0.01 * column for column, name in enumerate(DIMENSIONS)} for stage in stages}
        for fold in range(1, 6)
    ]
    mean = {stage: {name: 0.3 + 0.01 * column for column, name in enumerate(DIMENSIONS)} for stage in stages}
    std = {stage: dict.fromkeys(DIMENSIONS, 0.1 * 2.5**0.5) for stage in stages}
    return {"number": 5, "mean": mean, "std": std, "each": each}


def test_cross_validation_shows_mean_over_folds_and_pooled(tmp_path):
    run = write_run(
        tmp_path / "t3",
        {"audio": 0.3, "ts": 0.3},
        corpus="iemocap",
        version=f"{DIGEST}-{DIGEST}",
        folds=make_folds(["audio", "ts"]),
        teacher_speech_encoder=BASE,
    )
    (table,) = gather_tables([run])
    assert (table.name, table.release) == ("Table 3", DIGEST)
    _, predictions, labels, _ = draw("ts", 0.3)
    pooled = direct_ccc(predictions, labels)
    row = row_of(table, "5")
    assert list(row.score.values()) == pytest.approx(pooled, abs=1e-12)
    assert list(row.difference.values()) == pytest.approx(np.array([0.30, 0.31, 0.32]) - [0.667, 0.582, 0.545])
    shown = cells(format_tables([table]), "5")
    low, high = row.interval["valence"]
    assert shown[4] == f"0.310 ± 0.158; pooled {pooled[1]:.3f} [{low:.3f}, {high:.3f}]"
    assert shown[6] == "-0.367 -0.272 -0.225"
    assert row.paired["against"] == "2"
    pooled_of_2 = direct_ccc(draw("audio", 0.3)[1], labels)
    assert list(row.paired["difference"].values()) == pytest.approx(pooled - pooled_of_2, abs=1e-12)
    assert "The paper does not say which of the two it reports. The difference from its figure is of the mean" in (
        " ".join(table.notes)
    )
    assert table.runs[0]["folds"] == 5
    assert not any("alone" in note or "Utterances of all" in note for note in table.notes)


def test_single_fold_is_said_to_be_one(tmp_path):
    run = write_run(tmp_path / "one", {"audio": 0.3}, corpus="iemocap", version=DIGEST)
    edit_results(run, lambda results: results["recipe"]["corpus"].update(fold=3))
    (table,) = gather_tables([run])
    assert "One fold alone, not a cross-validation: one (fold 3)." in table.notes
    assert "Utterances of all splits, where the paper has 10,039: one 50,362." in table.notes


def test_other_corpus_fills_rows_by_stage_without_published_figures(tmp_path):
    encoders = {
        "student_speech_encoder": "openai/whisper-tiny.en",
        "teacher_speech_encoder": f"{tmp_path}/models/whisper-base.en",
        "text_encoder": "sentence-transformers/all-MiniLM-L6-v2",
        "num_trainable_layers": 2,
    }
    emobank = {"corpus": "spoken-emobank", "version": "78b0bd36f61e", **encoders}
    runs = [
        write_run(tmp_path / "six", {"audio": 0.5, "teacher": 0.2}, **emobank),
        write_run(tmp_path / "hubert", {"cts": 0.3}, **(emobank | {"student_speech_encoder": BASE})),
    ]
    table_1, table_2 = gather_tables(runs)
    assert table_1.heading == (
        "The rows of Table 1 on spoken-emobank 78b0bd36f61e: the teacher on its own training split, synthetic speech; "
        "one seed"
    )
    assert [row.system for row in table_1.rows] == [
        "teacher, CCC (whisper-base.en + all-MiniLM-L6-v2)",
        "teacher, Pearson (whisper-base.en + all-MiniLM-L6-v2)",
    ]
    assert (
        table_2.heading == "The rows of Table 2 on spoken-emobank 78b0bd36f61e: CCC on test, synthetic speech; one seed"
    )
    assert [(row.number, row.run) for row in table_2.rows] == [
        ("6", "six"),
        ("8", None),
        ("9", "six"),
        ("10", None),
        ("11", None),
        ("12", "hubert"),
    ]
    assert row_of(table_2, "6").system == "audio only, frozen (whisper-tiny.en)"
    assert row_of(table_2, "12").system == (
        "cT/S student (hubert-base-ls960, top 2 layers; teacher whisper-base.en + all-MiniLM-L6-v2)"
    )
    assert all(row.published is None and row.difference is None for row in (*table_1.rows, *table_2.rows))
    assert row_of(table_2, "9").paired["against"] == "6"
    shown = format_tables([table_2])
    assert "published" not in shown and "difference A" not in shown
    assert str(tmp_path) not in format_tables([table_1, table_2])

    plain = write_run(tmp_path / "own", {"audio": 0.3}, corpus="manifest", version=DIGEST)
    (own,) = gather_tables([plain])
    assert "synthetic" not in own.heading


def test_tables_come_in_the_order_of_the_paper_and_corpora_apart(tmp_path):
    runs = [
        write_run(tmp_path / "own", {"audio": 0.3}, corpus="manifest", version=DIGEST),
        write_run(tmp_path / "iemocap", {"audio": 0.3}, corpus="iemocap", version=DIGEST),
        write_run(tmp_path / "podcast", {"audio": 0.3}),
    ]
    names = [table.name for table in gather_tables(runs)]
    assert names == ["Table 1", "Table 2", "Table 3", "The rows of Table 2"]


def test_settings_that_differ_are_listed_for_the_stages_they_matter_to(tmp_path):
    settings = {"num_epochs": 5, "embedding_distance": "mean_squared", "residual_threshold": 1.5, "batch_size": 16}
    runs = [
        write_run(tmp_path / "audio", {"audio": 0.3}, **settings),
        write_run(tmp_path / "ts", {"ts": 0.3}, version=f"1.6+transcripts-{DIGEST}-{DIGEST}", **settings),
        write_run(tmp_path / "cts", {"cts": 0.3}, seed=4, **(settings | {"batch_size": 32})),
        write_run(tmp_path / "text", {"text": 0.3}),
    ]
    edit_results(runs[1], lambda results: results["cost"].update(processes=4))
    table = gather_tables(runs)[1]
    assert {run["folder"]: run["settings"] for run in table.runs} == {
        "audio": {"num_epochs": [5, 50], "utterances a step": [16, 32]},
        "text": {},
        "ts": {
            "num_epochs": [5, 50],
            "embedding_distance": ["mean_squared", "norm"],
            "utterances a step": [64, 32],
        },
        "cts": {
            "num_epochs": [5, 50],
            "embedding_distance": ["mean_squared", "norm"],
            "residual_threshold": [1.5, 2.0],
        },
    }
    shown = format_tables([table])
    said = "transcripts: 50,362 by openai/whisper-small.en (1a2b) from words.parquet"
    assert (
        f"- Row 6: audio, seed 0, corpus version 1.6-{DIGEST}; num_epochs 5 instead of 50, utterances a step" in shown
    )
    assert f"- Row 8: text, seed 0, corpus version 1.6-{DIGEST}; all defaults; {said}." in shown
    assert "- Row 12: cts, seed 4," in shown
    assert shown.count(said) == 3  # not of the audio-only run
    assert "Another release" not in shown and "Utterances of all" not in shown


def test_a_student_that_began_with_the_words_fills_no_row_of_the_paper(tmp_path):
    run = write_run(tmp_path / "words", {"ts": 0.3})
    (row,) = [row for row in gather_tables([run])[1].rows if row.run]
    assert row.number == "11"
    edit_results(run, lambda results: results.update(starts_from={"ts": "lexical"}))
    (row,) = [row for row in gather_tables([run])[1].rows if row.run]
    assert row.number == "+1" and row.system.startswith("T/S student, after lexical (hubert-base-ls960, top 6 layers; ")
    assert row.ways == {"starts_from": "after lexical"}
    plain = write_run(tmp_path / "plain", {"ts": 0.3, "finetune": 0.4})
    table = gather_tables([run, plain])[1]
    assert row_of(table, "+1").paired["against"] == "11" and row_of(table, "11").paired["against"] == "10"
    assert tables._gap_systems(table)["+1"]["name"] == "T/S, after lexical (row +1)"
    edit_results(run, lambda results: results["recipe"].update(word_pieces=1200))
    assert row_of(gather_tables([run])[1], "+1").ways == {"starts_from": "after lexical with 1,200 pieces"}


def test_a_system_with_the_ears_of_another_student_fills_no_row_of_the_paper(tmp_path):
    """And it is tested against the one with the same ears, not against the one without."""
    scores = {"audio": 0.4, "teacher": 0.1, "finetune": 0.35, "ts": 0.3}
    plain = write_run(tmp_path / "plain", scores)
    several = write_run(tmp_path / "ears", {name: scores[name] for name in ("finetune", "ts")}, ears="../user/listener")
    others = write_run(tmp_path / "others", {"finetune": 0.5}, ears="user/other")
    _, table = gather_tables([plain, several, others])
    rows = {row.number: row for row in table.rows if row.run != "plain" and row.run}
    named = {number: (row.stage, row.run, row.paired["against"]) for number, row in rows.items()}
    assert named == {"+1": ("finetune", "ears", "6"), "+2": ("finetune", "others", "6"), "+3": ("ts", "ears", "+1")}
    heard = "hubert-base-ls960, top 6 layers"
    assert rows["+1"].system == f"audio only, fine-tuned, ears of listener ({heard})"
    taught = f"{heard}; teacher hubert-large-ll60k + bert-base-uncased"
    assert rows["+3"].system == f"T/S student, ears of listener ({taught})"
    assert all("ears" not in run["settings"] for run in table.runs)
    assert [system["name"] for system in tables._gap_systems(table).values()] == [
        "audio only (row 10)",
        "T/S (row 11)",
        "cT/S (row 12)",
        "fine-tuned, ears of listener (row +1)",
        "fine-tuned, ears of other (row +2)",
        "T/S, ears of listener (row +3)",
        "teacher (row 9)",
    ]


def hear_unlabelled(folder):
    """As a run writes it whose students heard speech without labels too."""

    def edit(results):
        results["corpus"]["utterances"]["unlabelled"] = 900
        results["corpus"]["unlabelled"] = {"version": "0123", "corpora": {}}

    edit_results(folder, edit)
    return folder


@pytest.mark.parametrize(("ears", "of_ears"), [(None, ""), ("user/listener", ", ears of listener")])
def test_a_student_that_hears_unlabelled_speech_stands_beside_the_one_that_does_not(tmp_path, ears, of_ears):
    both = {"ts": 0.3, "finetune": 0.4}
    runs = [
        write_run(tmp_path / "plain", both, "own", DIGEST, ears=ears),
        hear_unlabelled(write_run(tmp_path / "more", {"ts": 0.2, "teacher": 0.1}, "own", DIGEST, ears=ears)),
        hear_unlabelled(write_run(tmp_path / "soft", {"cts": 0.2}, "own", DIGEST, ears=ears, quality="soft")),
    ]
    table = gather_tables(runs)[-1]
    names = {row.run: row.system.partition(" (")[0] for row in table.rows if row.stage in ("ts", "cts") and row.run}
    assert names == {
        "plain": f"T/S student{of_ears}",
        "more": f"T/S student{of_ears}, and unlabelled speech",
        "soft": f"cT/S student, soft{of_ears}, and unlabelled speech",
    }
    numbers = {row.run: row.number for row in table.rows if row.stage in ("ts", "cts")}
    against = {row.run: row.paired["against"] for row in table.rows if row.number.startswith("+") and row.paired}
    assert against["more"] == against["soft"] == numbers["plain"] == ("11" if ears is None else "+2")
    systems = tables._gap_systems(table)
    assert systems[numbers["more"]]["name"] == f"T/S{of_ears}, and unlabelled speech (row {numbers['more']})"
    assert row_of(table, "9").run == "more" and row_of(table, "9").ways == {}  # the teacher never hears it
    (panel,) = draw_valence_gap({"own": systems}).axes
    tuned, teacher = (next(row for row in table.rows if row.stage == of and row.run) for of in ("finetune", "teacher"))
    (gap,) = panel.patches
    ends = gap.get_x(), gap.get_x() + gap.get_width()
    assert ends == pytest.approx((tuned.score["valence"], teacher.score["valence"]))
    of_more = {"unlabelled": "and unlabelled speech"} | ({"ears": "ears of listener"} if ears else {})
    assert row_of(table, numbers["more"]).ways == of_more


def test_a_reading_of_the_embedding_distance_that_few_have_is_said(tmp_path):
    runs = [write_run(tmp_path / name, {name: 0.3}, embedding_distance="mean_squared") for name in ("ts", "cts")]
    runs += [write_run(tmp_path / "teacher", {"teacher": 0.1}), write_run(tmp_path / "literal", {"ts": 0.2})]
    table = gather_tables(runs)[1]
    shown = {row.number: (row.run, row.ways) for row in table.rows if row.stage in ("ts", "cts") and row.run}
    assert shown == {"11": ("ts", {}), "12": ("cts", {}), "+1": ("literal", {"embedding_distance": "norm"})}
    assert row_of(table, "+1").paired["against"] == "11"


def test_two_systems_of_one_name_are_refused(tmp_path):
    runs = [
        write_run(tmp_path / name, {"ts": 0.3}, ears="user/listener", num_epochs=n) for name, n in (("a", 3), ("b", 4))
    ]
    message = r"a and \S*b both have a system T/S student, ears of listener \(hubert.*\): a row shows one run"
    with pytest.raises(ValueError, match=message):
        gather_tables(runs)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("[mi]*/t[23]_*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_of_the_paper_fills_the_row_of_its_name(tmp_path, path):
    recipe = load_recipe(path).model_dump(mode="json")
    settings = {key: recipe[key] for key in ("student_speech_encoder", "teacher_speech_encoder", "text_encoder")}
    stages = dict.fromkeys(recipe["stages"], 0.3)
    run = write_run(tmp_path / path.stem, stages, corpus=recipe["corpus"]["name"], **settings)
    *_, table = gather_tables([run])
    number, row = re.match(r"t(\d)_(\d+)", path.stem).groups()
    assert [(found.number, found.run) for found in table.rows if found.run] == [(str(int(row)), path.stem)]
    assert table.name == f"Table {number}"


def test_every_row_that_can_be_run_has_a_recipe():
    for table, folder in ((TABLE_2, "msp_podcast/t2"), (TABLE_3, "iemocap/t3")):
        numbers = {int(path.stem[3:5]) for path in RECIPES.glob(f"{folder}_*.yaml")}
        assert numbers == {row.number for row in table.rows if row.stage}


def test_settings_are_those_that_stages_depend_on():
    every, tuned, taught = list(STAGES), ["finetune", "lexical", "ts", "cts"], ["ts", "cts"]
    rating = [name for name in every if name != "lexical"]
    expected = {
        "num_epochs": every,
        "learning_rate": every,
        "plateau_factor": every,
        "plateau_patience": every,
        "loss_over": every,
        "group_by_length": every,
        "summarizer": every,
        "corpus_sampling": rating,
        "ccc_within": rating,
        "labelled_share": every,
        "labelled_seed": every,
        "use_weighted_layer_sum": ["audio", "teacher", *tuned],
        "num_trainable_layers": tuned,
        "encoder_learning_rate_factor": tuned,
        "word_pieces": ["lexical", *taught],
        "lexical_epochs": ["lexical"],
        "lexical_learning_rate": ["lexical"],
        "lexical_temperature": ["lexical"],
        "unlabelled_rest": ["lexical", *taught],
        "unlabelled_hours": ["lexical", *taught],
        "same_sentences": ["lexical", *taught],
        "distillation_weight": taught,
        "embedding_distance": taught,
        "contrastive_temperature": taught,
        "prediction_weight": taught,
        "control": taught,
        "unlabelled_ratio": taught,
        "residual_threshold": ["cts"],
        "quality": ["cts"],
        "cross_fitting": ["cts"],
    }
    assert list(tables._SETTINGS) == list(expected)
    for setting, stages in expected.items():
        assert [name for name, stage in STAGES.items() if setting in stage.settings] == stages, setting
    for stage in STAGES.values():
        assert {setting for setting in stage.settings if setting.endswith("_encoder")} == set(stage.all_encoders)


def test_another_release_is_said(tmp_path):
    run = write_run(tmp_path / "later", {"cts": 0.3}, version=f"1.11-{DIGEST}")
    edit_results(run, lambda results: results["corpus"]["utterances"].update(train=84_030, test2=14_815))
    _, table = gather_tables([run])
    assert table.heading == "Table 2 on msp-podcast 1.11: CCC on test; one seed"
    assert any("the paper has msp-podcast 1.6, these runs 1.11" in note for note in table.notes)
    assert "Utterances of all splits, where the paper has 50,362: later 100,112." in table.notes


def count_columns(line):
    """Columns of a line of a LaTeX table."""
    parts = re.split(r"(?<!\\)&", line)
    return sum(int(found.group(1)) if (found := re.search(r"\\multicolumn\{(\d)\}", part)) else 1 for part in parts)


def test_latex_is_balanced_and_escaped(tmp_path):
    runs = [
        write_run(tmp_path / "a_b&c%", {"teacher": 0.2, "cts": 0.3, "finetune": 0.3, "ts": 0.3}, num_epochs=3),
        write_run(tmp_path / "large", {"ts": 0.2}, student_speech_encoder="some_one/big_model"),
        write_run(tmp_path / "t3", {"audio": 0.3}, corpus="iemocap", version=DIGEST, folds=make_folds(["audio"])),
        write_run(tmp_path / "emo", {"cts": 0.3}, corpus="spoken-emobank", version=DIGEST),
    ]
    write_tables(gather_tables(runs), tmp_path / "out")
    latex = (tmp_path / "out/tables.tex").read_text(encoding="utf-8")
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", latex):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    assert latex.count(r"\begin{tabular}") == 4
    for columns, body in re.findall(r"\\begin\{tabular\}\{rp\{5cm\}(r+)\}\n(.*?)\\end\{tabular\}", latex, re.DOTALL):
        head, rest = body.split(r"\midrule")
        names = head.splitlines()[-1]
        rows = rest.split(r"\bottomrule")[0].strip().splitlines()
        assert count_columns(names) == 2 + len(columns)
        assert all(row.endswith(r" \\") for row in rows)
        assert {count_columns(row) for row in rows} == {2 + len(columns)}
    assert r"a\_b\&c\%" in latex and r"big\_model" in latex
    without = re.sub(r"\\[_&%#{}$]", "", latex.replace("tables*", ""))
    assert without.count("{") == without.count("}") and without.count("$") % 2 == 0
    assert not re.search(r"[A-Za-z0-9]_[A-Za-z]", without)
    assert r"0.300 $\pm$ 0.158" in latex


def test_files_hold_no_path_of_this_machine_and_are_all_there(tmp_path):
    run = write_run(tmp_path / "runs/one", {"cts": 0.3})
    written = write_tables(gather_tables([run]), tmp_path / "out")
    assert [path.name for path in written] == ["tables.md", "tables.tex", "tables.json", "valence_gap.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    for path in written[:3]:
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert format_tables(gather_tables([run])) in written[0].read_text(encoding="utf-8")
    content = written[3].read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) in [
        (1056, 341),
        (1056, 340),
    ]  # versions of matplotlib round differently


def test_gap_shows_the_best_audio_only_row_that_was_run(tmp_path):
    frozen = write_run(tmp_path / "frozen", {"audio": 0.3})
    tuned = write_run(tmp_path / "tuned", {"finetune": 0.3})
    for runs, number in (([frozen], "6"), ([frozen, tuned], "10")):
        table = gather_tables(runs)[1]
        assert {stage: table.rows[index].number for stage, index in table.gap.items()} == {
            "audio": number,
            "ts": "11",
            "cts": "12",
            "teacher": "9",
        }


def test_figure_of_the_gap():
    def system(name, published, ccc, interval=None, fold_mean=None, stage="ts"):
        return {
            "stage": stage,
            "name": name,
            "published": published,
            "ccc": ccc,
            "interval": interval,
            "fold_mean": fold_mean,
            "seeds": [],
        }

    figure = draw_valence_gap(
        {
            "Table 3": {
                "audio": system("audio only", 0.527, 0.5, [0.45, 0.55], 0.51),
                "ts": system("T/S", 0.582, None),
                "cts": system("cT/S", None, 0.4),
                "teacher": system("teacher", 0.648, 0.7, [0.65, 0.75], 0.69),
            }
        }
    )
    (panel,) = figure.axes
    drawn = {
        (line.get_marker(), line.get_markerfacecolor() == "none"): [] for line in panel.lines if len(line.get_xdata())
    }
    for line in panel.lines:
        if len(line.get_xdata()):
            drawn[line.get_marker(), line.get_markerfacecolor() == "none"] += list(zip(*line.get_data(), strict=True))
    assert drawn == {
        ("o", True): [(0.527, 0), (0.582, 1), (0.648, 3)],
        ("o", False): [(0.5, 0), (0.4, 2), (0.7, 3)],
        ("|", False): [(0.51, 0), (0.69, 3)],
        ("None", False): [(0.45, 0), (0.55, 0), (0.65, 3), (0.75, 3)],
    }
    assert [text.get_text() for text in panel.texts] == ["ours", "0.500", "not run", "0.400", "0.700"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["audio only", "T/S", "cT/S", "teacher"]
    gap = panel.patches[0]
    assert (gap.get_x(), gap.get_width()) == (0.5, pytest.approx(0.2))


def test_variants_of_the_students_have_rows_of_their_own_tested_against_ts(tmp_path):
    settings = {
        "soft": ({"cts": 0.25}, {"quality": "soft", "cross_fitting": 5, "prediction_weight": 1.0}),
        "shuffled": ({"ts": 0.4}, {"control": "shuffled_teacher"}),
        "contrastive": ({"ts": 0.28}, {"embedding_distance": "contrastive"}),
    }
    runs = [write_run(tmp_path / "paper", {"ts": 0.3, "cts": 0.31, "teacher": 0.1, "finetune": 0.5}, "own", DIGEST)]
    runs += [write_run(tmp_path / name, stages, "own", DIGEST, **of) for name, (stages, of) in settings.items()]
    table = gather_tables(runs)[-1]
    shown = format_tables([table])
    names = {row.number: row.system.partition(" (")[0] for row in table.rows if row.number.startswith("+")}
    assert names == {
        "+1": "T/S student, contrastive",
        "+2": "T/S student, control shuffled_teacher",
        "+3": "cT/S student, soft, cross-fitted, predictions by dimension",
    }
    assert "Control: shuffled_teacher, each utterance is taught what the teacher knows about another one; not" in shown
    _, weaker, labels, speakers = draw("ts", 0.3)
    expected = paired_test(labels, draw("cts", 0.25)[1], weaker, speakers)
    found = row_of(table, "+3").paired
    assert found["against"] == "11" and found["p"] == {name: expected[name]["p"] for name in DIMENSIONS}
    assert row_of(table, "12").paired["against"] == "11"
    systems = tables._gap_systems(table)
    assert [system["name"] for system in systems.values()] == [
        "audio only (row 10)",
        "T/S (row 11)",
        "cT/S (row 12)",
        "T/S, contrastive (row +1)",
        "T/S, control shuffled_teacher (row +2)",
        "cT/S, soft, cross-fitted, predictions by dimension (row +3)",
        "teacher (row 9)",
    ]
    (panel,) = draw_valence_gap({"own": systems}).axes
    dots = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "o" and len(line.get_xdata())]
    order = ["10", "11", "12", "+1", "+2", "+3", "9"]
    assert dots == pytest.approx([row_of(table, number).score["valence"] for number in order])


def test_a_setting_that_did_not_exist_then_has_its_default(tmp_path):
    run = write_run(tmp_path / "cts", {"cts": 0.3})
    edit_results(run, lambda results: [results["recipe"].pop(name) for name in ("quality", "control", "cross_fitting")])
    table = gather_tables([run])[1]
    assert row_of(table, "12").run == "cts" and table.runs[0]["settings"] == {}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"stages": {"cts": 0.1}}, r"one and \S*two both fill row 12 of Table 2 \(cT/S, teacher 9, student 6\): a row"),
        ({"stages": {"cts": 0.1}, "seed": 3}, "with the seeds 0 and 3: a row shows one run"),
        ({"stages": {"ts": 0.1}, "version": f"1.11-{DIGEST}"}, r"one is on msp-podcast 1\.6, \S*two on 1\.11"),
    ],
)
def test_runs_that_do_not_go_into_one_table(tmp_path, others, message):
    runs = [write_run(tmp_path / "one", {"cts": 0.3}), write_run(tmp_path / "two", **others)]
    with pytest.raises(ValueError, match=message):
        gather_tables(runs)


@pytest.mark.parametrize("what", ["ids", "labels"])
def test_runs_on_other_test_sets(tmp_path, what):
    runs = [write_run(tmp_path / "one", {"cts": 0.3}), write_run(tmp_path / "two", {"ts": 0.3})]
    ids, predictions, labels, speakers = draw("ts", 0.3)
    if what == "ids":
        ids[3] = "another"
    else:
        labels[3, 1] = 0.123
    write_predictions(runs[1] / "predictions/ts_test.parquet", ids, predictions, labels, speakers, [""] * len(ids))
    with pytest.raises(ValueError, match=r"two and \S*one were scored on different utterances or labels of test"):
        gather_tables(runs)


def test_unusable_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match="runs is empty"):
        gather_tables([])
    with pytest.raises(FileNotFoundError, match="nowhere has no results.json"):
        gather_tables([tmp_path / "nowhere"])
    run = write_run(tmp_path / "run", {"cts": 0.3})
    with pytest.raises(ValueError, match="runs names .*run more than once"):
        gather_tables([run, tmp_path / "." / "run"])
    (run / "predictions/cts_test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="cts_test.parquet"):
        gather_tables([run])
    (run / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json is not valid JSON"):
        gather_tables([run])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda results: results.pop("recipe"), "lacks recipe: it is of another version"),
        (lambda results: results.pop("cost"), "lacks cost"),
        (lambda results: results.pop("seed"), "lacks seed"),
        (
            lambda results: results["confidence"].pop("permutations"),
            r"lacks confidence\.permutations: it is of another",
        ),
        (lambda results: results["corpus"].pop("version"), r"lacks corpus\.version"),
        (lambda results: results["corpus"].pop("release"), r"lacks corpus\.release"),
        (lambda results: results["systems"]["cts"]["test"].pop("interval"), r"lacks systems\.cts\.test\.interval"),
        (lambda results: results["recipe"].pop("text_encoder"), r"lacks recipe\.text_encoder"),
        (lambda results: results.update(folds={"number": 5, "mean": {}, "std": {}}), r"lacks folds\.mean\.cts"),
        (lambda results: results["systems"]["cts"].pop("test"), "has no scores on the split test"),
    ],
)
def test_results_of_another_version_are_named(tmp_path, edit, message):
    run = write_run(tmp_path / "run", {"cts": 0.3})
    edit_results(run, edit)
    with pytest.raises(ValueError, match=f"results.json {message}"):
        gather_tables([run])
