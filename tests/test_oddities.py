"""Suspicious data are named before the first epoch, and trained on; good data are passed over in silence."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, draw_demo
from PIL import Image, ImageOps

from tinybeauty.cache import read_pairs
from tinybeauty.oddities import MEANING

SIZE = 64


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """32 drawn pairs at the size at which they are looked at, and at four times that."""
    return draw_demo(tmp_path_factory.mktemp("odd") / "faces", 32, 128)


@pytest.fixture
def data_dir(faces, tmp_path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(faces, tmp_path / "faces", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "faces"


def find_oddities(data_dir: Path, capsys, size: int = 128, cache_dir: Path | str = "") -> list[str]:
    """Return what is printed of oddities while the pairs are read."""
    capsys.readouterr()
    read_pairs(data_dir, size, str(cache_dir), skip_bad=False, val_fraction=0.25, person_pattern="(.+)")
    lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix("data looks odd: ") for line in lines if line.startswith("data looks odd: ")]


def change(data_dir: Path, kind: str, spoil: Callable[[Image.Image], Image.Image], count: int = 32) -> None:
    """Spoil the first pictures of a kind."""
    for path in sorted((data_dir / kind).glob("*.png"))[:count]:
        with Image.open(path) as image:
            spoiled = spoil(image.convert("L" if kind == "eye_mask" else "RGB"))
        spoiled.save(path)


# --- Nothing to say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 64, 256, 48, 16])
def test_good_pairs_are_passed_over_in_silence(data_dir, capsys, size):
    assert find_oddities(data_dir, capsys, size) == []


def save_as_jpeg(image: Image.Image, quality: int = 60) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


GOOD = {
    "JPEGs": lambda image: save_as_jpeg(image),
    "grey on both sides": lambda image: image.convert("L").convert("RGB"),
    "darker": lambda image: image.point(lambda value: value // 3),
    "cut out on white": lambda image: ImageOps.expand(image.resize((64, 64)), 32, "white"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_the_same_on_both_sides_is_not_odd(data_dir, capsys, name):
    for kind in ("source", "target"):
        change(data_dir, kind, GOOD[name])
    if name == "cut out on white":
        shutil.rmtree(data_dir / "eye_mask")
    assert find_oddities(data_dir, capsys) == []


def test_pairs_without_masks_are_not_odd(data_dir, capsys):
    shutil.rmtree(data_dir / "eye_mask")
    assert find_oddities(data_dir, capsys) == []


def test_a_few_light_looks_are_not_odd(data_dir, capsys):
    """A third of the makeup that the demo has."""
    for path in (data_dir / "target").glob("*.png"):
        with Image.open(path) as target, Image.open(data_dir / "source" / path.name) as source:
            light = Image.blend(source.convert("RGB"), target.convert("RGB"), 0.33)
        light.save(path)
    assert find_oddities(data_dir, capsys) == []


# --- One thing at a time ------------------------------------------------------------------------------


def shift(right: int, down: int) -> Callable[[Image.Image], Image.Image]:
    """Move a picture; its border is drawn out."""

    def move(image: Image.Image) -> Image.Image:
        rows = np.arange(image.height) - down
        columns = np.arange(image.width) - right
        pixels = np.asarray(image)[rows.clip(0, image.height - 1)][:, columns.clip(0, image.width - 1)]
        return Image.fromarray(pixels)

    return move


def zoom(image: Image.Image, by: float = 1.12) -> Image.Image:
    return ImageOps.fit(image, image.size, bleed=(by - 1) / 2)


def take_layer(background: tuple[int, int, int]) -> Callable[[Image.Image], Image.Image]:
    """Leave a stroke of lipstick on a background."""

    def paint(image: Image.Image) -> Image.Image:
        layer = Image.new("RGB", image.size, background)
        layer.paste((150, 20, 60), (45, 90, 85, 104))
        layer.paste(image.crop((30, 40, 100, 60)), (30, 40))
        return layer

    return paint


def brighten(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value + 25))


TARGETS = {  # name: how the targets are spoiled, a key of MEANING, what else is said
    "a sixteenth to the right": (shift(8, 0), "moved", "8 px right"),
    "a sixteenth up": (shift(0, -8), "moved", "8 px up"),
    "an eighth across": (shift(-16, 16), "moved", "16 px left and 16 px down"),
    "a thirty-second": (shift(4, 0), "moved", "4 px right"),
    "upside down": (ImageOps.flip, "upside down", ""),
    "mirrored": (ImageOps.mirror, "mirrored", ""),
    "turned": (lambda image: image.transpose(Image.Transpose.ROTATE_90), "turned", ""),
    "enlarged": (zoom, "other picture", ""),
    "negative": (ImageOps.invert, "negative", ""),
    "grey": (lambda image: image.convert("L").convert("RGB"), "grey target", ""),
    "BGR": (lambda image: Image.merge("RGB", image.split()[::-1]), "channels", ""),
    "brighter": (brighten, "tone", ""),
    "makeup on white": (take_layer((255, 255, 255)), "layer", ""),
    "makeup on black": (take_layer((0, 0, 0)), "layer", ""),
    "makeup on grey": (take_layer((128, 128, 128)), "layer", ""),
    "black": (lambda image: Image.new("RGB", image.size), "flat", ""),
    "squeezed": (lambda image: image.resize((128, 96)), "shape", "128 x 128 and 128 x 96"),
    "cropped": (lambda image: image.crop((14, 0, 114, 128)), "shape", "128 x 128 and 100 x 128"),
    "tiny": (lambda image: image.resize((32, 32)), "small", "32 px"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_would_teach_something_else_are_named(data_dir, capsys, name):
    spoil, fault, more = TARGETS[name]
    change(data_dir, "target", spoil, count=7)
    lines = [line for line in find_oddities(data_dir, capsys) if MEANING[fault][0] in line]
    assert len(lines) == 1
    count = int(lines[0].split()[0])
    assert (count >= 5) if fault in ("mirrored", "moved", "upside down", "turned") else (count == 7)
    assert " of 32 " in lines[0]
    assert "face_0000" in lines[0] or count < 7
    assert "more" in lines[0] or count == 5
    assert "face_0008" not in lines[0]
    assert MEANING[fault][1] in lines[0]
    assert more in lines[0]


def test_targets_that_are_all_wrong_are_all_counted(data_dir, capsys):
    change(data_dir, "target", shift(8, 0))
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith("32 of 32 targets are shifted")


def test_partners_that_are_mixed_up_are_named_with_whom_they_belong_to(data_dir, capsys):
    paths = sorted((data_dir / "target").glob("*.png"))[:6]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith(
        "6 of 32 targets do not lie on their sources: face_0000 (like face_0001), face_0001"
    )


def test_targets_of_somebody_else_are_named(data_dir, tmp_path, capsys):
    draw_demo(tmp_path / "others", 8, 128, "--seed", "7")
    for path in sorted((tmp_path / "others" / "target").glob("*.png"))[:5]:
        shutil.copy(path, data_dir / "target")
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith("5 of 32 targets do not lie on their sources")


@pytest.mark.parametrize(
    "again", [lambda image: image, lambda image: save_as_jpeg(image, 80)], ids=["same", "jpeg"]
)
def test_targets_that_are_their_sources_are_named(data_dir, capsys, again):
    for path in sorted((data_dir / "source").glob("*.png"))[:3]:
        with Image.open(path) as image:
            again(image).save(data_dir / "target" / path.name)
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith("3 of 32 targets show no makeup: face_0000, face_0001, face_0002.")


def test_grey_sources_are_named(data_dir, capsys):
    change(data_dir, "source", GOOD["grey on both sides"], count=2)
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith("2 of 32 sources are grey")


def test_pairs_that_are_not_square_are_named(data_dir, capsys):
    for kind in ("source", "target", "eye_mask"):
        change(data_dir, kind, lambda image: image.resize((128, 170)))
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith("32 of 32 pairs are not square: face_0000 (128 x 170)")


WHITE = Image.new("L", (128, 128), 255)
MASKS = {
    "empty": (lambda mask: mask.point(lambda _: 0), "mask empty", ""),
    "white": (lambda mask: mask.point(lambda _: 255), "mask wide", "100%"),
    "inverted": (ImageOps.invert, "mask wide", "9"),
    "of the face": (lambda mask: ImageOps.expand(WHITE.resize((88, 88)), 20), "mask wide", "47%"),
    "0 and 1": (lambda mask: mask.point(lambda value: value // 255), "mask dark", "at most 1 of 255"),
    "labels": (lambda mask: mask.point(lambda value: 5 if value else 1), "mask dark", "at most 5 of 255"),
    "too faint": (lambda mask: mask.point(lambda value: value // 4), "mask empty", ""),
    "half grey": (lambda mask: mask.point(lambda value: 128 + value // 4), "mask grey", ""),
    "of another shape": (lambda mask: mask.resize((128, 100)), "shape", "128 x 128 and 128 x 100"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_none_are_named(data_dir, capsys, name):
    spoil, fault, more = MASKS[name]
    change(data_dir, "eye_mask", spoil, count=3)
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith(f"3 of 32 {MEANING[fault][0]}: face_0000")
    assert more in line
    assert "face_0003" not in line


def test_a_mask_painted_in_black_on_transparent_is_empty_and_named(data_dir, capsys):
    path = data_dir / "eye_mask" / "face_0004.png"
    with Image.open(path) as mask:
        black = Image.new("L", mask.size)
        Image.merge("RGBA", [black, black, black, mask.convert("L")]).save(path)
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith("1 of 32 eye masks are black everywhere: face_0004.")


def test_photos_as_masks_are_named(data_dir, capsys):
    for path in (data_dir / "source").glob("*.png"):
        shutil.copy(path, data_dir / "eye_mask" / path.name)
    assert any("eye masks" in line for line in find_oddities(data_dir, capsys))


# --- Across the split ---------------------------------------------------------------------------------


def find_sides(data_dir: Path) -> tuple[list[str], list[str]]:
    train, val, _ = read_pairs(data_dir, SIZE, "", skip_bad=False, val_fraction=0.25, person_pattern="(.+)")
    return [pair.stem for pair in train], [pair.stem for pair in val]


AGAIN = {
    "the same file": lambda image: image,
    "saved anew": lambda image: save_as_jpeg(image, 80),
    "mirrored": ImageOps.mirror,
    "half the size": lambda image: image.resize((64, 64)),
}


@pytest.mark.parametrize("name", AGAIN)
def test_pictures_on_both_sides_of_the_split_are_named(data_dir, capsys, name):
    train, val = find_sides(data_dir)
    for kind in ("source", "target", "eye_mask"):
        with Image.open(data_dir / kind / f"{train[3]}.png") as image:
            AGAIN[name](image).save(data_dir / kind / f"{val[1]}.png")
    (line,) = find_oddities(data_dir, capsys, SIZE)
    assert line.startswith(f"1 of {len(val)} held-out pairs show a picture that is trained on as well")
    assert f"{val[1]} = {train[3]}" in line
    assert "person_pattern" in line


def test_copies_on_one_side_are_not_odd(data_dir, capsys):
    train, _ = find_sides(data_dir)
    for kind in ("source", "target", "eye_mask"):
        shutil.copy(data_dir / kind / f"{train[3]}.png", data_dir / kind / f"{train[4]}.png")
    assert find_oddities(data_dir, capsys, SIZE) == []


# --- Files that nobody reads --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".tiff", ".tif", ".avif", ".gif", ".dng", ".psd"])
def test_pictures_of_other_kinds_are_named(data_dir, capsys, suffix):
    for number in range(7):
        (data_dir / "target" / f"photo_{number}{suffix}").write_bytes(b"x")
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith(
        f"7 pictures in {data_dir / 'target'} are of kinds that nobody reads: photo_0{suffix}"
    )
    assert "2 more" in line


def test_pictures_in_folders_too_deep_are_named(data_dir, capsys):
    for kind in ("source", "target"):
        (data_dir / kind / "more").mkdir()
        shutil.copy(data_dir / kind / "face_0000.png", data_dir / kind / "more" / "face_9999.png")
    assert [line.split()[0:2] for line in find_oddities(data_dir, capsys)] == [["1", "folders"]] * 2


@pytest.mark.parametrize("name", ["eye_masks", "masks", "mask"])
def test_masks_in_a_folder_of_another_name_are_named(data_dir, capsys, name):
    (data_dir / "eye_mask").rename(data_dir / name)
    (line,) = find_oddities(data_dir, capsys)
    assert line.startswith(f"nobody reads the masks in {data_dir / name}.")


def test_files_that_are_no_pictures_are_not_odd(data_dir, capsys):
    for name in ("notes.txt", ".DS_Store", "Thumbs.db", "._photo.heic", "faces.json", "faces.csv"):
        (data_dir / "source" / name).write_bytes(b"x")
    (data_dir / "preview.png").write_bytes(b"x")
    assert find_oddities(data_dir, capsys) == []


def test_what_nobody_reads_is_named_also_where_its_partner_is_missed(data_dir, tmp_path, call_main):
    """Then it is the reason."""
    (data_dir / "target" / "face_0003.png").rename(data_dir / "target" / "face_0003.heic")
    code, stdout, stderr = call_main("--data_dir", data_dir, "--output_dir", tmp_path / "out", *SMALL)
    assert code == 1
    assert "lacks 1 of the 32 images in source: face_0003" in stderr
    assert "face_0003.heic" in stdout


# --- When and how often it is said --------------------------------------------------------------------


def test_it_is_said_again_on_a_second_start_and_not_after_it_is_mended(data_dir, tmp_path, capsys):
    good = (data_dir / "eye_mask" / "face_0001.png").read_bytes()
    change(data_dir, "eye_mask", ImageOps.invert, count=2)
    (tmp_path / "cache").mkdir()
    first = find_oddities(data_dir, capsys, cache_dir=tmp_path / "cache")
    assert find_oddities(data_dir, capsys, cache_dir=tmp_path / "cache") == first != []
    (data_dir / "eye_mask" / "face_0001.png").write_bytes(good)
    (line,) = find_oddities(data_dir, capsys, cache_dir=tmp_path / "cache")
    assert line.startswith("1 of 32 eye masks are white")


def test_it_is_said_before_the_first_epoch_and_training_goes_on(data_dir, tmp_path, call_main):
    change(data_dir, "target", shift(8, 0))
    change(data_dir, "eye_mask", ImageOps.invert, count=2)
    flags = ["--data_dir", data_dir, "--output_dir", tmp_path / "out", "--epochs", 1, *SMALL]
    code, stdout, stderr = call_main(*flags)
    assert code == 0, stderr
    lines = stdout.splitlines()
    odd = [number for number, line in enumerate(lines) if line.startswith("data looks odd: ")]
    epoch = next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    assert len(odd) == 2
    assert max(odd) < epoch
    assert (tmp_path / "out" / "tinybeauty_final.pt").exists()


def test_a_hostile_cache_cannot_write_on_the_screen(data_dir, tmp_path, capsys):
    """Data sets come from anywhere, and so do the caches in them."""
    import zlib

    change(data_dir, "eye_mask", lambda mask: mask.point(lambda value: value // 255), count=1)
    (tmp_path / "cache").mkdir()
    before = find_oddities(data_dir, capsys, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/pairs_*.json")
    # A sequence that clears the screen, a fault and a thumb that are none.
    for old, new in ((b"at most 1", b"\\u001b[2J"), (b"mask dark", b"mask door"), (b'],"', b'],"!')):
        body = path.read_bytes().split(b"\n", 1)[1]
        assert old in body
        body = body.replace(old, new)
        path.write_bytes(b"%08x\n%s" % (zlib.crc32(body), body))
        assert find_oddities(data_dir, capsys, cache_dir=tmp_path / "cache") == before
