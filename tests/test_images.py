"""One reader for every kind of image, also broken, huge and animated ones; one lister of a folder."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from tinybeauty.errors import UserError
from tinybeauty.formats import SIGNATURE, make_chunk
from tinybeauty.images import list_images, open_image, read_image

# --- listing ----------------------------------------------------------------------------------------


def find_error(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_images(folder)
    return str(caught.value)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    for name in ("b.PNG", "a.webp", "._a.png", ".DS_Store", "Thumbs.db", "notes.txt", "a.txt", "png"):
        (tmp_path / name).touch()
    images = list_images(tmp_path)
    assert images == {"a": tmp_path / "a.webp", "b": tmp_path / "b.PNG"}
    assert list(images) == ["a", "b"]


def test_two_images_of_one_stem_are_named(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    message = find_error(tmp_path)
    assert str(tmp_path) in message
    assert "a.jpg" in message
    assert "a.png" in message


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        assert f"cannot list {folder}: " in find_error(folder)


# --- reading ----------------------------------------------------------------------------------------

UPRIGHT = np.zeros((16, 16, 3), np.uint8)
UPRIGHT[:8, :8], UPRIGHT[:8, 8:], UPRIGHT[8:, :8] = (250, 10, 20), (30, 240, 50), (60, 70, 230)

STORED = {  # how a camera that was held in another way stores the upright picture
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: np.rot90(UPRIGHT, 2),
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    options = {".png": {}, ".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}[suffix]
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, exif=exif, **options)
    pixels = read_image(path, "RGB", 16).astype(int)
    assert np.abs(pixels - UPRIGHT).max() <= (8 if suffix == ".jpg" else 0)


def make_palette() -> Image.Image:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.paste(0, (0, 0, 16, 8))
    image.info["transparency"] = 0
    return image


GREY16 = np.full((16, 16), 0x8040, np.uint16)
MODES = {  # mode: image, suffix, expected upper pixel, expected lower pixel
    "RGB": (Image.new("RGB", (16, 16), (1, 2, 3)), ".png", (1, 2, 3), (1, 2, 3)),
    "RGBA": (Image.new("RGBA", (16, 16), (200, 100, 0, 51)), ".png", (244, 224, 204), (244, 224, 204)),
    "clear": (Image.new("RGBA", (16, 16), (9, 9, 9, 0)), ".webp", (255,) * 3, (255,) * 3),
    "P": (make_palette(), ".png", (255,) * 3, (200, 100, 50)),
    "L": (Image.new("L", (16, 16), 77), ".png", (77,) * 3, (77,) * 3),
    "LA": (Image.new("LA", (16, 16), (55, 51)), ".png", (215,) * 3, (215,) * 3),
    "CMYK": (Image.new("CMYK", (16, 16), (0, 255, 0, 0)), ".jpg", (255, 0, 255), (255, 0, 255)),
    "I;16": (Image.fromarray(GREY16), ".png", (128,) * 3, (128,) * 3),
    "1": (Image.new("1", (16, 16), 1), ".png", (255,) * 3, (255,) * 3),
    "bmp": (Image.new("RGB", (16, 16), (1, 2, 3)), ".bmp", (1, 2, 3), (1, 2, 3)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode):
    image, suffix, upper, lower = MODES[mode]
    image.save(tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    pixels = read_image(tmp_path / f"a{suffix}", "RGB", 16)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    assert np.abs(pixels[2, 5].astype(int) - upper).max() <= 2
    assert np.abs(pixels[13, 5].astype(int) - lower).max() <= 2


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
def test_masks_are_read_as_grey(tmp_path, mode):
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 16, 8))
    image.convert(mode).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", "L", 16)
    assert pixels.shape == (16, 16, 1)
    assert pixels[:8].min() == 255
    assert pixels[8:].max() == 0


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (8, 8), (40, 20)])
def test_other_sizes_are_resized(tmp_path, size):
    image = Image.fromarray(UPRIGHT).resize(size, Image.Resampling.NEAREST)
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", "RGB", 32)
    assert pixels.shape == (32, 32, 3)
    for row, column in ((5, 5), (5, 26), (26, 5), (26, 26)):
        assert np.abs(pixels[row, column].astype(int) - UPRIGHT[row // 2, column // 2]).max() <= 20


# --- what is no image, or too much of one ----------------------------------------------------------


def make_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 30_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_unread(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(make_png(side, side))
    with pytest.raises(UserError, match=r"bomb\.png") as caught:
        read_image(tmp_path / "bomb.png", "RGB", 32)
    assert "pixels" in str(caught.value) or "size" in str(caught.value)


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    for suffix in ("png", "webp"):
        path = tmp_path / f"moving.{suffix}"
        pictures[0].save(path, save_all=True, append_images=pictures[1:], lossless=True)
        assert (read_image(path, "RGB", 8) == np.array([255, 0, 0])).all()


@pytest.mark.parametrize("content", [b"", b"hello", make_png(40, 40)], ids=["empty", "text", "cut"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "face.png").write_bytes(content)
    with pytest.raises(UserError, match=r"face\.png"):
        read_image(tmp_path / "face.png", "RGB", 32)


@pytest.mark.parametrize(("bits", "kind"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_colour_that_is_transparent_is_so_at_every_depth(tmp_path, bits, kind):
    """Two rows of one level, of which that of the second one is transparent."""
    channels = 3 if kind == 2 else 1
    levels = (0, 2 ** (bits - 1))
    rows = [int(f"{level:0{bits}b}" * 8 * channels, 2).to_bytes(bits * channels, "big") for level in levels]
    head = struct.pack(">IIBBBBB", 8, 2, bits, kind, 0, 0, 0)
    chunks = [make_chunk(b"IHDR", head), make_chunk(b"tRNS", struct.pack(">H", levels[1]) * channels)]
    chunks += [make_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))]
    (tmp_path / "a.png").write_bytes(b"".join((SIGNATURE, *chunks, make_chunk(b"IEND", b""))))
    assert np.asarray(open_image(tmp_path / "a.png"))[:, 0].tolist() == [[0] * 3, [255] * 3]
    assert np.asarray(open_image(tmp_path / "a.png", "L")).max() == 0


SHORT_OF_MEMORY = """\
import resource, sys
from pathlib import Path
from tinybeauty.errors import LeftOut
from tinybeauty.images import read_image
from tinybeauty.photos import open_photo

pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 50_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
path = Path(sys.argv[1])
for read in (lambda: read_image(path, "RGB", 64), lambda: open_photo(path)):
    try:
        read()
    except MemoryError:
        print("too little")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_too_little_memory_is_no_fault_of_the_file(tmp_path):
    Image.new("RGB", (6000, 6000), "pink").save(tmp_path / "big.png")
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "big.png")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("too little\ntoo little\n", "")
