"""Run the graph of a TensorFlow Lite file in PyTorch: the operators of MediaPipe's face models, no more.

Importing this costs nothing; PyTorch and the reader of the file format come with the first `Graph`.
Source: tensorflow/lite/schema/schema.fbs; mediapipe/util/tflite/operations for the three custom operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Operation = Callable[..., "Tensor"]


def decode_sparse(tensor: Any, values: np.ndarray) -> np.ndarray:
    """Return a sparse weight as the full array it stands for; its last axis is compressed, row by row."""
    shape, sparsity = tuple(tensor.ShapeAsNumpy()), tensor.Sparsity()
    last = sparsity.DimMetadata(sparsity.DimMetadataLength() - 1)
    rows = []
    for part, kind in (
        (last.ArraySegments(), last.ArraySegmentsType()),
        (last.ArrayIndices(), last.ArrayIndicesType()),
    ):
        # A vector of 32, 16 or 8 bit numbers: field 4 of a table of one field.
        flags = (None, np.int32, np.uint16, np.uint8)[kind]
        offset = part.Offset(4)
        start, count = part.Vector(offset), part.VectorLen(offset)
        rows.append(np.frombuffer(part.Bytes, flags, count, start).astype(int))
    starts, columns = rows
    full = np.zeros((len(starts) - 1, shape[-1]), values.dtype)
    full[np.repeat(np.arange(len(starts) - 1), np.diff(starts)), columns] = values
    return full.reshape(shape)


def pad_as_tflite(
    image: Tensor, kernel: tuple[int, int], stride: tuple[int, int], value: float = 0.0
) -> Tensor:
    """Return an image (B, C, H, W) padded for TensorFlow's SAME: an odd pixel goes right and below."""
    from torch.nn import functional

    pads: list[int] = []
    for length, size, step in zip(image.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        lacking = max((-(-length // step) - 1) * step + size - length, 0)
        pads += [lacking // 2, lacking - lacking // 2]
    return functional.pad(image, pads, value=value) if any(pads) else image


def find_matrix(landmarks: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the matrices (B, 4, 4) from a square around some of the landmarks (B, N, 3) into their image."""
    import torch

    start, end = (
        landmarks[:, options["left_rotation_idx"], :2],
        landmarks[:, options["right_rotation_idx"], :2],
    )
    angle = torch.atan2(*(end - start).flip(1).unbind(1)) - options["target_rotation_radians"]
    cos, sin = torch.cos(angle), torch.sin(angle)
    axes = torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)  # (B, 2, 2)
    turned = landmarks[:, options["subset_idxs"], :2] @ axes
    low, high = turned.amin(1), turned.amax(1)
    size = torch.tensor((options["output_width"], options["output_height"]), dtype=low.dtype)
    scale = (high - low) * torch.tensor((options["scale_x"], options["scale_y"]), dtype=low.dtype) / size
    linear = axes * scale[:, None]
    shift = (axes @ ((low + high) / 2)[..., None] - linear @ (size / 2)[:, None])[..., 0]
    matrix = torch.eye(4).repeat(len(landmarks), 1, 1)
    matrix[:, :2, :2], matrix[:, :2, 3] = linear, shift
    return matrix


def cut_out(features: Tensor, matrix: Tensor, options: dict[str, Any]) -> Tensor:
    """Return what lies under `matrix` (B, 4, 4) in features (B, C, H, W), 0 outside."""
    import torch
    from torch.nn import functional

    height, width = features.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(options["output_height"]) + 0.5,
        torch.arange(options["output_width"]) + 0.5,
        indexing="ij",
    )
    where = torch.stack((x, y, torch.ones_like(x)), -1)
    where = torch.einsum("hwk,bik->bhwi", where, matrix[:, :2, [0, 1, 3]]) - 0.5
    last = torch.tensor((width - 1.0, height - 1.0))
    inside = ((where >= 0) & (where <= last)).all(-1)
    cut = functional.grid_sample(features, where / last * 2 - 1, align_corners=True)
    return cut * inside[:, None]


def move_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Return points (B, N, 2) under the matrices (B, 4, 4)."""
    return points @ matrix[:, :2, :2].transpose(1, 2) + matrix[:, None, :2, 3]


def make_convolution(weight: Tensor, bias: Tensor, options: Any, deep: bool, padding: int) -> Operation:
    """Return a convolution with its weight in PyTorch's layout.

    Args:
        weight: as in the file.
        bias: (C,)
        options: the file's.
        deep: each channel on its own.
        padding: pixels of zeros to add all around, besides those that the options ask for.
    """
    import torch
    from torch.nn import functional

    if not deep and weight.shape[1:3] == (1, 1) and (options.StrideH(), options.StrideW()) == (1, 1):
        flat = weight[:, 0, 0].contiguous()  # half the time of a convolution
        return lambda image: functional.linear(image.permute(0, 2, 3, 1), flat, bias).permute(0, 3, 1, 2)
    weight = weight.permute(3, 0, 1, 2) if deep else weight.permute(0, 3, 1, 2)
    weight = weight.contiguous(memory_format=torch.channels_last)
    groups = len(weight) if deep else 1
    stride = (options.StrideH(), options.StrideW())
    kernel = tuple(weight.shape[2:])
    same = options.Padding() == 0 and kernel != (1, 1)

    even = same and stride == (1, 1) and kernel[0] % 2 == 1 and kernel[0] == kernel[1]
    padding += kernel[0] // 2 if even else 0

    def convolve(image: Tensor) -> Tensor:
        if same and not even:
            image = pad_as_tflite(image, kernel, stride)
        return functional.conv2d(image, weight, bias, stride, padding, 1, groups)

    return convolve


def make_pooling(options: Any) -> Operation:
    """Return a maximum over windows."""
    from torch.nn import functional

    kernel, stride = (options.FilterHeight(), options.FilterWidth()), (options.StrideH(), options.StrideW())
    same = options.Padding() == 0

    def pool(image: Tensor) -> Tensor:
        image = pad_as_tflite(image, kernel, stride, -float("inf")) if same else image
        return functional.max_pool2d(image, kernel, stride)

    return pool


def reshape(shape: tuple[int, ...], value: Tensor) -> Tensor:
    """Return a value in another shape, its order in memory being TensorFlow's: channels last.

    The second length is whatever comes out: a detector looks at pictures of other sizes too.
    """
    value = value.permute(0, 2, 3, 1) if value.ndim == 4 else value
    value = value.reshape(len(value), -1, *shape[2:])
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value


def depth_to_space(block: int, image: Tensor) -> Tensor:
    """Return an image (B, b * b * C, H, W) as (B, C, b * H, b * W); TensorFlow keeps the colours together."""
    from torch.nn import functional

    batch, channels, height, width = image.shape
    mixed = image.reshape(batch, block * block, channels // block**2, height, width).transpose(1, 2)
    return functional.pixel_shuffle(mixed.reshape(batch, channels, height, width), block)


class Graph:
    """A TensorFlow Lite graph, its constants unpacked once.

    Calling it with images (B, 3, H, W) gives the outputs in the file's order; images are (B, C, H, W), the
    rest as in the file.

    Attributes:
        subsets: for each part of a face that is looked at closely, the numbers of its landmarks.
    """

    def __init__(self, data: bytes) -> None:
        """Read the graph from a file's bytes."""
        import tflite
        import torch
        from tflite.BuiltinOperator import BuiltinOperator

        self.model = tflite.Model.GetRootAsModel(data, 0)
        self.graph = self.model.Subgraphs(0)
        names = {number: name for name, number in vars(BuiltinOperator).items() if isinstance(number, int)}
        self.input, self.outputs = self.graph.Inputs(0), self.graph.OutputsAsNumpy().tolist()
        self.constants: dict[int, torch.Tensor] = {}
        self.steps: list[tuple[int, Operation, list[int]]] = []
        self.padded: dict[int, int] = {}
        self.subsets: list[list[int]] = []
        for number in range(self.graph.TensorsLength()):
            if self.model.Buffers(self.graph.Tensors(number).Buffer()).DataLength():
                self.constants[number] = torch.from_numpy(self.read_constant(number))
        for number in range(self.graph.OperatorsLength()):
            operator = self.graph.Operators(number)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            name = code.CustomCode().decode() if name == "CUSTOM" else name
            self.add_step(name, operator)

    def read_constant(self, number: int) -> np.ndarray:
        """Return a weight, as float32 if it is one, or numbers such as a shape."""
        tensor = self.graph.Tensors(number)
        kind = {0: np.float32, 1: np.float16, 2: np.int32}[tensor.Type()]
        values = np.frombuffer(self.model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes(), kind)
        values = values.astype(np.float32) if kind is np.float16 else values.copy()
        if tensor.Sparsity() is not None:
            return decode_sparse(tensor, values)
        return values.reshape(tensor.ShapeAsNumpy()) if tensor.ShapeLength() else values

    def read_options(self, name: str, operator: Any) -> Any:
        """Return an operator's options: an object of the schema, or a custom operator's dictionary."""
        import tflite
        from flatbuffers import flexbuffers

        if operator.CustomOptionsLength():
            return flexbuffers.Loads(bytearray(operator.CustomOptionsAsNumpy().tobytes()))
        kinds = {
            "CONV_2D": tflite.Conv2DOptions,
            "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions,
            "MAX_POOL_2D": tflite.Pool2DOptions,
            "ADD": tflite.AddOptions,
            "CONCATENATION": tflite.ConcatenationOptions,
            "DEPTH_TO_SPACE": tflite.DepthToSpaceOptions,
        }
        if name not in kinds:
            return None
        options, table = kinds[name](), operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def add_step(self, name: str, operator: Any) -> None:
        """Add one operator to the steps, or to the constants if it only unpacks one.

        Raises:
            ValueError: the operator is none of those that MediaPipe's face models have.
        """
        import torch

        inputs, output = operator.InputsAsNumpy().tolist(), operator.Outputs(0)
        if name in ("DEQUANTIZE", "DENSIFY"):
            self.constants[output] = self.constants[inputs[0]]
            return
        options = self.read_options(name, operator)
        if name == "PAD" and self.constants[inputs[1]].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]:
            self.padded[output] = inputs[0]  # the convolution that follows does it on its way
            return
        padding = int(inputs[0] in self.padded)
        if padding and name not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            raise ValueError(f"the graph pads before {name}, which MediaPipe's face models do not")
        inputs[0] = self.padded.get(inputs[0], inputs[0])
        constants = [self.constants.get(number) for number in inputs]
        if name == "Landmarks2TransformMatrix":
            self.subsets.append(options["subset_idxs"])
        operation = self.find_operation(name, options, constants, output, padding)
        if name in (
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "PAD",
            "RESIZE_BILINEAR",
            "RESHAPE",
            "PRELU",
            "STRIDED_SLICE",
        ):
            inputs = inputs[:1]  # the others are constants, which the operation holds
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD") and options.FusedActivationFunction():
            self.steps.append((output, operation, inputs))
            operation, inputs = torch.relu_, [output]
        self.steps.append((output, operation, inputs))

    def find_operation(
        self, name: str, options: Any, constants: list[Any], output: int, padding: int
    ) -> Operation:
        """Return what an operator does, as a function of those inputs that are no constants."""
        import torch
        from torch.nn import functional

        shape = tuple(self.graph.Tensors(output).ShapeAsNumpy().tolist())
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return make_convolution(constants[1], constants[2], options, name != "CONV_2D", padding)
        if name == "PRELU":
            return partial(torch.prelu, weight=constants[1].flatten())
        if name == "PAD":  # PyTorch's order: the last axis first
            pads = [constants[1][axis].tolist() for axis in (2, 1, 3)]
            return partial(functional.pad, pad=[pad for pair in pads for pad in pair])
        simple = {
            "ADD": lambda: torch.add,
            "MUL": lambda: torch.mul,
            "RELU": lambda: torch.relu,
            "MAX_POOL_2D": lambda: make_pooling(options),
            "RESHAPE": lambda: partial(reshape, shape),
            "STRIDED_SLICE": lambda: lambda whole: whole,  # the models' only one takes everything
            "CONCATENATION": lambda: lambda *parts: torch.cat(parts, options.Axis()),
            "DEPTH_TO_SPACE": lambda: partial(depth_to_space, options.BlockSize()),
            "RESIZE_BILINEAR": lambda: partial(functional.interpolate, scale_factor=2, mode="bilinear"),
            "Landmarks2TransformMatrix": lambda: partial(find_matrix, options=options),
            "TransformTensorBilinear": lambda: partial(cut_out, options=options),
            "TransformLandmarks": lambda: move_points,
        }
        if name not in simple:
            raise ValueError(f"the graph has an operator {name}, which MediaPipe's face models do not have")
        return simple[name]()

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the outputs for images (B, 3, H, W)."""
        import torch

        with torch.inference_mode():
            values = dict(self.constants)
            values[self.input] = images.contiguous(memory_format=torch.channels_last)
            for output, operation, inputs in self.steps:
                values[output] = operation(*[values[number] for number in inputs])
            return [values[number] for number in self.outputs]
