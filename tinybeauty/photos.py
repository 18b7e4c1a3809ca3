"""A photo that is edited: read as it is stored, and written in its own format with all that came with it.

EXIF, colour profile, XMP, IPTC and comments go over byte for byte; a JPEG keeps its quantisation tables and
its colour subsampling, so that what was not painted on is decoded as before, but for rounding.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from tinybeauty.blending import add_levels, find_box, lay_residual
from tinybeauty.colour import RELATIVE, find_profile, find_transform, note_codes
from tinybeauty.errors import LeftOut, UserError, one_line
from tinybeauty.formats import (
    BITS,
    ORIENTATION,
    SIGNATURE,
    describe_tiff,
    is_deep,
    is_deep_avif,
    is_lossless_webp,
    list_chunks,
    read_deep,
    replace_segments,
    write_deep,
)
from tinybeauty.images import IMAGE_SUFFIXES, MAX_PIXELS

Array = np.ndarray
MAX_SIDES = {"WEBP": 16_383, "JPEG": 65_500}  # pixels; RFC 9649, 2.7; libjpeg's JPEG_MAX_DIMENSION
HEIF_SUFFIXES = {".heic", ".heif"}  # read where Pillow's plugin is installed, written as JPEG
PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".tif", ".tiff", ".avif"} | HEIF_SUFFIXES
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF")
# From stored pixels to upright ones, in widths and heights: x, y -> matrix @ (x, y) + shift.
# Source: EXIF 2.32, tag 0x0112.
TURNS = {
    1: ((1, 0), (0, 1), (0, 0)), 2: ((-1, 0), (0, 1), (1, 0)), 3: ((-1, 0), (0, -1), (1, 1)),
    4: ((1, 0), (0, -1), (0, 1)), 5: ((0, 1), (1, 0), (0, 0)), 6: ((0, -1), (1, 0), (1, 0)),
    7: ((0, -1), (-1, 0), (1, 1)), 8: ((0, 1), (-1, 0), (0, 1)),
}  # fmt: skip


# ======================================================================================================
# Colours
# ======================================================================================================


@dataclass(frozen=True)
class Colours:
    """What a photo's numbers mean.

    Attributes:
        mode: Pillow's mode of the colours: RGB or CMYK.
        there: to sRGB, by the photo's colour profile; None: it is in sRGB, or plain CMYK.
        back: from sRGB.
    """

    mode: str
    there: ImageCms.ImageCmsTransform | None = None
    back: ImageCms.ImageCmsTransform | None = None

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Return an image of the photo's colours in sRGB."""
        return ImageCms.applyTransform(image, self.there) if self.there else image.convert("RGB")

    def from_srgb(self, image: Image.Image) -> Image.Image:
        """Return an image in sRGB in the photo's colours."""
        return ImageCms.applyTransform(image, self.back) if self.back else image.convert(self.mode)

    def add(self, pixels: Array, residual: Array) -> Array:
        """Return pixels (H, W, C) of a photo with a residual (H, W, 3) of sRGB levels on them.

        What the photo has beyond sRGB stays: only the difference goes through the profile.
        """
        channels = len(self.mode)
        colours = pixels[..., :channels]
        if self.mode == "RGB" and not self.there:
            changed = add_levels(colours, residual)
        else:
            step = (
                257 if pixels.dtype == np.uint16 else 1
            )  # in levels: the profiles' programs know 8 bits only
            before = self.to_srgb(Image.fromarray((colours // step).astype(np.uint8), self.mode))
            after = Image.fromarray(add_levels(np.asarray(before), residual))
            change = np.asarray(self.from_srgb(after), np.int32) - np.asarray(self.from_srgb(before))
            changed = (colours + step * change).clip(0, 255 * step).astype(pixels.dtype)
        return np.concatenate((changed, pixels[..., channels:]), axis=2)


def find_colours(image: Image.Image) -> Colours:
    """Return what the numbers of an RGB, RGBA or CMYK image mean."""
    mode = "CMYK" if image.mode == "CMYK" else "RGB"
    profile = find_profile(image)
    there = find_transform(bytes(profile), mode) if profile else None
    if there is None:
        return Colours(mode)
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        back = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), own, "RGB", mode, RELATIVE)
        return Colours(mode, there, back)
    except (ImageCms.PyCMSError, OSError):  # a scanner's profile knows one way only
        return Colours(mode)


# ======================================================================================================
# Reading
# ======================================================================================================


@dataclass
class Photo:
    """A photo as it is stored.

    Attributes:
        image: its pixels, RGB, RGBA or CMYK, not turned upright.
        format: Pillow's name of the format it is written in.
        data: bytes of the file.
        options: how Pillow is to write it.
        deep: (H, W, 3 or 4) uint16, its pixels where it has 16 bits a colour.
    """

    image: Image.Image
    format: str
    data: bytes
    options: dict[str, Any] = field(default_factory=dict)
    deep: Array | None = None

    @cached_property
    def orientation(self) -> int:
        """EXIF's, 1 to 8."""
        try:
            return int(self.image.getexif().get(ORIENTATION, 1))
        except Exception:  # EXIF that is damaged makes Pillow raise nearly anything; it is kept as it is
            return 1

    @cached_property
    def colours(self) -> Colours:
        """What its numbers mean."""
        return find_colours(self.image)

    def to_upright(self) -> Image.Image:
        """Return it upright, RGB, transparent pixels over white, in its own colours."""
        image = self.image
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return turn_upright(image, self.orientation)

    def to_srgb(self, picture: Image.Image) -> Image.Image:
        """Return an upright part of the photo in sRGB."""
        return self.colours.to_srgb(picture) if self.colours.mode == "RGB" else picture

    def way_upright(self) -> Array:
        """Return the matrix (2, 3) from stored pixels to upright ones."""
        first, second, shift = TURNS.get(self.orientation, TURNS[1])
        width, height = self.image.size
        size = (height, width) if self.orientation in (5, 6, 7, 8) else (width, height)
        return np.c_[np.array((first, second), np.float64), np.multiply(shift, size)]

    def lay_residual(self, residual: Array, way: Array) -> None:
        """Lay a face's residual onto the pixels, in place.

        Args:
            residual: (SIDE, SIDE, 3) in levels of 255.
            way: (2, 3) from upright pixels to the aligned face's.
        """
        turn = self.way_upright()
        way = np.c_[way[:, :2] @ turn[:, :2], way[:, :2] @ turn[:, 2] + way[:, 2]]
        if box := find_box(way, self.image.size):
            moved = np.c_[way[:, :2], way[:, :2] @ box[:2] + way[:, 2]]
            if self.deep is None:
                pixels = np.array(self.image.crop(box))
                lay_residual(pixels, residual, moved, self.colours.add)
            else:
                left, top, right, bottom = box
                lay_residual(self.deep[top:bottom, left:right], residual, moved, self.colours.add)
                pixels = (self.deep[top:bottom, left:right] >> 8).astype(np.uint8)
            self.image.paste(Image.fromarray(pixels, self.image.mode), box)

    def encode(self) -> bytes:
        """Return the bytes of its file with the pixels as they are now."""
        image = self.image
        if self.format == "JPEG":
            return write_jpeg(image, self)
        if self.format == "PNG":
            return write_png(image, self)
        if self.format == "TIFF":  # a copy, as Pillow mixes the tags of what it has read into what it writes
            image = image.copy()
        return save(image, self.format, self.options)


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image turned as EXIF's orientation says."""
    kinds = Image.Transpose
    turns = {2: kinds.FLIP_LEFT_RIGHT, 3: kinds.ROTATE_180, 4: kinds.FLIP_TOP_BOTTOM, 5: kinds.TRANSPOSE,
             6: kinds.ROTATE_270, 7: kinds.TRANSVERSE, 8: kinds.ROTATE_90}  # fmt: skip
    return image.transpose(turns[orientation]) if orientation in turns else image


def register_heif() -> bool:
    """Let Pillow read HEIC; return whether its plugin is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def open_photo(path: Path) -> Photo:
    """Return a photo as it is stored; a palette becomes colours.

    Raises:
        LeftOut: it cannot be read, or makeup cannot be put on this kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LeftOut(f"cannot be read: {error.strerror}") from None
    if not data:
        raise LeftOut("an empty file")
    is_heif = path.suffix.lower() in HEIF_SUFFIXES or data[4:10] == b"ftyphe"  # some are called .jpg
    if is_heif and not register_heif():
        raise LeftOut("HEIC needs Pillow's plugin: pip install pillow-heif")
    try:
        Image.init()  # Pillow's other decoders stay shut: some start other programs
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "HEIF"):
            raise ValueError("an animation, or a file of several pictures")
        note_codes(image)
        image.load()
        return to_photo(image, data)
    except (LeftOut, UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise LeftOut("neither a photo nor a video that can be read") from None
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise LeftOut(one_line(error)) from None


def to_photo(image: Image.Image, data: bytes) -> Photo:
    """Return a loaded image as a photo.

    Raises:
        LeftOut: makeup cannot be put on this kind.
    """
    if image.format not in FORMATS:
        raise LeftOut(f"{image.format} files are not supported; save it as PNG")
    stored = image
    if image.mode in ("P", "PA"):
        image = turn_palette(image)
    check_mode(image)
    check_loss(stored, data)
    format = {"MPO": "JPEG", "HEIF": "JPEG"}.get(image.format, image.format)
    info = image.info
    options = {key: info[key] for key in ("exif", "icc_profile", "xmp", "dpi") if info.get(key)}
    if image.format == "HEIF":
        image = image.convert("RGB")
        options |= {"quality": 95}
    elif format == "WEBP":
        lossless = is_lossless_webp(data)
        options |= {"lossless": True, "exact": True} if lossless else {"quality": 95, "alpha_quality": 100}
    elif format == "AVIF":
        options |= {"quality": 90, "icc_profile": find_profile(image)}  # Pillow writes no codes
    elif format == "TIFF":
        about, has_parts = describe_tiff(stored)
        # Pillow writes the parts of EXIF, such as the place, into files without compression only.
        compression = "raw" if has_parts else info.get("compression", "raw")
        options |= {"exif": about.tobytes(), "compression": compression}
        options.pop("xmp", None)  # one of the tags
        if options["compression"] == "jpeg":
            options |= {"quality": 95}
    return Photo(image, format, data, options, read_deep(data) if is_deep(data) else None)


def check_mode(image: Image.Image) -> None:
    """Refuse an image that is not RGB, RGBA or CMYK.

    Raises:
        LeftOut: it is another kind.
    """
    if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")):
        raise LeftOut("a grey photo: makeup needs colours")
    if image.mode not in ("RGB", "RGBA", "CMYK"):
        raise LeftOut(f"pictures of kind {image.mode} are not supported; convert it to RGB")


def check_loss(image: Image.Image, data: bytes) -> None:
    """Refuse an image of which Pillow cannot read or write all.

    Raises:
        LeftOut: something of it would be lost.
    """
    if image.format == "TIFF" and max(image.tag_v2.get(BITS, (8,))) > 8:
        raise LeftOut("TIFF files of 16 bits a colour are not supported; save it as a PNG of 16 bits")
    if image.format == "AVIF" and is_deep_avif(data):
        raise LeftOut("AVIF files of over 8 bits a colour are not supported; save it as a PNG of 16 bits")
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema()[0] < 255:
        raise LeftOut("BMP files with transparency are not supported; save it as PNG")


def turn_palette(image: Image.Image) -> Image.Image:
    """Return an image with a palette as RGB or RGBA; what it is keeps its format's name."""
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    colours.format = image.format
    colours.info.pop("transparency", None)
    return colours


# ======================================================================================================
# Writing
# ======================================================================================================


def save(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    """Return an image as the bytes of a file.

    Raises:
        LeftOut: Pillow cannot write it.
    """
    file = io.BytesIO()
    try:
        image.save(file, format, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, struct.error) as error:
        raise LeftOut(f"cannot be written as {format}: {one_line(error)}") from None
    return file.getvalue()


def write_jpeg(image: Image.Image, photo: Photo) -> bytes:
    """Return a JPEG with the photo's tables, subsampling and segments."""
    original = photo.image
    if not isinstance(original, JpegImagePlugin.JpegImageFile):  # HEIC
        return save(image, "JPEG", photo.options)
    sampling, info = JpegImagePlugin.get_sampling(original), original.info
    is_rgb = image.mode == "RGB" and info.get("adobe_transform") == 0 and "jfif" not in info
    options = {
        "keep_rgb": is_rgb,  # nearly all are YCbCr
        "qtables": original.quantization,
        "subsampling": sampling if sampling >= 0 else 0,
        "progressive": bool(info.get("progressive")),
    }
    return replace_segments(save(image, "JPEG", options), photo.data)


def write_png(image: Image.Image, photo: Photo) -> bytes:
    """Return a PNG with all that the photo says about itself, chunk for chunk."""
    about_pixels = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"hIST", b"sBIT", b"bKGD"}
    if photo.data[25] == 3:  # it had a palette
        about_pixels.add(b"tRNS")
    if photo.deep is None:
        # 4 takes half as long as Pillow's own 6, for a hundredth more.
        own = [chunk for kind, chunk in list_chunks(save(image, "PNG", {"compress_level": 4}))
               if kind in (b"IHDR", b"IDAT", b"IEND")]  # fmt: skip
    else:
        own = write_deep(photo.deep)
    kept = [chunk for kind, chunk in list_chunks(photo.data) if kind not in about_pixels]
    return b"".join((SIGNATURE, own[0], *kept, *own[1:]))


def write_comparison(before: Image.Image, photo: Photo) -> bytes:
    """Return a file like the photo's with `before`, upright, and the photo as it is now side by side."""
    after = turn_upright(photo.image, photo.orientation)
    width, height = before.size
    while 2 * width * height > MAX_PIXELS or 2 * width > MAX_SIDES.get(photo.format, math.inf):
        before, after = before.reduce(2), after.reduce(2)
        width, height = before.size
    both = Image.new(before.mode, (2 * width, height))
    both.paste(before, (0, 0))
    both.paste(after, (width, 0))
    options = {key: value for key, value in photo.options.items() if key not in ("exif", "xmp")}
    if both.mode != "CMYK":  # what says so is not written, or was EXIF, or is a profile that does not count
        options |= {"icc_profile": find_profile(photo.image)}
    if photo.format in ("JPEG", "WEBP", "AVIF"):
        options |= {"quality": 95}
    if photo.format == "PNG":
        options |= {"compress_level": 4}
    return save(both, photo.format, options)
