"""A process that dies or stands still is named within the limit, and one that works for a long time is waited for."""

import re
import time

import pytest
from launching import two_processes
from warm import Program

pytestmark = pytest.mark.slow

LIMIT = 200  # of a case, which takes 20 s where nothing else runs; the timeouts had been a day and a week
WORKER = "import sys, processes_worker; processes_worker.run(sys.argv[1])"


def end(process: Program) -> tuple[int, str]:
    code = process.wait(timeout=LIMIT)
    return code, process.read("out") + process.read("err")


def test_a_main_process_that_builds_for_long_is_waited_for(python):
    with two_processes(python, WORKER, "slow") as started:
        for rank in (0, 1):
            code, said = end(started[rank])
            assert code == 0 and f"process {rank} is done" in said, said
    assert "process 1 has waited 0 minutes for process 0" in said and "to build the corpus" in said


@pytest.mark.parametrize(
    ("case", "survivor", "message"),
    [
        ("main-killed", 1, r"process 0 .*has died or cannot be reached, and process 1 waited for .* to build the cor"),
        ("main-stopped", 1, r"process 0 .*no sign of life for 6 s, and process 1 waited for .* to build the corpus"),
        ("main-failed", 1, r"process 0 .*(ended|has died).*process 1 waited for .*build the corpus"),
        ("other-killed", 0, r"process 1 \(on .*, pid \d+\) has given no sign of life for 6 s, .* to compute its share"),
        (
            "other-stopped",
            0,
            r"process 1 \(on .*, pid \d+\) has given no sign of life for 6 s, .* to compute its share",
        ),
        ("other-failed", 0, r"process 1 .*has ended, while process 0 waited for it to compute its share"),
        ("training-killed", 0, r"(?s)RuntimeError.*silent: process 1 \(on .*, pid \d+\) gives no sign of life"),
        ("training-stopped", 0, r"(?s)RuntimeError.*silent: process 1 \(on .*, pid \d+\) gives no sign of life"),
    ],
)
def test_a_process_that_is_gone_is_named(case, survivor, message, python):
    with two_processes(python, WORKER, case) as started:
        before = time.monotonic()
        code, said = end(started[survivor])
        assert time.monotonic() - before < LIMIT
    assert code == 3 and re.search(message, said), said
    assert f"process {survivor} is done" not in said
