"""The one reader of pictures to learn from; the one lister of a folder. photos.py reads those to edit."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from tinybeauty.colour import note_codes, to_srgb
from tinybeauty.errors import UserError, list_some, one_line, readable
from tinybeauty.formats import find_chunk

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
# fmt: off
UNREAD = {  # pictures of other kinds, which `list_images` passes over
    ".heic", ".heif", ".avif", ".tif", ".tiff", ".gif", ".jfif", ".jp2", ".jxl", ".psd", ".svg", ".tga",
    ".ppm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".raw", ".exr", ".eps", ".pdf", ".npy",
}
# fmt: on
IMAGE_KINDS = ("PNG", "JPEG", "WEBP", "BMP")  # Pillow's other decoders stay shut: some start other programs
READER = 3  # count up when the same file is read as other pixels: what was decoded before is then made anew
ORIENTATION = 0x0112  # EXIF's
# What the names of variants end with: of anna, anna~v2 and anna~v3 (phones name edits anna~2).
VARIANT = re.compile(r"(.+)~v\d+")
MAX_PIXELS = 2**26  # of a file; a phone's 48 million pass, a decompression bomb does not


def list_images(folder: Path, problems: list[str] | None = None) -> dict[str, Path]:
    """Return {stem: path} of the images in a folder, sorted by stem; other and hidden files are passed over.

    A stem is the readable one of the file's name: with it files pair up, whoever has written them.

    Args:
        folder: which.
        problems: where to put what is wrong with it, for a message that says more; of images that share a
            stem the first one is taken then.

    Raises:
        UserError: the folder cannot be listed, or images share a stem.
    """
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from None
    images: dict[str, Path] = {}
    twins = []
    for path in sorted(paths, key=lambda path: path.name):  # to compare paths takes ten times as long
        if path.name.startswith("."):
            continue
        stem = readable(path.stem)
        if stem in images:
            twins.append(f"{images[stem].name} and {path.name}")
        images.setdefault(stem, path)
    if twins:
        problem = f"{folder} has two images of one name: {list_some(twins)}; rename one"
        if problems is None:
            raise UserError(problem)
        problems.append(problem)
    return images


def find_unread(folder: Path) -> list[Path]:
    """Return the pictures in a folder that `list_images` passes over for their kind, sorted by name."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in UNREAD]
    return sorted(path for path in paths if not path.name.startswith("."))


def describe_reader() -> str:
    """Return what the pixels of a picture depend on besides its file: this reader and its libraries."""
    libraries = ("pil", "libjpeg_turbo", "jpg", "webp", "littlecms2")
    return ", ".join([f"reader {READER}", *(f"{name} {features.version(name)}" for name in libraries)])


def open_image(file: Path | io.BytesIO, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Return an image upright (EXIF), in one mode, at its own size, with nothing of its file's `info`.

    16-bit grey is scaled to 8 bits, of an animation the first picture is taken. What the file is called
    does not count, what is inside must be one of IMAGE_KINDS.

    Args:
        file: where it is.
        mode: RGB for a picture: in sRGB, transparency laid over white. L for a mask, whose numbers are no
            colours: the profile does not count, and transparency lies over black, as nobody painted there.

    Raises:
        ValueError: the file is broken, no image, has more than MAX_PIXELS pixels, or HDR colours.
    """
    try:
        with Image.open(file, formats=IMAGE_KINDS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if mode == "RGB":
                note_codes(image)
            scale_transparency(image)
            image.load()
            if image.getexif().get(ORIENTATION, 1) != 1:  # else it copies, a tenth of the decoding
                image = ImageOps.exif_transpose(image)
            image, alpha = split_alpha(image)
        if mode == "RGB":
            image = to_srgb(image)
        elif image.mode != "L":
            image = image.convert("RGB").convert("L")
        if alpha:
            under = Image.new(mode, image.size, "white" if mode == "RGB" else "black")
            image = Image.composite(image, under, alpha)
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify image file, it is no {' '.join(IMAGE_KINDS)}") from None
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise ValueError(one_line(error)) from None
    image.info = {}  # or its profile would be written into what is made of it
    return image


def scale_transparency(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG to the 8 bits that Pillow brings its pixels to.

    Args:
        image: opened and not yet loaded.
    """
    if image.format != "PNG" or "transparency" not in image.info:
        return
    bits, kind = find_chunk(image.fp, b"IHDR")[8:10]
    colour = image.info["transparency"]
    if kind == 0 and bits in (2, 4):
        image.info["transparency"] = colour * 255 // (2**bits - 1)
    elif kind == 2 and bits == 16:
        image.info["transparency"] = tuple(part >> 8 for part in colour)


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return an image as 8-bit L, RGB or CMYK, and how opaque it is, L; None where all of it is."""
    info, alpha = image.info, None
    if image.mode.startswith("I"):  # 16-bit grey, in which one value may stand for transparent
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        if "transparency" in info:
            alpha = Image.fromarray(np.where(values == info["transparency"], 0, 255).astype(np.uint8))
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else rgba.convert("RGB")
    elif image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.info = info
    return image, alpha


def read_image(path: Path, mode: Literal["RGB", "L"], image_size: int) -> np.ndarray:
    """Return an image as `open_image` does, resized.

    Returns:
        uint8, (image_size, image_size, 3) for RGB, (image_size, image_size, 1) for L.

    Raises:
        UserError: the file is missing, broken, no image, or too large.
    """
    image, _ = read_resized(path, mode, image_size)
    return np.array(image).reshape(image_size, image_size, -1)


def read_resized(
    path: Path, mode: Literal["RGB", "L"], image_size: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image as `read_image` does, but as an image, and its width and height before.

    Raises:
        UserError: as `read_image`.
    """
    try:
        image = open_image(path, mode)
    except ValueError as error:
        raise UserError(f"{path} ({error})") from None
    size = (image_size, image_size)
    return (image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)), image.size
