"""A look as a LiteRT file: int8 weights, unpacked to float32 when it is loaded; channels last throughout.

Only operators that the delegates of GPU and XNNPACK know: no transposes, no TRANSPOSE_CONV.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinybeauty.files import save_bytes
from tinybeauty.phones.flat import Scales, Writer
from tinybeauty.phones.networks import SOURCE, Network, Step, Weights, split_kernels, split_ups

PACKAGES: tuple[str, ...] = ()  # to write
RUNTIME = "ai_edge_litert"  # to check; the package is called ai-edge-litert
SIDE = 256
LEVELS = (np.float32([1 / 255]), np.int64([0]), 0)  # a byte as a number in [0, 1]
Array = np.ndarray


def fuse_relu(steps: list[Step]) -> tuple[list[Step], set[str]]:
    """Return the steps without the ReLUs that follow a step nothing else reads, and what ends in one."""
    readers = [name for step in steps for name in step.inputs]
    makers = {step.output: step for step in steps}
    new_names, fused = {}, set()
    for step in steps:
        before = step.inputs[0]
        if step.kind == "relu" and makers[before].kind in ("add", "conv") and readers.count(before) == 1:
            new_names[step.output] = before
            fused.add(before)
    kept = [step for step in steps if step.output not in new_names]
    return [step.reading(new_names) for step in kept], fused


def find_dilation(weights: Weights) -> dict[str, int]:
    """Return an operator's options that say how a kernel is dilated."""
    return {"dilation_y": weights.dilation[0], "dilation_x": weights.dilation[1]}


class FloatBuilder:
    """Turns steps into tensors and operators."""

    def __init__(self, steps: list[Step]) -> None:
        self.writer = Writer()
        self.steps, self.fused = fuse_relu(split_kernels(split_ups(steps)))
        self.values: dict[str, int] = {}

    def make(self, like: int, channels: int, scale: float = 1.0) -> int:
        """Add a tensor of so many channels and `scale` times the size of another; return its number."""
        _, height, width, _ = self.writer.tensors[like].shape
        return self.writer.tensor((1, round(height * scale), round(width * scale), channels))

    def unpack(self, values: Array, scales: Array, axis: int) -> int:
        """Return the tensor of int8 values times their scales along an axis."""
        packed: Scales = (scales, np.zeros(len(scales), np.int64), axis)
        number = self.writer.constant(values, packed)
        return self.writer.operator("DEQUANTIZE", [number], self.writer.tensor(values.shape))

    def bias(self, weights: Weights, part: float = 1.0) -> int:
        """Return the tensor of a bias; an operator without one is refused, or crashes."""
        bias = np.zeros_like(weights.scales) if weights.bias is None else weights.bias * np.float32(part)
        return self.writer.constant(bias)

    def add_convolution(self, step: Step, weights: Weights, source: int) -> int:
        """Add a convolution, depthwise or not; return its output."""
        values, output = weights.values, self.make(source, step.channels)
        options = {"relu": int(step.output in self.fused), **find_dilation(weights)}
        if weights.groups == len(values) == len(weights.scales) and values.shape[1] == 1:
            weight = self.unpack(values.transpose(1, 2, 3, 0), weights.scales, 3)
            kind = "DEPTHWISE_CONV_2D"
        else:
            weight, kind = self.unpack(values.transpose(0, 2, 3, 1), weights.scales, 0), "CONV_2D"
        return self.writer.operator(kind, [source, weight, self.bias(weights)], output, **options)

    def add_up(self, step: Step, weights: Weights, sources: list[int]) -> int:
        """Add a 2x2 transposed convolution: a 1x1 one for each of its four pixels, then depth to space.

        Of several inputs (`split_ups`) each is convolved depthwise, and what comes of them is added up: 0.4
        times the time of CONV_2D in groups.
        """
        bias, quarters = self.bias(weights, 1 / len(sources)), []
        values = weights.values.reshape(step.channels, -1, 4)
        for quarter in range(4):
            parts = []
            for number, source in enumerate(sources):
                if len(sources) > 1:
                    kind, axis, rows = "DEPTHWISE_CONV_2D", 3, values[None, None, None, :, number, quarter]
                else:
                    kind, axis, rows = "CONV_2D", 0, values[:, None, None, :, quarter]
                inputs = [source, self.unpack(rows, weights.scales, axis), bias]
                parts.append(self.writer.operator(kind, inputs, self.make(source, step.channels)))
            while len(parts) > 1:
                total = self.make(sources[0], step.channels)
                parts = [*parts[2:], self.writer.operator("ADD", parts[:2], total)]
            quarters += parts
        together = self.make(sources[0], 4 * step.channels)
        self.writer.operator("CONCATENATION", quarters, together)
        return self.writer.operator("DEPTH_TO_SPACE", [together], self.make(sources[0], step.channels, 2))

    def add_step(self, step: Step) -> int:
        """Add a step; return its output."""
        inputs, writer = [self.values[name] for name in step.inputs], self.writer
        if step.kind == "pool":
            return writer.operator("MAX_POOL_2D", inputs, self.make(inputs[0], step.channels, 0.5))
        if step.kind == "add":
            relu = int(step.output in self.fused)
            return writer.operator("ADD", inputs, self.make(inputs[0], step.channels), relu=relu)
        if step.kind == "relu" or step.weights is None:
            raise ValueError(f"LiteRT: a {step.kind} on its own")
        if step.kind == "up":
            return self.add_up(step, step.weights, inputs)
        return self.add_convolution(step, step.weights, inputs[0])


def make_litert(network: Network, use_float: bool) -> bytes:
    """Return the file: `source` (1, H, W, 3) and `strength` (1,) to `made_up`.

    Args:
        network: the look.
        use_float: [0, 1] in and out; else bytes.
    """
    builder = FloatBuilder(network.steps)
    writer, shape = builder.writer, (1, SIDE, SIDE, 3)
    pixels = {} if use_float else {"kind": "uint8", "scales": LEVELS}
    source = writer.tensor(shape, name="source", **pixels)
    strength = writer.tensor((1,), name="strength")
    picture = source if use_float else writer.operator("DEQUANTIZE", [source], writer.tensor(shape))
    builder.values[SOURCE] = picture
    for step in builder.steps:
        builder.values[step.output] = builder.add_step(step)
    residual = builder.values[builder.steps[-1].output]
    scaled = writer.operator("MUL", [residual, strength], writer.tensor(shape))
    made_up = writer.tensor(shape, name="made_up", **pixels)
    if use_float:
        total = writer.operator("ADD", [picture, scaled], writer.tensor(shape), relu=1)  # not below 0
        writer.operator("MINIMUM", [total, writer.constant(np.float32([1]))], made_up)
    else:  # to quantise is to clamp
        writer.operator(
            "QUANTIZE", [writer.operator("ADD", [picture, scaled], writer.tensor(shape))], made_up
        )
    return writer.to_bytes([source, strength], made_up, network.facts)


def write_litert(network: Network, path: Path, use_float: bool) -> None:
    """Write `path`, whole or not at all; raises UserError."""
    save_bytes(path, make_litert(network, use_float))


def describe_delegates(path: Path) -> str:
    """Return what LiteRT's analyser says of the GPU delegate, in words; empty where it is missing."""
    try:
        from ai_edge_litert._pywrap_analyzer_wrapper import ModelAnalyzer
    except ImportError:
        return ""
    said = ModelAnalyzer(str(path), True, True)
    fits = "looks compatible with GPU delegate" in said
    return f", {'fits' if fits else 'does not fit'} the GPU delegate"


def open_litert(path: Path, use_float: bool) -> Callable[[Array, float], Array]:
    """Return a function of a face (H, W, 3) uint8 and a strength: what LiteRT makes, levels of 255."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    run_signature = interpreter.get_signature_runner()

    def run(face: Array, strength: float) -> Array:
        picture = face[None] / np.float32(255) if use_float else face[None]
        made_up = run_signature(source=picture, strength=np.float32([strength]))["made_up"][0]
        return made_up * 255.0 if use_float else made_up.astype(np.float32)

    return run
