"""The same graph with smaller numbers: weights in fp16, weights in int8, and activations in int8 as well."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCK_SIZE = 32
"""Weights of a row that share a scale."""

_SMALLEST = 1024  # values of a weight below which halving it saves nothing


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its weights in fp16, and the same arithmetic in fp32.

    ONNX Runtime widens them once, when it loads the file. What runs after that is as fast, as large in memory and as
    independent of the batch as the original: processors calculate in fp16 only in part, and a sum over a minute of
    samples would not even fit.

    Raises:
        ValueError: a weight is beyond the range of fp16.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    casts = []
    for tensor in small.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALLEST:
            continue
        values = numpy_helper.to_array(tensor)
        largest = np.abs(values).max()
        if largest > np.finfo(np.float16).max:
            raise ValueError(
                f"the weight {tensor.name} holds {largest:g}, but fp16 ends at {np.finfo(np.float16).max:g}: export "
                "this student in fp32 or int8."
            )
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"widen {name}", to=TensorProto.FLOAT))
    nodes = [*casts, *small.graph.node]
    del small.graph.node[:]
    small.graph.node.extend(nodes)
    return small


def with_int8(model: onnx.ModelProto, activations: bool) -> onnx.ModelProto:
    """The graph with the weights of its matrix products in int8, a scale for 32 of them.

    Convolutions, norms, attention and GRU stay in fp32, as do products of two activations.

    Args:
        model: the graph in fp32.
        activations: also round what a weight is multiplied with to int8, a scale for 32 values of a row, so that the
            product is one of whole numbers. That is faster where the processor has instructions for it, and the
            rounding makes a difference of 1e-7 between two batches one of the size of a step.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    level = 4 if activations else 1  # of ONNX Runtime: 1 is fp32, 4 is int8
    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=level, bits=8)
        quantizer = MatMulNBitsQuantizer(copied, algo_config=config)
        quantizer.process()
    return quantizer.model.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the logging of this process as it is: what is imported inside sets it up anew, and says each node."""
    root, own = logging.getLogger(), logging.getLogger("onnxruntime.quantization")
    handlers, level = root.handlers[:], root.level
    own.setLevel(logging.WARNING)
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
