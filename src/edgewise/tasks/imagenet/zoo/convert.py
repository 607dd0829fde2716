"""Convert weights to ONNX, opset 13, for the two network families of the zoo.

The graphs are built node by node, with batch normalisation folded into the convolutions before it.
Batch, height and width stay dynamic. EfficientNet-lite's padding is ``SAME_UPPER`` (TensorFlow's
"same"), so that one file serves every input size.

Sources of the architectures: EfficientNet-lite, tensorflow/tpu ``lite/efficientnet_lite_builder``
(no squeeze-and-excitation, ReLU6, stem and head not scaled). SqueezeNet 1.1, the authors' Caffe
``deploy.prototxt``: the first convolution is not padded, and pooling sizes are rounded up. ``ndf``,
which ships the weights, pads and rounds down instead; that costs 2.5 points of accuracy on the
1,000 photos of ``measured.json``.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewise.errors import MissingExtra, ModelError
from edgewise.tasks.imagenet.zoo.catalogue import Weights
from edgewise.tasks.imagenet.zoo.pickled_weights import Tensors, read_numpy, read_torch

VERSION = 1
"""Part of a cached file's name. Raise it when the graphs written here change."""

_OPSET = 13
_IR_VERSION = 8  # of opset 13's time: onnx would write its newest, which older runtimes refuse

_BATCH_NORM_EPSILON = 1e-3  # EfficientNet's, ten to a hundred times the usual

# Repeats and stride of the seven stages at depth 1; the rest is in the shapes of the weights.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_DEPTH = {"efficientnet-lite0": 1.0, "efficientnet-lite1": 1.1, "efficientnet-lite2": 1.2}

Array = npt.NDArray[np.float32]


def _onnx() -> ModuleType:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise MissingExtra("models", "onnx") from None
    return onnx  # type: ignore[no-any-return, unused-ignore]


class _Graph:
    """An ONNX graph in the making; every method adds a node and returns its output's name."""

    def __init__(self) -> None:
        self._onnx = _onnx()
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, name: str, value: npt.ArrayLike) -> str:
        array = np.ascontiguousarray(value, dtype=np.float32).reshape(np.shape(value))
        self._weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(
        self,
        x: str,
        name: str,
        kernel: Array,
        bias: Array,
        stride: int = 1,
        groups: int = 1,
        padding: str = "SAME_UPPER",
    ) -> str:
        """``kernel`` is out x in/groups x height x width."""
        return self.node(
            "Conv",
            [x, self.weight(f"{name}.weight", kernel), self.weight(f"{name}.bias", bias)],
            kernel_shape=list(kernel.shape[2:]),
            strides=[stride, stride],
            group=groups,
            auto_pad=padding,
        )

    def finish(self, output: str, name: str) -> bytes:
        helper, floats = self._onnx.helper, self._onnx.TensorProto.FLOAT
        image = helper.make_tensor_value_info("image", floats, ["batch", 3, "height", "width"])
        logits = helper.make_tensor_value_info("logits", floats, ["batch", 1000])
        self._nodes.append(helper.make_node("Identity", [output], ["logits"]))
        graph = helper.make_graph(self._nodes, name, [image], [logits], self._weights)
        model = helper.make_model(
            graph,
            producer_name="edgewise",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        self._onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def _efficientnet_lite(tensors: Tensors, depth: float) -> bytes:
    graph = _Graph()
    limits = [graph.weight("zero", 0.0), graph.weight("six", 6.0)]

    def relu6(x: str) -> str:
        return graph.node("Clip", [x, *limits])

    def conv(x: str, layer: str, norm: str, stride: int = 1, depthwise: bool = False) -> str:
        kernel = tensors[f"{layer}.weight"].astype(np.float64)
        scale = tensors[f"{norm}.weight"] / np.sqrt(
            tensors[f"{norm}.running_var"].astype(np.float64) + _BATCH_NORM_EPSILON
        )
        bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
        folded = (kernel * scale[:, None, None, None]).astype(np.float32)
        groups = len(folded) if depthwise else 1
        return graph.conv(x, layer, folded, bias.astype(np.float32), stride, groups)

    x = relu6(conv("image", "_conv_stem", "_bn0", stride=2))
    block = 0
    for stage, (repeats, stride) in enumerate(_STAGES):
        # The first and last stage belong to stem and head, which lite does not scale.
        inner = 0 < stage < len(_STAGES) - 1
        for repeat in range(math.ceil(repeats * depth) if inner else repeats):
            prefix, entered = f"_blocks.{block}", x
            if f"{prefix}._expand_conv.weight" in tensors:
                x = relu6(conv(x, f"{prefix}._expand_conv", f"{prefix}._bn0"))
            x = conv(
                x,
                f"{prefix}._depthwise_conv",
                f"{prefix}._bn1",
                stride=stride if repeat == 0 else 1,
                depthwise=True,
            )
            x = conv(relu6(x), f"{prefix}._project_conv", f"{prefix}._bn2")
            if repeat > 0:  # the first of a stage changes the channels: nothing to add to
                x = graph.node("Add", [x, entered])
            block += 1
    if f"_blocks.{block}._project_conv.weight" in tensors:
        raise ModelError(f"the weights have more than the {block} blocks of this network")
    x = relu6(conv(x, "_conv_head", "_bn1"))
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])])
    weight = graph.weight("fc.weight", tensors["_fc.weight"])
    bias = graph.weight("fc.bias", tensors["_fc.bias"])
    return graph.finish(graph.node("Gemm", [x, weight, bias], transB=1), "efficientnet-lite")


def _squeezenet(tensors: Tensors) -> bytes:
    graph = _Graph()

    def conv(x: str, layer: str, stride: int = 1, padding: str = "SAME_UPPER") -> str:
        kernel = tensors[f"{layer}/kernel"].transpose(3, 2, 0, 1)  # from h, w, in, out
        return graph.conv(x, layer, kernel, tensors[f"{layer}/bias"], stride, padding=padding)

    def relu(x: str) -> str:
        return graph.node("Relu", [x])

    def pool(x: str) -> str:
        return graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)

    x = pool(relu(conv("image", "conv1", stride=2, padding="VALID")))
    for fire in range(2, 10):
        squeezed = relu(conv(x, f"fire{fire}/squeeze1x1"))
        wide = [relu(conv(squeezed, f"fire{fire}/expand{k}")) for k in ("1x1", "3x3")]
        x = graph.node("Concat", wide, axis=1)
        if fire in (3, 5):
            x = pool(x)
    x = graph.node("GlobalAveragePool", [relu(conv(x, "conv10"))])
    return graph.finish(graph.node("Flatten", [x]), "squeezenet-1.1")


def convert(weights: Weights, data: bytes) -> bytes:
    """The ONNX file of a weights file: ``image`` (N x 3 x H x W) in, ``logits`` (N x 1000) out.

    ``data`` is the weights file, its sha256 already checked. Raises ``ModelError`` when it does not
    hold the network it should, ``MissingExtra`` without onnx.
    """
    try:
        if weights.distribution == "ndf":
            return _squeezenet(read_numpy(data))
        depth = _DEPTH[weights.distribution.removesuffix("-pytorch-model")]
        return _efficientnet_lite(read_torch(data), depth)
    except KeyError as error:
        raise ModelError(f"{weights.path}: the weights lack {error}") from None
