"""A look on photos: the real command on drawn people. Skipped where the face models cannot be had."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw_couple
from draw_scene import draw_scene
from make_demo import draw_pair
from makeup import Portrait, load_look, paint_look, to_linear_look
from PIL import Image, ImageCms, ImageDraw, ImageOps, PngImagePlugin

from tinybeauty import blending
from tinybeauty.alignment import align, find_square, find_way_back
from tinybeauty.blending import SIDE, Request
from tinybeauty.colour import find_transform, make_profile
from tinybeauty.errors import LeftOut
from tinybeauty.face_models import load_face_models
from tinybeauty.faces import find_faces
from tinybeauty.formats import SIGNATURE, is_deep_avif, make_chunk, read_deep, write_deep
from tinybeauty.images import open_image
from tinybeauty.landmarks import UPPER_LID
from tinybeauty.photos import Photo, write_comparison
from tinybeauty_apply import main, make_up, open_look, put_makeup_on

LOOK = ROOT / "tinybeauty_model" / "pretrained" / "evening.pt"
DISPLAY_P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


@pytest.fixture
def apply(face_models, capsys):
    """Return a function that runs the command in this process: (exit code, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [*argv, "--look", "evening"] if "--look" not in argv else [*argv]
        code = main([str(word) for word in (*words, "--face_models", face_models)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def error(apply):
    """Return a function that runs a command that must fail in a friendly way, and gives what it says."""

    def call(*argv: object) -> str:
        code, _, stderr = apply(*argv)
        assert code == 1
        assert stderr.startswith("error: ")
        assert "Traceback" not in stderr
        return stderr.removeprefix("error: ").strip()

    return call


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Five people, one of them tilted by 24 degrees."""
    return draw_scene(800)


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """One person in a larger picture that is not square."""
    picture = Image.new("RGB", (400, 340), (120, 130, 125))
    picture.paste(Image.fromarray(draw_pair(3, 320, 42)[0]), (50, 20))
    return picture


def read(path: Path, mode: str | None = None) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert(mode or image.mode)).astype(int)


def mark_squares(picture: Image.Image, face_models: Path) -> np.ndarray:
    """Return (H, W) bool, where the faces' squares are, a pixel wider."""
    mask = Image.new("1", picture.size)
    for face in find_faces(picture, load_face_models(face_models)).faces:
        corners = [tuple(corner) for corner in face.quad.tolist()]
        ImageDraw.Draw(mask).polygon(corners, fill=1, outline=1, width=3)
    return np.asarray(mask)


# --- What is put on -----------------------------------------------------------------------------------
def test_all_faces_of_a_scene_and_nothing_else(apply, scene, face_models, tmp_path):
    scene.save(tmp_path / "scene.png")
    code, stdout, stderr = apply(tmp_path / "scene.png", "--out", tmp_path / "out")
    assert (code, stdout, stderr) == (0, f"1 of 1 written to {tmp_path / 'out'}\n", "")
    change = np.abs(read(tmp_path / "out/scene.png") - np.asarray(scene)).max(2)
    assert change[~mark_squares(scene, face_models)].max() == 0
    faces = find_faces(scene, load_face_models(face_models)).faces
    assert len(faces) == 5
    for face in faces:
        x, y = face.points[[14, 17]].mean(0).astype(int)  # the lower lip
        assert change[y - 2 : y + 3, x - 3 : x + 4].max() > 15


def test_cheek_to_cheek_each_face_has_its_own_makeup(face_models):
    couple, models = draw_couple(), load_face_models(face_models)
    bare = np.asarray(couple).astype(int)
    made_up = {}
    for which in ("all", "largest"):
        photo = Photo(couple.copy(), "PNG", b"")
        assert make_up(photo, open_look(LOOK), models, Request(which=which)) == []
        made_up[which] = np.asarray(photo.image).astype(int)
    first, second = find_faces(couple, models).faces
    for face, alone in ((first, made_up["largest"]), (second, bare)):
        for eye in UPPER_LID:
            x, y = face.points[list(eye)].mean(0).astype(int)
            around = slice(y - 12, y + 13), slice(x - 16, x + 17)
            assert np.abs(made_up["all"][around] - bare[around]).max() > 40
            assert np.abs(made_up["largest"][around] - alone[around]).max() <= 1
    x, y = first.points[list(UPPER_LID[1])].mean(0).astype(int)  # of the eye next to the other face
    around = slice(y - 12, y + 13), slice(x - 16, x + 17)
    assert np.abs(made_up["all"][around] - made_up["largest"][around]).max() <= 1


def test_as_the_painter_at_full_size_and_the_skin_keeps_its_texture(face_models):
    picture = Image.fromarray(draw_pair(7, 768, 42)[0])
    face = find_faces(picture, load_face_models(face_models)).faces[0]
    painted = paint_look(
        Portrait(np.asarray(picture), face.points),
        to_linear_look(load_look(ROOT / "data/looks.yaml", "evening")),
    )
    made_up = put_makeup_on(picture, open_look(LOOK))
    view, points = align(picture, face.points, SIDE)
    residual = blending.find_residual(view, points, open_look(LOOK), Request())
    small = Image.fromarray((np.asarray(view) + residual).clip(0, 255).astype(np.uint8))
    way = find_way_back(find_square(picture.size, face.points), SIDE)
    pasted = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, 0))
    pasted = small.transform(
        picture.size, Image.Transform.AFFINE, way.flatten().tolist(), Image.Resampling.BICUBIC
    )

    low, high = face.points.min(0).astype(int), face.points.max(0).astype(int)
    part = slice(low[1], high[1]), slice(low[0], high[0])

    def psnr(image: Image.Image) -> float:
        return 10 * np.log10(255**2 / np.square(np.asarray(image)[part].astype(float) - painted[part]).mean())

    assert psnr(made_up) > max(psnr(picture), psnr(pasted)) + 1

    def fine(image: Image.Image) -> np.ndarray:
        grey = np.asarray(image.convert("L"), float)[part]
        return grey[1:-1, 1:-1] - (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4

    cheeks = fine(picture)[150:230].ravel(), fine(made_up)[150:230].ravel()
    assert np.corrcoef(*cheeks)[0, 1] > 0.98


def test_strength_and_parts(portrait, face_models):
    model, original = open_look(LOOK), np.asarray(portrait).astype(int)
    face = find_faces(portrait, load_face_models(face_models)).faces[0]

    def change(**strengths: float) -> np.ndarray:
        return np.asarray(put_makeup_on(portrait, model, **strengths)).astype(int) - original

    whole = change()
    assert np.array_equal(change(strength=0), np.zeros_like(whole))
    assert np.array_equal(change(lips=0, eyes=0, skin=0), np.zeros_like(whole))
    half = change(strength=0.5)
    inside = ((whole + original) % 255 > 0) & (
        (half + original) % 255 > 0
    )  # neither black nor white is the end
    assert np.abs(half - whole / 2)[inside].max() <= 1
    x, y = face.points[[14, 17]].mean(0).astype(int)
    mouth = slice(y - 2, y + 3), slice(x - 8, x + 9)
    left, top = face.points[[33, 105]].min(0).astype(int)
    lid = slice(top, int(face.points[145, 1])), slice(left, int(face.points[133, 0]))
    cheek = face.points[50].astype(int)
    cheek = slice(cheek[1] - 4, cheek[1] + 5), slice(cheek[0] - 4, cheek[0] + 5)
    for part, where, others in (
        ("lips", mouth, (lid, cheek)),
        ("eyes", lid, (mouth, cheek)),
        ("skin", cheek, (mouth, lid)),
    ):
        without = change(**{part: 0})
        assert np.abs(without[where]).mean() < 0.25 * np.abs(whole[where]).mean(), part
        for other in others:
            assert np.abs(without[other] - whole[other]).mean() < 0.3 * np.abs(whole[other]).mean(), part
    assert np.abs(change(lips=1.5)[mouth]).mean() > 1.2 * np.abs(whole[mouth]).mean()


def test_largest_and_smallest(apply, scene, tmp_path):
    scene.save(tmp_path / "scene.png")
    assert apply(tmp_path / "scene.png", "--out", tmp_path / "one", "--faces", "largest")[0] == 0
    assert apply(tmp_path / "scene.png", "--out", tmp_path / "big", "--smallest", "230")[0] == 0
    changed = [
        (np.abs(read(tmp_path / folder / "scene.png") - np.asarray(scene)).max(2) > 8).any(0)
        for folder in ("one", "big")
    ]
    assert 0 < np.flatnonzero(changed[0]).size < np.flatnonzero(changed[1]).size
    assert not changed[1][: int(0.2 * 800)].any()  # the back row on the left


def test_the_border_of_the_square_does_not_show():
    fade = blending.make_fade()
    assert fade[0].max() == fade[-1].max() == fade[:, 0].max() == 0
    assert fade[8:-8, 8:-8].min() == 1
    assert (
        np.abs(np.diff(fade[..., 0], axis=0)).max() * 10 < 2.5
    )  # grey levels a pixel, of 10 on the worst face


# --- In the photo's own format -------------------------------------------------------------------------
def make_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a comment"
    return exif


def test_a_jpeg_keeps_all_it_says_its_tables_and_its_orientation(apply, portrait, tmp_path):
    profile = make_profile(DISPLAY_P3, 2.2)
    for orientation, turn in ((1, None), (6, Image.Transpose.ROTATE_90), (7, Image.Transpose.TRANSVERSE)):
        stored = portrait if turn is None else portrait.transpose(turn)
        stored.save(tmp_path / f"{orientation}.jpg", quality=91, subsampling=2, exif=make_exif(orientation),
                    icc_profile=profile, comment=b"hello", progressive=orientation == 6)  # fmt: skip
    assert apply(*tmp_path.glob("*.jpg"), "--out", tmp_path / "out", "--workers", 1)[0] == 0
    upright = []
    for path in sorted(tmp_path.glob("*.jpg")):
        with Image.open(path) as before, Image.open(tmp_path / "out" / path.name) as after:
            assert after.size == before.size
            assert after.quantization == before.quantization
            assert after.layer == before.layer  # the subsampling
            assert after.info == before.info
            assert after.info["icc_profile"] == profile
            assert after.getexif() == before.getexif()
            upright.append(np.asarray(ImageOps.exif_transpose(after)).astype(int))
            assert np.abs(upright[-1] - np.asarray(ImageOps.exif_transpose(before))).max() > 40
            far = np.abs(np.asarray(after).astype(int) - np.asarray(before)).max(2)
            assert np.median(far) == 0  # compressed anew with the same tables: mostly the same again
    for other in upright[1:]:
        assert np.abs(other - upright[0]).mean() < 1.5


def test_a_png_keeps_transparency_and_chunks(apply, portrait, face_models, tmp_path):
    rgba = portrait.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(portrait.size).point(lambda value: 128 + value // 2))
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Title", "somebody")
    chunks.add_itxt("XML:com.adobe.xmp", "<x/>")
    rgba.save(
        tmp_path / "a.png",
        pnginfo=chunks,
        dpi=(300, 300),
        exif=make_exif(),
        icc_profile=make_profile(DISPLAY_P3, 2.2),
    )
    portrait.quantize(256).save(tmp_path / "palette.png")
    assert apply(tmp_path, "--out", tmp_path / "out", "--workers", 1)[0] == 0
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "out/a.png") as after:
        assert (after.mode, after.size, after.info) == (before.mode, before.size, before.info)
        assert np.array_equal(np.asarray(after)[..., 3], np.asarray(before)[..., 3])
    outside = ~mark_squares(portrait, face_models)
    for name in ("a.png", "palette.png"):
        change = np.abs(read(tmp_path / "out" / name, "RGBA") - read(tmp_path / name, "RGBA")).max(2)
        assert change[outside].max() == 0
        assert change.max() > 40


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_stay_16_bits(apply, portrait, face_models, tmp_path, channels):
    rng = np.random.default_rng(0)
    pixels = np.asarray(portrait.convert("RGBA")).astype(np.uint16)[..., :channels] * 256
    pixels += rng.integers(0, 256, pixels.shape, dtype=np.uint16)
    head, *rest = write_deep(pixels)
    data = b"".join((SIGNATURE, head, make_chunk(b"tEXt", b"Title\0somebody"), *rest))
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(read_deep(data), pixels)
    assert apply(tmp_path / "a.png", "--out", tmp_path / "out")[0] == 0
    made_up = (tmp_path / "out/a.png").read_bytes()
    assert b"Title\0somebody" in made_up
    after = read_deep(made_up).astype(int)
    outside = ~mark_squares(portrait, face_models)
    # The square in 16 bits lies a little beside that in 8, and its faded edge with it.
    beyond = np.abs(after - pixels)[outside]
    assert beyond.max() <= 1
    assert (beyond > 0).mean() < 1e-3
    change = (after - pixels) / 257
    assert np.abs(change[..., :3]).max() > 40
    portrait.save(tmp_path / "b.png")
    assert apply(tmp_path / "b.png", "--out", tmp_path / "out")[0] == 0
    expected = read(tmp_path / "out/b.png") - np.asarray(portrait)
    assert np.abs(change[..., :3] - expected).mean() < 0.5
    with Image.open(tmp_path / "out/a.png") as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - after[..., :3] // 257).max() <= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", {"lossless": True, "exif": make_exif()}),
        ("b.webp", {"quality": 80}),
        ("c.webp", {"lossless": True, "icc_profile": make_profile(DISPLAY_P3, 2.2)}),
        ("a.bmp", {}),
        ("a.tif", {"compression": "tiff_lzw", "dpi": (72, 72)}),
        ("b.tiff", {"exif": make_exif().tobytes()}),
        ("c.tif", {"compression": "jpeg", "quality": 60}),
        ("cmyk.jpg", {"quality": 95}),
        ("rgb.jpg", {"quality": 90, "keep_rgb": True}),
    ],
)
def test_other_formats(apply, portrait, face_models, tmp_path, name, options):
    picture = portrait.convert("CMYK") if name == "cmyk.jpg" else portrait
    picture.save(tmp_path / name, **options)
    assert apply(tmp_path / name, "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / "out" / name) as after:
        assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
        assert getattr(after, "layer", None) == getattr(before, "layer", None)  # what a JPEG stores
        for key in ("exif", "icc_profile", "dpi", "compression"):
            assert after.info.get(key) == before.info.get(key), key
        assert after.getexif().get_ifd(0x8769) == before.getexif().get_ifd(0x8769)
        change = np.abs(np.asarray(after).astype(int) - np.asarray(before)).max(2)
    assert change.max() > 40
    above = change[:15][~mark_squares(portrait, face_models)[:15]]
    assert above.max() <= {"b.webp": 8, "c.tif": 2, "cmyk.jpg": 2, "rgb.jpg": 2}.get(name, 0)


def test_a_tiff_with_a_palette_keeps_its_tags_and_16_bits_are_not_cut_to_8(apply, portrait, tmp_path):
    portrait.quantize(256).save(tmp_path / "palette.tif", artist="somebody")
    assert apply(tmp_path / "palette.tif", "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out/palette.tif") as image:
        assert image.tag_v2[315] == "somebody"
    width, height, tags = *portrait.size, b""
    for tag, kind, count, value in (
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, 6 * width * height),
    ):  # fmt: skip
        tags += struct.pack("<HHII", tag, kind, count, value)
    head = struct.pack("<2sHIH", b"II", 42, 8, 9) + tags + struct.pack("<I3H", 0, 16, 16, 16)
    pixels = np.asarray(portrait).astype("<u2") * 257
    (tmp_path / "deep.tif").write_bytes(head + pixels.tobytes())
    assert np.array_equal(read(tmp_path / "deep.tif"), np.asarray(portrait))  # by Pillow
    code, _, stderr = apply(tmp_path / "deep.tif", "--out", tmp_path / "out")
    assert code == 1
    assert "16 bits a colour are not supported; save it as a PNG of 16 bits" in stderr


def test_makeup_is_the_same_in_other_colours(apply, portrait, tmp_path):
    from PIL import ImageCms

    profile = make_profile(DISPLAY_P3, 2.2)
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    way = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), own, "RGB", "RGB", 1)
    ImageCms.applyTransform(portrait, way).save(tmp_path / "p3.png", icc_profile=profile)
    portrait.save(tmp_path / "srgb.png")
    assert apply(tmp_path, "--out", tmp_path / "out", "--workers", 1)[0] == 0
    p3, srgb = (
        np.asarray(open_image(tmp_path / "out" / name)).astype(int) for name in ("p3.png", "srgb.png")
    )
    assert np.abs(p3 - srgb).max() <= 6
    assert np.abs(p3 - srgb).mean() < 0.5


def test_a_16_bit_png_with_a_transparent_colour(apply, portrait, tmp_path):
    pixels = np.asarray(portrait).astype(np.uint16) * 257
    head, *rest = write_deep(pixels)
    clear = make_chunk(b"tRNS", struct.pack(">3H", *pixels[0, 0].tolist()))
    (tmp_path / "a.png").write_bytes(b"".join((SIGNATURE, head, clear, *rest)))
    assert apply(tmp_path / "a.png", "--out", tmp_path / "out")[0] == 0
    data = (tmp_path / "out" / "a.png").read_bytes()
    assert clear in data
    assert np.abs(read_deep(data).astype(int) - pixels).max() > 257 * 40


def test_an_avif_that_says_its_colours_in_codes(apply, portrait, tmp_path):
    """Of the same numbers, once as sRGB and once as Display P3: the second stays Display P3."""
    plain, wide = tmp_path / "plain.avif", tmp_path / "wide.avif"
    portrait.save(plain, quality=95)
    head, box, rest = plain.read_bytes().partition(b"colrnclx")
    wide.write_bytes(head + box + struct.pack(">H", 12) + rest[2:])
    assert apply(plain, wide, "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out" / "plain.avif") as after:
        assert "icc_profile" not in after.info
    with Image.open(tmp_path / "out" / "wide.avif") as after:
        found = find_transform(after.info["icc_profile"], "RGB")
        assert np.abs(np.asarray(after).astype(int)[:10] - np.asarray(portrait)[:10]).mean() < 4
        grey, red = (np.asarray(ImageCms.applyTransform(Image.new("RGB", (1, 1), colour), found))
                     for colour in ((128, 128, 128), (200, 60, 60)))  # fmt: skip
    assert np.abs(grey.astype(int) - 128).max() <= 1
    assert red[0, 0, 0] > 210
    deep = bytearray(plain.read_bytes())
    deep[deep.find(b"av1C") + 6] |= 0x40
    assert (is_deep_avif(plain.read_bytes()), is_deep_avif(bytes(deep))) == (False, True)


def test_a_bmp_with_transparency_is_left_out_with_a_remedy(error, portrait, tmp_path):
    width, height = portrait.size
    head = struct.pack("<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, 0, 0, 0, 0, 0,
                       0xFF0000, 0xFF00, 0xFF, 0xFF000000).ljust(108, b"\0")  # fmt: skip
    clear = portrait.convert("RGBA")
    clear.putpixel((0, 0), (9, 9, 9, 100))
    pixels = np.asarray(clear)[::-1, :, [2, 1, 0, 3]].tobytes()
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + head + pixels
    )
    assert "save it as PNG" in error(tmp_path / "a.bmp", "--out", tmp_path / "out")


def test_a_comparison_of_a_picture_as_wide_as_webp_can_be(portrait):
    wide = Image.new("RGB", (16_383, 16))
    photo = Photo(wide.copy(), "WEBP", b"")
    with Image.open(io.BytesIO(write_comparison(wide, photo))) as both:
        assert both.width <= 16_383


def test_a_comparison_says_what_its_numbers_mean(apply, portrait, tmp_path):
    light = Image.fromarray((255 * (np.asarray(portrait) / 255.0) ** 2.2).round().astype(np.uint8))
    light.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + make_chunk(b"gAMA", struct.pack(">I", 100_000)) + data[33:])
    assert apply(tmp_path / "a.png", "--out", tmp_path / "out", "--compare")[0] == 0
    left = np.asarray(open_image(tmp_path / "out" / "a_compare.png"))[:, : portrait.width]
    assert np.abs(left.astype(int) - np.asarray(portrait)).mean() < 3


@pytest.mark.skipif(sys.platform != "linux", reason="names of 255 bytes")
def test_a_name_nearly_as_long_as_names_can_be(apply, portrait, tmp_path):
    name = "\u00e9" * 122 + ".png"
    portrait.save(tmp_path / name)
    assert apply(tmp_path / name, "--out", tmp_path / "out")[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == [name]


def test_at_strength_0_the_file_is_the_photo(apply, portrait, tmp_path):
    portrait.save(tmp_path / "a.jpg", exif=make_exif())
    assert apply(tmp_path / "a.jpg", "--out", tmp_path / "out", "--strength", 0)[0] == 0
    assert (tmp_path / "out/a.jpg").read_bytes() == (tmp_path / "a.jpg").read_bytes()


def test_before_and_after_side_by_side(apply, portrait, tmp_path):
    portrait.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=make_exif(6))
    assert apply(tmp_path / "a.png", "--out", tmp_path / "out", "--compare")[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["a_compare.png"]
    both = read(tmp_path / "out/a_compare.png")
    assert both.shape == (340, 800, 3)
    assert np.array_equal(both[:, :400], np.asarray(portrait))
    assert np.abs(both[:, 400:] - both[:, :400]).max() > 40


def test_python_does_what_the_command_does(apply, portrait, tmp_path):
    portrait.save(tmp_path / "a.png")
    strengths = {"strength": 0.8, "lips": 1.2, "eyes": 0.5}
    flags = [part for name, value in strengths.items() for part in (f"--{name}", value)]
    assert apply(tmp_path / "a.png", "--out", tmp_path / "out", *flags)[0] == 0
    before = portrait.copy()
    made_up = put_makeup_on(portrait, open_look(LOOK), **strengths)
    assert np.array_equal(np.asarray(made_up), read(tmp_path / "out/a.png"))
    assert portrait == before  # it works on a copy


# --- Files ---------------------------------------------------------------------------------------------
def test_what_was_done_is_not_done_again(apply, error, portrait, tmp_path):
    portrait.save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert apply(tmp_path / "a.png", "--out", out)[1] == f"1 of 1 written to {out}\n"
    first = (out / "a.png").stat().st_mtime_ns
    assert apply(tmp_path / "a.png", "--out", out)[1] == f"0 of 1 written to {out}, 1 were there already\n"
    assert (out / "a.png").stat().st_mtime_ns == first
    weaker = apply(tmp_path / "a.png", "--out", out, "--strength", 0.5)
    assert weaker[1] == f"1 of 1 written to {out}\n"  # our own file is replaced
    assert apply(tmp_path / "a.png", "--out", out, "--strength", 0.5)[1].endswith("1 were there already\n")
    portrait.rotate(3).save(tmp_path / "a.png")
    assert apply(tmp_path / "a.png", "--out", out, "--strength", 0.5)[1] == f"1 of 1 written to {out}\n"
    (out / "a.png").write_bytes(b"somebody's own")
    told = error(tmp_path / "a.png", "--out", out)
    assert told.endswith(f"{out / 'a.png'} is there already, and not as this command wrote it: move it away")
    assert (out / "a.png").read_bytes() == b"somebody's own"


def test_results_beside_the_photos_are_no_photos_the_next_time(apply, portrait, tmp_path):
    portrait.save(tmp_path / "a.png")
    command = [tmp_path, "--out", tmp_path, "--compare"]
    assert apply(*command)[1] == f"1 of 1 written to {tmp_path}\n"
    assert apply(*command)[1] == f"0 of 1 written to {tmp_path}, 1 were there already\n"
    portrait.save(tmp_path / "a_compare.png")  # somebody's own
    assert "is one of the originals" in apply(*command)[2]


def test_many_photos_on_all_cores_are_as_one_by_one(apply, portrait, face_models, tmp_path):
    for number in range(5):
        portrait.rotate(4 * number).save(tmp_path / f"{number}.png")
    command = [sys.executable, ROOT / "tinybeauty_apply.py", tmp_path, "--look", LOOK, "--workers", "2"]
    command += ["--out", tmp_path / "out", "--face_models", face_models]  # inside the folder of the photos
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"5 of 5 written to {tmp_path / 'out'}\n"), run.stderr
    assert apply(tmp_path, "--out", tmp_path / "alone", "--workers", 1)[0] == 0
    for number in range(5):
        assert (
            np.abs(read(tmp_path / f"out/{number}.png") - read(tmp_path / f"alone/{number}.png")).max() <= 1
        )


def test_what_cannot_be_done_is_listed_and_the_rest_is_done(apply, portrait, tmp_path):
    portrait.save(tmp_path / "good.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:3000])
    (tmp_path / "text.png").write_text("no picture")
    portrait.convert("L").save(tmp_path / "grey.png")
    portrait.convert("L").convert("RGB").save(tmp_path / "greyish.png")
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "wall.png")
    (tmp_path / "notes.txt").write_text("passed over")
    code, stdout, stderr = apply(tmp_path, "--out", tmp_path / "out", "--workers", 1)
    assert (code, stdout) == (1, f"1 of 7 written to {tmp_path / 'out'}\n")
    lines = dict(line.strip().split(": ", 1) for line in stderr.splitlines()[1:])
    assert stderr.splitlines()[0] == "error: 6 could not be done:"
    assert lines.pop(str(tmp_path / "broken.jpg")).startswith("image file is truncated")
    assert lines.pop(str(tmp_path / "greyish.png")).startswith("grey: red, green and blue differ by 0.0")
    assert lines == {
        str(tmp_path / "empty.jpg"): "an empty file",
        str(tmp_path / "text.png"): "neither a photo nor a video that can be read",
        str(tmp_path / "grey.png"): "a grey photo: makeup needs colours",
        str(tmp_path / "wall.png"): "no face found",
    }
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"good.jpg"}


def test_nothing_is_begun_where_it_cannot_end_well(error, portrait, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("text")
    for name in ("a/x.png", "b/X.png", "a/y.heic", "b/y.jpg"):
        portrait.save(tmp_path / name, "PNG")
    a, b, out = tmp_path / "a/x.png", tmp_path / "b/X.png", tmp_path / "out"
    assert (
        error(a, "--out", tmp_path / "a") == f"{a} is one of the originals: choose another folder for --out"
    )
    assert error(a, b, "--out", out) == f"{a} and {b} would both be written to {out / 'X.png'}: do them apart"
    assert "would both be written to" in error(tmp_path / "a/y.heic", tmp_path / "b/y.jpg", "--out", out)
    assert error(tmp_path / "texts", "--out", out).startswith(
        f"no photo or video in {tmp_path / 'texts'} (.avi "
    )
    assert (
        error(tmp_path / "nowhere", "--out", out)
        == f"cannot read {tmp_path / 'nowhere'}: No such file or directory"
    )
    assert error(a, "--out", out, "--look", "evning") == (
        "there is no look 'evning', did you mean evening? "
        "There are bold, evening, natural, or give the path of a .pt"
    )
    assert str(tmp_path / "no.pt") in error(a, "--out", out, "--look", tmp_path / "no.pt")
    assert error(a, "--out", out, "--lips", 2).startswith(
        "argument --lips: must be a number from 0 to 1.5, got '2'"
    )
    assert "argument --smallest: must be a number from 100" in error(a, "--out", out, "--smallest", "9")
    assert "the following arguments are required: --out" in error(a)
    assert (
        error(a, "--out", tmp_path / "texts/a.txt")
        == f"cannot write to {tmp_path / 'texts/a.txt'}: File exists"
    )
    assert not out.exists()


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder(error, portrait, tmp_path):
    portrait.save(tmp_path / "a.png")
    (tmp_path / "out").mkdir(mode=0o555)
    assert (
        error(tmp_path / "a.png", "--out", tmp_path / "out")
        == f"cannot write to {tmp_path / 'out'}: Permission denied"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_leaves_nothing_half_written(portrait, face_models, tmp_path):
    portrait.save(tmp_path / "a.png")
    code = "import resource, sys, tinybeauty_apply; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    code += "sys.exit(tinybeauty_apply.main())"
    command = [sys.executable, "-c", code, tmp_path / "a.png", "--look", "evening", "--out", tmp_path / "out"]
    run = subprocess.run([*command, "--face_models", face_models], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"a.png: cannot write {tmp_path / 'out/a.png'}: File too large" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list((tmp_path / "out").glob("*.png*"))


def test_heic_comes_in_where_the_plugin_is(apply, portrait, tmp_path):
    plugin = pytest.importorskip("pillow_heif", reason="Pillow's plugin for HEIC is not installed")
    plugin.register_heif_opener()
    portrait.save(tmp_path / "a.heic", quality=95, exif=make_exif())
    assert apply(tmp_path / "a.heic", "--out", tmp_path / "out")[0] == 0
    with Image.open(tmp_path / "out/a.jpg") as image:
        assert (image.format, image.size, image.getexif()[0x010F]) == ("JPEG", portrait.size, "Maker")


def test_heic_under_another_name_is_heic(apply, tmp_path):
    for name in ("a.jpg", "b.heic"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    code, _, stderr = apply(tmp_path, "--out", tmp_path / "out", "--workers", 1)
    # The same of both: that they are broken, or that the plugin is missing.
    first, second = (line.split(": ", 1)[1] for line in stderr.splitlines()[1:])
    assert (code, first) == (1, second)


def test_a_photo_of_a_mode_without_colours(face_models):
    with pytest.raises(LeftOut, match="a grey photo"):
        put_makeup_on(Image.new("L", (64, 64)), open_look(LOOK))


def test_a_stopped_run_goes_on(apply, portrait, tmp_path):
    portrait.save(tmp_path / "a.png")
    portrait.save(tmp_path / "b.png")
    out = tmp_path / "out"
    assert apply(tmp_path / "a.png", "--out", out)[0] == 0
    with (out / ".tinybeauty_apply.jsonl").open("a") as file:
        file.write('["b.png", "half a li')  # the power failed
    assert (
        apply(tmp_path, "--out", out, "--workers", 1)[1] == f"1 of 2 written to {out}, 1 were there already\n"
    )
