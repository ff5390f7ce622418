"""The page that `cmkd export --page` writes, driven in Chromium."""

import json
import re
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from predictions import save_student
from sounds import encoded, mp3
from transformers import AutoFeatureExtractor, pipeline

pytest.importorskip("onnxruntime", reason='needs the extra "export"')
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")

from browser import HEARD, chromium, microphone, served, web_runtime  # noqa: E402

from cmkd.export.folder import export_folder  # noqa: E402
from modeling_cmkd import CMKDStudentModel  # noqa: E402

pytestmark = pytest.mark.slow

RATE = 16000
ENCODER = Path(__file__).parents[1] / "demo_models/speech"
SCORED = re.compile(r"scored in [0-9.]+ s")
playwright.expect.set_options(timeout=120_000)  # milliseconds


@pytest.fixture(scope="module")
def web(session_folder) -> Path:
    return web_runtime(session_folder)


@pytest.fixture(scope="module")
def site(web, tmp_path_factory) -> Path:
    """A student on the demo's encoder, whose scores spread over the interval, and its page."""
    folder = tmp_path_factory.mktemp("site")
    torch.manual_seed(0)
    student = CMKDStudentModel.from_pretrained_encoder(str(ENCODER), label_scale=(1, 7))
    with torch.no_grad():
        student.prediction_head.weight.mul_(6)
        student.prediction_head.bias.fill_(0.5)
    student.save_pretrained(folder / "student")
    AutoFeatureExtractor.from_pretrained(ENCODER).save_pretrained(folder / "student")
    export_folder(str(folder / "student"), folder / "page", page=True, onnxruntime_web=web)
    return folder


@pytest.fixture(scope="module")
def spoken(sounds) -> Path:
    """What the microphone hears, again and again."""
    path = sounds / "spoken.wav"
    soundfile.write(path, np.sin(np.arange(2 * 48000) / 30) / 4, 48000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(spoken):
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *microphone(spoken)])
        yield launched
        launched.close()


@contextmanager
def ready(browser, address):
    """The page with its model loaded, and a check: it has asked only the server for anything, and logged no error."""
    opened = browser.new_page()
    requests, errors = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

    def check():
        assert [url for url in requests if not url.startswith((address, f"blob:{address}"))] == []
        assert errors == []

    opened.goto(address)
    playwright.expect(opened.locator("#status")).to_have_text("Ready.")
    yield opened, check
    check()
    opened.close()


@pytest.fixture(scope="module")
def loaded(site, browser):
    with served(site / "page") as address, ready(browser, address) as opened_and_check:
        yield opened_and_check


@pytest.fixture
def page(loaded):
    """The page that was loaded once: it goes on after whatever the tests before did with it, errors included."""
    opened, check = loaded
    yield opened
    check()
    opened.set_viewport_size({"width": 1280, "height": 720})
    opened.fill("#window", "")
    opened.evaluate(AS_LOADED)


@pytest.fixture(scope="module")
def score(site):
    return pipeline(model=str(site / "student"), trust_remote_code=True)


@pytest.fixture(scope="module")
def sounds(site) -> Path:
    generator = np.random.default_rng(0)
    samples = (0.1 * generator.normal(size=36 * RATE) * np.abs(np.sin(np.arange(36 * RATE) / 30000))).astype(np.float32)
    samples[10 * RATE : 20 * RATE] = 0  # a window of the long one is silent
    folder = site / "sounds"
    folder.mkdir()
    soundfile.write(folder / "short.wav", samples[:50000], RATE, subtype="FLOAT")
    soundfile.write(folder / "long.wav", samples, RATE, subtype="FLOAT")
    stereo = np.stack([samples[:50000], samples[70000:120000]], axis=1)
    soundfile.write(folder / "stereo.flac", stereo, RATE)
    soundfile.write(folder / "cancelled.wav", np.stack([samples[:50000], -samples[:50000]], axis=1), RATE)
    soundfile.write(folder / "instant.wav", samples[:800], RATE)
    soundfile.write(folder / "44100.wav", np.sin(np.arange(3 * 44100) / 20) / 4, 44100)
    (folder / "broken.mp3").write_bytes(b"this is no sound" * 50)
    for name in ("short.wav", "stereo.flac"):
        content = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(content[: len(content) * 2 // 3])
    tone = np.sin(np.arange(4 * RATE) / 20) / 4
    (folder / "whole.mp3").write_bytes(mp3(tone))
    (folder / "whole.m4a").write_bytes(encoded(tone, RATE, "mp4", "aac"))
    for name in ("whole.mp3", "whole.m4a"):
        content = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(content[: len(content) * 2 // 3])
    minutes = np.tile(samples, 6)[: 200 * RATE] * np.linspace(0.2, 1, 200 * RATE, dtype=np.float32)
    soundfile.write(folder / "minutes.wav", minutes, RATE, subtype="FLOAT")
    return folder


def choose(page, path: Path) -> None:
    """Gives the page a file; what it says from now on is about that one."""
    page.evaluate("document.getElementById('status').textContent = ''")
    page.set_input_files("#file", path)


def shown(page, path: Path) -> dict:
    """What the page offers for download after it has scored a file."""
    choose(page, path)
    playwright.expect(page.locator("#name")).to_have_text(path.name)
    playwright.expect(page.locator("#status")).to_have_text(SCORED)
    with page.expect_download() as download:
        page.click("#download")
    return json.loads(download.value.path().read_text())


def test_files_score_as_the_pipeline_scores_them(page, score, sounds):
    for name in ("short.wav", "long.wav", "stereo.flac"):
        found, expected = shown(page, sounds / name), score(str(sounds / name))
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-3), name
        assert found["ratings"] == pytest.approx(expected["ratings"], abs=6e-3), name
        assert found["duration"] == pytest.approx(expected["duration"])
        assert len(found["timeline"]) == len(expected["timeline"])
        for window, other in zip(found["timeline"], expected["timeline"], strict=True):
            assert (window["start"], window["end"], window["silent"]) == (other["start"], other["end"], other["silent"])
            assert window["scores"] == pytest.approx(other["scores"], abs=1e-3)
        in_table = page.eval_on_selector_all("#scores tbody tr", "rows => rows.map(row => +row.dataset.score)")
        assert in_table == pytest.approx(list(found["scores"].values()))
    assert [window["silent"] for window in score(str(sounds / "long.wav"))["timeline"]] == [False, True, False, False]


def test_another_rate_is_resampled_by_the_browser(page, score, sounds):
    expected = score(str(sounds / "44100.wav"))["scores"]
    assert shown(page, sounds / "44100.wav")["scores"] == pytest.approx(expected, abs=0.02)


AS_LOADED = """() => {
  if (window.plainStart) AudioBufferSourceNode.prototype.start = window.plainStart;
  scrollTo(0, 0);
}"""
"""From now on it plays as it did before."""


def test_a_click_on_the_timeline_plays_that_window(page, score, sounds):
    page.evaluate(HEARD)
    page.fill("#window", "1.25")
    found = shown(page, sounds / "short.wav")
    expected = score(str(sounds / "short.wav"), window=1.25)["timeline"]
    assert [(window["start"], window["end"]) for window in found["timeline"]] == [
        (window["start"], window["end"]) for window in expected
    ]
    panes = page.locator("#chart .pane")
    assert panes.count() == len(expected) == 3
    panes.nth(1).click()
    playwright.expect(page.locator("#status")).to_have_text("Playing 1.25 to 2.50 s")
    playwright.expect(page.locator("#chart .playing")).to_have_count(1)
    samples, _ = soundfile.read(sounds / "short.wav", dtype="float32")
    np.testing.assert_array_equal(np.float32(page.evaluate("heard[0]")), samples[20000:40000])
    page.evaluate("sounding.resume()")
    playwright.expect(page.locator("#chart .playing")).to_have_count(0)  # it ends where the window ends
    panes.nth(0).press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#status")).to_have_text("Playing 1.88 to 3.13 s")
    np.testing.assert_array_equal(np.float32(page.evaluate("heard[1]")), samples[30000:])
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#status")).to_have_text("Stopped at 1.88 to 3.13 s")
    page.fill("#window", "0.01")
    choose(page, sounds / "short.wav")
    playwright.expect(page.locator("#status")).to_contain_text("a window of 0.01 s: must be at least 0.1 s")


def test_a_long_file_is_scored_in_windows_that_lie_where_they_are_heard(page, score, sounds):
    found = shown(page, sounds / "minutes.wav")
    expected = score(str(sounds / "minutes.wav"))
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-3)
    assert len(found["timeline"]) == len(expected["timeline"]) == 20
    box = page.locator("#chart svg").bounding_box()
    left, width = 36, box["width"] - 36  # the numbers of the scores
    for seconds in (3, 77, 195):
        page.mouse.click(box["x"] + left + width * seconds / 200, box["y"] + 0.9 * box["height"])  # on the waveform
        window = f"Playing {seconds // 10 * 10}.00 to {seconds // 10 * 10 + 10}.00 s"
        playwright.expect(page.locator("#status")).to_have_text(window)
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nothing is wider than a phone


def test_the_microphone_is_scored(page):
    """The tone that it hears, 48000 / 30 / 2 pi = 255 Hz, is what is scored and played."""
    page.evaluate(HEARD)
    begun = time.monotonic()
    page.click("#record")
    playwright.expect(page.locator("#status")).to_have_text("Recording …")
    page.wait_for_timeout(1500)
    page.click("#record")
    most = time.monotonic() - begun
    playwright.expect(page.locator("#name")).to_have_text("recording")
    playwright.expect(page.locator("#status")).to_have_text(SCORED)
    seconds = float(page.locator("#status").inner_text().split(" s of audio")[0])
    assert 0.5 < seconds < most + 1
    page.locator("#chart .pane").click()
    heard = np.array(page.evaluate("heard[0]"))
    assert len(heard) == round(seconds * RATE)
    strongest = np.argmax(np.abs(np.fft.rfft(heard))) / len(heard) * RATE
    assert strongest == pytest.approx(48000 / 30 / 2 / np.pi, abs=4)


def test_formats_that_say_how_long_they_are_score_whole(page, sounds):
    for name in ("whole.mp3", "whole.m4a"):
        assert shown(page, sounds / name)["duration"] == pytest.approx(4, abs=0.15), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.mp3", "broken.mp3: the browser cannot read this as sound."),
        ("cut_short.wav", "cut_short.wav: it is truncated: its header promises 200,0"),
        ("cut_stereo.flac", "cut_stereo.flac: "),
        ("cut_whole.mp3", "cut_whole.mp3: it is truncated: its header promises "),
        ("cut_whole.m4a", "cut_whole.m4a: "),
        ("instant.wav", "instant.wav: audio of 0.050 s is too short: it must be at least 0.1 s long."),
        ("cancelled.wav", "cancelled.wav: its channels cancel each other out"),
    ],
)
def test_what_cannot_be_scored_is_said_and_the_page_goes_on(page, sounds, name, message):
    choose(page, sounds / name)
    playwright.expect(page.locator("#status")).to_contain_text(message)
    assert page.locator("#answer").is_hidden()
    shown(page, sounds / "short.wav")


def test_the_folder_is_complete_and_says_its_licences(site):
    folder = site / "page"
    assert "MIT" in (folder / "runtime/LICENSE").read_text()
    assert (folder / "runtime/ThirdPartyNotices.txt").stat().st_size > 10_000
    about = json.loads((folder / "student.json").read_text())
    assert (about["file"], about["label_scale"], about["precision"]) == ("model.onnx", [1, 7], "fp32")
    for name in re.findall(r'(?:src|href)="([^"#]+)"', (folder / "index.html").read_text()):
        assert (folder / name).is_file(), name


def test_whisper_hears_in_the_page_what_it_hears_in_python(web, browser, sounds, tmp_path):
    save_student(tmp_path / "student", "whisper")
    export_folder(str(tmp_path / "student"), tmp_path / "page", page=True, onnxruntime_web=web)
    score = pipeline(model=str(tmp_path / "student"), trust_remote_code=True)
    with served(tmp_path / "page") as address, ready(browser, address) as (opened, _):
        for name in ("short.wav", "long.wav"):
            found, expected = shown(opened, sounds / name), score(str(sounds / name))
            for window, other in zip(found["timeline"], expected["timeline"], strict=True):
                assert window["scores"] == pytest.approx(other["scores"], abs=1e-3), name
        opened.fill("#window", "40")
        choose(opened, sounds / "long.wav")
        message = "a window of 40 s: must be at least 0.1 s and at most 30 s"
        playwright.expect(opened.locator("#status")).to_contain_text(message)
