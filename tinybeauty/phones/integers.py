"""A look as a LiteRT file that computes in integers alone, for accelerators that know nothing else.

The weights are the `.pt`'s own int8 values; what is rounded besides is every value on its way, to 8 bits
whose range is taken from faces. That costs accuracy, which the command prints.
Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tinybeauty.blending import SIDE
from tinybeauty.files import save_bytes
from tinybeauty.phones.flat import Scales
from tinybeauty.phones.litert import LEVELS, Builder, find_axis
from tinybeauty.phones.networks import SOURCE, Network, Step, Weights, run_step, split_kernels, split_ups

Array = np.ndarray
PICTURE = (np.float32([1 / 255]), np.int64([-128]), 0)  # a byte less 128
WIDEST = 16  # outputs of transposed convolutions that are split; the others would cost more bytes than time
SAMPLES = 4096  # of a value on a face
SHRINK = tuple(round(1 - 0.02 * step, 2) for step in range(21))
STRENGTH = (np.float32([1 / 128]), np.int64([-128]), 0)  # 0, 0.5 and 1 are exact; up to 1.99


def find_samples(steps: list[Step], faces: list[Array]) -> dict[str, Array]:
    """Return {value: some of its numbers on these faces}."""
    samples: dict[str, list[Array]] = {step.output: [] for step in steps}
    with torch.inference_mode():
        for face in faces:
            values = {SOURCE: torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float().div(255)}
            for step in steps:
                made = run_step(step, [values[name] for name in step.inputs], lambda value: value)
                values[step.output] = made
                numbers = made.flatten().numpy()
                ends = (numbers.min(keepdims=True), numbers.max(keepdims=True))
                samples[step.output] += [numbers[:: max(numbers.size // SAMPLES, 1)], *ends]
    return {name: np.concatenate(parts) for name, parts in samples.items()}


def find_scales(samples: Array) -> Scales:
    """Return the scale and zero point with which int8 tells these numbers best; 0 is exact.

    A few large numbers are cut off where that makes the mean squared error of all smaller. The scale is
    rounded, so that the last bits of another machine's arithmetic hardly ever matter.
    """
    low, high = min(samples.min().item(), 0.0), max(samples.max().item(), 1e-6)  # 0 has no scale
    best, least = (1.0, 0), np.inf
    for below in SHRINK:
        for above in SHRINK:
            scale = float(np.float16((high * above - low * below) / 255 * 1024)) / 1024
            zero = round(-128 - low * below / scale)
            levels = (samples / scale).round().clip(-128 - zero, 127 - zero)
            error = np.square(levels * scale - samples).mean().item()
            if error < least:
                best, least = (scale, zero), error
    return np.float32([best[0]]), np.int64([best[1]]), 0


class IntegerBuilder(Builder):
    """Tensors of int8, each with the scale and zero point that suit its numbers."""

    def __init__(self, network: Network, faces: list[Array]) -> None:
        steps = split_kernels(split_ups(network.steps, WIDEST))
        super().__init__(steps)
        samples = find_samples(steps, faces)
        reads = {step.inputs[0]: step.output for step in steps if step.kind == "relu"}
        self.scales = {
            name: find_scales(samples[reads[name] if name in self.fused else name])
            for name in (step.output for step in self.steps)
        }

    def make(self, step: Step, like: int, parts: int = 1, scale: float = 1.0) -> int:
        """Add a tensor, as in Builder; a pooling's has the numbers of what it reads."""
        scales = self.writer.tensors[like].scales if step.kind == "pool" else self.scales[step.output]
        return self.writer.tensor(self.shape_like(like, parts * step.channels, scale), "int8", scales=scales)

    def share_bias(self, step: Step, weights: Weights, parts: int) -> list[Array | None]:
        """Return the bias in whole steps of the output, and its rest: where the inputs are 0, one is rounded.

        Two halves, rounded alike, would move whole channels by up to a step: a grey level of the face.
        """
        if weights.bias is None or parts == 1:
            return super().share_bias(step, weights, parts)
        step_size = self.scales[step.output][0]
        whole = (weights.bias / step_size).round() * step_size
        return [whole, weights.bias - whole, *[None] * (parts - 2)]

    def convolve(self, step: Step, kind: str, weights: Weights, source: int) -> int:
        """Add a convolution, as in Builder."""
        made, zeros = self.make(step, source), np.zeros(len(weights.scales), np.int64)
        weight = self.writer.constant(weights.values, (weights.scales, zeros, find_axis(kind)))
        given = self.writer.tensors[source].scales
        assert given is not None
        units = (given[0].astype(np.float64) * weights.scales).astype(np.float32)
        bias = np.zeros_like(units) if weights.bias is None else weights.bias
        numbers = (bias / units).round().clip(-(2**30), 2**30).astype(np.int32)
        inputs = [source, weight, self.writer.constant(numbers, (units, zeros, 0))]
        return self.writer.operator(kind, inputs, made, **self.find_options(step, weights))


def make_integers(network: Network, faces: list[Array]) -> bytes:
    """Return the file: `source` (1, H, W, 3) uint8 and `strength` (1,) float32 to `made_up`, uint8.

    Args:
        network: the look.
        faces: (H, W, 3) uint8, from which the ranges are taken.
    """
    builder = IntegerBuilder(network, faces)
    writer, shape = builder.writer, (1, SIDE, SIDE, 3)
    source = writer.tensor(shape, "uint8", scales=LEVELS, name="source")
    strength = writer.tensor((1,), name="strength")
    picture = writer.operator("QUANTIZE", [source], writer.tensor(shape, "int8", scales=PICTURE))
    factor = writer.operator("QUANTIZE", [strength], writer.tensor((1,), "int8", scales=STRENGTH))
    residual = builder.add_steps(picture)
    scales = writer.tensors[residual].scales
    scaled = writer.operator("MUL", [residual, factor], writer.tensor(shape, "int8", scales=scales))
    total = writer.operator("ADD", [picture, scaled], writer.tensor(shape, "int8", scales=PICTURE))
    made_up = writer.tensor(shape, "uint8", scales=LEVELS, name="made_up")
    writer.operator("QUANTIZE", [total], made_up)
    return writer.to_bytes([source, strength], made_up, network.facts)


def write_integers(network: Network, path: Path, faces: list[Array]) -> None:
    """Write `path`, whole or not at all; raises UserError."""
    save_bytes(path, make_integers(network, faces))
