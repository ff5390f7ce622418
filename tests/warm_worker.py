"""Run by warm.py, alone or by a launcher: runs programs, each in a fork of this process, which has imported much.

    warm_worker.py FOLDER PID MODULE...

A program is FOLDER/NUMBER.json: {"code": ..., "arguments": [...], "environment": {...}, "cwd": ..., "port": ...}. What
becomes of it is in FOLDER/NUMBER.RANK.out, .err and, at its end, .code. It is killed once FOLDER/NUMBER.over exists. A
program of `null` ends this process, and so does the end of the process PID.
"""

import atexit
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

RANK = os.environ.get("RANK", "0")
LAUNCHED = "RANK" in os.environ


def become(program: dict, output: Path) -> NoReturn:
    """Runs a program as `python -c` does, in this process.

    At the end it waits for threads and calls what is to be called at exit, as Python does. What follows there, taking
    every module apart, would copy all of the memory that this fork shares, and is left out.
    """
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
    code = 0
    try:
        exec(compile(program["code"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
    gc.freeze()  # nothing of it is ever collected, so that the forks share it
    main(Path(sys.argv[1]), int(sys.argv[2]))
