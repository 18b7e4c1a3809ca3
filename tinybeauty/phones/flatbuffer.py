"""FlatBuffers, written by hand: the package's versions lay the same content out differently.

A buffer is written from its end to its start, so that what is pointed to is there before what points to it.
A place is counted in bytes from the end. Source: https://flatbuffers.dev/internals
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

WIDEST = 16  # bytes that the largest item is aligned to


class FlatBuffer:
    """A buffer on its way."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []  # the last one stands first
        self.size = 0
        self.layouts: dict[bytes, int] = {}  # places of the tables' layouts ("vtables")

    def put(self, data: bytes) -> int:
        """Write bytes before all others; return their place."""
        self.parts.append(data)
        self.size += len(data)
        return self.size

    def align(self, size: int, alignment: int) -> None:
        """Write zeros, so that what is `size` bytes long will begin at a multiple of `alignment`."""
        self.put(bytes(-(self.size + size) % alignment))

    def vector(self, data: bytes, count: int, alignment: int = 4) -> int:
        """Return the place of a vector of numbers, given as their bytes."""
        self.align(len(data), max(alignment, 4))
        self.put(data)
        return self.put(struct.pack("<I", count))

    def text(self, text: str) -> int:
        """Return the place of a string."""
        data = text.encode()
        self.align(len(data) + 1, 4)
        self.put(data + b"\0")
        return self.put(struct.pack("<I", len(data)))

    def pointers(self, places: Sequence[int]) -> int:
        """Return the place of a vector of tables."""
        self.align(0, 4)
        end, count = self.size, len(places)
        numbers = [end + 4 * (count - number) - place for number, place in enumerate(places)]
        return self.vector(struct.pack(f"<{count}I", *numbers), count)

    def table(self, fields: Sequence[tuple[str, int, int]]) -> int:
        """Return the place of a table.

        Args:
            fields: (type, number in the schema, value); types are "offset", a place; "int" and "byte". A
                value of 0 is the schema's default and left out.
        """
        fields = sorted((field for field in fields if field[2]), key=lambda field: field[0] == "byte")
        length = 4 + sum(1 if kind == "byte" else 4 for kind, *_ in fields)
        length += -length % 4
        self.align(length, 4)
        start, at = self.size + length, 4
        slots = [0] * max((number + 1 for _, number, _ in fields), default=0)
        content = b""
        for kind, number, value in fields:
            slots[number] = at
            number_there = start - at - value if kind == "offset" else value
            content += struct.pack({"offset": "<I", "int": "<i", "byte": "<b"}[kind], number_there)
            at += 1 if kind == "byte" else 4
        layout = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), length, *slots)
        known = self.layouts.get(layout, start + len(layout))
        self.put(struct.pack("<i", known - start) + content.ljust(length - 4, b"\0"))
        if layout not in self.layouts:
            self.layouts[layout] = self.put(layout)
        return start

    def finish(self, root: int, identifier: bytes) -> bytes:
        """Return the whole buffer.

        Args:
            root: place of the table that holds all others.
            identifier: four bytes that name the format.
        """
        self.align(8, WIDEST)
        self.put(identifier)
        self.put(struct.pack("<I", self.size + 4 - root))
        return b"".join(reversed(self.parts))
