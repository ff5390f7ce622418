"""Fixtures and settings that the tests share."""

import gc
import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest

# Set before anything imports a Hugging Face library: a test that would download fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports torch: sums are the same to the bit with the same number of threads only, and the processes of
# pytest share two cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Ray Data would count what is used in a thread that outlives its cluster. It fails every ten seconds and formats the
# error, which parses code, and two threads that parse at once fail in Python 3.11 (SystemError: AST constructor ...).
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

pytest.register_assert_rewrite("manifests", "stored_features")  # so that these say what they compared, as tests do


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real weights and corpora: $CMKD_SHARED, else `shared` beside the checkout.

    It is not part of the repository, so the tests that ask for it are skipped where it is absent.
    """
    folder = Path(os.environ.get("CMKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set CMKD_SHARED to a folder with data/ and models/")
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    """The recipe of a run of three epochs on tones, for all tests; `tones.write_recipe` writes others."""
    from tones import write_recipe

    return write_recipe(tmp_path_factory.mktemp("tones"), num_epochs=3)


IS_ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
"""Whether other processes run tests of the same session."""


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """A folder that all processes of a session of tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if IS_ONE_OF_SEVERAL else base


@pytest.fixture(scope="session")
def python(tmp_path_factory, session_folder):
    """Runs a program in a process of its own, which starts at once; see warm.py."""
    from warm import Warm

    owner = os.getppid() if IS_ONE_OF_SEVERAL else os.getpid()
    return Warm(tmp_path_factory.mktemp("python"), session=session_folder, owner=owner)


@pytest.fixture
def quick_processes(python, monkeypatch):
    """What starts processes by `sys.executable` gets them at once; a signal to one reaches it, but SIGSTOP does not."""
    monkeypatch.setattr(sys, "executable", python.executable)


@pytest.fixture(scope="module")
def quick_figures():
    """Reports of whole runs draw each figure once for a file of tests; see quick_figures.py."""
    from matplotlib.figure import Figure
    from quick_figures import quick_methods

    with pytest.MonkeyPatch.context() as patch:
        for name, method in quick_methods(set()).items():
            patch.setattr(Figure, name, method)
        yield


LONGEST = (
    "launches",
    "train_distill",
    "publish",
    "processes",
    "recipes",
    "performed_speech",
    "crossval",
    "pipeline",
    "predict_ray",
    "predict_processes",
    "modeling",
    "interruption",
    "export_page",
    "cross_fitting",
    "docs",
    "seeds",
    "several_corpora",
    "identity",
    "signals",
    "workers",
    "transcribe",
    "evaluate",
    "cuda",
    "spoken_corpora",
    "export",
    "lexical",
    "finetuning",
    "whole_step",
    "dataset_corpus",
    "licensed_corpora",
    "package",
    "audio",
)
"""The files of tests that take the longest, these first: what they compute, or wait as `processes` does."""


def pytest_collection_finish():
    """What has been imported by now stays, and is not looked through again at every garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # after all has been put in a random order
def pytest_collection_modifyitems(config, items):
    """Tests that are marked `cuda` are skipped where torch finds no such device.

    Where several processes run the tests, the longest files begin first, so that none of them is left for the end.
    """
    if hasattr(config, "workerinput"):
        places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("cuda"):
                    item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))


@pytest.fixture
def plan(monkeypatch):
    """Draws a corpus without speaking it: a `load_corpus` whose result has the utterances by split, and the report."""
    from cmkd import load_corpus
    from cmkd.corpora import spoken_demo, spoken_emobank, spoken_sentences

    plan = namedtuple("plan", ("splits", "report"))

    def keep(splits, report, *_, **__):
        return plan(splits, report)

    for module, speaks in (
        (spoken_demo, "spoken_corpus"),
        (spoken_emobank, "spoken_corpus"),
        (spoken_emobank, "performed_corpus"),
        (spoken_sentences, "performed_corpus"),
    ):
        monkeypatch.setattr(module, speaks, keep)
    return load_corpus
