"""A folder of static files that scores speech in the browser: the page, the graph, and ONNX Runtime for the web."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import onnx

from cmkd.atomic import written_whole
from cmkd.export.runtime import read_metadata
from cmkd.json_files import write_json

PACKAGE = "onnxruntime-web@1.30.0"
"""What the page runs the graph with, as npm names it; MIT-licensed."""

INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of that package, as npm's registry gives it."""

_PARTS = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_LICENCES = ("LICENSE", "ThirdPartyNotices.txt")  # which npm's package lacks, and Python's has
_OWN = Path(__file__).with_name("static")


def write_page(
    graph: Path,
    folder: Path,
    package: Path | None = None,
    origins: Sequence[str] = (),
    report: Callable[[str], object] = print,
) -> None:
    """Writes a folder that any server of static files can serve; the page opens no connection but to it.

    Args:
        graph: a file that `cmkd export` wrote.
        folder: the folder to write; what else is in it stays.
        package: the file of the npm package `PACKAGE`; None: npm fetches it.
        origins: other servers that files of the folder may come from, as a content security policy names them.
        report: takes a line that says what was written.

    Raises:
        ValueError: `graph` is not of `cmkd export`, or the package is another one.
        OSError: npm is missing or fails, or the folder cannot be written.
    """
    model = onnx.load(str(graph))
    metadata = read_metadata({entry.key: entry.value for entry in model.metadata_props}, str(graph))
    with tempfile.TemporaryDirectory(prefix="cmkd-page-") as temporary:
        archive = package or _fetched(Path(temporary))
        _check_integrity(archive)
        with tarfile.open(archive) as opened:
            for name in _PARTS:
                member = opened.extractfile(f"package/dist/{name}")
                if member is None:
                    raise OSError(f"{archive} has no package/dist/{name}: it is not {PACKAGE}.")
                with member, written_whole(folder / "runtime" / name) as unfinished, unfinished.open("wb") as file:
                    shutil.copyfileobj(member, file)
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None  # cmkd.export.runtime has imported it
    for name in _LICENCES:
        _copy(Path(spec.origin).with_name(name), folder / "runtime" / name)
    if graph.resolve() != (folder / graph.name).resolve():
        _copy(graph, folder / graph.name)
    about = {name: value for name, value in metadata.items() if name != "card"}
    write_json(folder / "student.json", about | {"file": graph.name, "size": graph.stat().st_size})
    for path in sorted(_OWN.iterdir()):
        _copy(path, folder / path.name)
    policy = "connect-src 'self'"
    text = (_OWN / "index.html").read_text(encoding="utf-8").replace(policy, " ".join([policy, *origins]))
    with written_whole(folder / "index.html") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    report(f"{folder}: the page. Look at it with: python -m http.server --directory {folder}")


def _fetched(folder: Path) -> Path:
    """The package as npm fetches it, from the registry that npm is set up with."""
    npm = shutil.which("npm")
    advice = (
        f"Install npm (Node.js), or fetch the package where there is one, `npm pack {PACKAGE}`, and pass the file as "
        "--onnxruntime_web."
    )
    if npm is None:
        raise FileNotFoundError(f"npm, which fetches {PACKAGE} for the page, is missing. {advice}")
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise OSError(f"npm cannot fetch {PACKAGE}: {(done.stderr or done.stdout).strip()}. {advice}")
    return archives[0]


def _check_integrity(archive: Path) -> None:
    if not archive.is_file():
        raise FileNotFoundError(f"there is no file {archive}: fetch it with `npm pack {PACKAGE}`.")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != INTEGRITY:
        raise ValueError(
            f"{archive} is not {PACKAGE}: its digest is sha512-{digest}, but must be {INTEGRITY}. Fetch it with "
            f"`npm pack {PACKAGE}`."
        )


def _copy(source: Path, target: Path) -> None:
    with written_whole(target) as unfinished:
        shutil.copyfile(source, unfinished)
