"""Nothing that a process must not inherit is left behind, and no fold outlives what started it."""

import ast
import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from warm import Warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
FOLDS = """
    import signal, sys, threading
    from pathlib import Path
    from cmkd.runs import crossval

    recipe = Path("recipe.yaml")
    recipe.write_text("corpus: {name: iemocap, data_dir: .}\\noutput_dir: run\\n")
    crossval.MAIN = Path("train_distill.py").resolve()
    crossval.NUM_FOLDS[crossval.PROTOCOL] = 2
    crossval.gather_folds = lambda *_: {"gathered": True}
"""


def start(python: Warm, folder: Path, fold: str, program: str) -> subprocess.Popen:
    """Runs a program in which every fold of a cross-validation is the code `fold`."""
    (folder / "train_distill.py").write_text(textwrap.dedent(fold))
    (folder / "program.py").write_text(textwrap.dedent(FOLDS) + textwrap.dedent(program))
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([python.executable, "program.py"], cwd=folder, env=environment, **pipes)


def test_pools_end_after_a_cross_validation(python, tmp_path):
    """While a handler for SIGTERM stayed behind, pools hung within a minute: workers took it over and lived on.

    After one that is complete, one that fails, and one in another thread.
    """
    fold = "from pathlib import Path; raise SystemExit(Path('fails').exists())"
    program = """
        import os
        from datasets import Dataset
        from multiprocess import Pool

        Path("program.pid").write_text(str(os.getpid()))

        def run():
            try:
                crossval.cross_validate(recipe)
            except ChildProcessError as error:
                print(error)

        def check_pools():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.getsignal(signal.SIGTERM)
            for _ in range(34):
                with Pool(2) as pool:
                    assert pool.map(abs, range(-4, 0)) == [4, 3, 2, 1]
            rows = Dataset.from_dict({"x": [1, 2, 3, 4]})
            assert rows.map(lambda row: {"y": row["x"] ** 2}, num_proc=2)["y"][:] == [1, 4, 9, 16]

        run()
        check_pools()
        print("complete: all pools have ended")
        Path("fails").touch()
        run()
        check_pools()
        Path("fails").unlink()
        print("failed: all pools have ended")
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(100)
        check_pools()
        print("in a thread: all pools have ended")
    """
    with start(python, tmp_path, fold, program) as process:
        try:
            said, _ = process.communicate(timeout=900)
        finally:
            if process.poll() is None:
                for child in psutil.Process(int((tmp_path / "program.pid").read_text())).children(recursive=True):
                    child.kill()
            process.kill()
    assert process.returncode == 0, said
    complete, failed, in_a_thread = said.split("all pools have ended")[:3]
    assert "ended with exit code" not in complete + in_a_thread
    assert "ended with exit code 1" in failed and in_a_thread.endswith("in a thread: ")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_fold_ends_with_the_process_that_started_it(how, python, tmp_path):
    """However that ends; else it went on for days, and the next run met it in the same folder."""
    fold = "import os, time, pathlib; pathlib.Path('fold.pid').write_text(f'{os.getpid()} '); time.sleep(300)"
    with start(python, tmp_path, fold, "crossval.cross_validate(recipe)") as process:
        try:
            file, end = tmp_path / "fold.pid", time.monotonic() + 300
            while not file.exists() or not file.read_text().endswith(" "):
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
            child = psutil.Process(int(file.read_text()))
            assert child.is_running()
            process.send_signal(how)
            assert process.wait(timeout=900) == (-9 if how == signal.SIGKILL else 143)
            child.wait(timeout=900)
        finally:
            process.kill()


def test_no_wait_on_another_process_is_without_an_end():
    """A fold may run for days: `run_fold` waits for it, and it ends with the process that waits."""
    waiting = {"run", "wait", "communicate", "join"}
    found = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("cmkd/**/*.py"), *ROOT.glob("tests/*.py")]:
        source = path.read_text(encoding="utf-8")
        if "subprocess" not in source and "multiprocess" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in waiting):
                continue
            owner = ast.unparse(node.func.value)
            is_process = any(name in owner for name in ("process", "job", "fold", "child")) and not node.args
            if (owner == "subprocess" or is_process) and "timeout" not in [keyword.arg for keyword in node.keywords]:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}")
    found = [line for line in found if not line.endswith(": fold.wait()")]
    assert not found, "\n".join(found)
