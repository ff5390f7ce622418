"""The Python that starts at once takes, gives and ends as `python` does; here with a server that imports nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from warm import Warm

SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import warm_worker
warm_worker.LIBRARIES, warm_worker.OF_HUB, warm_worker.ALL = (), ("colorsys",), ()
warm_worker.main(Path(sys.argv[1]), int(sys.argv[2]))
"""
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], __name__, os.environ.get('CMKD_X'), sys.stdin.read()]))"


@pytest.fixture
def light(tmp_path, monkeypatch):
    """With a server of its own, which ends with the process that this is the owner of."""
    (tmp_path / "server.py").write_text(SERVER.format(tests=str(Path(__file__).parent)))
    monkeypatch.setattr(warm, "WORKER", tmp_path / "server.py")
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as owner:
        yield Warm(tmp_path, tmp_path, owner.pid)
        owner.kill()


@pytest.mark.parametrize("form", ["-c", "-m", "script"])
def test_it_runs_what_python_runs(light, form, tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    arguments = {"-c": ["-c", SHOW], "-m": ["-m", "show"], "script": [str(tmp_path / "show.py")]}[form]
    options = {"input": "words", "capture_output": True, "text": True, "cwd": tmp_path}
    options["env"] = os.environ | {"CMKD_X": "1"}
    found, expected = (
        subprocess.run([python, *arguments, "a", "b c"], timeout=900, **options)
        for python in (light.executable, sys.executable)
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, expected.stdout, "")


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
    ],
)
def test_it_ends_as_python_does(light, code, status, error):
    done = light.run(code, timeout=900)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", error)


def test_signals_and_its_death_reach_what_it_runs(light):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    for number in (signal.SIGTERM, signal.SIGKILL):
        program = light.start(code)
        while not program.read("out").endswith("\n"):
            time.sleep(0.02)
        program.process.send_signal(number)
        assert program.wait(timeout=900) == -number
        end = time.monotonic() + 300
        while Path(f"/proc/{program.read('out').strip()}").exists():
            assert time.monotonic() < end
            time.sleep(0.02)


def test_open_files_are_passed_on_and_closed_at_its_end(light):
    here, there = socket.socketpair()
    code = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'hello')"
    command = [light.executable, "-c", code, str(there.fileno())]
    with subprocess.Popen(command, pass_fds=[there.fileno()]) as process:
        there.close()
        assert here.recv(100) == b"hello" and here.recv(100) == b""
        assert process.wait(timeout=900) == 0


def test_what_it_starts_is_of_its_kind_and_two_share_a_server(light, tmp_path):
    inner = "import sys; print(sys.executable)"
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]))"
    (tmp_path / "other").mkdir()
    other = Warm(tmp_path / "other", tmp_path, os.getpid())
    assert other.executable == light.executable
    assert other.run(code, timeout=900).stdout == f"{light.executable}\n"


def test_programs_with_the_same_variables_of_the_hub_share_its_libraries_from_the_second_on(light):
    code = "import os, sys; print('colorsys' in sys.modules, os.environ['HF_HOME'], 'HF_HUB_OFFLINE' in os.environ)"
    places = ("here", "here", "there", "here", "there")
    said = [light.run(code, environment={"HF_HOME": place, "HF_HUB_OFFLINE": None}).stdout for place in places]
    assert [line.split() for line in said] == [
        [imported, place, "False"]
        for imported, place in zip(("False", "True", "False", "True", "True"), places, strict=True)
    ]
    assert light.run("import sys; print('colorsys' in sys.modules)").stdout == "False\n"
