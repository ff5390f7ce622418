"""Label tracks and the page of `cmkd predict`, read by others: Praat's format, XML, and a real Chromium."""

import base64
import csv
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import soundfile
from predictions import RATE, rows, run, save_student, sound, write

from cmkd.predict import summary
from cmkd.predict.labels import WRITERS, Track
from configuration_cmkd import EMOTION_DIMENSIONS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student") / "model")


def test_stretches_are_the_means_of_what_covers_them():
    """Oracle: each tenth of a second asked for on its own."""
    generator = np.random.default_rng(0)
    starts = np.array([0.0, 0.5, 1.2, 3.0, 3.5])
    track = Track(None, starts, starts + 1, np.array([False, False, True, True, False]), {"a": generator.random(5)})
    found = list(track.stretches())
    edges = [(0, 0.5), (0.5, 1), (1, 1.2), (1.2, 1.5), (1.5, 2.2), (3, 3.5), (3.5, 4), (4, 4.5)]
    np.testing.assert_allclose([(start, end) for start, end, _ in found], edges)
    for instant in np.arange(0.05, 4.5, 0.1):
        covers = (starts <= instant) & (instant < starts + 1)
        here = [means for start, end, means in found if start <= instant < end]
        assert len(here) == covers.any()
        audible = covers & ~track.silent
        if audible.any():
            assert here[0]["a"] == pytest.approx(track.scores["a"][audible].mean())
        elif covers.any():
            assert here == [None]


@pytest.fixture
def call(tmp_path):
    """Two channels, of which the second is silent for two seconds."""
    wave = sound(5.5, channels=2)
    wave[2 * RATE : 4 * RATE, 1] = 0
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "call.wav", wave, RATE)
    return tmp_path / "in" / "call.wav"


def expected_tiers(output):
    """The text of every tier, from the rows of the timeline, whose windows do not overlap but at the end."""
    tiers = {}
    for row in rows(output, "timeline"):
        for name in EMOTION_DIMENSIONS:
            text = "silent" if row["silent"] else f"{row[name]:.3f}"
            tiers.setdefault(f"{name} (channel {row['channel']})", []).append((row["start"], row["end"], text))
    return tiers


def test_a_textgrid_for_praat(model, call, tmp_path):
    textgrid = pytest.importorskip("praatio.textgrid")
    write(call.parent / "mono.wav", 2, 3)
    options = {"window": 2, "channel": "each", "timeline": True}
    run([call.parent], model, tmp_path / "out", labels="textgrid", **options)
    grid = textgrid.openTextgrid(str(call) + ".cmkd.TextGrid", includeEmptyIntervals=True)
    expected = expected_tiers(tmp_path / "out")
    assert list(grid.tierNames) == [f"{name} (channel {n})" for n in (0, 1) for name in EMOTION_DIMENSIONS]
    assert grid.maxTimestamp == pytest.approx(5.5)
    for name in grid.tierNames:
        entries = [tuple(entry) for entry in grid.getTier(name).entries]
        np.testing.assert_allclose([entry[:2] for entry in entries], [(0, 2), (2, 3.5), (3.5, 4), (4, 5.5)])
        windows = [text for start, end, text in expected[name] if end <= 5.5]
        assert (entries[0][2], entries[3][2]) == (windows[0], windows[2])
    assert [entry.label for entry in grid.getTier("valence (channel 1)").entries][1] == "silent"
    assert (call.parent / "mono.wav.cmkd.TextGrid").exists()


def test_a_document_for_elan(model, call, tmp_path):
    run([call], model, tmp_path / "out", labels="elan", window=2.75, channel="each", timeline=True)
    document = ElementTree.parse(str(call) + ".cmkd.eaf").getroot()
    slots = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) for slot in document.iter("TIME_SLOT")}
    tiers = {}
    for tier in document.iter("TIER"):
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            edges = (slots[annotation.get(f"TIME_SLOT_REF{number}")] / 1000 for number in (1, 2))
            tiers.setdefault(tier.get("TIER_ID"), []).append((*edges, annotation.findtext("ANNOTATION_VALUE")))
    assert tiers == expected_tiers(tmp_path / "out")
    media = document.find("HEADER/MEDIA_DESCRIPTOR")
    assert media.get("RELATIVE_MEDIA_URL") == "./call.wav"
    types = {kind.get("LINGUISTIC_TYPE_ID") for kind in document.iter("LINGUISTIC_TYPE")}
    assert {tier.get("LINGUISTIC_TYPE_REF") for tier in document.iter("TIER")} <= types


def test_labels_for_audacity(model, call, tmp_path):
    run([call], model, tmp_path / "out", labels="audacity", window=2.75, timeline=True)
    lines = [line.split("\t") for line in (call.parent / "call.wav.cmkd.txt").read_text().splitlines()]
    expected = rows(tmp_path / "out", "timeline")
    assert [(float(start), float(end)) for start, end, _ in lines] == [(row["start"], row["end"]) for row in expected]
    assert [text for _, _, text in lines] == [
        ", ".join(f"{name} {row[name]:.3f}" for name in EMOTION_DIMENSIONS) for row in expected
    ]


def test_labels_of_segments_are_one_file(model, call, tmp_path):
    (tmp_path / "m.csv").write_text("audio,start,end\nin/call.wav,0.5,1.5\nin/call.wav,3,4\n")
    run([tmp_path / "m.csv"], model, tmp_path / "out", labels="audacity")
    lines = (call.parent / "call.wav.cmkd.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["0.500000", "1.500000"], ["3.000000", "4.000000"]]


@pytest.mark.parametrize("labels", ["audacity", "elan", "textgrid"])
def test_labels_of_segments_that_come_later_join_those_that_are_there(labels, model, call, tmp_path):
    """Oracle: the labels of a run that had all segments at once."""
    if labels == "textgrid":
        pytest.importorskip("praatio")
    write(call.parent / "other.wav", 1, 3)
    lines = ["in/call.wav,3,4", "in/other.wav,0.2,0.8", "in/call.wav,0.5,1.5", "in/call.wav,2,2.5"]

    def labelled(output, count):
        (tmp_path / "m.csv").write_text("\n".join(["audio,start,end", *lines[:count]]))
        seconds = run([tmp_path / "m.csv"], model, tmp_path / output, labels=labels).hours * 3600
        texts = {path.name: path.read_text() for path in call.parent.glob("*.cmkd.*")}
        return seconds, {name: re.sub('DATE="[^"]*"', "", text) for name, text in texts.items()}

    _, expected = labelled("at once", 4)
    assert expected.keys() == {f"{name}.cmkd.{WRITERS[labels][0]}" for name in ("call.wav", "other.wav")}
    for path in call.parent.glob("*.cmkd.*"):
        path.unlink()
    assert labelled("out", 2)[1] != expected
    labelled("out", 3)
    assert labelled("out", 4) == (pytest.approx(0.5), expected)


def test_labels_of_what_is_not_on_this_machine_are_in_the_output(model, tmp_path):
    import fsspec
    from datasets import Dataset

    path = write(tmp_path / "a.wav", 1)
    fsspec.filesystem("memory").pipe("/bucket/day/a.wav", path.read_bytes())
    Dataset.from_dict({"audio": [str(path)]}).save_to_disk(tmp_path / "set")
    run(["memory://bucket/day/a.wav", tmp_path / "set"], model, tmp_path / "out", labels="audacity")
    found = {str(file.relative_to(tmp_path / "out/labels")) for file in (tmp_path / "out/labels").rglob("*.txt")}
    assert "memory/bucket/day/a.wav.cmkd.txt" in found and len(found) == 2
    assert not path.with_name("a.wav.cmkd.txt").exists()


def test_labels_can_be_asked_for_later_without_scoring_again(model, call, tmp_path):
    run([call], model, tmp_path / "out", window=2)
    assert run([call], model, tmp_path / "out", window=2, labels="elan", timeline=True, summary=True).hours == 0
    assert (call.parent / "call.wav.cmkd.eaf").exists() and (tmp_path / "out/summary.html").exists()
    assert len(rows(tmp_path / "out", "timeline")) == 3


def test_what_a_folder_has_is_kept_up_to_date_without_being_asked_for_again(model, call, tmp_path):
    """By a new file, and by one that has changed. Oracle: a run that has had all of it at once."""
    changing = write(call.parent / "b.wav", 1, 1)
    asked = {"window": 1, "timeline": True, "summary": True}
    for options in ({"format": "csv", "labels": "audacity"}, {"format": "jsonl", "labels": "elan"}):
        run([call.parent], model, tmp_path / "out", **asked, **options)
    write(changing, 2.5, 2)
    write(call.parent / "c.wav", 1.5, 3)
    run([call.parent], model, tmp_path / "out", window=1, summary=False)
    labels = {path.name: path.read_text() for path in call.parent.glob("*.cmkd.*")}
    assert labels.keys() == {f"{name}.wav.cmkd.{ending}" for name in ["b", "c", "call"] for ending in ("txt", "eaf")}
    ends = [float(line.split("\t")[1]) for line in labels["b.wav.cmkd.txt"].splitlines()]
    assert ends == [1, 1.5, 2, 2.5]  # of the new file, whose last two windows overlap

    run([call.parent], model, tmp_path / "new", **asked, format="csv", labels="audacity")
    run([call.parent], model, tmp_path / "new", **asked, format="jsonl")
    assert {name: text for name, text in labels.items() if name.endswith(".txt")} == {
        path.name: path.read_text() for path in call.parent.glob("*.cmkd.txt")
    }

    def contents(output):
        """Without the numbers of the sources, and in the order of their names."""
        tables = {}
        for table in ("scores", "timeline"):
            with (output / f"{table}.csv").open(newline="") as file:
                tables[f"{table}.csv"] = list(csv.DictReader(file))
            tables[f"{table}.jsonl"] = [
                json.loads(line) for line in (output / f"{table}.jsonl").read_text().splitlines()
            ]
            tables[table] = rows(output, table)
        assert [int(row["number"]) for row in tables["scores.csv"]] == [row["number"] for row in tables["scores"]]
        page = data_of((output / "summary.html").read_text(encoding="utf-8"))
        shown = sorted((row["source"], row["duration"], *row["scores"]) for row in page["rows"])
        ordered = {
            name: sorted([str(value) for key, value in row.items() if key != "number"] for row in table)
            for name, table in tables.items()
        }
        return shown, ordered

    assert contents(tmp_path / "out") == contents(tmp_path / "new")
    assert len(contents(tmp_path / "out")[1]["scores.csv"]) == 3


def test_what_a_folder_has_not_is_not_made(model, call, tmp_path):
    for _ in range(2):
        run([call], model, tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"prediction.json", "scores", "journal"}
    assert list(call.parent.iterdir()) == [call]


# ---------------------------------------------------------------------------------------------------------------------
# the page


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_the_timelines_and_the_waveforms(model, call, tmp_path):
    write(call.parent / "b <script> & ünï.wav", 1.5, 3)
    (call.parent / "broken.wav").write_bytes(b"x")
    run([call.parent], model, tmp_path / "out", window=2, channel="each", timeline=True, summary=True)
    page = (tmp_path / "out/summary.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=|https?://|@import|url\(""", page)  # nothing from elsewhere
    data = data_of(page)
    found = rows(tmp_path / "out")
    assert [(row["source"], row["duration"]) for row in data["rows"]] == [(r["source"], r["duration"]) for r in found]
    for row, expected in zip(data["rows"], found, strict=True):
        assert row["scores"] == pytest.approx([expected[name] for name in EMOTION_DIMENSIONS], abs=1e-4)
    silent = [stretch for stretch in data["rows"][2]["timeline"] if stretch[2] is None]
    assert [stretch[:2] for stretch in silent] == [[2, 3.5]]
    wave = np.frombuffer(base64.b64decode(data["rows"][2]["wave"]), np.uint8)
    loudest = np.abs(soundfile.read(call)[0][:, 1])
    edges = np.linspace(0, len(loudest), len(wave) + 1).astype(int)
    peaks = np.array([loudest[first:behind].max() for first, behind in itertools.pairwise(edges)])
    assert np.corrcoef(wave, peaks)[0, 1] > 0.9
    assert (wave[peaks == 0] < 5).mean() > 0.9
    assert (data["failures"], data["errors"][0]["kind"]) == (1, "unreadable audio")


def test_of_many_rows_the_page_shows_the_extremes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "MOST_ROWS", 12)
    for number in range(30):
        write(tmp_path / "in" / f"{number}.wav", 0.3, number)
    run([tmp_path / "in"], model, tmp_path / "out", summary=True)
    data = data_of((tmp_path / "out/summary.html").read_text(encoding="utf-8"))
    found = rows(tmp_path / "out")
    shown = {row["source"] for row in data["rows"]}
    for name in EMOTION_DIMENSIONS:
        ordered = sorted(found, key=lambda row: row[name])
        assert {row["source"] for row in (*ordered[:2], *ordered[-2:])} <= shown
    assert len(shown) <= 12 and data["total"] == 30


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
def test_the_page_in_a_browser(browser, model, call, tmp_path):
    for number in range(4):
        write(call.parent / f"{number}.flac", 1 + number, number)
    (call.parent / "broken.wav").write_bytes(b"x")
    run([call.parent], model, tmp_path / "out", window=1, channel="each", summary=True)
    found = rows(tmp_path / "out")
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    problems, asked = [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "out/summary.html").as_uri())
    lines = page.locator("#rows tr")
    assert lines.count() == len(found)

    def shown(column):
        return [float(cell) for cell in page.locator(f"#rows td:nth-child({column})").all_inner_texts()]

    for place, name in enumerate(EMOTION_DIMENSIONS):
        expected = sorted(row[name] for row in found)
        heading = page.locator("th button", has_text=name)
        heading.click()
        assert shown(3 + place) == pytest.approx(expected, abs=6e-4)
        heading.click()
        assert shown(3 + place) == pytest.approx(expected[::-1], abs=6e-4)
    page.locator("#filter").fill("call.wav")
    assert lines.count() == 2
    painted = page.evaluate(
        "async () => { await new Promise(requestAnimationFrame); const c = document.querySelector('#rows canvas');"
        "return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size }"
    )
    assert painted > 5
    box = page.locator("#rows canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert "valence" in page.locator("#at").inner_text()
    assert page.locator("#errors summary").inner_text() == "1 could not be scored"
    assert problems == [] and all(url.startswith(("file:", "data:")) for url in asked)
    page.close()
