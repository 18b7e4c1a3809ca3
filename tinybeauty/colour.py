"""What the numbers in a picture mean: a face is other numbers in Display P3; all are brought to sRGB."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from tinybeauty.formats import find_chunk

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode: the colour space of a profile that fits it
KINDS = {
    "mntr",
    "scnr",
    "prtr",
    "spac",
}  # of profiles that belong to pictures: screen, scanner, printer, space
RELATIVE = 1  # relative colorimetric: white stays white
D50 = np.array((0.9642, 1.0, 0.8249))  # the white of all profiles, XYZ
BRADFORD = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)))
# CIE xy of white, red, green and blue, in the order of a PNG's cHRM.
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
# Codes of primaries and of curves, a power each, None for sRGB's; BT.709's curves are read as sRGB's.
# Source: ITU-T H.273, tables 2 and 3.
PRIMARIES = {
    1: SRGB,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
CURVES = {1: None, 4: 2.2, 5: 2.8, 6: None, 8: 1.0, 13: None, 14: None, 15: None}
HDR = (16, 18)
# EXIF: its own part, whose ColorSpace is 65535 where it is not sRGB, and the part that says more then.
EXIF, COLOUR_SPACE, UNCALIBRATED, INTEROPERABILITY, INDEX = 0x8769, 0xA001, 0xFFFF, 0xA005, 1


def to_srgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB in sRGB.

    What its numbers mean stands in the embedded profile or, without one, in a few numbers of a PNG or a
    camera; a picture that says nothing is in sRGB. A profile that is broken, or of another kind of
    picture (of grey in a coloured one), counts as none.

    Args:
        image: L, RGB or CMYK, with the `info` of its file.
    """
    profile, mode = find_profile(image), image.mode
    if mode == "L" and profile is not image.info.get("icc_profile"):  # it is of colours
        image, mode = image.convert("RGB"), "RGB"
    transform = find_transform(bytes(profile), mode) if profile else None
    if transform:
        return ImageCms.applyTransform(image, transform)
    return image if mode == "RGB" else image.convert("RGB")


@lru_cache(
    maxsize=16
)  # the pictures of a data set mostly share theirs, and to make one takes as long as to use it
def find_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what brings pictures of a mode from a profile to sRGB; None where there is nothing to do."""
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        about = embedded.profile
        if about.xcolor_space.strip() != SPACES.get(mode) or about.device_class not in KINDS:
            return None
        intent = min(about.rendering_intent, RELATIVE)  # the others colour white, or are for charts
        transform = ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
        if mode == "CMYK":
            return transform
        # A grid of colours shows what it does: nothing, or that its profile was overwritten with zeros.
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(9, -1, 3)
        grid = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        change = np.asarray(ImageCms.applyTransform(grid, transform)).astype(int) - grid.convert("RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return transform if change.max() > 1 or change.min() < -1 else None


def note_codes(image: Image.Image) -> None:
    """Put the codes of a PNG's or AVIF's colours, which Pillow passes over, into its info as `cicp`.

    Args:
        image: opened and not yet loaded.

    Raises:
        ValueError: they are those of HDR.

    Source: PNG (Third Edition), 11.3.2.6; ISO/IEC 14496-12, 12.1.5.
    """
    codes = b""
    if image.format == "PNG":
        codes = find_chunk(image.fp, b"cICP")[:2]
    elif image.format == "AVIF" and "icc_profile" not in image.info:
        image.fp.seek(0)
        _, _, found = image.fp.read().partition(b"colrnclx")
        codes = found[1:4:2]  # of 16 bits each
    primaries, curve = codes if len(codes) == 2 else (0, 0)
    if curve in HDR:
        raise ValueError("its colours are HDR (PQ or HLG), which are not supported; save it as sRGB")
    if primaries in PRIMARIES and curve in CURVES:
        image.info["cicp"] = (primaries, curve)


def find_profile(image: Image.Image) -> bytes | None:
    """Return the ICC profile of a picture's colours, embedded or made from what it says else; None: sRGB."""
    if "cicp" in image.info:
        primaries, curve = image.info["cicp"]
        places, power = PRIMARIES[primaries], CURVES[curve]
        return None if places == SRGB and power is None else make_profile(places, power)
    return image.info.get("icc_profile") or describe_colours(image)


def describe_colours(image: Image.Image) -> bytes | None:
    """Return a profile made from what the file says without one; None where that is nothing, or sRGB.

    Source: PNG (Third Edition), 11.3.2, gAMA, cHRM and sRGB; DCF 2.0, where "R03" is Adobe RGB.
    """
    info = image.info
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        gamma, places = info.get("gamma", 1 / 2.2), info.get("chromaticity", SRGB)
        if abs(gamma - 1 / 2.2) < 0.01 and np.allclose(places, SRGB, atol=0.005):
            return None  # many programs write 1 / 2.2 into their sRGB, for want of a curve
        try:
            with np.errstate(all="raise"):
                return make_profile(places, 1 / gamma)
        except (ArithmeticError, ValueError, struct.error):  # numbers that are no colours
            return None
    if "exif" in info:
        with suppress(Exception):  # damaged EXIF makes Pillow raise nearly anything
            exif = image.getexif()
            if exif.get_ifd(EXIF).get(COLOUR_SPACE) == UNCALIBRATED:
                index = str(exif.get_ifd(INTEROPERABILITY).get(INDEX))
                return make_profile(ADOBE_RGB, 563 / 256) if index.startswith("R03") else None
    return None


def make_profile(places: tuple[float, ...], gamma: float | None) -> bytes:
    """Return an ICC profile of three primaries and a curve.

    Args:
        places: CIE xy of white, red, green and blue.
        gamma: light is the number to this power; None has sRGB's curve.

    Source: ICC.1:2022, 10.18; IEC 61966-2-1; Lindbloom, "RGB/XYZ Matrices" and "Chromatic Adaptation".
    """
    x, y = np.array(places).reshape(4, 2).T
    white, *_ = xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y], 1)
    primaries = xyz[1:].T * np.linalg.solve(xyz[1:].T, white)  # columns that add up to white
    adapt = np.linalg.solve(BRADFORD, np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD)
    if gamma is None:
        numbers = (round(number * 65536) for number in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
        curve = struct.pack(">4sIHH5i", b"para", 0, 3, 0, *numbers)
    else:
        curve = struct.pack(">4sIIHH", b"curv", 0, 1, round(gamma * 256), 0)
    tags = {b"wtpt": D50} | dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), (adapt @ primaries).T, strict=True))
    tags = {
        name: struct.pack(">4sI3i", b"XYZ ", 0, *(round(part * 65536) for part in value))
        for name, value in tags.items()
    } | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags |= {b"desc": make_text("TinyBeauty"), b"cprt": make_text("None")}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    light = struct.pack(">3i", *(round(part * 65536) for part in D50))
    return (head.ljust(68, b"\0") + light).ljust(128, b"\0") + table + body


def make_text(words: str) -> bytes:
    """Return the tag of a profile that holds a text of an even number of letters."""
    return struct.pack(">4s4xII4sII", b"mluc", 1, 12, b"enUS", 2 * len(words), 28) + words.encode("utf-16-be")
