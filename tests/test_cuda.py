"""What a GPU computes, in the checks of benchmarks/gpu.py with a small network; on the CPU they are rehearsed.

On a machine with a GPU: pytest -m cuda
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.slow

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("device", DEVICES)
def test_an_answer_does_not_depend_on_the_batch(device):
    """With TF32 off to rounding; with it, and in bf16, as much as these round."""
    found = gpu.batch_invariance(device, small=True)
    assert found["fp32"]["spread"] > 1e-2  # the answers differ, so that equality says something
    assert found["fp32"]["batch"] < 1e-5
    assert found["tf32"]["batch"] < 5e-3 and found["tf32"]["against_fp32"] < 5e-3
    assert found["bf16"]["batch"] < 3e-2 and 0 < found["bf16"]["against_fp32"] < 3e-2


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_a_step_is_that_of_one_batch(device):
    found = gpu.loss_over(device, small=True)
    assert found["step"] < 1e-5
    assert found["batch"] > 100 * found["step"]  # another loss


@pytest.mark.parametrize("device", DEVICES)
def test_a_stage_trains_in_bf16(device):
    """Weights stay in fp32, and the losses are those of fp32 to what bf16 rounds."""
    found = gpu.stage(device, small=True)
    for of_precision in found.values():
        assert of_precision["weights"] == ["torch.float32"]
        assert len(of_precision["training_loss"]) == len(of_precision["validation_ccc"]) == 2
    assert found["bf16"]["training_loss"] != found["fp32"]["training_loss"]
    assert found["bf16"]["training_loss"] == pytest.approx(found["fp32"]["training_loss"], rel=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_goes_on_where_it_stopped(device):
    """With dropout and accumulation; as close as a repetition without interruption comes."""
    found = gpu.resume(device, small=True)
    assert found["interrupted"] <= max(found["repeated"], 0.0 if device == "cpu" else 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_fsdp_of_one_process_trains_what_none_does(device):
    found = gpu.fsdp(device, small=True)
    assert found["weights"] > 50
    assert found["largest_difference"] < (1e-7 if device == "cpu" else 1e-4)


def test_the_script_runs_without_what_a_gpu_machine_may_lack(tmp_path):
    """No datasets, no evaluate, and nothing that reads sound."""
    missing = ("datasets", "evaluate", "soundfile", "soxr", "av", "torchcodec", "matplotlib")
    arguments = ["gpu", "--device", "cpu", "--small", "--checks", "loss_over", "--output", str(tmp_path / "gpu.json")]
    program = f"import runpy, sys; sys.modules |= dict.fromkeys({missing}); sys.argv = {arguments}; "
    program += "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "gpu.json").read_text())["loss_over"]["step"] < 1e-5


def test_the_settings_of_fsdp_are_those_of_the_preset():
    import yaml

    preset = yaml.safe_load((ROOT / "launch/fsdp.yaml").read_text())["fsdp_config"]
    expected = {name.upper(): str(value) for name, value in preset.items()}
    found = {name: value for name, value in gpu.FSDP.items() if name.startswith("FSDP_")}
    assert {name: value.lower() for name, value in found.items()} == {n: v.lower() for n, v in expected.items()}
