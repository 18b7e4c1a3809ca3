"""MediaPipe's face models with fewer bits a weight: a page with them is a megabyte smaller.

The float16 weights of a convolution become whole numbers and a scale of each channel. Where a number fits
into 8 bits, the file holds these bytes, the scales behind them, and zeros to the old end, which deflate to
nothing; `readConstant` in tflite.js knows such a tensor by its type, INT8, and multiplies. Finer numbers are
written as the float16 that they stand for: fewer of its bits vary. All else stays where it is.

Where a face's square comes to lie hangs on the last layer of the mesh, which has a third of all weights, on
small tensors, and on the detector of near faces; hardly on that of far ones, after which the near one looks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinybeauty.graphs import decode_sparse

BYTE = 127  # levels that 8 bits have on either side


class Rounding(NamedTuple):
    """How a model is shrunk.

    Attributes:
        levels: whole numbers that the largest weight of a channel gets; above BYTE weights stay float16.
        bits: of a scale's fraction: with few of them a scale's bytes repeat, and a level is a little larger.
        fewest: weights of a tensor that is changed.
    """

    levels: int
    bits: int
    fewest: int = 512


ROUNDINGS = {"shortRange": Rounding(511, 0), "fullRange": Rounding(64, 1), "mesh": Rounding(100, 1, 1025)}
LAST, LARGE = Rounding(BYTE, 3), 100_000  # for the last layer of the mesh, which alone has so many weights


def find_channels(tensor: Any, count: int) -> np.ndarray:
    """Return the channel of each of `count` weights, (O, H, W, I) in full; depthwise, (1, H, W, O)."""
    shape = tuple(tensor.ShapeAsNumpy())
    if tensor.Sparsity() is not None:
        return np.nonzero(decode_sparse(tensor, np.ones(count)))[0]
    return np.indices(shape)[3 if shape[0] == 1 else 0].ravel()


def quantise(weights: np.ndarray, channels: np.ndarray, rounding: Rounding) -> tuple[np.ndarray, np.ndarray]:
    """Return weights as whole numbers of -levels to levels, and the float16 scale of each channel."""
    most = np.zeros(channels.max() + 1)
    np.maximum.at(most, channels, np.abs(weights))
    fraction, exponent = np.frexp(np.maximum(most, 1e-4) / rounding.levels)
    scales = np.ldexp(np.ceil(fraction * 2**rounding.bits), exponent - rounding.bits).astype(np.float16)
    return np.rint(weights / scales.astype(float)[channels]), scales


def shrink_model(data: bytes, rounding: Rounding) -> bytes:
    """Return a .tflite file of as many bytes that deflate better."""
    import tflite
    from tflite.TensorType import TensorType

    small = np.frombuffer(data, np.uint8).copy()
    model = tflite.Model.GetRootAsModel(data, 0)
    for index in range(model.Subgraphs(0).TensorsLength()):
        tensor = model.Subgraphs(0).Tensors(index)
        table = model.Buffers(tensor.Buffer())._tab
        field = table.Offset(4)  # `data`; 0 where it has none
        start, count = (table.Vector(field), table.VectorLen(field) // 2) if field else (0, 0)
        if tensor.Type() != TensorType.FLOAT16 or tensor.ShapeLength() != 4 or count < rounding.fewest:
            continue
        channels = find_channels(tensor, count)
        weights = np.frombuffer(data, np.float16, count, start).astype(float)
        own = LAST if count > LARGE else rounding
        numbers, scales = quantise(weights, channels, own)
        if own.levels > BYTE:
            packed = (numbers * scales[channels]).astype(np.float16).tobytes()
        else:
            packed = numbers.astype(np.int8).tobytes().ljust(count + count % 2, b"\0") + scales.tobytes()
            small[tensor._tab.Pos + tensor._tab.Offset(6)] = TensorType.INT8  # the field `type`
        small[start : start + 2 * count] = np.frombuffer(packed.ljust(2 * count, b"\0"), np.uint8)
    return small.tobytes()
