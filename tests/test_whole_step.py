"""The gradient of a step does not depend on how many devices and accumulation steps it is spread over."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launching import output_of, start_processes
from whole_step_worker import LABELLED, NUMBER, Dropping, columns, columns_beyond

from cmkd.losses import ccc_loss
from cmkd.training.whole_step import RandomState, backward, loss_and_output_gradients

pytestmark = pytest.mark.slow

CASES = ["float64-1-step", "float64-2-step", "float64-4-step", "float32-2-step", "float64-2-batch", "sharded"]
CASES += ["float64-1-step-beyond", "float64-2-step-beyond", "float64-1-step-mixed", "float64-2-step-mixed"]


@pytest.fixture(scope="module", params=[1, 2, 4])
def runs(request, python, tmp_path_factory):
    """The folder of what all cases gave on 1, 2 and 4 processes, and the number of processes."""
    folder = tmp_path_factory.mktemp(f"on_{request.param}")
    code = "import sys, whole_step_worker; whole_step_worker.run(*sys.argv[1:])"
    output_of(start_processes(python, request.param, code, str(folder), *CASES))
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


def oracle(
    masks: dict[int, torch.Tensor], dtype: torch.dtype, is_beyond: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of all utterances of the step in one batch, in fp64, with the formulas written out anew."""
    torch.manual_seed(0)
    model = Dropping().to(dtype).double()
    rows = sorted(masks)
    data = {name: value[rows] for name, value in (columns_beyond if is_beyond else columns)(dtype).items()}
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
    if is_beyond:
        different, own = data["teacher_embeddings"].double()[kept].unique(dim=0, return_inverse=True)
        assert len(different) < len(own)  # some of the step have one embedding, which is one to choose from
        directions = [values / values.norm(dim=1, keepdim=True) for values in (embeddings[kept], different)]
        loss = emotion + 2.0 * torch.nn.functional.cross_entropy(directions[0] @ directions[1].T / 0.2, own)
        for dimension in range(3):
            weights = data["dimension_weights"][:, dimension].double()
            pair = torch.stack([logits[:, dimension], data["teacher_predictions"][:, dimension].double()])
            covariance = torch.cov(pair, correction=0, aweights=weights)
            bias = ((pair[0] - pair[1]) * weights).sum() / weights.sum()
            loss = loss + 1.5 * (1 - 2 * covariance[0, 1] / (covariance.trace() + bias**2)) / 3
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = torch.cat([(found[name].double() - expected[name]).flatten() for name in expected])
    return (difference.norm() / torch.cat([value.flatten() for value in expected.values()]).norm()).item()


def mixed_oracle(masks: dict[int, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """The same of a step of two corpora and unlabelled utterances, from the outputs of all of them together."""
    torch.manual_seed(0)
    model, rows = Dropping().double(), sorted(masks)
    data = {name: value[rows] for name, value in columns_beyond(torch.float64, mixed=True).items()}
    embeddings = torch.tanh(model.embedding(data["inputs"] * torch.stack([masks[row][-1] for row in rows])))
    logits, labels, corpora = model.prediction(embeddings), data["labels"], data["corpora"]
    of_dimensions = []
    for dimension in range(3):
        losses, numbers = [], []
        for corpus in (0, 1):
            chosen = (corpora == corpus) & ~labels[:, dimension].isnan()
            if not chosen.any():
                continue
            p, y = logits[chosen, dimension], labels[chosen, dimension]
            covariance = ((p - p.mean()) * (y - y.mean())).mean()
            spread = p.var(correction=0) + y.var(correction=0) + (p.mean() - y.mean()) ** 2
            losses.append(1 - 2 * covariance / spread)
            numbers.append(len(p))
        of_dimensions.append(sum(n * one for n, one in zip(numbers, losses, strict=True)) / sum(numbers))
    kept = data["quality_weights"] > 0  # of labelled and unlabelled utterances alike
    distances = (embeddings - data["teacher_embeddings"])[kept].norm(dim=1)
    loss = sum(of_dimensions) / 3 + 2.0 * distances.mean()
    for dimension in range(3):
        for corpus in (0, 1, 2):  # within which the teacher's predictions are compared, too
            chosen = corpora == corpus
            p, y, w = (
                values[chosen, dimension] for values in (logits, data["teacher_predictions"], data["dimension_weights"])
            )
            moments = torch.cov(torch.stack([p, y]), correction=0, aweights=w)
            bias = ((p - y) * w).sum() / w.sum()
            share = w.sum() / data["dimension_weights"][:, dimension].sum()
            loss = loss + 1.5 * share * (1 - 2 * moments[0, 1] / (moments.trace() + bias**2)) / 3
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_of_a_mixed_step_is_that_of_one_batch(runs, accumulation):
    gradient, masks, loss = read(runs, f"float64-{accumulation}-step-mixed")
    of_step = np.array(sorted(masks))
    assert (of_step < LABELLED).sum() in (20, 21) and (of_step >= LABELLED).sum() == 10
    expected_loss, expected = mixed_oracle(masks)
    assert relative_error(gradient, expected) < 1e-12
    assert loss == pytest.approx(expected_loss, rel=1e-4)  # Trainer logs four digits


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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_of_infonce_and_of_the_predictions_is_that_of_one_batch(runs, accumulation):
    """The utterances that stand against each other are those of the whole step, and filling up adds none."""
    gradient, masks, loss = read(runs, f"float64-{accumulation}-step-beyond")
    assert len(masks) in (NUMBER // 2, NUMBER // 2 + 1)
    expected_loss, expected = oracle(masks, torch.float64, is_beyond=True)
    assert relative_error(gradient, expected) < 1e-12
    assert loss == pytest.approx(expected_loss, rel=1e-4)


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


def test_a_loss_that_does_not_use_the_embeddings_goes_back_through_every_batch():
    """As without a teacher: the gradient is that of one batch, and 0 at the embeddings."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(8, 3, dtype=torch.float64), torch.rand(8, 3, dtype=torch.float64)
    layer = torch.nn.Linear(3, 3).double()
    ccc_loss(layer(inputs), labels).backward()
    expected = {name: parameter.grad for name, parameter in layer.named_parameters()}
    layer.zero_grad()

    accelerator = Accelerator(cpu=True)
    batches = [
        {"logits": layer(rows), "embeddings": rows.clone(), "labels": of_rows}
        for rows, of_rows in zip(inputs.split(5), labels.split(5), strict=True)
    ]
    _, gradients = loss_and_output_gradients(
        accelerator, lambda logits, embeddings, labels: ccc_loss(logits, labels), batches
    )
    for batch, of_batch in zip(batches, gradients, strict=True):
        assert torch.equal(of_batch["embeddings"], torch.zeros_like(batch["embeddings"]))
        backward(accelerator, batch, of_batch)
    assert relative_error({name: parameter.grad for name, parameter in layer.named_parameters()}, expected) < 1e-12


class Devices:
    """What torch offers for a kind of device: two devices with a generator each."""

    def __init__(self):
        self.generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    def draw(self) -> list[float]:
        return [torch.rand((), generator=generator).item() for generator in self.generators]


def several(devices: Devices) -> SimpleNamespace:
    """As torch.cuda, torch.xpu, torch_npu's torch.npu and others."""

    def set_all(states):
        for generator, state in zip(devices.generators, states, strict=True):
            generator.set_state(state)

    get_all = lambda: [generator.get_state() for generator in devices.generators]  # noqa: E731
    return SimpleNamespace(get_rng_state_all=get_all, set_rng_state_all=set_all)


def one(devices: Devices) -> SimpleNamespace:
    """As torch.mps: one device, which is not named."""
    del devices.generators[1]
    (generator,) = devices.generators
    return SimpleNamespace(get_rng_state=generator.get_state, set_rng_state=generator.set_state)


@pytest.mark.parametrize(("kind", "module"), [("cuda", several), ("xpu", several), ("mps", one), ("cpu", None)])
def test_the_state_is_that_of_all_generators_of_all_devices(kind, module, monkeypatch):
    """A model whose layers lie on several devices draws from each of them."""
    devices = Devices()
    if module is not None:
        offered = module(devices)
        monkeypatch.setattr(torch, "get_device_module", {torch.device(kind): offered}.__getitem__)
    state = RandomState(torch.device(kind))

    def draw():
        numbers = [random.random(), np.random.random(), torch.rand(()).item()]  # noqa: NPY002
        return numbers + (devices.draw() if module is not None else [])

    first, second = draw(), draw()
    state.restore()
    assert draw() == first != second


def test_a_device_whose_generators_cannot_be_set_back_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    with pytest.raises(NotImplementedError, match=r"the device 'xpu:1' cannot be set back.*gradient_accumulation_ste"):
        RandomState(torch.device("xpu:1"))
    monkeypatch.undo()
    for kind in ("cuda", "xpu"):  # that torch offers what is faked above
        assert callable(torch.get_device_module(kind).get_rng_state_all)
        assert callable(torch.get_device_module(kind).set_rng_state_all)
    assert callable(torch.mps.get_rng_state) and callable(torch.mps.set_rng_state)
