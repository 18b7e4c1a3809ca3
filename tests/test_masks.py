"""Masks are numbers, not pictures: transparency lies over black, and no profile changes them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from profiles import add_chunks, make_grey_profile, make_rgb_profile

from tinybeauty.cache import decode_pair
from tinybeauty.images import read_image
from tinybeauty.pairs import Pair

SIZE = 64
MASK = Image.new("L", (4 * SIZE, 4 * SIZE))
ImageDraw.Draw(MASK).ellipse([60, 80, 120, 110], fill=255)
ImageDraw.Draw(MASK).ellipse([140, 80, 200, 110], fill=255)
MASK = MASK.resize((SIZE, SIZE), Image.Resampling.BOX)  # with soft edges
WHITE, BLACK = Image.new("L", MASK.size, 255), Image.new("L", MASK.size)
HARD = MASK.point(lambda value: 255 * (value > 127))


def make_palette(transparent: int | None) -> Image.Image:
    """A palette of black and white, in which one of the two may be transparent."""
    image = Image.fromarray(np.asarray(HARD) // 255).convert("P")
    image.putpalette([255, 255, 255] * 2 if transparent == 0 else [0, 0, 0, 255, 255, 255])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def with_key(image: Image.Image, key) -> Image.Image:
    """One value stands for transparent, as in a PNG's tRNS."""
    image.info["transparency"] = key
    return image


SIXTEEN = np.asarray(HARD).astype(np.uint16) * 257
GREY = np.full((SIZE, SIZE, 1), 200, np.uint8)
MASKS = {  # name: the mask as a picture, suffix, what it is read as
    "white on black": (MASK, ".png", MASK),
    "white on transparent": (Image.merge("RGBA", [WHITE, WHITE, WHITE, MASK]), ".png", MASK),
    "white on transparent, WebP": (Image.merge("RGBA", [WHITE, WHITE, WHITE, MASK]), ".webp", MASK),
    "white on transparent black": (Image.merge("RGBA", [HARD, HARD, HARD, HARD]), ".png", HARD),
    "white on transparent, LA": (Image.merge("LA", [WHITE, MASK]), ".png", MASK),
    "transparent palette": (make_palette(0), ".png", HARD),
    "palette": (make_palette(None), ".png", HARD),
    "one bit": (HARD.convert("1"), ".png", HARD),
    "one bit, black is transparent": (with_key(HARD.convert("1"), 0), ".png", HARD),
    "white, black is transparent": (with_key(HARD.convert("L"), 0), ".png", HARD),
    "colours, black is transparent": (with_key(HARD.convert("RGB"), (0, 0, 0)), ".png", HARD),
    "16 bits": (Image.fromarray(SIXTEEN), ".png", HARD),
    "16 bits, black is transparent": (with_key(Image.fromarray(SIXTEEN), 0), ".png", HARD),
    "16 bits, white is transparent": (with_key(Image.fromarray(SIXTEEN), 65535), ".png", BLACK),
    "black on transparent": (Image.merge("RGBA", [BLACK, BLACK, BLACK, MASK]), ".png", BLACK),
    "transparent everywhere": (Image.merge("RGBA", [WHITE, WHITE, WHITE, BLACK]), ".png", BLACK),
    "hole in white": (Image.merge("LA", [WHITE, HARD.point(lambda value: 255 - value)]), ".png", None),
}


def save_mask(folder: Path, name: str) -> Path:
    image, suffix = MASKS[name][0].copy(), MASKS[name][1]
    path = folder / f"mask{suffix}"
    key = image.info.pop("transparency", None) if "16 bits" in name else None
    image.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    return path if key is None else add_chunks(path, {b"tRNS": struct.pack(">H", key)})


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_lies_over_black(tmp_path, name):
    expected = MASKS[name][2] or HARD.point(lambda value: 255 - value)
    read = read_image(save_mask(tmp_path, name), "L", SIZE)[:, :, 0]
    assert np.abs(read.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("profile", [make_grey_profile(1.0), make_rgb_profile("prophoto")])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_profile_does_not_change_a_mask(tmp_path, mode, profile):
    MASK.convert(mode).save(tmp_path / "mask.png", icc_profile=profile)
    assert (read_image(tmp_path / "mask.png", "L", SIZE)[:, :, 0] == np.asarray(MASK)).all()


def test_pictures_still_lie_over_white(tmp_path):
    names = ("white on transparent", "white on transparent, LA", "transparent palette")
    for name in (*names, "16 bits, black is transparent"):
        assert read_image(save_mask(tmp_path, name), "RGB", SIZE).min() == 255


def test_a_pair_is_decoded_with_its_mask_over_black(tmp_path):
    Image.fromarray(np.repeat(GREY, 3, 2)).save(tmp_path / "face.png")
    face, mask = tmp_path / "face.png", save_mask(tmp_path, "white on transparent")
    pixels = decode_pair(Pair("face", face, face, mask), SIZE)[0]
    assert abs(pixels[:, :, 6].mean() / 255 - np.asarray(MASK).mean() / 255) < 0.005
