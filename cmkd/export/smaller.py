"""The same graph with smaller numbers: weights in fp16, weights in int8, and activations in int8 as well."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCK_SIZE = 32
"""Weights of a row that share a scale."""

LEAST = 1e-6
"""By what a frame of silence is divided, which stays 0."""

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
        if not _is_single(tensor) or np.prod(tensor.dims) < _SMALLEST:
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

    Convolutions without padding, those over the waveform, are written as such products first: they are a third of the
    arithmetic of HuBERT Base. The first of them stays, as do norms, attention and GRU.

    What a weight is multiplied with is rounded to 8 bits as well, with one scale for the whole tensor. That scale would
    depend on what else is in a batch, so the graph takes batches of one. The weights have 8 bits too, with a scale for
    each column. A processor without VNNI adds two products in 16 bits, which may saturate, so that its scores differ;
    with weights of 7 bits they would not, but 500 clips that no choice was made on showed that these cost .011 of CCC.
    """
    with _quiet(), TemporaryDirectory(prefix="cmkd-int8-") as folder:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = Path(folder, "model.onnx")
        quantize_dynamic(
            with_products(model),
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=False,
        )
        small = onnx.load(str(path))
    del small.metadata_props[:]
    small.metadata_props.extend(model.metadata_props)
    for value in (*small.graph.input, *small.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return small


def with_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a matrix product in the place of each convolution of several channels, without padding or groups.

    What a kernel of size k hears is laid side by side, (batch, frames, k x channels), and brought to a
    largest value of 1 for as long as it is multiplied: loud frames would otherwise leave few of 256 steps to the quiet
    ones. The other products are not: a scale for each of their frames cost time and gained no CCC.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in lowered.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in lowered.graph.node:
        options = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or weight.dims[1] == 1 or options["group"] != 1 or any(options["pads"]):
            nodes.append(node)
        else:
            made, constants = _product(node, numpy_helper.to_array(weight), options["strides"][0])
            nodes += made
            lowered.graph.initializer.extend(constants)
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)
    return lowered


def _is_single(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_type == TensorProto.FLOAT)


def _product(
    node: onnx.NodeProto, weight: np.ndarray, stride: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes that do what a convolution with this weight (out channels, channels, k) does, and their constants."""
    out_channels, channels, size = weight.shape
    constants: list[onnx.TensorProto] = []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), f"{node.name}/{name}"))
        return constants[-1].name

    def made(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = f"{node.name}/{name}"
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    nodes: list[onnx.NodeProto] = []
    rows = made("Transpose", [node.input[0]], "rows", perm=[0, 2, 1])
    step, axis = constant("step", np.array([stride])), constant("axis", np.array([1]))
    loudest = made("ReduceMax", [made("Abs", [rows], "sizes")], "loudest", axes=[2])
    heard, heights = [], [constant("least", np.array([LEAST], np.float32))]
    for place in range(size):
        behind = place - size + 1 or np.iinfo(np.int64).max  # from the end, of the last row that is heard there
        edges = [constant(f"first {place}", np.array([place])), constant(f"behind {place}", np.array([behind]))]
        heard.append(made("Slice", [rows, *edges, axis, step], f"heard {place}"))
        heights.append(made("Slice", [loudest, *edges, axis, step], f"loudest {place}"))
    side_by_side = made("Concat", heard, "side by side", axis=2)
    matrix = constant("matrix", weight.transpose(2, 1, 0).reshape(size * channels, out_channels))
    scale = made("Max", heights, "scale")
    product = made("MatMul", [made("Div", [side_by_side, scale], "scaled"), matrix], "of scaled")
    product = made("Mul", [product, scale], "product")
    if len(node.input) > 2:
        product = made("Add", [product, node.input[2]], "with bias")
    nodes.append(helper.make_node("Transpose", [product], [node.output[0]], f"{node.name}/columns", perm=[0, 2, 1]))
    return nodes, constants


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
