"""The gradient of a step does not depend on how many devices and accumulation steps it is spread over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from whole_step_worker import NUMBER, Dropping, columns

CASES = ["float64-1-step", "float64-2-step", "float64-4-step", "float32-2-step", "float64-2-batch", "sharded"]


@pytest.fixture(scope="module", params=[1, 2, 4])
def runs(request, tmp_path_factory):
    """The folder of what all cases gave on 1, 2 and 4 processes, and the number of processes."""
    folder = tmp_path_factory.mktemp(f"on_{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(request.param)]
    command += [str(Path(__file__).with_name("whole_step_worker.py")), str(folder), *CASES]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder, request.param


def read(runs, case: str):
    """Gradient, masks by utterance and loss of a case, after checking that all processes agree."""
    folder, processes = runs
    saved = [torch.load(folder / case / f"gradient_{process}.pt", weights_only=True) for process in range(processes)]
    assert {world_size for _, _, world_size in saved} == {processes}
    for gradient, _, _ in saved[1:]:
        for name, value in gradient.items():
            torch.testing.assert_close(value, saved[0][0][name], rtol=0, atol=0)
    masks: dict[int, torch.Tensor] = {}
    for _, of_process, _ in saved:
        assert not masks.keys() & of_process.keys()
        masks |= of_process
    losses = {torch.load(folder / case / f"loss_{process}.pt", weights_only=True) for process in range(processes)}
    assert len(losses) == 1
    return saved[0][0], masks, losses.pop()


def oracle(masks: dict[int, torch.Tensor], dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of all utterances of the step in one batch, in fp64, with the formulas written out anew."""
    torch.manual_seed(0)
    model = Dropping().to(dtype).double()
    rows = sorted(masks)
    data = {name: value[rows] for name, value in columns(dtype).items()}
    mask = torch.stack([masks[row][-1] for row in rows]).double()
    embeddings = torch.tanh(model.embedding(data["inputs"].double() * mask))
    logits = model.prediction(embeddings)
    emotion = torch.zeros((), dtype=torch.float64)
    for dimension in range(3):
        rated = ~data["labels"][:, dimension].isnan()
        pair = torch.stack([logits[rated, dimension], data["labels"][rated, dimension].double()])
        covariance = torch.cov(pair, correction=0)
        ccc = 2 * covariance[0, 1] / (covariance.trace() + (pair[0].mean() - pair[1].mean()) ** 2)
        emotion = emotion + (1 - ccc) / 3
    kept = data["quality_weights"] > 0
    distance = torch.sqrt(((embeddings - data["teacher_embeddings"].double())[kept] ** 2).sum(1)).mean()
    loss = emotion + 2.0 * distance
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = torch.cat([(found[name].double() - expected[name]).flatten() for name in expected])
    return (difference.norm() / torch.cat([value.flatten() for value in expected.values()]).norm()).item()


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_gradient_is_that_of_one_batch(runs, accumulation):
    gradient, masks, loss = read(runs, f"float64-{accumulation}-step")
    assert len(masks) in (NUMBER // 2, NUMBER // 2 + 1)  # a whole step
    for of_row in masks.values():
        assert len(of_row) == (1 if accumulation == 1 else 2)  # passes
        torch.testing.assert_close(of_row[0], of_row[-1], rtol=0, atol=0)  # the same dropout in both
    expected_loss, expected = oracle(masks, torch.float64)
    assert relative_error(gradient, expected) < 1e-12
    assert loss == pytest.approx(expected_loss, rel=1e-4)  # Trainer logs four digits


def test_the_gradient_in_fp32(runs):
    gradient, masks, _ = read(runs, "float32-2-step")
    assert relative_error(gradient, oracle(masks, torch.float32)[1]) < 1e-6


def test_the_gradient_with_weights_in_shards(runs):
    """As FSDP keeps them; on a CPU, where accelerate takes its preset for DistributedDataParallel."""
    gradient, masks, loss = read(runs, "sharded")
    expected_loss, expected = oracle(masks, torch.float64)
    assert len(masks) == NUMBER // 2
    assert relative_error(gradient, expected) < 1e-12
    assert loss == pytest.approx(expected_loss, rel=1e-12)


def test_the_loss_of_each_batch_is_another_one(runs):
    """The switch `loss_over="batch"`; and the tests above can fail."""
    gradient, masks, _ = read(runs, "float64-2-batch")
    assert all(len(of_row) == 1 for of_row in masks.values())
    assert relative_error(gradient, oracle(masks, torch.float64)[1]) > 0.05
