"""Pairs by stem, the split by person, one reader for every kind of image, flips of all three alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinybeauty_training import (
    MakeupPairs,
    Pair,
    UserError,
    find_pairs,
    load_batches,
    read_image,
    split_pairs,
)

EVERYONE = "(.+)"


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def find_error(data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_pairs(data_dir)
    return str(caught.value)


# --- finding pairs ----------------------------------------------------------------------------------


def test_pairs_are_two_files_of_one_stem_whatever_the_suffix(tmp_path):
    touch(tmp_path / "source", "b.png", "a.jpg", "c.d.WEBP", "e.bmp")
    touch(tmp_path / "target", "a.jpeg", "b.bmp", "c.d.PNG", "e.png")
    touch(tmp_path / "eye_mask", "b.jpg", "of_nobody.png")
    pairs = find_pairs(tmp_path)
    assert [pair.stem for pair in pairs] == ["a", "b", "c.d", "e"]
    for pair in pairs:
        assert pair.source.parent.name == "source"
        assert pair.target.parent.name == "target"
        assert pair.source.stem == pair.target.stem == pair.stem
    masks = [pair.eye_mask for pair in pairs]
    assert masks == [None, tmp_path / "eye_mask" / "b.jpg", None, None]


def test_1_is_not_10(tmp_path):
    touch(tmp_path / "source", "1.png", "10.png", "100.png")
    touch(tmp_path / "target", "1.png", "10.png", "100.png")
    assert [(pair.source.stem, pair.target.stem) for pair in find_pairs(tmp_path)] == [
        ("1", "1"), ("10", "10"), ("100", "100"),
    ]  # fmt: skip
    (tmp_path / "target" / "1.png").unlink()
    assert find_error(tmp_path).split("source: ")[1].split()[0] == "1"


def test_missing_partners_of_both_sides_are_named_at_once(tmp_path):
    touch(tmp_path / "source", "both.png", *(f"bare_{number}.png" for number in range(7)))
    touch(tmp_path / "target", "both.png", "made_0.png")
    message = find_error(tmp_path)
    assert "7 of the 8" in message
    assert "1 of the 2" in message
    assert str(tmp_path / "target") in message
    assert "made_0" in message
    for number in range(7):
        assert (f"bare_{number}" in message) == (number < 5)
    assert "2 more" in message


@pytest.mark.parametrize("missing", ["", "source", "target"])
def test_a_missing_folder_is_named(tmp_path, missing):
    for name in {"source", "target"} - {missing}:
        touch(tmp_path / "data" / name, "a.png")
    data_dir = tmp_path / "data" if missing else tmp_path / "elsewhere"
    assert str(data_dir / missing) in find_error(data_dir)


def test_no_pairs(tmp_path):
    touch(tmp_path / "source", "notes.txt", ".hidden.png")
    touch(tmp_path / "target")
    message = find_error(tmp_path)
    assert str(tmp_path / "source") in message
    assert ".png" in message


def test_two_images_of_one_stem_are_named(tmp_path):
    touch(tmp_path / "source", "a.png", "a.jpg")
    touch(tmp_path / "target", "a.png")
    message = find_error(tmp_path)
    assert "a.jpg" in message
    assert "a.png" in message


def test_hidden_and_other_files_are_passed_over(tmp_path):
    for name in ("source", "target"):
        touch(tmp_path / name, "a.png")
    touch(tmp_path / "source", "._a.png", ".DS_Store", "Thumbs.db", "notes.txt", "a.txt")
    assert [pair.stem for pair in find_pairs(tmp_path)] == ["a"]


# --- splitting --------------------------------------------------------------------------------------


def make_pairs(stems) -> list[Pair]:
    return [Pair(stem, Path(stem), Path(stem), None) for stem in sorted(stems)]


def split(stems, val_fraction=0.1, pattern=EVERYONE) -> tuple[set[str], set[str]]:
    train, val = split_pairs(make_pairs(stems), val_fraction, pattern)
    assert len(train) + len(val) == len(set(stems))
    return {pair.stem for pair in train}, {pair.stem for pair in val}


NAMES = st.text("abcdefgh0123456789_", min_size=1, max_size=8)
BASE = [f"image_{number:04d}" for number in range(100)]


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES, max_size=60))
def test_adding_pairs_moves_no_other_pair(new):
    train, val = split(BASE)
    more_train, more_val = split({*BASE, *new})
    assert train <= more_train
    assert val <= more_val


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(NAMES, st.integers(0, 9)), min_size=2, max_size=80), st.floats(0.05, 0.95))
def test_no_person_is_on_both_sides(looks, val_fraction):
    stems = {f"{name}-look{look}" for name, look in looks}
    if len({name for name, _ in looks}) < 2:
        return
    train, val = split(stems, val_fraction, r"(.+)-look\d")
    assert train
    assert val
    assert not {stem.split("-")[0] for stem in train} & {stem.split("-")[0] for stem in val}


@pytest.mark.parametrize("val_fraction", [0.05, 0.1, 0.3])
def test_the_share_is_near_val_fraction(val_fraction):
    _, val = split([f"face_{number}" for number in range(4000)], val_fraction)
    assert len(val) / 4000 == pytest.approx(val_fraction, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES, min_size=2, max_size=6), st.sampled_from([0.001, 0.1, 0.5, 0.999]))
def test_both_sides_get_someone(stems, val_fraction):
    train, val = split(stems, val_fraction)
    assert train
    assert val


def test_the_split_is_the_same_on_every_machine():
    """Not Python's `hash`, which differs from process to process: these names stay where they are."""
    assert sorted(split(BASE)[1]) == HELD_OUT


HELD_OUT = ["image_0009", "image_0040", "image_0047", "image_0080", "image_0086", "image_0088", "image_0098"]


def test_one_person_cannot_be_split():
    with pytest.raises(UserError, match="anna"):
        split(["anna_1", "anna_2"], pattern=r"(.+)_\d")
    with pytest.raises(UserError, match="at least two"):
        split(["anna"])


def test_a_stem_that_the_pattern_does_not_match_is_named():
    with pytest.raises(UserError, match="berta"):
        split(["anna_1", "berta"], pattern=r"(.+)_\d")


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


def save_random_pair(folder: Path, stem: str, seed: int, mask: bool = True) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("source", "target", "eye_mask")[: 3 if mask else 2]:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        shape = (16, 16) if kind == "eye_mask" else (16, 16, 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / kind / f"{stem}.png")


@pytest.fixture
def pairs(tmp_path) -> MakeupPairs:
    """Four pairs of noise, the third without a mask."""
    for index in range(4):
        save_random_pair(tmp_path, f"p{index}", index, mask=index != 2)
    return MakeupPairs(find_pairs(tmp_path), 16)


def test_pixels_come_through_unchanged(pairs, tmp_path):
    assert len(pairs) == 4
    for index in range(4):
        for kind, tensor in zip(("source", "target", "eye_mask"), pairs[index], strict=True):
            path = tmp_path / kind / f"p{index}.png"
            if path.exists():
                expected = np.array(Image.open(path)).reshape(16, 16, -1).transpose(2, 0, 1)
                assert np.array_equal(tensor.mul(255).round().byte().numpy(), expected)
                assert tensor.dtype == torch.float32
                assert tensor.max() <= 1


def test_a_pair_without_a_mask_is_white_everywhere(pairs):
    assert pairs.has_mask.tolist() == [True, True, False, True]
    assert pairs[2][2].min() == 1


def test_every_unreadable_file_is_named_in_one_message(tmp_path):
    for index in range(6):
        save_random_pair(tmp_path, f"p{index}", index)
    whole = (tmp_path / "target" / "p1.png").read_bytes()
    (tmp_path / "source" / "p0.png").write_text("I am no image")
    (tmp_path / "target" / "p1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "eye_mask" / "p2.png").write_bytes(b"")
    Image.new("RGB", (16, 16)).save(tmp_path / "p3.jpg")
    jpeg = (tmp_path / "p3.jpg").read_bytes()
    (tmp_path / "source" / "p3.png").write_bytes(jpeg[: len(jpeg) - 20])
    with pytest.raises(UserError) as caught:
        MakeupPairs(find_pairs(tmp_path), 16)
    message = str(caught.value)
    assert "4 images" in message
    for name in ("source/p0.png", "target/p1.png", "eye_mask/p2.png", "source/p3.png"):
        assert name in message
    assert "p4" not in message


# --- batches ----------------------------------------------------------------------------------------


def test_source_target_and_mask_are_flipped_together(pairs):
    flipped = torch.tensor([True, False, False, True])  # a number each
    indices = torch.tensor([3, 1, 0])
    batch = next(load_batches(pairs, [indices], torch.device("cpu"), flipped))
    for kind, images in enumerate(batch):
        for image, index, flip in zip(images, indices, flipped[indices], strict=True):
            plain = pairs[int(index)][kind]
            assert torch.equal(image, plain.flip(-1) if flip else plain)
            assert not torch.equal(image, plain if flip else plain.flip(-1))


def test_a_batch_is_not_flipped_unasked(pairs):
    batch = next(load_batches(pairs, [torch.tensor([1, 2])], torch.device("cpu")))
    for kind, images in enumerate(batch):
        assert torch.equal(images[0], pairs[1][kind])
        assert torch.equal(images[1], pairs[2][kind])
