"""The file format of LiteRT, written by hand: tensors, constants and operators into a FlatBuffer.

Equal vectors and tables are stored once; the order is the one in which they are asked for, so the same look
gives the same bytes everywhere. Source: tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = {"float32": 0, "int32": 2, "uint8": 3, "int8": 9}  # TensorType
# BuiltinOperator: (code, version that has what is used, its options in BuiltinOptions or 0)
OPERATORS = {
    "ADD": (0, 2, 11),
    "CONCATENATION": (2, 2, 10),
    "CONV_2D": (3, 6, 1),
    "DEPTHWISE_CONV_2D": (4, 3, 2),
    "DEPTH_TO_SPACE": (5, 1, 94),
    "DEQUANTIZE": (6, 5, 0),
    "MAX_POOL_2D": (17, 2, 5),
    "MUL": (18, 2, 21),
    "MINIMUM": (57, 2, 0),
    "QUANTIZE": (114, 2, 0),
}
Scales = tuple[np.ndarray, np.ndarray, int]  # scales, zero points, the axis that they number


@dataclass(frozen=True)
class Tensor:
    """A value or a constant.

    Attributes:
        shape: as stored; an app may ask for other heights and widths.
        kind: of its elements, a name in KINDS.
        data: of a constant, else empty.
        scales: of int8 and uint8.
        name: where an app sees it.
    """

    shape: tuple[int, ...]
    kind: str = "float32"
    data: bytes = b""
    scales: Scales | None = None
    name: str = ""


class Writer:
    """Collects tensors and operators, then writes them."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.constants: dict[tuple, int] = {}
        self.operators: list[tuple[str, list[int], int, dict[str, int]]] = []

    def tensor(self, *fields: Any, **named: Any) -> int:
        """Add a value; return its number."""
        self.tensors.append(Tensor(*fields, **named))
        return len(self.tensors) - 1

    def constant(self, array: np.ndarray, scales: Scales | None = None) -> int:
        """Add a constant, equal ones once; return its number."""
        data, kind = np.ascontiguousarray(array).tobytes(), array.dtype.name
        parts = None if scales is None else (scales[0].tobytes(), scales[1].tobytes(), scales[2])
        key = (data, kind, array.shape, parts)
        if key not in self.constants:
            self.constants[key] = self.tensor(array.shape, kind, data, scales)
        return self.constants[key]

    def operator(self, kind: str, inputs: Sequence[int], output: int, **options: int) -> int:
        """Add an operator; return its output's number."""
        self.operators.append((kind, list(inputs), output, options))
        return output

    def to_bytes(self, inputs: list[int], output: int, facts: dict[str, str]) -> bytes:
        """Return the file.

        Args:
            inputs: numbers of tensors that an app fills.
            output: of the one that it reads.
            facts: metadata, stored as JSON under the name "tinybeauty".
        """
        return Bytes(self).finish(inputs, output, facts)


class Bytes:
    """One FlatBuffer on its way; offsets of what has been written are kept to be used again."""

    def __init__(self, writer: Writer) -> None:
        import flatbuffers

        self.writer = writer
        self.builder = flatbuffers.Builder(1 << 17)
        self.known: dict[tuple, int] = {}

    def once(self, key: tuple, make: Callable[[], int]) -> int:
        """Return the offset of what `make` writes, the first time."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def text(self, text: str) -> int:
        """Return the offset of a string."""
        return self.once(("text", text), lambda: self.builder.CreateString(text))

    def numbers(self, values: Sequence[int] | np.ndarray, kind: str = "int32") -> int:
        """Return the offset of a vector of numbers."""
        array = np.asarray(values, kind)
        key = ("numbers", kind, array.tobytes())
        return self.once(key, lambda: self.builder.CreateNumpyVector(array))

    def offsets(self, offsets: list[int]) -> int:
        """Return the offset of a vector of tables."""
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def table(self, *fields: tuple[str, int, int]) -> int:
        """Return the offset of a table; fields are (type, place in the schema, value), 0 is left out."""
        builder = self.builder
        builder.StartObject(max((place for _, place, _ in fields), default=-1) + 1)
        add = {
            "offset": builder.PrependUOffsetTRelativeSlot,
            "byte": builder.PrependInt8Slot,
            "int": builder.PrependInt32Slot,
        }
        for kind, place, value in fields:
            add[kind](place, value, 0)
        return builder.EndObject()

    def buffer(self, data: bytes) -> int:
        """Return the offset of a Buffer."""
        builder = self.builder
        if not data:
            return self.table()
        builder.StartVector(1, len(data), 16)  # the schema's force_align
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        return self.table(("offset", 0, builder.EndVector()))

    def quantization(self, scales: Scales | None) -> int:
        """Return the offset of QuantizationParameters, 0 for none."""
        if scales is None:
            return 0
        values, zeros, axis = self.numbers(scales[0], "float32"), self.numbers(scales[1], "int64"), scales[2]
        fields = (("offset", 2, values), ("offset", 3, zeros), ("int", 6, axis))
        return self.once(("quantization", values, zeros, axis), lambda: self.table(*fields))

    def add_tensor(self, tensor: Tensor, buffer: int) -> int:
        """Return the offset of a Tensor."""
        shape, scales = self.numbers(tensor.shape), self.quantization(tensor.scales)
        name = self.text(tensor.name) if tensor.name else 0
        kind = KINDS[tensor.kind]
        return self.table(
            ("offset", 0, shape), ("byte", 1, kind), ("int", 2, buffer), ("offset", 3, name),
            ("offset", 4, scales),
        )  # fmt: skip

    def add_options(self, kind: str, options: dict[str, int]) -> int:
        """Return the offset of an operator's options."""
        relu = options.get("relu", 0)
        same = ("byte", 0, options.get("valid", 0))  # Padding: 0 is SAME
        ones = (("int", 1, 1), ("int", 2, 1))
        fields: dict[str, tuple] = {
            "ADD": (("byte", 0, relu),),
            "MUL": (),
            "CONCATENATION": (("int", 0, 3),),
            "CONV_2D": (same, *ones, ("byte", 3, relu)),
            "DEPTHWISE_CONV_2D": (
                same,
                *ones,
                ("int", 3, 1),
                ("byte", 4, relu),
                ("int", 5, options.get("dilation_x", 1)),
                ("int", 6, options.get("dilation_y", 1)),
            ),
            "DEPTH_TO_SPACE": (("int", 0, 2),),
            "MAX_POOL_2D": (same, ("int", 1, 2), ("int", 2, 2), ("int", 3, 2), ("int", 4, 2)),
        }
        return self.once(("options", kind, fields[kind]), lambda: self.table(*fields[kind]))

    def add_operator(
        self, kind: str, inputs: list[int], output: int, options: dict[str, int], codes: list[str]
    ) -> int:
        """Return the offset of an Operator."""
        read, made = self.numbers(inputs), self.numbers([output])
        option_kind = OPERATORS[kind][2]
        written = self.add_options(kind, options) if option_kind else 0
        return self.table(
            ("int", 0, codes.index(kind)), ("offset", 1, read), ("offset", 2, made),
            ("byte", 3, option_kind), ("offset", 4, written),
        )  # fmt: skip

    def add_signature(self, inputs: list[int], output: int) -> int:
        """Return the offset of the SignatureDef that names what an app fills and reads."""
        tensors = self.writer.tensors
        maps = [
            self.table(("offset", 0, self.text(tensors[number].name)), ("int", 1, number))
            for number in (*inputs, output)
        ]
        read, made = self.offsets(maps[:-1]), self.offsets(maps[-1:])
        return self.table(
            ("offset", 0, read), ("offset", 1, made), ("offset", 2, self.text("serving_default"))
        )

    def finish(self, inputs: list[int], output: int, facts: dict[str, str]) -> bytes:
        """Return the file; arguments as in Writer.to_bytes."""
        writer, datas = self.writer, [b""]  # buffer 0 is empty by convention
        tensors = []
        for tensor in writer.tensors:
            if tensor.data and tensor.data not in datas:
                datas.append(tensor.data)
            tensors.append(self.add_tensor(tensor, datas.index(tensor.data)))
        codes = list(dict.fromkeys(kind for kind, *_ in writer.operators))
        operators = [self.add_operator(*operator, codes) for operator in writer.operators]
        subgraph = self.table(
            ("offset", 0, self.offsets(tensors)), ("offset", 1, self.numbers(inputs)),
            ("offset", 2, self.numbers([output])), ("offset", 3, self.offsets(operators)),
        )  # fmt: skip
        kinds = [OPERATORS[code] for code in codes]
        codes_at = [
            self.table(("byte", 0, code), ("int", 2, version), ("int", 3, code)) for code, version, _ in kinds
        ]
        datas.append(json.dumps(facts).encode())
        metadata = self.table(("offset", 0, self.text("tinybeauty")), ("int", 1, len(datas) - 1))
        signature = self.add_signature(inputs, output)
        buffers = self.offsets([self.buffer(data) for data in datas])
        fields = (
            ("int", 0, 3), ("offset", 1, self.offsets(codes_at)), ("offset", 2, self.offsets([subgraph])),
            ("offset", 4, buffers), ("offset", 6, self.offsets([metadata])),
            ("offset", 7, self.offsets([signature])),
        )  # fmt: skip
        self.builder.Finish(self.table(*fields), b"TFL3")
        return bytes(self.builder.Output())
