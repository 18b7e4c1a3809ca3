"""A look as a LiteRT file: int8 weights, unpacked to float32 when it is loaded; channels last throughout.

Only operators that the delegates of GPU and XNNPACK know: no transposes, no TRANSPOSE_CONV.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tinybeauty.blending import SIDE
from tinybeauty.files import save_bytes
from tinybeauty.phones.flat import Writer
from tinybeauty.phones.networks import SOURCE, Network, Step, Weights, split_kernels, split_ups

PACKAGES: tuple[str, ...] = ()  # to write
RUNTIME = "ai_edge_litert"  # to check; the package is called ai-edge-litert
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


def find_axis(kind: str) -> int:
    """Return the axis of a convolution's values that numbers its outputs."""
    return 3 if kind == "DEPTHWISE_CONV_2D" else 0


class Builder(ABC):
    """Turns steps into tensors and operators; of what kind the tensors are, a subclass says.

    Attributes:
        writer: where they go.
        steps: without the ReLUs that an operator does along with its own work.
        fused: names of the values that such a ReLU has made.
        values: {name: number of its tensor}.
    """

    def __init__(self, steps: list[Step]) -> None:
        self.writer = Writer()
        self.steps, self.fused = fuse_relu(steps)
        self.values: dict[str, int] = {}

    @abstractmethod
    def make(self, step: Step, like: int, parts: int = 1, scale: float = 1.0) -> int:
        """Add a tensor for a step's numbers; return its number.

        Args:
            step: has the channels.
            like: another tensor; this one's height and width are `scale` times its.
            parts: of the step's channels so many times.
            scale: 0.5 after a pooling, 2 after a transposed convolution.
        """

    @abstractmethod
    def convolve(self, step: Step, kind: str, weights: Weights, source: int) -> int:
        """Add CONV_2D or DEPTHWISE_CONV_2D, its values in LiteRT's layout; return its output."""

    def share_bias(self, step: Step, weights: Weights, parts: int) -> list[Array | None]:
        """Return what each of the convolutions that are added up has of their bias."""
        return [None if weights.bias is None else weights.bias / np.float32(parts)] * parts

    def find_options(self, step: Step, weights: Weights) -> dict[str, int]:
        """Return a convolution's options: how its kernel is dilated, and whether a ReLU follows."""
        rows, columns = weights.dilation
        return {"relu": int(step.output in self.fused), "dilation_y": rows, "dilation_x": columns}

    def shape_like(self, like: int, channels: int, scale: float) -> tuple[int, ...]:
        """Return a shape of so many channels and `scale` times the size of a tensor."""
        _, height, width, _ = self.writer.tensors[like].shape
        return 1, round(height * scale), round(width * scale), channels

    def add_convolution(self, step: Step, weights: Weights, source: int) -> int:
        """Add a convolution, depthwise or not; return its output."""
        alone = weights.groups == len(weights.values) and weights.values.shape[1] == 1
        kind, order = ("DEPTHWISE_CONV_2D", (1, 2, 3, 0)) if alone else ("CONV_2D", (0, 2, 3, 1))
        return self.convolve(step, kind, replace(weights, values=weights.values.transpose(order)), source)

    def add_up(self, step: Step, weights: Weights, sources: list[int]) -> int:
        """Add a 2x2 transposed convolution: a 1x1 one for each of its four pixels, then depth to space.

        Of several inputs (`split_ups`) each is convolved depthwise, and what comes of them is added up: 0.4
        times the time of CONV_2D in groups.
        """
        values, quarters = weights.values.reshape(step.channels, -1, 4), []
        biases = self.share_bias(step, weights, len(sources))
        for quarter in range(4):
            parts = []
            for number, source in enumerate(sources):
                kind, rows = "CONV_2D", values[:, None, None, :, quarter]
                if len(sources) > 1:
                    kind, rows = "DEPTHWISE_CONV_2D", values[None, None, None, :, number, quarter]
                parts.append(
                    self.convolve(step, kind, replace(weights, values=rows, bias=biases[number]), source)
                )
            while len(parts) > 1:
                total = self.make(step, sources[0])
                parts = [*parts[2:], self.writer.operator("ADD", parts[:2], total)]
            quarters += parts
        together = self.make(step, sources[0], parts=4)
        self.writer.operator("CONCATENATION", quarters, together)
        return self.writer.operator("DEPTH_TO_SPACE", [together], self.make(step, sources[0], scale=2))

    def add_step(self, step: Step) -> int:
        """Add a step; return its output."""
        inputs = [self.values[name] for name in step.inputs]
        if step.kind == "pool":
            return self.writer.operator("MAX_POOL_2D", inputs, self.make(step, inputs[0], scale=0.5))
        if step.kind == "add":
            made, relu = self.make(step, inputs[0]), int(step.output in self.fused)
            return self.writer.operator("ADD", inputs, made, relu=relu)
        if step.kind == "relu" or step.weights is None:
            raise ValueError(f"LiteRT: a {step.kind} on its own")
        if step.kind == "up":
            return self.add_up(step, step.weights, inputs)
        return self.add_convolution(step, step.weights, inputs[0])

    def add_steps(self, picture: int) -> int:
        """Add all steps; return the residual of a picture."""
        self.values[SOURCE] = picture
        for step in self.steps:
            self.values[step.output] = self.add_step(step)
        return self.values[self.steps[-1].output]


class FloatBuilder(Builder):
    """Tensors of float32; weights are unpacked to them when the file is loaded."""

    def make(self, step: Step, like: int, parts: int = 1, scale: float = 1.0) -> int:
        """Add a tensor, as in Builder."""
        return self.writer.tensor(self.shape_like(like, parts * step.channels, scale))

    def convolve(self, step: Step, kind: str, weights: Weights, source: int) -> int:
        """Add a convolution, as in Builder."""
        made, zeros = self.make(step, source), np.zeros(len(weights.scales), np.int64)
        packed = self.writer.constant(weights.values, (weights.scales, zeros, find_axis(kind)))
        weight = self.writer.operator("DEQUANTIZE", [packed], self.writer.tensor(weights.values.shape))
        # An operator without a bias is refused, or crashes.
        bias = np.zeros_like(weights.scales) if weights.bias is None else weights.bias
        inputs = [source, weight, self.writer.constant(bias)]
        return self.writer.operator(kind, inputs, made, **self.find_options(step, weights))


def make_litert(network: Network, use_float: bool) -> bytes:
    """Return the file: `source` (1, H, W, 3) and `strength` (1,) to `made_up`.

    Args:
        network: the look.
        use_float: [0, 1] in and out; else bytes.
    """
    builder = FloatBuilder(split_kernels(split_ups(network.steps)))
    writer, shape = builder.writer, (1, SIDE, SIDE, 3)
    pixels = {} if use_float else {"kind": "uint8", "scales": LEVELS}
    source = writer.tensor(shape, name="source", **pixels)
    strength = writer.tensor((1,), name="strength")
    picture = source if use_float else writer.operator("DEQUANTIZE", [source], writer.tensor(shape))
    scaled = writer.operator("MUL", [builder.add_steps(picture), strength], writer.tensor(shape))
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
