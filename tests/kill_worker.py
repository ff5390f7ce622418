"""Run by test_interruption.py: `train_distill.py`, killed again and again until it is complete.

    kill_worker.py RECIPE OUTPUT_DIR SEED KILLS

Every try is a fork of this process, which has imported everything, and kills itself by SIGKILL at a moment drawn by
SEED: just before or after one of the things that it does with files of the run, or before a training step. The first
kills are in stored features, in checkpoints and in every stage, the others anywhere. Prints a line for each kill, with
what it was about to do. After KILLS kills it is left alone.
"""

import os
import random
import signal
import sys
from pathlib import Path

import train_distill
from cmkd.stages import PAPER_STAGES
from cmkd.training.trainer import CMKDTrainer

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}
LONGEST = {"/cache/": 6, "/checkpoint-": 6}  # events between two kills, in these places
FIRST = [
    "/cache/",
    "/cache/",
    "/checkpoint-",
    "/checkpoint-",
    *(f"/{stage}" for stage in PAPER_STAGES for _ in range(3)),
]


def run_and_kill(arguments: list[str], output: Path, moment: int, place: str) -> None:
    """Runs the job; kills this process at the given event in a place, if the run gets there."""
    events = 0
    step = CMKDTrainer.training_step

    def count(event: str, detail: str) -> None:
        nonlocal events
        events += place in detail
        if place in detail and events == moment:
            os.write(1, f"killed {event} {detail}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        if event not in WATCHED or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        writes = event != "open" or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        if writes and isinstance(path, str) and str(output) in path:
            count(event, path.removeprefix(str(output)))

    def counted_step(self, *arguments, **options):
        count("step", f"/{Path(self.args.output_dir).name} {self.state.global_step}")
        return step(self, *arguments, **options)

    CMKDTrainer.training_step = counted_step
    sys.addaudithook(audit)
    train_distill.main(arguments)


def main(recipe: str, output: str, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    arguments = [recipe, "--output_dir", output]
    places = [""] * (kills - len(FIRST)) + FIRST[::-1] if kills else []
    while True:
        place = places.pop() if places else ""
        moment = rng.randint(1, LONGEST.get(place, 30)) if kills > 0 else -1
        child = os.fork()
        if child == 0:
            log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 2)
            try:
                run_and_kill(arguments, Path(output), moment, place)
            except BaseException as error:
                os.write(1, f"failed {error!r}\n".encode())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        kills -= 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
