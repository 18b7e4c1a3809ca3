"""The one reader of pictures, for training, preparing and applying; the one lister of a folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from tinybeauty.errors import UserError, one_line, readable

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MAX_PIXELS = 2**26  # of a file; a phone's 48 million pass, a decompression bomb does not


def list_images(folder: Path) -> dict[str, Path]:
    """Return {stem: path} of the images in a folder, sorted by stem; other and hidden files are passed over.

    A stem is the readable one of the file's name: with it files pair up, whoever has written them.

    Raises:
        UserError: the folder cannot be listed, or two images share a stem.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from None
    images: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("."):
            continue
        stem = readable(path.stem)
        if stem in images:
            raise UserError(
                f"{folder} has two images of one name: {images[stem].name} and {path.name}; rename one"
            )
        images[stem] = path
    return images


def open_image(file: Path | io.BytesIO, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Return an image upright (EXIF), in one mode, at its own size.

    Transparent pixels are laid over white, 16-bit grey is scaled to 8 bits, of an animation the first
    picture is taken.

    Raises:
        ValueError: the file is broken, no image, or has more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
                image = Image.fromarray(grey)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return image.convert(mode)
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise ValueError(one_line(error)) from None


def read_image(path: Path, mode: Literal["RGB", "L"], image_size: int) -> np.ndarray:
    """Return an image as `open_image` does, resized.

    Returns:
        uint8, (image_size, image_size, 3) for RGB, (image_size, image_size, 1) for L.

    Raises:
        UserError: the file is missing, broken, no image, or too large.
    """
    try:
        image = open_image(path, mode)
    except ValueError as error:
        raise UserError(f"{path} ({error})") from None
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.array(image).reshape(image_size, image_size, -1)
