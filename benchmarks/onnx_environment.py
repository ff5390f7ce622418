"""A student scored where torch is not: the environments of docs/export.md, made by pip as that page says.

    python -m benchmarks.onnx_environment --output docs/results/onnx_environment.json

A student with random heads on the demo's encoder is exported with this environment. Then two blocks of commands are
taken from docs/export.md and run in new virtual environments, in a copy of the files that git tracks: the
requirements of an exported folder, with which `onnx_cmkd.py` gives what the pipeline gives, and this package without
its requirements, with which `cmkd predict --model exported/model.onnx` gives what `cmkd predict` gives. In both
`import torch` has to fail, and every score has to be torch's to 1e-5. pip needs an index of packages; a megabyte is
10^6 bytes on the disk, pip and setuptools included.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import soundfile
from transformers import pipeline

from benchmarks.inference import ROOT, save_student
from cmkd.export.folder import export_folder
from cmkd.json_files import write_json
from cmkd.predict.prediction import predict
from configuration_cmkd import EMOTION_DIMENSIONS

PAGE = ROOT / "docs/export.md"
TOLERANCE = 1e-5


def commands(*first_words: str) -> list[str]:
    """The lines of the block of the page that has lines beginning so, from the first of them on, without comments."""
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        lines = [line.split("  #")[0].rstrip() for line in block.splitlines() if line.strip()]
        starts = [index for index, line in enumerate(lines) if line.startswith(first_words[0])]
        if starts and any(line.startswith(first_words[-1]) for line in lines):
            return lines[starts[0] :]
    raise ValueError(f"{PAGE}: there is no block of commands with {' and '.join(first_words)}")


def new_environment(folder: Path) -> dict[str, str]:
    """The variables of a shell in which a new virtual environment is active, and nothing of this process is found."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return environment | {"VIRTUAL_ENV": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def run(lines: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    """What the commands print, run one after the other by a shell that stops at the first that fails."""
    program = "\n".join(["set -e", *lines])
    done = subprocess.run(["bash", "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program}\nended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def about(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What is in a virtual environment, and that torch is not."""
    tried = subprocess.run(
        ["python", "-c", "import torch"], cwd=folder, env=environment, capture_output=True, text=True
    )
    if tried.returncode == 0 or "No module named 'torch'" not in tried.stderr:
        raise RuntimeError(f"import torch did not fail as it should: {tried.stderr or 'it can be imported'}")
    packages = json.loads(run(["pip list --format json"], folder, environment))
    files = {path.stat().st_ino: path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return {
        "megabytes": round(sum(512 * file.st_blocks for file in files.values()) / 1e6),
        "import_torch": tried.stderr.strip().splitlines()[-1],
        "packages": {package["name"]: package["version"] for package in packages},
    }


def difference(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> float:
    """The largest one of a score."""
    if len(found) != len(expected):
        raise RuntimeError(f"{len(found)} files were scored, {len(expected)} by torch")
    largest = max(
        abs(row[name] - other[name]) for row, other in zip(found, expected, strict=True) for name in EMOTION_DIMENSIONS
    )
    if not largest <= TOLERANCE:
        raise RuntimeError(f"a score is {largest:g} from torch's, which is more than {TOLERANCE:g}")
    return float(f"{largest:.2g}")


def rows(output: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(output / "scores").sort_by("source").to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name, "clone")
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for file in filter(None, tracked.split("\0")):
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, clone / file)
        save_student("demo", Path(name, "student"))
        export_folder(str(Path(name, "student")), clone / "exported")
        generator = np.random.default_rng(0)
        (clone / "calls").mkdir()
        for file, seconds, rate in (("speech.wav", 3.7, 16000), ("call.mp3", 34, 44100)):  # the names of the page
            wave = 0.1 * generator.standard_normal(round(seconds * rate), dtype=np.float32)
            soundfile.write(clone / file, wave, rate)
            shutil.copyfile(clone / file, clone / "calls" / file)
        score = pipeline(model=str(Path(name, "student")), trust_remote_code=True)
        of_pipeline = [score(str(clone / file))["scores"] for file in ("speech.wav", "call.mp3")]
        torchs = Path(name, "torch")
        predict([str(clone / "calls")], model=str(Path(name, "student")), output=torchs, summary=False, progress=False)

        results: dict[str, Any] = {
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "python": platform.python_version(),
            }
        }
        lines = commands("pip install -r exported/requirements.txt", "python exported/onnx_cmkd.py")
        environment = new_environment(Path(name, "exported_folder"))
        printed = run(lines, clone, environment)
        answers = [json.loads(line)["scores"] for line in printed.splitlines() if line.startswith("{")]
        results["exported_folder"] = {
            "commands": lines,
            "largest_difference_of_a_score": difference(answers, of_pipeline),
        } | about(Path(name, "exported_folder"), environment)
        lines = commands("pip install --no-deps .", "cmkd predict")
        environment = new_environment(Path(name, "cmkd_predict"))
        run(lines, clone, environment)
        results["cmkd_predict"] = {
            "commands": lines,
            "largest_difference_of_a_score": difference(rows(clone / "scores"), rows(torchs)),
        } | about(Path(name, "cmkd_predict"), environment)
    write_json(options.output, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
