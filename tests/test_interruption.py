"""A run that is killed at any moment, and started again by the same command, ends as if nothing had happened."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tones import STAGES
from warm import Warm, module

from cmkd.runs.checkpoints import usable_checkpoint
from cmkd.runs.folder import begin_stage, remove_checkpoints
from cmkd.runs.recipe import Recipe

pytestmark = pytest.mark.slow

KILLS = 24


def run_with_kills(python: Warm, recipe: Path, output: Path, kills: int) -> list[str]:
    """Runs the recipe, in a process of one thread; returns what the kills hit."""
    result = python.run(module("kill_worker"), str(recipe), str(output), "0", str(kills), timeout=1500)
    log = Path(f"{output}.log").read_text()
    assert result.returncode == 0, result.stdout + result.stderr + log[-3000:]
    return [line.removeprefix("killed ") for line in result.stdout.splitlines() if line.startswith("killed ")]


@pytest.fixture(scope="module")
def killed(python, recipe, tmp_path_factory):
    """A run that was killed `KILLS` times, and what the kills hit."""
    output = tmp_path_factory.mktemp("killed") / "run"
    return output, run_with_kills(python, recipe, output, KILLS)


@pytest.fixture(scope="module")
def run(python, recipe, tmp_path_factory):
    """A run of the same recipe that nobody disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_with_kills(python, recipe, output, 0) == []
    return output


def test_it_was_killed_everywhere(killed):
    """In every stage; while checkpoints, stored features and results are written; and in training steps."""
    _, kills = killed
    assert len(kills) >= 20  # the last of them may find the run complete
    hit = "\n".join(kills)
    for stage in STAGES:
        assert f"/{stage}" in hit, hit
    for what in ("step ", "/checkpoint-", "/cache/", "os.rename", "open "):
        assert what in hit, hit


@pytest.mark.parametrize("stage", [*STAGES, "student"])
def test_the_weights_are_the_same_to_the_bit(killed, run, stage):
    found, expected = (load_file(folder / stage / "model.safetensors") for folder in (killed[0], run))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_history_and_results_are_the_same(killed, run):
    output, _ = killed
    for stage in STAGES:
        found, expected = (json.loads((folder / stage / "training_log.json").read_text()) for folder in (output, run))
        assert found == expected
        assert not list((output / stage).glob("checkpoint-*"))
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (output, run))
    for part in ("corpus", "seed", "versions", "systems", "student", "conditioning", "recipe"):
        assert found[part] == expected[part]
    assert not [path for path in output.rglob("*") if path.name.endswith(".tmp")]


def make_checkpoint(folder: Path, step: int, best: int | None = None) -> Path:
    from safetensors.torch import save_file

    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"weight": torch.ones(100)}, path / "model.safetensors")
    torch.save({"state": torch.ones(100)}, path / "optimizer.pt")
    best_path = None if best is None else str(folder / f"checkpoint-{best}")
    (path / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best_path}))
    return path


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("trainer_state.json", None, "it lacks trainer_state.json"),
        ("trainer_state.json", b'{"best', "JSONDecodeError"),
        ("model.safetensors", None, "lacks"),
        ("model.safetensors", b"short", "SafetensorError"),
        ("optimizer.pt", b"short", "BadZipFile"),
        ("optimizer.pt", "flip", "wrong checksum"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_used(tmp_path, capsys, file, damage, reason):
    older, newer = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    assert usable_checkpoint(tmp_path) == newer
    if damage is None:
        (newer / file).unlink()
    elif damage == "flip":
        content = bytearray((newer / file).read_bytes())
        content[content.index(torch.ones(3).numpy().tobytes())] ^= 1
        (newer / file).write_bytes(content)
    else:
        (newer / file).write_bytes(damage)
    assert usable_checkpoint(tmp_path) == older
    assert not newer.exists() and (tmp_path / "unused-checkpoint-10").is_dir()
    output = capsys.readouterr().out
    assert f"{newer} is not used" in output and reason in output and "It is kept as unused-checkpoint-10" in output


def test_a_checkpoint_that_is_not_understood_is_set_aside_whole(tmp_path, capsys):
    """As one of a later version of transformers may be; twice, under the same name."""
    for content in (b"first", b"second"):
        checkpoint = make_checkpoint(tmp_path, 9)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"format": 7}))
        (checkpoint / "optimizer.bin").write_bytes(content)
        assert usable_checkpoint(tmp_path) is None
    kept = [tmp_path / name / "optimizer.bin" for name in ("unused-checkpoint-9", "unused-checkpoint-9-2")]
    assert [path.read_bytes() for path in kept] == [b"first", b"second"]
    assert "kept as unused-checkpoint-9-2; delete it if you do not need it" in capsys.readouterr().out


def test_what_trainer_did_not_write_is_left_alone(tmp_path):
    mine = tmp_path / "audio/checkpoint-best"
    mine.mkdir(parents=True)
    usable = make_checkpoint(tmp_path / "audio", 9)
    assert usable_checkpoint(tmp_path / "audio") == usable
    remove_checkpoints(tmp_path, "audio")
    assert mine.is_dir() and not usable.exists()


def test_a_checkpoint_of_unknown_settings_is_not_gone_on_from(tmp_path, capsys):
    """Its stage.json is not there: whatever it was, it need not be what is asked for now."""
    make_checkpoint(tmp_path / "audio", 9)
    given = Recipe(corpus={"name": "toys"}, output_dir=str(tmp_path))
    begin_stage(tmp_path, "audio", given, "1.0")
    assert usable_checkpoint(tmp_path / "audio") is None
    assert (tmp_path / "audio/unused-checkpoint-9/model.safetensors").is_file()
    assert "there is no stage.json that records the settings that it began with" in capsys.readouterr().out
    checkpoint = make_checkpoint(tmp_path / "audio", 12)
    begin_stage(tmp_path, "audio", given, "1.0")
    assert usable_checkpoint(tmp_path / "audio") == checkpoint


def test_a_checkpoint_without_the_best_one_is_not_used(tmp_path):
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 9, best=5)
    assert usable_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    (tmp_path / "checkpoint-5/model.safetensors").write_bytes(b"")
    assert usable_checkpoint(tmp_path) is None
