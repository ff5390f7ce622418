"""Run by warm.py, alone or by a launcher: runs programs, each in a fork of this process, which has imported much.

    warm_worker.py FOLDER PID MODULE...

A program is FOLDER/NUMBER.json: {"code": ..., "arguments": [...], "environment": {...}, "cwd": ..., "port": ...}. What
becomes of it is in FOLDER/NUMBER.RANK.out, .err and, at its end, .code. It is killed once FOLDER/NUMBER.over exists. A
program of `null` ends this process, and so does the end of the process PID.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

RANK = os.environ.get("RANK", "0")
LAUNCHED = "RANK" in os.environ


def become(program: dict, output: Path) -> None:
    """Runs a program as `python -c` does, in this process."""
    for descriptor, ending in ((1, "out"), (2, "err")):
        file = os.open(f"{output}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    for name, value in program["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if LAUNCHED:  # the launcher's store is for one program; each makes its own
        os.environ |= {"MASTER_PORT": str(program["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    os.chdir(program["cwd"])
    sys.argv = ["-c", *program["arguments"]]
    exec(compile(program["code"], "<program>", "exec"), {"__name__": "__main__"})


def main(folder: Path, starter: int) -> None:
    children: dict[int, Path] = {}  # the outputs of programs that run, by process
    number, more = 0, True
    while more or children:
        file = folder / f"{number}.json"
        if more and file.exists():
            program = json.loads(file.read_text())
            more = program is not None
            if more:
                output = folder / f"{number}.{RANK}"
                number += 1
                child = os.fork()
                if child == 0:
                    become(program, output)
                    return  # and ends as any process does
                children[child] = output
        for child, output in list(children.items()):
            if Path(str(output).removesuffix(f".{RANK}") + ".over").exists():
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del children[child]
                part = Path(f"{output}.part")
                part.write_text(str(os.waitstatus_to_exitcode(status)))
                part.rename(f"{output}.code")
        try:
            os.kill(starter, 0)
        except ProcessLookupError:
            for child in children:
                os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.02)


if __name__ == "__main__":
    for name in sys.argv[3:]:
        importlib.import_module(name)
    main(Path(sys.argv[1]), int(sys.argv[2]))
