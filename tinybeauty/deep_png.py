"""PNG files with 16 bits a colour, which Pillow reads as 8: their pixels, and such a file from pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from tinybeauty.errors import UserError

Array = np.ndarray
SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP = 2  # PNG's filter that stores the difference to the row above
BAND = 256  # rows that are packed at a time


def is_deep(data: bytes) -> bool:
    """Return whether a file is a PNG of 16-bit RGB or RGBA."""
    return data[:8] == SIGNATURE and len(data) > 25 and data[24] == 16 and data[25] in (2, 6)


def read_deep(data: bytes) -> Array:
    """Return the pixels (H, W, 3 or 4) uint16 of a 16-bit PNG.

    Raises:
        UserError: PyAV is missing.
        ValueError: the file is damaged.
    """
    try:
        import av
    except ImportError:
        raise UserError("photos of 16 bits a colour need PyAV: pip install -r requirements.txt") from None
    try:
        with av.open(io.BytesIO(data), format="png_pipe") as file:
            frame = next(file.decode(video=0))
            return np.ascontiguousarray(frame.to_ndarray(), np.uint16)
    except (av.FFmpegError, StopIteration):
        raise ValueError("its 16-bit pixels cannot be read") from None


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_deep(pixels: Array) -> list[bytes]:
    """Return a PNG of pixels (H, W, 3 or 4) uint16 as chunks: its head, its pixels, its end.

    Source: PNG (Third Edition), 9.2, filter type 2.
    """
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    packer, packed, above = zlib.compressobj(4), [], np.zeros((1, 2 * width * channels), np.uint8)
    for first in range(0, height, BAND):
        rows = pixels[first : first + BAND].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        filtered = np.full((len(rows), 1 + rows.shape[1]), UP, np.uint8)
        filtered[:, 1:] = rows - np.concatenate((above, rows[:-1]))  # modulo 256
        above = rows[-1:]
        packed.append(packer.compress(filtered.tobytes()))
    packed.append(packer.flush())
    return [make_chunk(b"IHDR", head), make_chunk(b"IDAT", b"".join(packed)), make_chunk(b"IEND", b"")]
