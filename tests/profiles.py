"""ICC profiles for the tests, made of a few numbers, and pictures written in their colours.

Written apart from the reader's own code: with other curves, and other arithmetic (float64, no library).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy import ndarray as Array

# CIE xy of red, green, blue and white.
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
PRIMARIES = {
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65),
    "display_p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    "adobe_rgb": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65),
    "prophoto": ((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105), D50),
    "rec2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
}
GAMMA = {"srgb": None, "display_p3": None, "adobe_rgb": 563 / 256, "prophoto": 1.8, "rec2020": 2.4}
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of ICC's parametric curve of type 3


def to_light(values: Array, gamma: float | None) -> Array:
    """Return linear light of values in [0, 1]; gamma None is sRGB's curve."""
    if gamma:
        return values**gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_values(light: Array, gamma: float | None) -> Array:
    """Return the values of linear light in [0, 1]."""
    light = light.clip(0, 1)
    if gamma:
        return light ** (1 / gamma)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def make_matrix(space: str) -> Array:
    """Return the (3, 3) matrix from linear light to XYZ under D50."""
    points = np.array([(x / y, 1, (1 - x - y) / y) for x, y in PRIMARIES[space]]).T
    white = points[:, 3]
    matrix = points[:, :3] * np.linalg.solve(points[:, :3], white)
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (cones @ np.array([0.9642, 1, 0.8249])) / (cones @ white)
    return np.linalg.inv(cones) @ np.diag(scale) @ cones @ matrix


def encode(srgb: Array, space: str) -> Array:
    """Return a picture in sRGB, (H, W, 3) uint8, in the numbers of another space."""
    light = to_light(srgb / 255, None) @ make_matrix("srgb").T @ np.linalg.inv(make_matrix(space)).T
    return (to_values(light, GAMMA[space]) * 255).round().astype(np.uint8)


def pack(space: bytes, kind: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """Return a profile with these tags."""
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = (
        struct.pack(">I", start + len(body)) + b"\0" * 4 + b"\x04\x20\0\0" + kind + space + pcs + b"\0" * 12
    )
    head += b"acsp" + b"\0" * 28 + pack_xyz((0.9642, 1, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + body


def pack_xyz(values) -> bytes:
    """Return an XYZ tag."""
    return b"XYZ " + b"\0" * 4 + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def pack_curve(gamma: float | None) -> bytes:
    """Return a parametric curve."""
    kind, numbers = (0, (gamma,)) if gamma else (3, SRGB_CURVE)
    return (
        b"para"
        + struct.pack(">IHH", 0, kind, 0)
        + b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)
    )


def make_rgb_profile(space: str) -> bytes:
    """Return a matrix profile."""
    red, green, blue = make_matrix(space).T
    curve = pack_curve(GAMMA[space])
    tags = {b"wtpt": pack_xyz((0.9642, 1, 0.8249)), b"rXYZ": pack_xyz(red), b"gXYZ": pack_xyz(green)}
    tags |= {b"bXYZ": pack_xyz(blue), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    return pack(b"RGB ", b"mntr", tags)


def make_grey_profile(gamma: float | None) -> bytes:
    """Return a profile of grey."""
    return pack(b"GRAY", b"mntr", {b"wtpt": pack_xyz((0.9642, 1, 0.8249)), b"kTRC": pack_curve(gamma)})


def make_table_profile(space: bytes, channels: int, to_lab, points: int = 17) -> bytes:
    """Return a profile that is a table, as printers and scanners have them.

    Args:
        space: b"CMYK" or b"RGB ".
        channels: 4 or 3.
        to_lab: maps (N, channels) in [0, 1] to CIE Lab, (N, 3).
        points: of the table, along each channel.
    """
    axes = np.meshgrid(*[np.linspace(0, 1, points)] * channels, indexing="ij")
    lab = to_lab(np.stack(axes, -1).reshape(-1, channels))
    numbers = np.stack([lab[:, 0] / 100 * 65280, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], 1)
    table = numbers.round().clip(0, 65535).astype(">u2").tobytes()
    identity = struct.pack(">9i", *(65536 * part for part in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramp = struct.pack(">HH", 0, 65535)
    tag = (
        b"mft2"
        + b"\0" * 4
        + struct.pack(">BBBB", channels, 3, points, 0)
        + identity
        + struct.pack(">HH", 2, 2)
    )
    tag += ramp * channels + table + ramp * 3
    tags = {b"wtpt": pack_xyz((0.9642, 1, 0.8249)), b"A2B0": tag}
    return pack(space, b"prtr", tags, b"Lab ").replace(b"\x04\x20\0\0prtr", b"\x02\x40\0\0prtr", 1)


def srgb_to_lab(srgb: Array) -> Array:
    """Return CIE Lab under D50 of sRGB in [0, 1], (N, 3)."""
    xyz = to_light(srgb, None) @ make_matrix("srgb").T / np.array([0.9642, 1, 0.8249])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def add_chunks(path: Path, chunks: dict[bytes, bytes]) -> Path:
    """Write chunks into a PNG, behind its head; return its path."""
    data = path.read_bytes()
    more = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks.items()
    )
    path.write_bytes(data[:33] + more + data[33:])
    return path
