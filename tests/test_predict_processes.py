"""`cmkd predict` as processes: killed at any moment, several that share the work, and launches."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import launch
from predictions import RATE, ROOT, ended, rows, run, save_student, start, write
from watching import present

from cmkd.predict.plan import CHUNK_SOURCES

pytestmark = pytest.mark.slow

SMALL = {"pieces.PIECE_SECONDS": 2.0, "plan.CHUNK_SOURCES": 4, "plan.SHARD_CHUNKS": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Sounds of uneven lengths, two that are broken, and one that is long."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(22):
        write(folder / f"{number:02d}.flac", 0.3 + (number * 7 % 5) / 2, number, channels=1 + number % 2)
    (folder / "05.flac").write_bytes(b"broken")
    (folder / "17.flac").write_bytes((folder / "18.flac").read_bytes()[:1000])
    write(folder / "99.wav", 60, 99)
    return folder


@pytest.fixture(scope="module")
def whole(model, sounds, tmp_path_factory):
    """The rows of a run that nothing stopped, in large parts."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run([sounds], model, output, window=1, timeline=True, embeddings=True)
    return {table: rows(output, table) for table in ("scores", "timeline", "errors")}


def command(sounds, model, output):
    return [
        sounds,
        "--model",
        model,
        "--output",
        output,
        "--window",
        1,
        "--timeline",
        "--embeddings",
        "--summary",
        "false",
    ]


def assert_same(output, whole):
    for table, expected in whole.items():
        assert rows(output, table) == expected, table
    assert not list((output / "journal/pieces").glob("*/*"))
    assert not list(output.glob("**/.*.tmp"))


def test_pieces_that_a_kill_left_of_a_complete_shard_go(python, model, sounds, whole, tmp_path):
    """As one that comes between the table of the shard and the removal of its pieces leaves them."""
    output = tmp_path / "out"
    arguments = (python.executable, *command(sounds, model, output), "--readers", 1)
    ended(start(*arguments, **SMALL), 3)
    left = output / "journal/pieces/00001/0000002-000000.parquet"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"left")
    ended(start(*arguments, **SMALL), 3)
    assert_same(output, whole)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_it_goes_on(seed, python, model, sounds, whole, tmp_path):
    """Killed by SIGKILL, with its readers, wherever it is, until it comes to the end by itself."""
    generator = random.Random(seed)
    output = tmp_path / "out"
    scored: set[str] = set()
    for killed in (True, True, True, True, False):
        place = {"killed": f"{generator.randrange(5)}:{generator.uniform(0, 0.05)}"} if killed else {}
        process = start(python.executable, *command(sounds, model, output), "--readers", 1, **SMALL, **place)
        ended(process, -signal.SIGKILL if killed else 3)
        now, complete = names(output, "journal/pieces/*"), names(output, "scores")
        assert scored <= now | {name for name in scored if _shard_of(name) in complete}  # what was there stays
        scored |= now
    assert_same(output, whole)


def names(output: Path, folder: str) -> set[str]:
    return {path.name for path in present(output, f"{folder}/*.parquet")}


def _shard_of(piece: str) -> str:
    return f"{int(piece.split('-')[0]) // SMALL['plan.SHARD_CHUNKS']:05d}.parquet"


def test_processes_share_the_work_and_the_last_long_file(python, model, sounds, whole, tmp_path):
    """Two that are started by hand: both score, also of the one file that lasts longer than all others."""
    output = tmp_path / "out"
    (tmp_path / "together").mkdir()
    settings = {**SMALL, "plan.CHUNK_SOURCES": 100, "together": tmp_path / "together"}
    processes = [
        start(python.executable, *command(sounds, model, output), "--readers", 0, **settings) for _ in range(2)
    ]
    printed = [ended(process, 3) for process in processes]
    assert_same(output, whole)
    words = [json.loads(path.read_text()) for path in (output / "journal/progress").iterdir()]
    assert len(words) == 2 and min(word["seconds"] for word in words) > 0
    total = sum(row["end"] - row["start"] for row in whole["timeline"])
    assert sum(word["seconds"] for word in words) == pytest.approx(total)  # nothing was scored by both
    assert all("2 sources could not be scored" in text for text in printed)


def test_another_process_takes_over_what_a_stopped_one_was_at(python, model, sounds, whole, tmp_path):
    output = tmp_path / "out"
    # It holds the second piece of the first chunk, which it has scored and not stored, and does nothing.
    first = start(python.executable, *command(sounds, model, output), "--readers", 0, **SMALL, stopped=2)
    while not present(output, "journal/pieces/*/*.parquet"):
        assert first.poll() is None
        time.sleep(0.02)
    second = start(python.executable, *command(sounds, model, output), "--readers", 0, **SMALL)
    while names(output, "scores") != {"00001.parquet", "00002.parquet"}:
        assert second.poll() is None
        time.sleep(0.02)
    time.sleep(1)
    assert second.poll() is None and first.poll() is None
    first.kill()
    ended(first, -signal.SIGKILL)
    ended(second, 3)
    assert_same(output, whole)


def test_a_launch_shares_the_work(python, model, sounds, whole, tmp_path):
    """Nor does one of its processes end before the tables are written: the launcher would stop the one that writes."""
    launch = [python.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = [ROOT / "tests/predict_worker.py", *(f"{name}={value}" for name, value in SMALL.items()), "late=1.5", "--"]
    arguments = [*launch, *worker, *command(sounds, model, tmp_path / "out"), "--readers", 0]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True, timeout=900)
    assert "2 sources could not be scored" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("hours scored now") == 1
    assert_same(tmp_path / "out", whole)


def test_accelerate_launch_scores_every_file_once(python, model, tmp_path):
    """`accelerate launch -m cmkd predict`, on more files than a process takes at once, of uneven lengths."""
    count = CHUNK_SOURCES + 20
    for number in range(count):
        write(tmp_path / f"sounds/{number:03d}.wav", 0.1 + number % 7 / 20, number)
    write(tmp_path / "sounds/long.flac", 35, count)
    run([tmp_path / "sounds"], model, tmp_path / "one", timeline=True, embeddings=True)
    arguments = [tmp_path / "sounds", "--model", model, "--output", tmp_path / "out", "--timeline", "--embeddings"]
    done = launch(python, "several_gpus.yaml", 2, "-m", "cmkd", "predict", *map(str, arguments), "--readers", "0")
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count(f"{count + 1} rows of {count + 1} sources") == 1  # said by one process
    for table in ("scores", "timeline"):
        assert rows(tmp_path / "out", table) == rows(tmp_path / "one", table)
    words = [json.loads(path.read_text()) for path in (tmp_path / "out/journal/progress").iterdir()]
    total = sum(row["end"] - row["start"] for row in rows(tmp_path / "one", "timeline"))
    assert len(words) == 2 and sum(word["seconds"] for word in words) == pytest.approx(
        total
    )  # nothing was scored twice


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    """Reading two hours ahead takes what reading two minutes takes, in the process that decodes and in this one."""
    program = """
import resource, sys
from cmkd.predict.readers import Readers, in_background
from cmkd.predict.reading import Heard, Reading
from cmkd.predict.sources import Source
from windows_cmkd import cutting
if __name__ == "__main__":
    readers = Readers(Reading(cutting(16000), "mean", 1, "."), 1)
    events = in_background(readers.events([("", [(0, Source("a", sys.argv[1]))])]), 1)
    print(sum(isinstance(event, Heard) for _, event in events))
    readers.close()
    print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""
    (tmp_path / "program.py").write_text(program)
    found = {}
    for minutes in (2, 120):
        path = tmp_path / f"{minutes}.wav"
        frames = minutes * 60 * 16000
        header = write(tmp_path / "header.wav", 0.1).read_bytes()[:44]
        header = (
            header[:4] + (2 * frames + 36).to_bytes(4, "little") + header[8:40] + (2 * frames).to_bytes(4, "little")
        )
        with path.open("wb") as file:  # silence, which takes no room on the disk
            file.write(header)
            file.truncate(44 + 2 * frames)
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        arguments = [sys.executable, str(tmp_path / "program.py"), str(path)]
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=900
        )
        windows, memory = done.stdout.splitlines()
        assert int(windows) == minutes * 6
        found[minutes] = [int(kilobytes) for kilobytes in memory.split()]
    for short, long in zip(found[2], found[120], strict=True):
        assert long < short + 20_000, found  # the samples alone are 460 MB


def peak_memory(source, model, output, **settings) -> list[int]:
    """Kilobytes that a process takes at most that scores a source, and one that finds everything scored."""
    program = f"""
import resource, runpy
try:
    runpy.run_path({str(ROOT / "tests/predict_worker.py")!r}, run_name="__main__")
finally:
    print("kilobytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    arguments = [*(f"{name}={value}" for name, value in settings.items()), "--", source, "--model", model]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"OMP_NUM_THREADS": "1"}
    peaks = []
    for _ in range(2):
        done = subprocess.run(
            list(map(str, [sys.executable, "-c", program, *arguments, "--output", output, "--readers", 0])),
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode in (0, 3), done.stdout + done.stderr
        peaks.append(int(done.stdout.split("kilobytes")[1]))
    return peaks


def test_memory_does_not_grow_with_the_number_of_files(model, tmp_path):
    """Nor with that of lengths: each has one of its own. The samples of the files that are more are 26 MB."""
    found = []
    for count in (100, 1000):
        for number in range(count):
            write(tmp_path / f"{count}/{number:04d}.wav", 0.4 + number / RATE, number)
        output = tmp_path / f"out{count}"
        found.append(peak_memory(tmp_path / str(count), model, output, **SMALL))
        assert len(rows(output)) == count and (output / "summary.html").exists()
    for few, many in zip(*found, strict=True):
        assert many < few + 10_000, found


def test_memory_does_not_grow_with_the_number_of_errors(model, tmp_path):
    """What is named and is not there has the same way to go as other sources, and an error for each."""
    found = []
    for count in (3_000, 30_000):
        names = tmp_path / f"{count}.csv"
        names.write_text("audio\n" + "".join(f"gone/{number:06d}.wav\n" for number in range(count)))
        output = tmp_path / f"out{count}"
        found.append(peak_memory(names, model, output, **{"plan.SHARD_CHUNKS": 4}))
        errors = rows(output, "errors")
        assert [row["number"] for row in errors] == list(range(count))
        assert {row["kind"] for row in errors} == {"missing file"}
    for few, many in zip(*found, strict=True):
        assert many < few + 10_000, found  # 380 bytes for each that is more


def test_ctrl_c_ends_the_readers_too(model, sounds, tmp_path):
    process = start(sys.executable, *command(sounds, model, tmp_path / "out"), "--readers", 1, **SMALL, waits=2)
    while not present(tmp_path, "out/journal/pieces/*/*.parquet"):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGINT)
    text = ended(process, 130)
    assert "goes on where it stopped" in text
    end = time.monotonic() + 60  # one of them, of multiprocessing itself, ends after the others
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)
