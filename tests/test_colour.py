"""Every picture is read as sRGB, whatever its file's numbers mean; only the kinds we list are opened."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from drawn_faces import MEAN, draw_face, place, save_photo
from PIL import Image
from profiles import (
    add_chunks,
    encode,
    make_grey_profile,
    make_rgb_profile,
    make_table_profile,
    srgb_to_lab,
    to_light,
    to_values,
)

from tinybeauty.errors import UserError
from tinybeauty.images import list_images, open_image, read_image

SIZE = 128
FACE = draw_face(MEAN * SIZE / 256, (SIZE, SIZE), texture=3.0)  # colours of skin, lips, eyes and a wall
PIXELS = np.asarray(FACE)
GREY = np.asarray(FACE.convert("L"))
SAVING = {
    ".png": {},
    ".jpg": {"quality": 97, "subsampling": 0},
    ".webp": {"lossless": True, "exact": True},
}


def find_psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Return how alike two pictures of 8 bits are, in dB."""
    return -10 * np.log10(max(1e-10, np.square(image / 255 - other / 255.0).mean()))


def save(path: Path, pixels: np.ndarray, profile: bytes | None = None, **more) -> Path:
    Image.fromarray(pixels).save(path, icc_profile=profile, **SAVING.get(path.suffix, {}), **more)
    return path


def assert_alike(path: Path, expected: np.ndarray, least_db: float = 45) -> None:
    read = read_image(path, "RGB", SIZE)
    assert find_psnr(read, expected) >= least_db
    assert abs(read.mean((0, 1)) - expected.mean((0, 1))).max() < 2  # no colour in it


# --- Profiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SAVING)
@pytest.mark.parametrize("space", ["display_p3", "adobe_rgb", "prophoto", "rec2020"])
def test_colours_of_another_space_are_those_of_srgb(tmp_path, space, suffix):
    numbers = encode(PIXELS, space)
    assert find_psnr(numbers, PIXELS) < 40  # the fault was there to be seen
    path = save(tmp_path / f"a{suffix}", numbers, make_rgb_profile(space))
    # The two wide ones spread 8 bits, and a JPEG's noise, over colours that nobody has.
    wide = space in ("prophoto", "rec2020")
    assert_alike(path, PIXELS, (36 if wide else 40) if suffix == ".jpg" else 45)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("gamma", [1.8, 2.2, 1.0])
def test_grey_with_a_profile(tmp_path, gamma, suffix):
    numbers = (to_values(to_light(GREY / 255, None), gamma) * 255).round().astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", numbers, make_grey_profile(gamma))
    assert_alike(path, np.stack([GREY] * 3, 2), 40 if suffix == ".jpg" else 45)


def test_grey_of_16_bits_with_a_profile(tmp_path):
    numbers = (to_values(to_light(GREY / 255, None), 1.8) * 65535).round().astype(np.uint16)
    assert_alike(save(tmp_path / "a.png", numbers, make_grey_profile(1.8)), np.stack([GREY] * 3, 2))


def test_cmyk_with_a_profile(tmp_path):
    """A printer whose inks are sRGB's complements, and black ink that takes light."""
    profile = make_table_profile(b"CMYK", 4, lambda ink: srgb_to_lab((1 - ink[:, :3]) * (1 - ink[:, 3:])), 9)
    inks = np.concatenate([255 - PIXELS, np.zeros((SIZE, SIZE, 1), np.uint8)], 2)
    inks[:, :, :3], inks[:, :, 3] = 255 - np.minimum(255, PIXELS * 1.25).astype(np.uint8), 51
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=97, subsampling=0, icc_profile=profile)
    expected = np.minimum(255, PIXELS * 1.25) * 0.8
    assert_alike(tmp_path / "a.jpg", expected, 36)


def test_a_profile_that_is_a_table(tmp_path):
    """A scanner that swaps red and blue: nothing but the table can say so."""
    profile = make_table_profile(b"RGB ", 3, lambda rgb: srgb_to_lab(rgb[:, ::-1]), 33)
    assert_alike(save(tmp_path / "a.png", PIXELS[:, :, ::-1], profile), PIXELS, 40)


def test_alpha_is_kept_through_the_conversion(tmp_path):
    alpha = np.tile(np.linspace(0, 255, SIZE).astype(np.uint8), (SIZE, 1))[:, :, None]
    numbers = np.concatenate([encode(PIXELS, "adobe_rgb"), alpha], 2)
    expected = PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)
    for suffix in (".png", ".webp"):
        assert_alike(save(tmp_path / f"a{suffix}", numbers, make_rgb_profile("adobe_rgb")), expected)


def test_grey_with_alpha_and_a_profile(tmp_path):
    numbers = (to_values(to_light(GREY / 255, None), 1.8) * 255).round().astype(np.uint8)
    alpha = np.full_like(GREY, 255)
    alpha[:, : SIZE // 2] = 0
    image = Image.merge("LA", [Image.fromarray(numbers), Image.fromarray(alpha)])
    image.save(tmp_path / "a.png", icc_profile=make_grey_profile(1.8))
    expected = np.stack([np.where(alpha, GREY, 255)] * 3, 2)
    assert_alike(tmp_path / "a.png", expected)


def test_a_palette_with_a_profile(tmp_path):
    plain = FACE.quantize(256, dither=Image.Dither.NONE)
    expected = np.asarray(plain.convert("RGB"))
    plain.putpalette(
        [
            int(v)
            for row in encode(np.array(plain.getpalette()).reshape(1, -1, 3), "display_p3")[0]
            for v in row
        ]
    )
    plain.save(tmp_path / "a.png", icc_profile=make_rgb_profile("display_p3"))
    assert_alike(tmp_path / "a.png", expected)


def test_a_phones_mpo(tmp_path):
    """What phones write with a depth map or a second view: a JPEG with more pictures behind."""
    numbers = Image.fromarray(encode(PIXELS, "display_p3"))
    second = Image.new("RGB", (SIZE, SIZE), "red")
    numbers.save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=97,
        subsampling=0, icc_profile=make_rgb_profile("display_p3"),
    )  # fmt: skip
    assert_alike(tmp_path / "a.jpg", PIXELS, 40)


def test_it_is_turned_upright_and_converted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    numbers = np.rot90(encode(PIXELS, "display_p3"), 1)
    assert_alike(save(tmp_path / "a.png", numbers, make_rgb_profile("display_p3"), exif=exif), PIXELS)


def test_a_picture_that_says_srgb_keeps_its_very_pixels(tmp_path):
    assert (
        read_image(save(tmp_path / "a.png", PIXELS, make_rgb_profile("srgb")), "RGB", SIZE) == PIXELS
    ).all()


P3 = make_rgb_profile("display_p3")
ZEROED = P3[:132] + bytes(len(P3) - 132)
UNUSABLE = {
    "noise": b"no profile at all",
    "cut in its head": P3[:100],
    "cut in its table": P3[:150],
    "cut in its tags": P3[:300],
    "zeroed": ZEROED,
    "of grey": make_grey_profile(1.8),
    "of ink": make_table_profile(b"CMYK", 4, lambda ink: srgb_to_lab(1 - ink[:, :3]), 3),
    "a link between devices": P3.replace(b"mntr", b"link"),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_profile_that_is_broken_or_of_another_kind_counts_as_none(tmp_path, name, suffix):
    plain = read_image(save(tmp_path / f"plain{suffix}", PIXELS), "RGB", SIZE)
    assert (read_image(save(tmp_path / f"a{suffix}", PIXELS, UNUSABLE[name]), "RGB", SIZE) == plain).all()


def test_a_grey_picture_with_a_profile_of_colours_is_as_it_is(tmp_path):
    path = save(tmp_path / "a.png", GREY, make_rgb_profile("prophoto"))
    assert (read_image(path, "RGB", SIZE) == GREY[:, :, None]).all()


# --- What a file says without a profile ---------------------------------------------------------------


ADOBE_CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
SRGB_CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def test_a_png_with_a_power_and_primaries(tmp_path):
    path = save(tmp_path / "a.png", encode(PIXELS, "adobe_rgb"))
    assert_alike(add_chunks(path, {b"gAMA": struct.pack(">I", 45471), b"cHRM": ADOBE_CHRM}), PIXELS)


@pytest.mark.parametrize("pixels", [PIXELS, GREY], ids=["RGB", "L"])
def test_a_png_in_linear_light(tmp_path, pixels):
    numbers = (to_light(pixels / 255, None) * 255).round().astype(np.uint8)
    path = add_chunks(save(tmp_path / "a.png", numbers), {b"gAMA": struct.pack(">I", 100_000)})
    assert_alike(path, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, 2), 40)


@pytest.mark.parametrize(
    "chunks",
    [
        {b"gAMA": struct.pack(">I", 45455), b"cHRM": SRGB_CHRM},  # as ImageMagick writes it into sRGB
        {b"gAMA": struct.pack(">I", 100_000), b"sRGB": b"\0"},
        {b"gAMA": struct.pack(">I", 0)},
        {b"cHRM": bytes(32)},
        {b"cHRM": b"\xff" * 32},
        {b"cHRM": struct.pack(">8I", 31270, 32900, *[30000, 30000] * 3)},
    ],
    ids=["1 / 2.2", "sRGB wins", "nonsense", "no primaries", "no numbers", "no triangle"],
)
def test_a_png_that_is_srgb_keeps_its_very_pixels(tmp_path, chunks):
    path = add_chunks(save(tmp_path / "a.png", PIXELS), chunks)
    assert (read_image(path, "RGB", SIZE) == PIXELS).all()


@pytest.mark.parametrize(("codes", "space"), [((12, 13), "display_p3"), ((1, 13), "srgb"), ((1, 1), "srgb")])
def test_a_png_with_codes_is_what_they_say_whatever_its_profile(tmp_path, codes, space):
    profile = make_rgb_profile("rec2020")
    path = save(tmp_path / "a.png", encode(PIXELS, space), profile)
    assert_alike(add_chunks(path, {b"cICP": bytes((*codes, 0, 1))}), PIXELS)


def test_codes_that_are_not_known_leave_the_profile_its_say(tmp_path):
    path = save(tmp_path / "a.png", encode(PIXELS, "display_p3"), make_rgb_profile("display_p3"))
    assert_alike(add_chunks(path, {b"cICP": bytes((2, 2, 0, 1))}), PIXELS)


def test_hdr_is_said(tmp_path):
    path = add_chunks(save(tmp_path / "a.png", PIXELS), {b"cICP": bytes((9, 16, 0, 1))})
    with pytest.raises(UserError, match=r"a\.png \(its colours are HDR"):
        read_image(path, "RGB", SIZE)
    assert read_image(path, "L", SIZE).shape == (SIZE, SIZE, 1)  # a mask's numbers are no colours


@pytest.mark.parametrize(("index", "is_adobe"), [("R03", True), ("R98", False)])
def test_a_camera_that_says_adobe_rgb_in_exif_alone(tmp_path, index, is_adobe):
    # By hand, as older Pillows do not write a part of a part: where the first of three parts is; in it where
    # the second is; in that ColorSpace and where the third is; in that the index.
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8)
    exif += struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    exif += struct.pack(">HHHIHHHHIII", 2, 0xA001, 3, 1, 0xFFFF, 0, 0xA005, 4, 1, 56, 0)
    exif += struct.pack(">HHHI4sI", 1, 1, 2, 4, index.encode() + b"\0", 0)
    numbers = encode(PIXELS, "adobe_rgb")
    path = save(tmp_path / "a.jpg", numbers, exif=exif)
    assert_alike(path, PIXELS if is_adobe else numbers, 40)


# --- Kinds of files -----------------------------------------------------------------------------------

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 16 16
%%EndComments
(%s) (w) file closefile
showpage
%%EOF
"""


def save_as(kind: str) -> bytes:
    file = io.BytesIO()
    FACE.save(file, kind)
    return file.getvalue()


OTHERS = {
    "EPS": EPS,
    "PDF": save_as("PDF"),
    "TIFF": save_as("TIFF"),
    "GIF": save_as("GIF"),
    "ICO": save_as("ICO"),
    "PPM": save_as("PPM"),
    "PSD": b"8BPS\0\1" + bytes(40),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": b"I am a text",
    "nothing": b"",
}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_under_a_name_of_ours_are_not_opened(tmp_path, kind, suffix, monkeypatch):
    ran = []
    monkeypatch.setattr(
        subprocess, "check_call", lambda *arguments, **_: ran.append(arguments)
    )  # Ghostscript
    path = tmp_path / f"face{suffix}"
    path.write_bytes(OTHERS[kind].replace(b"%s", str(tmp_path / "written").encode()))
    with pytest.raises(UserError, match=rf"face\{suffix}.*cannot identify image file"):
        read_image(path, "RGB", SIZE)
    assert ran == []
    assert not (tmp_path / "written").exists()


def test_a_kind_of_ours_under_another_name_of_ours_is_opened(tmp_path):
    for kind in ("JPEG", "WEBP", "BMP"):
        (tmp_path / "a.png").write_bytes(save_as(kind))
        assert find_psnr(read_image(tmp_path / "a.png", "RGB", SIZE), PIXELS) > 30


# --- What is made of it -------------------------------------------------------------------------------


def test_nothing_of_the_file_goes_into_what_is_made_of_it(tmp_path):
    path = save(tmp_path / "a.png", encode(PIXELS, "display_p3"), P3, dpi=(72, 72))
    for mode in ("RGB", "L"):
        image = open_image(path, mode)
        assert image.info == {}
        image.save(tmp_path / "b.png")
        assert "icc_profile" not in Image.open(tmp_path / "b.png").info


def test_crops_of_photos_in_another_space_are_srgb(tmp_path):
    points = place(MEAN, 400, (300, 300))
    photo = draw_face(points, (600, 600), texture=2.0)
    numbers = Image.fromarray(encode(np.asarray(photo), "display_p3"))
    for name, image, profile in (("plain", photo, None), ("wide", numbers, P3)):
        save_photo(tmp_path / name, "anna.png", image, points)
        image.save(tmp_path / name / "anna.png", icc_profile=profile)
        command = [sys.executable, str(ROOT / "data" / "prepare_pairs.py"), str(tmp_path / name)]
        flags = [
            "--look",
            "natural",
            "--size",
            "128",
            "--out",
            str(tmp_path / f"{name}_pairs"),
            "--workers",
            "1",
        ]
        subprocess.run([*command, *flags], check=True, capture_output=True)
    for kind in ("source", "target", "eye_mask"):
        plain, wide = (
            Image.open(tmp_path / f"{name}_pairs" / kind / "anna.png") for name in ("plain", "wide")
        )
        assert find_psnr(np.asarray(plain), np.asarray(wide)) > 40
        assert "icc_profile" not in wide.info
        assert json.loads(wide.info["tinybeauty"])


def test_the_reader_is_part_of_what_a_crop_is_made_from(tmp_path, monkeypatch):
    """Crops that an older reader made are made anew."""
    monkeypatch.syspath_prepend(str(ROOT / "data"))
    import prepare_pairs

    points = place(MEAN, 400, (300, 300))
    save_photo(tmp_path / "photos", "anna.png", draw_face(points, (600, 600)), points)
    arguments = (
        tmp_path / "photos",
        "natural",
        ROOT / "data" / "looks.yaml",
        tmp_path / "out",
        128,
        1,
        1,
        None,
    )
    prepare_pairs.prepare_pairs(*arguments)
    assert "were there" in prepare_pairs.prepare_pairs(*arguments)
    monkeypatch.setattr(prepare_pairs, "READER", -1)
    assert "were there" not in prepare_pairs.prepare_pairs(*arguments)
    assert list(list_images(tmp_path / "out" / "source")) == ["anna"]
