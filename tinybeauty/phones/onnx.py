"""A look as an ONNX file: int8 weights, unpacked to float32 when the file is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinybeauty.blending import SIDE
from tinybeauty.files import save_bytes
from tinybeauty.phones.networks import SOURCE, Network, Step, Weights

OPSET, IR = 17, 8  # what ONNX Runtime 1.16 (2023) reads
PACKAGES = ("onnx",)  # to write
RUNTIME = "onnxruntime"  # to check


class OnnxBuilder:
    """Collects nodes and constants; short names, because each costs its bytes three times."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.known: dict[tuple, str] = {}

    def constant(self, value: Any, kind: type = np.float32) -> str:
        """Return the name of a constant; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(value, kind)
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self.known:
            self.known[key] = f"c{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self.known[key]))
        return self.known[key]

    def node(self, kind: str, inputs: list[str], output: str = "", **options: Any) -> str:
        """Add a node; return its output's name."""
        from onnx import helper

        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **options))
        return output

    def unpack(self, values: np.ndarray, scales: np.ndarray) -> str:
        """Return the name of int8 values times scales of as many axes.

        Not DequantizeLinear: ONNX Runtime would make quantised convolutions of it, at 2.4 times the time.
        """
        number = self.node("Cast", [self.constant(values, np.int8)], to=1)  # 1: float32
        return self.node("Mul", [number, self.constant(scales)])

    def add_up(self, step: Step, weights: Weights) -> None:
        """Add a 2x2 transposed convolution.

        With a 1x1 one and DepthToSpace, as elsewhere, the whole network takes 1.3 to 2 times as long here.
        """
        channels, depth = weights.values.shape[:2]
        grouped = weights.values.reshape(weights.groups, -1, depth, 4).transpose(0, 2, 1, 3)
        weight = self.unpack(grouped, weights.scales.reshape(weights.groups, 1, -1, 1))
        shape = self.constant((weights.groups * depth, channels // weights.groups, 2, 2), np.int64)
        inputs = [*step.inputs, self.node("Reshape", [weight, shape])]
        if weights.bias is not None:
            inputs.append(self.constant(weights.bias))
        self.node("ConvTranspose", inputs, step.output, group=weights.groups, strides=[2, 2])

    def add_step(self, step: Step) -> None:
        """Add the nodes of a step."""
        weights = step.weights
        if step.kind == "pool":
            self.node("MaxPool", list(step.inputs), step.output, kernel_shape=[2, 2], strides=[2, 2])
        elif weights is None:
            self.node({"add": "Add", "relu": "Relu"}[step.kind], list(step.inputs), step.output)
        elif step.kind == "up":
            self.add_up(step, weights)
        else:
            scales = weights.scales.reshape(-1, 1, 1, 1)
            inputs = [*step.inputs, self.unpack(weights.values, scales)]
            if weights.bias is not None:
                inputs.append(self.constant(weights.bias))
            pads = {"pads": [weights.values.shape[2] // 2] * 4} if weights.values.shape[2] > 1 else {}
            groups = {"group": weights.groups} if weights.groups > 1 else {}
            self.node("Conv", inputs, step.output, **pads, **groups)


def make_onnx(network: Network, use_float: bool) -> bytes:
    """Return the file: `source` and `strength` (1 where an app gives none) to `made_up`.

    Args:
        network: the look.
        use_float: (1, 3, H, W) in [0, 1] in and out; else (1, H, W, 3) bytes.
    """
    from onnx import TensorProto, helper, numpy_helper

    builder = OnnxBuilder()
    picture = "source"
    if not use_float:
        number = builder.node("Cast", ["source"], to=TensorProto.FLOAT)
        turned = builder.node("Transpose", [number], perm=[0, 3, 1, 2])
        picture = builder.node("Div", [turned, builder.constant(255.0)])
    steps = [step.reading({SOURCE: picture}) for step in network.steps]
    for step in steps:
        builder.add_step(step)
    residual = builder.node("Mul", [steps[-1].output, "strength"])
    total = builder.node("Add", [picture, residual])
    low, high = builder.constant(0.0), builder.constant(1.0)
    made_up = builder.node("Clip", [total, low, high], "made_up" if use_float else "")
    if not use_float:
        levels = builder.node("Mul", [made_up, builder.constant(255.0)])
        rounded = builder.node("Round", [levels])
        turned = builder.node("Transpose", [rounded], perm=[0, 2, 3, 1])
        builder.node("Cast", [turned], "made_up", to=TensorProto.UINT8)
    kind = TensorProto.FLOAT if use_float else TensorProto.UINT8
    shape = [1, 3, "height", "width"] if use_float else [1, "height", "width", 3]
    one = numpy_helper.from_array(np.float32(1.0), "strength")  # a constant of an input's name: its default
    inside = helper.make_graph(
        builder.nodes,
        network.name,
        [
            helper.make_tensor_value_info("source", kind, shape),
            helper.make_tensor_value_info("strength", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("made_up", kind, shape)],
        [one, *builder.constants],
    )
    model = helper.make_model(
        inside, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="TinyBeauty"
    )
    helper.set_model_props(model, network.facts)
    return model.SerializeToString(deterministic=True)


def write_onnx(network: Network, path: Path, use_float: bool) -> None:
    """Write `path`, whole or not at all; raises UserError."""
    save_bytes(path, make_onnx(network, use_float))


def open_onnx(path: Path, use_float: bool) -> Callable[[np.ndarray, float], np.ndarray]:
    """Return a function of a face (H, W, 3) uint8 and a strength: what ONNX Runtime makes, levels of 255."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for length in ("height", "width"):  # sizes that are known are worth 7 % of the time
        options.add_free_dimension_override_by_name(length, SIDE)
    options.log_severity_level = 3  # it warns of the default of `strength`
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(face: np.ndarray, strength: float) -> np.ndarray:
        picture = face[None]
        if use_float:
            picture = np.ascontiguousarray(picture.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
        (made_up,) = session.run(None, {"source": picture, "strength": np.asarray(strength, np.float32)})
        return made_up[0].transpose(1, 2, 0) * 255.0 if use_float else made_up[0].astype(np.float32)

    return run
