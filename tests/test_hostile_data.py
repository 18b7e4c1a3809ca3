"""Files and names as people really have them: broken, huge, animated, looping, oddly named."""

from __future__ import annotations

import shutil
import string
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinybeauty_training import Config, UserError, find_pairs, load_config, read_image

NAMES = ("Anna Maria", "anna.b.c", "Zoë 愛", "1", "10", "-x", "image_0000")


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


def test_a_link_that_loops_is_named(demo, tmp_path, one_error):
    shutil.copytree(demo, tmp_path / "faces")
    loop = tmp_path / "faces" / "source" / "face_0000.png"
    loop.unlink()
    loop.symlink_to(loop)
    message = one_error("--data_dir", tmp_path / "faces", "--output_dir", tmp_path / "out", *SMALL)
    assert str(loop) in message


def test_odd_names_pair_up_and_system_files_are_passed_over(tmp_path):
    for kind in ("source", "target"):
        (tmp_path / kind).mkdir()
        for name in NAMES:
            Image.new("RGB", (8, 8)).save(tmp_path / kind / f"{name}.png")
        for name in (".DS_Store", "Thumbs.db", "._1.png", "notes.txt"):
            (tmp_path / kind / name).write_bytes(b"x")
    assert sorted(pair.stem for pair in find_pairs(tmp_path)) == sorted(NAMES)


@pytest.fixture
def half_broken(demo, tmp_path) -> Path:
    """Demo pairs of which three cannot be read."""
    shutil.copytree(demo, tmp_path / "faces")
    (tmp_path / "faces" / "source" / "face_0002.png").write_bytes(b"")
    (tmp_path / "faces" / "target" / "face_0005.png").write_bytes(b"no image")
    (tmp_path / "faces" / "eye_mask" / "face_0009.png").write_bytes(b"\x89PNG")
    return tmp_path / "faces"


def test_all_broken_files_of_both_sides_are_named_before_training(half_broken, tmp_path, one_error):
    message = one_error("--data_dir", half_broken, "--output_dir", tmp_path / "out", *SMALL)
    assert "3 images" in message
    assert "skip_bad_pairs" in message
    for name in ("source/face_0002.png", "target/face_0005.png", "eye_mask/face_0009.png"):
        assert name in message
    assert not list((tmp_path / "out").glob("*.pt"))


def test_bad_pairs_are_left_out_and_counted_on_request(half_broken, tmp_path, call_main):
    flags = ["--data_dir", half_broken, "--output_dir", tmp_path / "out", "--epochs", 1, *SMALL]
    code, stdout, stderr = call_main(*flags, "--skip_bad_pairs")
    assert code == 0, stderr
    assert "left out 3 pairs" in stdout
    assert "21 pairs in" in stdout


STEMS = st.sets(st.sampled_from([*NAMES, "a", "A1", "b 2", "c..d"]))


@settings(max_examples=60, deadline=None)
@given(source=STEMS, target=STEMS)
def test_pairs_are_the_same_stems_or_an_error_names_the_rest(tmp_path_factory, source, target):
    folder = tmp_path_factory.mktemp("pairs")
    for kind, stems in (("source", source), ("target", target)):
        (folder / kind).mkdir()
        for number, stem in enumerate(sorted(stems)):
            (folder / kind / (stem + (".png", ".JPG", ".webp")[number % 3])).touch()
    if source and source == target:
        assert {pair.stem for pair in find_pairs(folder)} == source
        return
    with pytest.raises(UserError) as caught:
        find_pairs(folder)
    for stem in sorted(source ^ target)[:1]:
        assert stem in str(caught.value)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
)
KEYS = st.one_of(
    st.sampled_from(sorted(Config.model_fields)), st.text(string.ascii_letters + "_", min_size=1, max_size=12)
)


@settings(max_examples=300, deadline=None)
@given(values=st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_settings_give_a_config_or_an_error_that_names_each_key(tmp_path_factory, values):
    empty = tmp_path_factory.getbasetemp() / "empty.yaml"
    empty.touch()
    try:
        config = load_config(values, empty)
    except UserError as error:
        message = str(error)
        assert message.startswith("bad configuration:\n")
        named = {line.strip().partition(":")[0] for line in message.splitlines()[1:]}
        assert named <= set(values)
        return
    for key in values:
        assert key in Config.model_fields
    assert load_config(config.model_dump(), empty) == config
