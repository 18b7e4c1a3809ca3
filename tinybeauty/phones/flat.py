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

from tinybeauty.phones.flatbuffer import WIDEST, FlatBuffer

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
    """A file on its way; places of what has been written are kept, to be used again."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.buffer = FlatBuffer()
        self.known: dict[tuple, int] = {}

    def once(self, key: tuple, make: Callable[[], int]) -> int:
        """Return the place of what `make` writes, the first time."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def text(self, text: str) -> int:
        """Return the place of a string."""
        return self.once(("text", text), lambda: self.buffer.text(text))

    def numbers(self, values: Sequence[int] | np.ndarray, kind: str = "int32") -> int:
        """Return the place of a vector of numbers."""
        array = np.asarray(values, kind)
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        write = self.buffer.vector
        return self.once(("numbers", kind, data), lambda: write(data, array.size, array.itemsize))

    def add_buffer(self, data: bytes) -> int:
        """Return the place of a Buffer."""
        if not data:
            return self.buffer.table(())
        return self.buffer.table((("offset", 0, self.buffer.vector(data, len(data), WIDEST)),))

    def quantization(self, scales: Scales | None) -> int:
        """Return the place of QuantizationParameters, 0 for none."""
        if scales is None:
            return 0
        values, zeros, axis = self.numbers(scales[0], "float32"), self.numbers(scales[1], "int64"), scales[2]
        fields = (("offset", 2, values), ("offset", 3, zeros), ("int", 6, axis))
        return self.once(("quantization", values, zeros, axis), lambda: self.buffer.table(fields))

    def add_tensor(self, tensor: Tensor, buffer: int) -> int:
        """Return the place of a Tensor."""
        shape, scales = self.numbers(tensor.shape), self.quantization(tensor.scales)
        name = self.text(tensor.name) if tensor.name else 0
        fields = [("offset", 0, shape), ("byte", 1, KINDS[tensor.kind]), ("int", 2, buffer)]
        return self.buffer.table([*fields, ("offset", 3, name), ("offset", 4, scales)])

    def add_options(self, kind: str, options: dict[str, int]) -> int:
        """Return the place of an operator's options."""
        relu = options.get("relu", 0)
        same = ("byte", 0, 0)  # Padding
        ones = (("int", 1, 1), ("int", 2, 1))  # strides
        dilation = (("int", 5, options.get("dilation_x", 1)), ("int", 6, options.get("dilation_y", 1)))
        fields: dict[str, tuple] = {
            "ADD": (("byte", 0, relu),),
            "MUL": (),
            "CONCATENATION": (("int", 0, 3),),
            "CONV_2D": (same, *ones, ("byte", 3, relu)),
            "DEPTHWISE_CONV_2D": (same, *ones, ("int", 3, 1), ("byte", 4, relu), *dilation),
            "DEPTH_TO_SPACE": (("int", 0, 2),),
            "MAX_POOL_2D": (same, ("int", 1, 2), ("int", 2, 2), ("int", 3, 2), ("int", 4, 2)),
        }
        return self.once(("options", kind, fields[kind]), lambda: self.buffer.table(fields[kind]))

    def add_operator(
        self, kind: str, inputs: list[int], output: int, options: dict[str, int], codes: list[str]
    ) -> int:
        """Return the place of an Operator."""
        read, made = self.numbers(inputs), self.numbers([output])
        option_kind = OPERATORS[kind][2]
        written = self.add_options(kind, options) if option_kind else 0
        fields = [("int", 0, codes.index(kind)), ("offset", 1, read), ("offset", 2, made)]
        return self.buffer.table([*fields, ("byte", 3, option_kind), ("offset", 4, written)])

    def add_signature(self, inputs: list[int], output: int) -> int:
        """Return the place of the SignatureDef that names what an app fills and reads."""
        maps = []
        for number in (*inputs, output):
            name = self.text(self.writer.tensors[number].name)
            maps.append(self.buffer.table([("offset", 0, name), ("int", 1, number)]))
        read, made = self.buffer.pointers(maps[:-1]), self.buffer.pointers(maps[-1:])
        key = self.text("serving_default")
        return self.buffer.table([("offset", 0, read), ("offset", 1, made), ("offset", 2, key)])

    def add_subgraph(self, tensors: list[int], operators: list[int], inputs: list[int], output: int) -> int:
        """Return the place of the SubGraph; tensors and operators are places, the others numbers."""
        parts = [self.buffer.pointers(tensors), self.numbers(inputs), self.numbers([output])]
        parts.append(self.buffer.pointers(operators))
        return self.buffer.table([("offset", number, part) for number, part in enumerate(parts)])

    def finish(self, inputs: list[int], output: int, facts: dict[str, str]) -> bytes:
        """Return the file; arguments as in Writer.to_bytes."""
        writer, buffer = self.writer, self.buffer
        datas, tensors, codes_at = [b""], [], []  # buffer 0 is empty by convention
        for tensor in writer.tensors:
            if tensor.data not in datas:
                datas.append(tensor.data)
            tensors.append(self.add_tensor(tensor, datas.index(tensor.data)))
        codes = list(dict.fromkeys(kind for kind, *_ in writer.operators))
        operators = [self.add_operator(*operator, codes) for operator in writer.operators]
        subgraph = self.add_subgraph(tensors, operators, inputs, output)
        for code, version, _ in (OPERATORS[code] for code in codes):
            codes_at.append(buffer.table([("byte", 0, code), ("int", 2, version), ("int", 3, code)]))
        datas.append(json.dumps(facts).encode())
        metadata = buffer.table([("offset", 0, self.text("tinybeauty")), ("int", 1, len(datas) - 1)])
        signature = self.add_signature(inputs, output)
        lists = {
            1: codes_at,
            2: [subgraph],
            4: [self.add_buffer(data) for data in datas],
            6: [metadata],
            7: [signature],
        }
        fields = [("offset", number, buffer.pointers(places)) for number, places in lists.items()]
        return buffer.finish(buffer.table([("int", 0, 3), *fields]), b"TFL3")  # version 3 of the schema
