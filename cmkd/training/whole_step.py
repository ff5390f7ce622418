"""The loss of a whole training step, on any number of devices and accumulation steps.

L_TOTAL (Eq. 7) is not a mean over utterances: a CCC is a statistic of all of them together, and L_STU is divided by the
sum of all weights. If z_i are the outputs of utterance i of a step of N utterances,

    dL/dtheta = sum_i  dL/dz_i(z_1, ..., z_N) . dz_i/dtheta

so that the backward pass of a batch cannot begin before the outputs of all batches are known. They are small, 131
numbers per utterance. So those of the whole step are gathered on every device, L and all dL/dz_i are computed by the
same code as on one device, and every device goes back through its own utterances with its own dL/dz_i. (Gathering
sufficient statistics would send less, but would need a second formula for every term of the loss.) Where a step has
several batches, they run twice: first without gradient, to know their outputs, and then, from the same random state,
with gradient.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

OUTPUTS = ("logits", "embeddings")


def loss_and_output_gradients(
    accelerator: Accelerator, loss: Callable[..., torch.Tensor], batches: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """The loss of the step, and its gradient at the outputs of this device's batches.

    Args:
        accelerator: that of the launch; every process must call this function.
        loss: a function that takes the tensors of all utterances of the step, by name.
        batches: those of this device, each with `logits` (n, 3), `embeddings` (n, size), `labels` (n, 3), and for a
            student also `teacher_embeddings` (n, size) and `quality_weights` (n,), and whatever else the loss takes by
            utterance; n may differ between batches.

    Returns:
        The loss, the same on every device, and for each batch the gradients by the names of `OUTPUTS`, multiplied by
        the number of devices: DistributedDataParallel and FSDP average the devices' gradients, and we want their sum.
    """
    own = {name: torch.cat([batch[name].detach() for batch in batches]) for name in batches[0]}
    for name in OUTPUTS:
        own[name] = own[name].to(torch.promote_types(own[name].dtype, torch.float32))
    step = {}
    for name, rows in own.items():
        # A device with fewer utterances is filled up with unrated ones of weight 0, which no sum of the loss counts.
        fill = torch.nan if name == "labels" else 0
        step[name] = accelerator.gather(accelerator.pad_across_processes(rows, pad_index=fill))
    outputs = [step[name].requires_grad_() for name in OUTPUTS]
    value = loss(**step)
    # Detached: in torch 2.9 the zeros for an output that the loss does not use require a gradient themselves, and the
    # batches would share the graph that cuts them up, which is gone once the first of them has gone back.
    gradients = [gradient.detach() for gradient in torch.autograd.grad(value, outputs, materialize_grads=True)]

    start = accelerator.process_index * (len(step["labels"]) // accelerator.num_processes)
    sizes = [len(batch["labels"]) for batch in batches]
    shares = [(accelerator.num_processes * gradient[start : start + sum(sizes)]).split(sizes) for gradient in gradients]
    return value.detach(), [dict(zip(OUTPUTS, of_batch, strict=True)) for of_batch in zip(*shares, strict=True)]


def backward(
    accelerator: Accelerator, outputs: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
) -> None:
    """Runs the backward pass from the outputs of a batch, given the gradient of the step's loss at them."""
    products = [(outputs[name].to(gradients[name].dtype) * gradients[name]).sum() for name in OUTPUTS]
    accelerator.backward(sum(products))


class RandomState:
    """The state of the random generators that a model may use, as it is when this is made.

    These are Python's, numpy's, torch's of the CPU, and those of all accelerators that this process sees, since the
    parts of a model may lie on several.

    Args:
        device: a device of the kind that the model is on.

    Raises:
        NotImplementedError: torch cannot read or set the generators of such devices.
    """

    def __init__(self, device: torch.device):
        self.python = random.getstate()
        self.numpy = np.random.get_state()  # noqa: NPY002 - whoever uses the global generator
        self.cpu = torch.get_rng_state()
        self._set_devices, self._devices = None, None
        if device.type != "cpu":
            get, self._set_devices = _accelerator_generators(device)
            self._devices = get()

    def restore(self) -> None:
        """Sets the generators back to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        if self._set_devices is not None:
            self._set_devices(self._devices)


def _accelerator_generators(device: torch.device) -> tuple[Callable, Callable]:
    """The functions that read and set the states of all generators of a kind of device."""
    module: Any = torch.get_device_module(device)
    try:
        if device.type == "mps":  # there is one
            return module.get_rng_state, module.set_rng_state
        return module.get_rng_state_all, module.set_rng_state_all
    except AttributeError as error:
        raise NotImplementedError(
            f"gradient_accumulation_steps above 1 with loss_over='step' runs every batch twice, with the same dropout, "
            f"but the random generators of the device {str(device)!r} cannot be set back ({error}): use "
            "gradient_accumulation_steps=1, or loss_over='batch'."
        ) from error
