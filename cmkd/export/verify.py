"""Whether a graph gives what torch gives, at other lengths and in other batches than that of its making."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import torch

from cmkd.export.graph import StudentGraph

TOLERANCE = 1e-5
"""By which a score or a value of an embedding may differ from torch's."""

LENGTHS = (0.1, 0.17, 0.31, 0.5, 0.83, 1.0, 1.49, 2.2, 3.1, 4.7)
"""Seconds of the utterances that are compared; none is that of the example by which a graph is made."""

BATCHES = ((0, 1, 2), (9, 3), (8, 5, 4, 6, 7))
"""Which of them are also scored together, padded to the longest, in this order and in reverse."""


class BakedInError(ValueError):
    """A graph that is right for some utterances only."""


def verify(
    graph: StudentGraph,
    model: onnx.ModelProto,
    doubts: Sequence[str] = (),
    tolerance: float = TOLERANCE,
) -> float:
    """Compares a graph with torch for utterances of ten lengths, and these alone with padded batches in two orders.

    In a batch an utterance may differ by `TOLERANCE` from what it is alone, in any precision. A graph that takes
    batches of one is compared with torch only.

    Args:
        graph: what it was made from.
        model: the graph.
        doubts: what the tracer was in doubt about, for the message.
        tolerance: how far a score may be off from torch's, and in fp32 a value of an embedding too.

    Returns:
        The largest difference of a score from torch's.

    Raises:
        BakedInError: the graph fails at one of them, or is off by more than it may.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    lengths = [_frames(graph, seconds) for seconds in LENGTHS]
    utterances = [graph.example(1, length, seed)[0] for seed, length in enumerate(lengths)]
    largest = 0.0
    alone = []
    for speech, length in zip(utterances, lengths, strict=True):
        with torch.no_grad():
            wanted = [values.numpy() for values in graph(speech, torch.tensor([length]))]
        outputs = _run(session, graph, [speech], doubts)
        largest = max(largest, _compared(outputs[0], wanted[0], tolerance, "torch", graph, [length], doubts))
        if tolerance == TOLERANCE:
            _compared(outputs[1], wanted[1], tolerance, "torch", graph, [length], doubts)
        alone.append(outputs)
    if session.get_inputs()[0].shape[0] == 1:
        return largest
    for rows in (rows for order in BATCHES for rows in (order, order[::-1])):
        outputs = _run(session, graph, [utterances[row] for row in rows], doubts)
        for index, values in enumerate(outputs):
            wanted_alone = np.concatenate([alone[row][index] for row in rows])
            sizes = [lengths[row] for row in rows]
            _compared(values, wanted_alone, TOLERANCE, "the same alone", graph, sizes, doubts)
    return largest


def _run(
    session: onnxruntime.InferenceSession,
    graph: StudentGraph,
    utterances: Sequence[torch.Tensor],
    doubts: Sequence[str],
) -> list[np.ndarray]:
    try:
        return session.run(["scores", "embeddings"], _padded(graph, utterances))
    except Exception as error:  # ONNX Runtime has no class of its own for what fails in a graph
        where = _where(graph, [speech.shape[-1] for speech in utterances])
        raise BakedInError(f"The graph fails for {where}: {error}. {_advice(graph, doubts)}") from error


def _compared(
    outputs: np.ndarray,
    wanted: np.ndarray,
    tolerance: float,
    other: str,
    graph: StudentGraph,
    sizes: Sequence[int],
    doubts: Sequence[str],
) -> float:
    """The largest difference, which is within the tolerance."""
    if outputs.shape != wanted.shape:
        raise BakedInError(
            f"The graph gives {outputs.shape} for {_where(graph, sizes)}, but {other} {wanted.shape}. "
            f"{_advice(graph, doubts)}"
        )
    differences = np.abs(outputs - wanted)[~np.isnan(wanted)]  # of what was learnt
    largest = float(differences.max(initial=0.0))
    if not np.array_equal(np.isnan(outputs), np.isnan(wanted)) or not largest <= tolerance:
        raise BakedInError(
            f"The graph is off by {largest:.2g} from {other} for {_where(graph, sizes)}; {tolerance:g} is allowed. "
            f"{_advice(graph, doubts)}"
        )
    return largest


def _where(graph: StudentGraph, sizes: Sequence[int]) -> str:
    count = "one utterance" if len(sizes) == 1 else f"{len(sizes)} utterances"
    return f"{count} of {_listed(sizes)} {'samples' if graph.speech.log_mel is None else 'frames'}"


def _frames(graph: StudentGraph, seconds: float) -> int:
    """Samples, or frames of a spectrogram, as long as an utterance of this many seconds at least."""
    samples = max(round(seconds * graph.speech.sampling_rate), graph.minimum_samples)
    return samples if graph.speech.log_mel is None else -(-samples // graph.speech.log_mel["hop_samples"])


def _padded(graph: StudentGraph, utterances: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """A batch whose padding is noise: the lengths alone say what is real."""
    lengths = [speech.shape[-1] for speech in utterances]
    batch, _ = graph.example(len(utterances), max(lengths) + (0 if len(utterances) == 1 else 160), seed=99)
    for row, speech in zip(batch, utterances, strict=True):
        row[..., : speech.shape[-1]] = speech[0]
    return {graph.speech.name: batch.numpy(), "lengths": np.array(lengths)}


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + (" and " if len(numbers) > 1 else "") + str(numbers[-1])


def _advice(graph: StudentGraph, doubts: Sequence[str]) -> str:
    doubted = f" The tracer was in doubt about {', '.join(doubts)}." if doubts else ""
    return (
        f"The export has kept something of its example as if it were true of all speech, so it is not written."
        f"{doubted} Compute with tensors only in the {graph.model.config.speech_config.model_type} encoder, and "
        "neither loop over nor compare what depends on a length."
    )
