"""Run by warm.py: a server that forks, and `client`, which is all that the program `FOLDER/python` does.

    warm_worker.py FOLDER PID

Libraries of the Hub read its variables when they are imported, so there are several servers. One has imported only what
reads none of them, and so serves programs with the variables of any Hub. Another, which begins as a fork of it, has
imported all, with the variables that this process was started with, and serves the programs that have the same. When a
second program comes with other variables, a fork imports the libraries of the Hub with these, though nothing of ours,
and serves the programs that have them from then on. All end with the process PID, and kill what they have started.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import sys
from collections import namedtuple
from pathlib import Path

LIBRARIES = (
    "av",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "multiprocess.spawn",
    "multiprocessing.spawn",
    "numpy",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "scipy.io",
    "scipy.optimize",
    "scipy.signal",
    "soundfile",
    "soxr",
    "sympy",
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.data",
    "tyro",
)
"""What reads no variables of the Hub when it is imported."""
OF_HUB = (
    "accelerate.commands.launch",
    "datasets",
    "transformers.models.bert.modeling_bert",
    "transformers.models.hubert.modeling_hubert",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "transformers.pipelines",
    "transformers.trainer",
)
ALL = (*OF_HUB, "train_distill", "cmkd.predict.prediction", "cmkd.runs.crossval")
CLIENT = """#!/bin/sh
exec {python} -S -E -c 'import sys; sys.path.append(sys.argv.pop(1)); import warm_worker; warm_worker.client()' \\
  {tests} {folder} "$@"
"""


def of_hub(variables: dict[str, str]) -> dict[str, str]:
    """Of the variables those that libraries read when they are imported."""
    return {
        name: value for name, value in variables.items() if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))
    }


def name_of(variables: dict[str, str]) -> str:
    """Of the server for programs with these variables."""
    return hashlib.sha256(json.dumps(sorted(of_hub(variables).items())).encode()).hexdigest()[:16]


def listen(folder: Path, name: str) -> socket.socket:
    """Whoever connects from now on waits for the server's imports."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f"{name}.part"))
    listener.listen(100)
    (folder / f"{name}.part").rename(folder / name)
    return listener


def inherited() -> list[int]:
    """The descriptors that this process was started with: input, output, and what its parent has passed on."""
    found = []
    for number in sorted(int(path.name) for path in Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError):  # one of them was that of the folder itself
            if os.get_inheritable(number):
                found.append(number)
    return found


def client() -> None:
    """Has a server fork, and ends as the fork ends. `sys.argv`: -c, FOLDER, and what `python` takes."""
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    variables, files = dict(os.environ), inherited()
    own = folder / name_of(variables)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(own if own.exists() else folder / "some"))
    request = json.dumps({"arguments": arguments, "environment": variables, "cwd": str(Path.cwd()), "files": files})
    request = request.encode()
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], files)
    connection.sendall(request)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    status = connection.recv(100)
    code = int(status) if status else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def run(arguments: list[str]) -> None:
    """What `python ARGUMENT...` does."""
    import runpy

    while arguments[0] == "-u":
        arguments.pop(0)
        sys.stdout.reconfigure(write_through=True)
    if arguments[0] == "-c":
        code, sys.argv, sys.path[0] = arguments[1], ["-c", *arguments[2:]], ""
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], str(Path.cwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = list(arguments), str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def become(request: dict, files: list[int], executable: str) -> None:
    """Runs a program in this process, and ends it.

    At the end it waits for threads and calls what is to be called at exit, as Python does. What follows there, taking
    every module apart, would copy all of the memory that this fork shares, and is left out.
    """
    import atexit
    import threading
    import traceback

    above = max(request["files"]) + 1
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(moved, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.executable = executable
    code = 0
    try:
        run(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code % 256)


class Request(namedtuple("Request", ("connection", "words", "files"))):
    """Of a client: the connection that it waits at, what it was called with, and its descriptors."""

    @classmethod
    def accepted(cls, listener: socket.socket) -> Request:
        connection, _ = listener.accept()
        size, files, _, _ = socket.recv_fds(connection, 8, 64)
        with connection.makefile("rb") as file:
            return cls(connection, json.loads(file.read(int.from_bytes(size, "big"))), files)


def specialise(request: Request, listener: socket.socket, owner: int, folder: Path) -> None:
    """Becomes the server for programs with the variables of this one, which is the first."""
    for name in of_hub(dict(os.environ)):
        del os.environ[name]
    os.environ.update(of_hub(request.words["environment"]))
    for name in OF_HUB:
        importlib.import_module(name)
    serve(listener, owner, folder, [request])
    os._exit(0)


def serve(listener: socket.socket, owner: int, folder: Path, waiting: list[Request], specialises: bool = False) -> None:
    """Forks until the process `owner` has ended, at first for those that wait already."""
    import gc
    import select

    gc.collect()
    gc.freeze()  # nothing of it is ever collected, so that the forks share it
    children: dict[socket.socket, int] = {}
    seen: set[str] = set()
    while True:
        for ready in select.select([listener, *children], [], [], 0.0 if waiting else 0.02)[0]:
            if ready is listener:
                waiting.append(Request.accepted(listener))
            elif ready in children:
                try:
                    numbers = ready.recv(10)
                except ConnectionResetError:
                    numbers = b""
                for number in numbers or [signal.SIGKILL]:  # none: who asked has ended
                    os.kill(children[ready], number)
                if not numbers:
                    os.waitpid(children.pop(ready), 0)
                    ready.close()
        while waiting:
            request = waiting.pop()
            name = name_of(request.words["environment"])
            own = listen(folder, name) if specialises and name in seen and not (folder / name).exists() else None
            seen.add(name)
            child = os.fork()
            if child == 0:
                for other in (listener, *children, *(one.connection for one in waiting)):
                    other.close()
                for file in (number for one in waiting for number in one.files):
                    os.close(file)
                if own is not None:
                    specialise(request, own, owner, folder)
                request.connection.close()
                become(request.words, request.files, str(folder / "python"))
            for file in request.files:
                os.close(file)
            if own is None:
                children[request.connection] = child
            else:
                own.close()
                request.connection.close()
        for connection, child in list(children.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del children[connection]
                with contextlib.suppress(BrokenPipeError):  # who asked was killed in this moment
                    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                connection.close()
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            for child in children.values():
                os.kill(child, signal.SIGKILL)
            return


def draw_nothing() -> None:
    """Figures of runs in processes of their own are blank: those of runs in the tests' processes are drawn."""
    from matplotlib.figure import Figure
    from quick_figures import quick_methods

    for name, method in quick_methods(None).items():
        setattr(Figure, name, method)


def main(folder: Path, owner: int) -> None:
    sys.path.insert(1, str(Path(__file__).parent))  # the first is each program's own
    of_some, of_all = (listen(folder, name) for name in ("some", name_of(dict(os.environ))))
    part = folder / "python.part"
    part.write_text(CLIENT.format(python=sys.executable, tests=Path(__file__).parent, folder=folder))
    part.chmod(0o755)
    part.rename(folder / "python")
    for name in LIBRARIES:
        importlib.import_module(name)
    if os.fork() == 0:
        of_some.close()
        for name in ALL:
            importlib.import_module(name)
        if "matplotlib.figure" in sys.modules:
            draw_nothing()
        serve(of_all, owner, folder, [])
    else:
        of_all.close()
        serve(of_some, owner, folder, [], specialises=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
