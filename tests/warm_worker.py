"""Run by warm.py: a server that forks, and `client`, which is all that the program `FOLDER/python` does.

    warm_worker.py FOLDER PID

There are two servers, since libraries of the Hub read its variables when they are imported. One has imported only what
reads none of them, and so serves programs with the variables of any Hub. The other, which begins as a fork of it, has
imported all, with the variables that this process was started with, and serves the programs that have the same. Both
end with the process PID, and kill what they have started.
"""

import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import socket
import sys
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
ALL = ("train_distill", "accelerate.commands.launch", "cmkd.predict.prediction", "cmkd.runs.crossval")
CLIENT = """#!/bin/sh
exec {python} -S -E -c 'import sys; sys.path.append(sys.argv.pop(1)); import warm_worker; warm_worker.client()' \\
  {tests} {folder} "$@"
"""


def of_hub(variables: dict[str, str]) -> dict[str, str]:
    """Of the variables those that libraries read when they are imported."""
    return {
        name: value for name, value in variables.items() if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))
    }


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
    name = "all" if of_hub(variables) == json.loads((folder / "hub.json").read_text()) else "some"
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(folder / name))
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


def serve(listener: socket.socket, owner: int, executable: str, more: int | None = None) -> None:
    """Forks until the process `owner` has ended; `more` is another process to end then."""
    import gc
    import select

    gc.collect()
    gc.freeze()  # nothing of it is ever collected, so that the forks share it
    children: dict[socket.socket, int] = {}
    while True:
        for ready in select.select([listener, *children], [], [], 0.02)[0]:
            if ready is listener:
                connection, _ = listener.accept()
                size, files, _, _ = socket.recv_fds(connection, 8, 64)
                with connection.makefile("rb") as file:
                    request = json.loads(file.read(int.from_bytes(size, "big")))
                child = os.fork()
                if child == 0:
                    for other in (listener, connection, *children):
                        other.close()
                    become(request, files, executable)
                for file in files:
                    os.close(file)
                children[connection] = child
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
    (folder / "hub.json").write_text(json.dumps(of_hub(dict(os.environ))))
    listeners = {}
    for name in ("some", "all"):  # whoever connects from now on waits for the imports
        listeners[name] = socket.socket(socket.AF_UNIX)
        listeners[name].bind(str(folder / name))
        listeners[name].listen(100)
    executable = folder / "python"
    part = folder / "python.part"
    part.write_text(CLIENT.format(python=sys.executable, tests=Path(__file__).parent, folder=folder))
    part.chmod(0o755)
    part.rename(executable)
    for name in LIBRARIES:
        importlib.import_module(name)
    if os.fork() == 0:
        listeners.pop("some").close()
        for name in ALL:
            importlib.import_module(name)
        if "matplotlib.figure" in sys.modules:
            draw_nothing()
        serve(listeners["all"], owner, str(executable))
    else:
        listeners.pop("all").close()
        serve(listeners["some"], owner, str(executable))
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
