"""`cmkd predict` with smaller pieces and chunks, so that a test need not write hours of sound; and with trouble.

python predict_worker.py pieces.PIECE_SECONDS=20 plan.CHUNK_SOURCES=3 -- SOURCE --model M --output O

Beside settings of modules there may be, before the `--`:

    killed=3:0.02    it kills itself by SIGKILL 0.02 s after it begins to store the third piece that it has scored, and
                     stores no more than one other until then; for 0 after it begins to share the work
    stopped=2        it stops itself when it is about to store the second; waits=2: it waits then
    together=FOLDER  it stores the first when another process with the same FOLDER is about to do so too
    late=1.5         it writes the tables 1.5 s later than it could

Who watches it from outside may look too late on a machine that has much to do.
"""

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from cmkd.commands import main
from cmkd.predict.sharing import Sharing
from cmkd.predict.store import Store


def kill(place: str) -> None:
    number, seconds = place.split(":")
    if TO_STORE[0] == int(number):
        threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
    if TO_STORE[0] == int(number) + 2:
        threading.Event().wait(600)


def stop(number: str) -> None:
    if TO_STORE[0] == int(number):
        os.kill(os.getpid(), signal.SIGSTOP)


def wait(number: str) -> None:
    if TO_STORE[0] == int(number):
        threading.Event().wait(600)


def meet(folder: str) -> None:
    if TO_STORE[0] == 1:
        Path(folder, str(os.getpid())).touch()
        end = time.monotonic() + 600
        while len(os.listdir(folder)) < 2 and time.monotonic() < end:  # noqa: PTH208
            time.sleep(0.01)


def write_late(seconds: str) -> None:
    from cmkd.predict import prediction

    write = prediction.write_exports

    def wait_and_write(*arguments):
        time.sleep(float(seconds))
        write(*arguments)

    prediction.write_exports = wait_and_write


TROUBLE = {"killed": kill, "stopped": stop, "waits": wait, "together": meet}
TO_STORE = [0]
"""The number of the piece that is about to be stored, from 1; 0 at the beginning."""


def before_each_piece(act) -> None:
    """Has `act` called when this process begins to share the work, and whenever it is about to store a piece."""
    begin, write = Sharing.__init__, Store.write_piece

    def begin_after_it(self, *arguments):
        begin(self, *arguments)
        act()

    def write_after_it(self, *arguments):
        TO_STORE[0] += 1
        act()
        write(self, *arguments)

    Sharing.__init__, Store.write_piece = begin_after_it, write_after_it


if __name__ == "__main__":
    end = sys.argv.index("--")
    for setting in sys.argv[1:end]:
        name, value = setting.split("=")
        if name == "late":
            write_late(value)
        elif name in TROUBLE:
            before_each_piece(lambda act=TROUBLE[name], value=value: act(value))
        else:
            module, variable = name.split(".")
            number = float(value) if "." in value else int(value)
            setattr(importlib.import_module(f"cmkd.predict.{module}"), variable, number)
    main(["predict", *sys.argv[end + 1 :]])
