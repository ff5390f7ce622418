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
    graph: StudentGraph, model: onnx.ModelProto, doubts: Sequence[str] = (), tolerance: float = TOLERANCE
) -> float:
    """Compares a graph with torch for utterances of ten lengths, alone and padded in batches, in two orders.

    Args:
        graph: what it was made from.
        model: the graph.
        doubts: what the tracer was in doubt about, for the message.
        tolerance: how far a score or a value of an embedding may be off.

    Returns:
        The largest difference.

    Raises:
        BakedInError: the graph fails at one of them, or is off by more than the tolerance.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    lengths = [_frames(graph, seconds) for seconds in LENGTHS]
    utterances = [graph.example(1, length, seed)[0] for seed, length in enumerate(lengths)]
    with torch.no_grad():
        expected = [
            [values[0].numpy() for values in graph(speech, torch.tensor([speech.shape[-1]]))] for speech in utterances
        ]
    batches = [(index,) for index in range(len(utterances))]
    batches += [rows for order in BATCHES for rows in (order, order[::-1])]
    largest = 0.0
    for rows in batches:
        sizes = [lengths[row] for row in rows]
        where = f"{'one utterance' if len(rows) == 1 else f'{len(rows)} utterances'} of {_listed(sizes)} {_unit(graph)}"
        try:
            found = session.run(["scores", "embeddings"], _padded(graph, [utterances[row] for row in rows]))
        except Exception as error:  # ONNX Runtime has no class of its own for what fails in a graph
            raise BakedInError(f"The graph fails for {where}: {error}. {_advice(graph, doubts)}") from error
        for index, values in enumerate(found):
            wanted = np.stack([expected[row][index] for row in rows])
            if values.shape != wanted.shape:
                raise BakedInError(
                    f"The graph gives {values.shape} for {where}, but torch {wanted.shape}. {_advice(graph, doubts)}"
                )
            differences = np.abs(values - wanted)[~np.isnan(wanted)]
            if np.isnan(values).any() != np.isnan(wanted).any() or not (differences <= tolerance).all():
                raise BakedInError(
                    f"The graph is off by {differences.max():.2g} for {where}; {tolerance:g} is allowed. "
                    f"{_advice(graph, doubts)}"
                )
            largest = max(largest, float(differences.max(initial=0.0)))
    return largest


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


def _unit(graph: StudentGraph) -> str:
    return "samples" if graph.speech.log_mel is None else "frames"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + (" and " if len(numbers) > 1 else "") + str(numbers[-1])


def _advice(graph: StudentGraph, doubts: Sequence[str]) -> str:
    doubted = f" The tracer was in doubt about {', '.join(doubts)}." if doubts else ""
    return (
        f"The export has kept something of its example as if it were true of all speech, so it is not written."
        f"{doubted} Compute with tensors only in the {graph.model.config.speech_config.model_type} encoder, and "
        "neither loop over nor compare what depends on a length."
    )
