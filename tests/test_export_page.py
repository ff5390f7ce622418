"""The page that `cmkd export --page` writes, driven in Chromium."""

import functools
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, pipeline

pytest.importorskip("onnxruntime", reason='needs the extra "export"')
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")

from cmkd.export.folder import export_folder  # noqa: E402
from cmkd.export.page import PACKAGE  # noqa: E402
from modeling_cmkd import CMKDStudentModel  # noqa: E402

pytestmark = pytest.mark.slow

RATE = 16000
ENCODER = Path(__file__).parents[1] / "demo_models/speech"
SCORED = re.compile(r"scored in [0-9.]+ s")
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A student on the demo's encoder, whose scores spread over the interval, and its page."""
    folder = tmp_path_factory.mktemp("site")
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, which fetches what runs the page")
    probe = subprocess.run(["npm", "view", PACKAGE, "version"], capture_output=True, check=False, timeout=120)
    if probe.returncode:
        pytest.skip(f"npm cannot reach a registry that has {PACKAGE}")
    torch.manual_seed(0)
    student = CMKDStudentModel.from_pretrained_encoder(str(ENCODER), label_scale=(1, 7))
    with torch.no_grad():
        student.prediction_head.weight.mul_(6)
        student.prediction_head.bias.fill_(0.5)
    student.save_pretrained(folder / "student")
    AutoFeatureExtractor.from_pretrained(ENCODER).save_pretrained(folder / "student")
    export_folder(str(folder / "student"), folder / "page", page=True)
    return folder


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(_Quiet, directory=site / "page")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def page(address, chromium):
    """The page with its model loaded; it has asked nobody but the server for anything, and logged no error."""
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        opened = browser.new_page()
        requests, errors = [], []
        opened.on("request", lambda request: requests.append(request.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        opened.goto(address)
        playwright.expect(opened.locator("#status")).to_have_text("Ready.", timeout=PATIENCE)
        yield opened
        assert [url for url in requests if not url.startswith((address, f"blob:{address}"))] == []
        assert errors == []
        browser.close()


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
    return folder


def shown(page, path: Path) -> dict:
    """What the page offers for download after it has scored a file."""
    page.set_input_files("#file", path)
    playwright.expect(page.locator("#name")).to_have_text(path.name, timeout=PATIENCE)
    playwright.expect(page.locator("#status")).to_have_text(SCORED, timeout=PATIENCE)
    with page.expect_download() as download:
        page.click("#download")
    return json.loads(download.value.path().read_text())


def test_files_score_as_the_pipeline_scores_them(page, site, sounds):
    score = pipeline(model=str(site / "student"), trust_remote_code=True)
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


def test_another_rate_is_resampled_by_the_browser(page, site, sounds):
    score = pipeline(model=str(site / "student"), trust_remote_code=True)
    expected = score(str(sounds / "44100.wav"))["scores"]
    assert shown(page, sounds / "44100.wav")["scores"] == pytest.approx(expected, abs=0.02)


def test_a_window_can_be_chosen_and_heard(page, site, sounds):
    score = pipeline(model=str(site / "student"), trust_remote_code=True)
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
    page.fill("#window", "0.01")
    page.set_input_files("#file", sounds / "short.wav")
    playwright.expect(page.locator("#status")).to_contain_text("a window of 0.01 s: must be at least 0.1 s")


def test_the_microphone_is_scored(page):
    page.click("#record")
    playwright.expect(page.locator("#status")).to_have_text("Recording …")
    page.wait_for_timeout(1500)
    page.click("#record")
    playwright.expect(page.locator("#name")).to_have_text("recording", timeout=PATIENCE)
    playwright.expect(page.locator("#status")).to_have_text(SCORED, timeout=PATIENCE)
    seconds = float(page.locator("#status").inner_text().split(" s of audio")[0])
    assert 0.5 < seconds < 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.mp3", "broken.mp3: the browser cannot read this as sound."),
        ("instant.wav", "instant.wav: audio of 0.050 s is too short: it must be at least 0.1 s long."),
        ("cancelled.wav", "cancelled.wav: its channels cancel each other out"),
    ],
)
def test_what_cannot_be_scored_is_said_and_the_page_goes_on(page, sounds, name, message):
    page.set_input_files("#file", sounds / name)
    playwright.expect(page.locator("#status")).to_contain_text(message, timeout=PATIENCE)
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
