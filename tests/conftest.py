"""What every test shares."""

import os
from pathlib import Path

import pytest

# Set before anything imports a Hugging Face library: a test that would download fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports torch: sums are the same to the bit with the same number of threads only, and two processes of
# pytest share two cores.
os.environ["OMP_NUM_THREADS"] = "1"

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
    """Of a run of three epochs on tones, which all tests share: `tones.write_recipe` makes one to change."""
    from tones import write_recipe

    return write_recipe(tmp_path_factory.mktemp("tones"), num_epochs=3)


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Runs a program in a process of its own, which starts at once; see warm.py."""
    from warm import Warm

    with Warm(tmp_path_factory.mktemp("python")) as warm:
        yield warm


LONGEST = (
    "launches",
    "train_distill",
    "pipeline",
    "crossval",
    "signals",
    "recipes",
    "seeds",
    "predict_processes",
    "finetuning",
)
"""The files of tests that take the longest, these first."""


@pytest.hookimpl(trylast=True)  # after all has been put in a random order
def pytest_collection_modifyitems(config, items):
    """Tests that are marked `cuda` are skipped where torch finds no such device.

    Beside other processes the longest files begin first, so that none is left over at the end.
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
