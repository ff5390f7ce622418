"""The same graph with smaller numbers: weights in fp16, weights in int8, and activations in int8 as well."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

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


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the weights of its matrix products in int8, a scale for 32 of them, and the arithmetic in fp32.

    Convolutions, norms, attention and GRU stay as they are. An utterance scores the same in any batch, as in fp32.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=1, bits=8)
        quantizer = MatMulNBitsQuantizer(copied, algo_config=config)
        quantizer.process()
    return quantizer.model.model


def with_int8_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with products of whole numbers in the place of those with a weight, for one utterance at a time.

    What a weight is multiplied with is rounded to 8 bits as well, with one scale for the whole tensor. That scale would
    depend on what else is in a batch, so the graph takes batches of one. The weights have 7 bits: with 8, processors
    without VNNI overflow, and would give other scores.
    """
    with _quiet(), TemporaryDirectory(prefix="cmkd-int8-") as folder:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = Path(folder, "model.onnx")
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        small = onnx.load(str(path))
    del small.metadata_props[:]
    small.metadata_props.extend(model.metadata_props)
    for value in (*small.graph.input, *small.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return small


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the logging of this process as it is: what is imported inside sets it up anew, and says each node."""
    root, own = logging.getLogger(), logging.getLogger("onnxruntime.quantization")
    handlers, level = root.handlers[:], root.level
    own.setLevel(logging.WARNING)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)
