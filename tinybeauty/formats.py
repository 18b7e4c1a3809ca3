"""What Pillow leaves out when it writes a photo: JPEG's segments, PNG's chunks and 16 bits, TIFF's tags."""

from __future__ import annotations

import io
import struct
import zlib
from typing import IO

import numpy as np
from PIL import Image

from tinybeauty.errors import UserError

Array = np.ndarray
SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP = 2  # PNG's filter that stores the difference to the row above
BAND = 256  # rows that are packed at a time
ORIENTATION = 0x0112  # EXIF tag
BITS = 258  # TIFF's tag: of each colour
EXIF_PARTS = (0x8769, 0x8825)  # camera and place
# Size, bits, compression, strips, tiles, colour table, orientation, other pictures, profile.
STORAGE_TAGS = {*range(254, 260), 262, 266, 273, ORIENTATION, 277, 278, 279, 284, *range(317, 326), 330, 332,
                338, 339, 347, 513, 514, *range(529, 533), 34675}  # fmt: skip


# ======================================================================================================
# JPEG
# ======================================================================================================


def list_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Return (marker, start, end) of a JPEG's segments before the first scan."""
    segments, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            break
        end = position + 2 + struct.unpack(">H", data[position + 2 : position + 4])[0]
        segments.append((marker, position, end))
        position = end
    return segments


def replace_segments(data: bytes, source: bytes) -> bytes:
    """Return a JPEG with what another one says about itself: APP and COM segments, byte for byte.

    Adobe's APP14 is about how the pixels are stored, MPF in APP2 about pictures behind this one: not these.
    """
    kept = [
        source[start:end]
        for marker, start, end in list_segments(source)
        if (0xE0 <= marker <= 0xEF or marker == 0xFE)
        and marker != 0xEE
        and not (marker == 0xE2 and source[start + 4 : start + 8] == b"MPF\0")
    ]
    own = [
        data[start:end]
        for marker, start, end in list_segments(data)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE
    ]
    scan = list_segments(data)[-1][2]
    return b"".join((data[:2], *kept, *own, data[scan:]))


# ======================================================================================================
# PNG
# ======================================================================================================


def list_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return (kind, the whole chunk) of a PNG."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        chunks.append((kind, data[position : position + 12 + length]))
        position += 12 + length
    return chunks


def find_chunk(file: IO[bytes], kind: bytes) -> bytes:
    """Return what a chunk before a PNG's pixels holds, b"" without it; the file stays where it is."""
    place, content = file.tell(), b""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, found = struct.unpack(">I4s", head)
        if found == kind:
            content = file.read(length)
        if found in (kind, b"IDAT"):
            break
        file.seek(length + 4, 1)
    file.seek(place)
    return content


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
            channels = 3 if data[25] == 2 else 4  # FFmpeg gives RGB with a transparent colour four
            return np.ascontiguousarray(frame.to_ndarray()[..., :channels], np.uint16)
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


# ======================================================================================================
# WebP
# ======================================================================================================


def is_lossless_webp(data: bytes) -> bool:
    """Return whether a WebP keeps every pixel; a colour profile may stand before them.

    Source: RFC 9649, 2.7.
    """
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[position : position + 8])
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        position += 8 + length + length % 2
    return False


# ======================================================================================================
# AVIF
# ======================================================================================================


def is_deep_avif(data: bytes) -> bool:
    """Return whether an AVIF has more than 8 bits a colour.

    Source: AV1-ISOBMFF 1.2.0, 2.3.3, `high_bitdepth` of the configuration box.
    """
    position = data.find(b"av1C")
    return 0 <= position < len(data) - 6 and bool(data[position + 6] & 0x40)


# ======================================================================================================
# TIFF
# ======================================================================================================


def describe_tiff(image: Image.Image) -> tuple[Image.Exif, bool]:
    """Return a TIFF's tags but for those about its stored pixels, and whether EXIF has parts of its own."""
    everything, about = image.getexif(), Image.Exif()
    for tag in set(everything) - STORAGE_TAGS - set(EXIF_PARTS):
        about[tag] = everything[tag]
    parts = {part: everything.get_ifd(part) for part in EXIF_PARTS if part in everything}
    for part, values in parts.items():
        if values:
            about.get_ifd(part).update(values)
    return about, any(parts.values())
