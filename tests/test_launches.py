"""Launches of several processes: interrupted ones end as others do, and FSDP trains what one process trains."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from launching import LAUNCH, launch, two_processes
from mixed_sources import write_mixed_recipe
from safetensors.torch import load_file
from tones import SIZES
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
from transformers import AutoModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

import train_distill
from cmkd.training.trainer import check_sharding
from configuration_cmkd import EMOTION_DIMENSIONS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

WORKER = Path(__file__).with_name("launch_worker.py")


@pytest.fixture(scope="module")
def run(python):
    """Runs train_distill.py by a preset, on a number of processes, which kill themselves in a step."""

    def run(preset: str, processes: int, *arguments: str, killed_at: int = -1) -> str:
        done = launch(python, preset, processes, WORKER, "run", str(killed_at), *arguments)
        assert (done.returncode == 0) == (killed_at < 0), done.stderr[-5000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def dropping(recipe) -> str:
    """An encoder with dropout, so that the state of the random generators has to be that of the interrupted run."""
    config = HubertConfig.from_pretrained(recipe.parent / "tones/speech")
    config.hidden_dropout = config.attention_dropout = config.activation_dropout = 0.3
    torch.manual_seed(0)
    HubertModel(config).save_pretrained(recipe.parent / "tones/dropping")
    Wav2Vec2FeatureExtractor().save_pretrained(recipe.parent / "tones/dropping")
    return "tones/dropping"


@pytest.mark.parametrize(
    ("preset", "processes", "accumulation"),
    [("several_gpus.yaml", 2, 1), ("several_gpus.yaml", 2, 2), ("one_gpu.yaml", 1, 2), ("fsdp.yaml", 2, 1)],
)
def test_a_killed_launch_ends_as_if_nothing_had_happened(
    run, recipe, dropping, tmp_path, preset, processes, accumulation
):
    """Killed in the second of three epochs, in a step; with accumulation between its batches."""
    arguments = [str(recipe), "--stages", "finetune", "--student_speech_encoder", dropping]
    arguments += ["--gradient_accumulation_steps", str(accumulation)]
    arguments += ["--batch_size", str(8 // processes // accumulation), "--cache_dir", str(tmp_path / "cache")]
    run(preset, processes, *arguments, "--output_dir", str(tmp_path / "whole"))
    interrupted = [*arguments, "--output_dir", str(tmp_path / "killed")]
    run(preset, processes, *interrupted, killed_at=6)
    checkpoints = [path.name for path in (tmp_path / "killed/finetune").glob("checkpoint-*")]
    assert checkpoints == ["checkpoint-4"]  # of the first epoch
    assert "is not used" not in run(preset, processes, *interrupted)

    found, expected = (load_file(tmp_path / name / "finetune/model.safetensors") for name in ("killed", "whole"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    for split in SIZES:
        file = f"predictions/finetune_{split}.parquet"
        tables = [pq.read_table(tmp_path / name / file).to_pandas() for name in ("killed", "whole")]
        assert tables[0].equals(tables[1])  # NaN, where not rated, included
    found, expected = (
        json.loads((tmp_path / name / "finetune/training_log.json").read_text()) for name in ("killed", "whole")
    )
    assert found == expected and len(found) == 3


def test_a_killed_student_of_several_sources_ends_as_if_nothing_had_happened(run, tmp_path):
    """Two corpora and unrated speech on two processes, killed in the second of three epochs of the student."""
    recipe = write_mixed_recipe(tmp_path, num_epochs=3, batch_size=4)
    start = ("several_gpus.yaml", 2)
    run(*start, str(recipe), "--stages", "teacher", "ts", "--output_dir", str(tmp_path / "whole"))
    of_the_student = shutil.ignore_patterns("ts*", "student", "conditioning", "results.json")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed", ignore=of_the_student)
    interrupted = [str(recipe), "--output_dir", str(tmp_path / "killed"), "--stages"]
    run(*start, *interrupted, "ts", killed_at=6)
    assert [path.name for path in (tmp_path / "killed/ts").glob("checkpoint-*")] == ["checkpoint-5"]
    run(*start, *interrupted, "ts")
    found, expected = (load_file(tmp_path / name / "ts/model.safetensors") for name in ("killed", "whole"))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    one = tmp_path / "one"
    train_distill.main([str(recipe), "--stages", "teacher", "ts", "--output_dir", str(one), "--batch_size", "8"])
    logs = [json.loads((folder / "ts/training_log.json").read_text()) for folder in (one, tmp_path / "whole")]
    for of_one, of_two in zip(*logs, strict=True):
        assert of_two == pytest.approx(of_one, abs=2e-5, rel=1e-5)


def test_fsdp_learns_what_one_process_does(run, recipe, tmp_path):
    """Teacher and student; what is saved is whole, and loads as any checkpoint does."""
    arguments = [str(recipe), "--stages", "teacher", "cts", "--output_dir"]
    train_distill.main([*arguments, str(tmp_path / "one"), "--batch_size", "8"])
    run("fsdp.yaml", 2, *arguments, str(tmp_path / "two"), "--batch_size", "4")
    for stage in ("teacher", "cts"):
        one, two = (json.loads((tmp_path / name / stage / "training_log.json").read_text()) for name in ("one", "two"))
        for of_one, of_two in zip(one, two, strict=True):
            assert of_two == pytest.approx(of_one, abs=2e-5)
        for split in SIZES:
            file = f"predictions/{stage}_{split}.parquet"
            one, two = (pq.read_table(tmp_path / name / file).to_pandas() for name in ("one", "two"))
            assert list(one["id"]) == list(two["id"])
            for dimension in EMOTION_DIMENSIONS:
                np.testing.assert_allclose(two[f"predicted_{dimension}"], one[f"predicted_{dimension}"], atol=2e-5)
        files = [{path.name for path in (tmp_path / name / stage).iterdir()} for name in ("one", "two")]
        assert files[0] == files[1]  # no more than one process leaves
        shutil.copytree(tmp_path / "two" / stage, tmp_path / "copy" / stage)
        models = [
            AutoModel.from_pretrained(tmp_path / name / stage, trust_remote_code=True) for name in ("one", "copy")
        ]
        assert type(models[0]).__name__ == type(models[1]).__name__
        weights = [model.state_dict() for model in models]
        assert weights[0].keys() == weights[1].keys()
        for name, value in weights[0].items():
            torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=0)  # Adam's steps are of 5e-4


@pytest.fixture(scope="module")
def families(python, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("families") / "families.json"
    result = launch(python, "fsdp.yaml", 2, WORKER, "families", str(output))
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads(output.read_text())


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "hubert",
        "hubert-stable",
        "wav2vec2",
        "wav2vec2-stable",
        "wavlm",
        "wavlm-stable",
        "data2vec",
        "whisper",
        "moonshine",
        "cpc",
    ],
)
def test_the_gradient_on_shards_is_that_of_one_process(families, name, stored):
    """For every encoder family, from the waveform with all layers trained, and from stored features."""
    found = families[f"{name}-{stored}"]
    assert found["gradient_error"] < 2e-6
    assert found["in_shards"] == 1.0  # every weight
    assert found["wrapped"] >= 4  # the model and its layers, each gathered alone
    assert found["same_weights"]


STOPPED = """
import os, runpy, signal, sys
from datetime import timedelta
from cmkd import processes
from cmkd.training import trainer

processes.COLLECTIVE_TIMEOUT, processes.INTERVAL, processes.SILENCE = timedelta(seconds=15), 1.0, 8.0
step = trainer.CMKDTrainer.training_step

def stopped_step(self, *arguments):
    if self.state.global_step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    return step(self, *arguments)

trainer.CMKDTrainer.training_step = stopped_step
runpy.run_module("train_distill", run_name="__main__", alter_sys=True)
"""


def test_a_process_that_stands_still_in_training_is_named(python, recipe, tmp_path):
    """It says nothing itself, and no launcher ends it: the other one would have waited for a day."""
    arguments = [str(recipe), "--stages", "finetune", "--batch_size", "4", "--output_dir", str(tmp_path / "run")]
    with two_processes(python, STOPPED, *arguments) as (main, _):
        assert main.wait(timeout=900) == 1
        said = main.read("out") + main.read("err")
    assert re.search(
        r"train_distill: process 1 \(on .*, pid \d+\) gives no sign of life: it has died or was sto", said
    ), said


@pytest.mark.parametrize("preset", ["several_gpus.yaml", "fsdp.yaml"])
def test_two_launches_on_one_machine_do_not_ask_for_the_same_port(preset):
    """accelerate looks for one that is free where it is 0; the launches above are told which."""
    assert yaml.safe_load((LAUNCH / preset).read_text())["main_process_port"] == 0


def plugin(**changes) -> SimpleNamespace:
    settings = {
        "fsdp_version": 2,
        "auto_wrap_policy": transformer_auto_wrap_policy,
        "state_dict_type": StateDictType.FULL_STATE_DICT,
        "cpu_ram_efficient_loading": False,
    }
    return SimpleNamespace(**settings | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version is 1, but must be 2"),
        ({"auto_wrap_policy": size_based_auto_wrap_policy}, "fsdp_auto_wrap_policy is SIZE_BASED_WRAP, but must be TR"),
        ({"state_dict_type": StateDictType.SHARDED_STATE_DICT}, "fsdp_state_dict_type is SHARDED_STATE_DICT, but must"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading is True, but must be False"),
    ],
)
def test_fsdp_with_settings_that_do_not_fit_is_refused(change, message):
    check_sharding(plugin())
    with pytest.raises(ValueError, match=f"{message}.*launch/fsdp.yaml"):
        check_sharding(plugin(**change))
