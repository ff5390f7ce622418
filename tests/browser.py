"""What drives the pages in Chromium: the browser, what npm fetches for the page, and a server of static files."""

import fcntl
import functools
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmkd.export.page import PACKAGE

ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""The headers with which browsers give a page several threads."""

HEARD = """() => {
  window.heard = [];
  const start = (window.plainStart = AudioBufferSourceNode.prototype.start);
  AudioBufferSourceNode.prototype.start = function (...words) {
    window.heard.push(Array.from(this.buffer.getChannelData(0)));
    window.sounding = this.context;
    this.context.suspend();
    return start.apply(this, words);
  };
}"""
"""From now on the page keeps what it plays, and stands still with it until `sounding.resume()` is called."""


def microphone(path: Path) -> list[str]:
    """The arguments of Chromium with which its microphone hears a file, again and again, and nobody is asked first."""
    answers = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    return [*answers, f"--use-file-for-fake-audio-capture={path}"]


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def web_runtime(session: Path) -> Path:
    """The file of the npm package that runs the graph in a browser; it is fetched once into the session's folder."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, which fetches what runs the page")
    folder = session / "npm"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.tgz")):
            command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
            try:
                done = subprocess.run(command, capture_output=True, check=False, timeout=300)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm waits for a registry that has {PACKAGE}")
            if done.returncode:
                pytest.skip(f"npm cannot reach a registry that has {PACKAGE}")
    (archive,) = folder.glob("*.tgz")
    return archive


@contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """The address of a server of a folder's files, which sends these headers with each."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
