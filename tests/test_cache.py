"""The cache of decoded pairs: nothing is decoded twice, nothing stale or damaged is ever trained on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import NETWORKS, ROOT, SMALL
from PIL import Image

from tinybeauty import cache
from tinybeauty.cache import PixelCache, choose_cache_dir, decode_pairs
from tinybeauty.errors import UserError
from tinybeauty.pairs import find_pairs

SIZE = 16


def save_pair(folder: Path, stem: str, seed: int) -> None:
    """Write a pair of noise with its mask, as PNG."""
    rng = np.random.default_rng(seed)
    for kind, shape in (("source", (SIZE, SIZE, 3)), ("target", (SIZE, SIZE, 3)), ("eye_mask", (SIZE, SIZE))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(folder / kind / f"{stem}.png", compress_level=0)


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """Six pairs of noise."""
    for index in range(6):
        save_pair(tmp_path / "data", f"p{index}", index)
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Give the stems that are decoded from now on, in any order."""
    stems: list[str] = []
    real = cache.decode_pair

    def spy(pair, image_size):
        stems.append(pair.stem)
        return real(pair, image_size)

    monkeypatch.setattr(cache, "decode_pair", spy)
    return stems


def load(data_dir: Path, image_size: int = SIZE, skip_bad: bool = False) -> PixelCache:
    """Read all pairs through the cache in `data_dir`."""
    folder = data_dir / ".cache"
    folder.mkdir(exist_ok=True)
    return decode_pairs(find_pairs(data_dir), image_size, folder, skip_bad)


def list_checksums(pixels: PixelCache) -> dict[str, int]:
    """Return {stem: check sum} of all pairs."""
    return {stem: entry.checksum for stem, entry in pixels.pairs.items()}


def assert_right(pixels: PixelCache, data_dir: Path, image_size: int = SIZE) -> None:
    """Compare with the same pairs decoded into memory."""
    expected = decode_pairs(find_pairs(data_dir), image_size, folder=None, skip_bad=False)
    assert list_checksums(pixels) == list_checksums(expected)
    assert np.array_equal(pixels.read(sorted(pixels.pairs)), expected.read(sorted(expected.pairs)))


def test_a_second_start_decodes_nothing(data_dir, decoded):
    assert_right(load(data_dir), data_dir)
    decoded.clear()
    second = load(data_dir)
    assert decoded == []
    assert_right(second, data_dir)


def test_the_pixels_are_mapped_and_not_held_in_memory(data_dir):
    pixels = load(data_dir).pixels
    assert isinstance(pixels, np.memmap)
    assert not pixels.flags.writeable


def test_only_what_has_changed_is_decoded_again(data_dir, decoded):
    load(data_dir)
    save_pair(data_dir, "p1", 100)  # changed
    save_pair(data_dir, "new", 101)  # added
    for kind in ("source", "target", "eye_mask"):
        (data_dir / kind / "p4.png").unlink()  # removed
    (data_dir / "eye_mask" / "p5.png").unlink()  # lost its mask
    (data_dir / "source" / "p2.png").rename(data_dir / "source" / "p2.bmp")  # another name
    decoded.clear()
    pixels = load(data_dir)
    assert sorted(decoded) == ["new", "p1", "p2", "p5"]
    assert_right(pixels, data_dir)


def test_a_file_of_the_same_size_and_another_time_is_decoded_again(data_dir, decoded):
    load(data_dir)
    path = data_dir / "target" / "p3.png"
    size = path.stat().st_size
    save_pair(data_dir, "p3", 300)  # stored uncompressed, so the size is the same
    assert path.stat().st_size == size
    decoded.clear()
    pixels = load(data_dir)
    assert decoded == ["p3"]
    assert_right(pixels, data_dir)


def test_another_image_size_has_a_cache_of_its_own(data_dir, decoded):
    load(data_dir)
    assert_right(load(data_dir, 8), data_dir, 8)
    decoded.clear()
    load(data_dir)
    load(data_dir, 8)
    assert decoded == []


def test_a_run_that_reads_is_not_disturbed_by_one_that_changes_the_cache(data_dir):
    reading = load(data_dir)
    stems = sorted(reading.pairs)
    before = decode_pairs(find_pairs(data_dir), SIZE, folder=None, skip_bad=False).read(stems)
    for turn in range(4):  # often enough for the cache to begin a new file
        for index in range(6):
            save_pair(data_dir, f"p{index}", 1000 * (turn + 1) + index)
        assert_right(load(data_dir), data_dir)
    assert np.array_equal(reading.read(stems), before)


def test_the_cache_does_not_grow_without_end(data_dir):
    for turn in range(8):
        for index in range(6):
            save_pair(data_dir, f"p{index}", 1000 * turn + index)
        load(data_dir)
    files = list((data_dir / ".cache").glob("*.bin"))
    assert len(files) == 1
    assert files[0].stat().st_size <= 3 * 6 * SIZE * SIZE * 7


def test_broken_pairs_are_tried_again_and_the_others_are_kept(data_dir, decoded):
    (data_dir / "source" / "p2.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"p2\.png"):
        load(data_dir)
    decoded.clear()
    pixels = load(data_dir, skip_bad=True)
    assert decoded == ["p2"]
    assert sorted(pixels.pairs) == ["p0", "p1", "p3", "p4", "p5"]
    save_pair(data_dir, "p2", 2)
    decoded.clear()
    assert_right(load(data_dir), data_dir)
    assert decoded.count("p2") == 2  # once for the cache, once for the comparison


def test_a_decoding_that_is_interrupted_leaves_the_old_cache(data_dir, decoded, monkeypatch):
    load(data_dir)
    for index in range(6, 9):
        save_pair(data_dir, f"p{index}", index)
    real = cache.decode_pair
    with monkeypatch.context() as patch:

        def stop(pair, image_size):
            if pair.stem == "p8":
                raise KeyboardInterrupt
            return real(pair, image_size)

        patch.setattr(cache, "decode_pair", stop)
        with pytest.raises(KeyboardInterrupt):
            load(data_dir)
    decoded.clear()
    assert_right(load(data_dir), data_dir)
    assert {"p6", "p7", "p8"} <= set(decoded)


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tinybeauty.cache import decode_pairs
from tinybeauty.pairs import find_pairs
data_dir = Path({data_dir!r})
print("ready", flush=True)
decode_pairs(find_pairs(data_dir), 256, data_dir / ".cache", skip_bad=False)
"""


def test_a_kill_leaves_none_half_made(data_dir):
    (data_dir / ".cache").mkdir()
    code = KILLED.format(root=str(ROOT), data_dir=str(data_dir))
    for delay in (0.0, 0.02):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        assert_right(load(data_dir, 256), data_dir, 256)
        for index in range(6):  # so that there is something to do again
            os.utime(data_dir / "source" / f"p{index}.png", ns=(0, int(delay * 1e9) + index + 1))


def harm_pixels(folder: Path) -> None:
    """Overwrite one byte in the last row."""
    path = next(folder.glob("*.bin"))
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut_pixels(folder: Path) -> None:
    """Cut the last byte off."""
    path = next(folder.glob("*.bin"))
    os.truncate(path, path.stat().st_size - 1)


def fill_with_noise(folder: Path) -> None:
    """Overwrite both files with noise of the same length."""
    rng = np.random.default_rng(0)
    for path in folder.iterdir():
        path.write_bytes(rng.bytes(path.stat().st_size))


def flip_index_bit(folder: Path) -> None:
    """Change a digit of the index."""
    path = next(folder.glob("*.json"))
    content = bytearray(path.read_bytes())
    content[content.index(b'"p0":[') + 6] ^= 1  # the row of p0: another pair's
    path.write_bytes(content)


def lose_pixels(folder: Path) -> None:
    """Delete the pixels, keep the index."""
    next(folder.glob("*.bin")).unlink()


@pytest.mark.parametrize("harm", [harm_pixels, cut_pixels, fill_with_noise, flip_index_bit, lose_pixels])
def test_a_damaged_cache_never_gives_a_wrong_result(data_dir, harm, capsys):
    load(data_dir)
    harm(data_dir / ".cache")
    try:
        assert_right(load(data_dir), data_dir)
        assert "is damaged" in capsys.readouterr().out
    except UserError as error:
        assert "start again" in str(error)
        assert "\n" not in str(error)
    assert_right(load(data_dir), data_dir)  # the run after that is right in any case


def write_index(folder: Path, text: bytes) -> None:
    """Write an index whose check sum is right."""
    (folder / f"pairs_{SIZE}.json").write_bytes(b"%08x\n%s" % (zlib.crc32(text), text))


@pytest.mark.parametrize(
    "change",
    [
        (b'"pixels":"', b'"pixels":"../'),
        (b'"pixels":"', b'"pixels":"/tmp/'),
        (b'"p0":[0', b'"p0":[-1'),
        (b'"p0":[0', b'"p0":[99'),
        (b'"p0":[', b'"p0":["'),
        (b'"rows":6', b'"rows":1e99'),
    ],
    ids=lambda change: change[1].decode(),
)
def test_a_hostile_index_is_no_index(data_dir, tmp_path, change, capsys):
    """Data sets come from anywhere, and so do the caches in them."""
    load(data_dir)
    folder = data_dir / ".cache"
    body = (folder / f"pairs_{SIZE}.json").read_bytes().split(b"\n", 1)[1]
    assert change[0] in body
    write_index(folder, body.replace(*change))
    pixels = next(folder.glob("*.bin"))
    outside = data_dir / pixels.name  # where "../" leads
    outside.write_bytes(pixels.read_bytes())
    before = outside.read_bytes()
    assert_right(load(data_dir), data_dir)
    assert "damaged" in capsys.readouterr().out
    assert outside.read_bytes() == before


def test_a_link_to_somewhere_else_is_not_written_to(data_dir, tmp_path):
    load(data_dir)
    pixels = next((data_dir / ".cache").glob("*.bin"))
    pixels.rename(tmp_path / "precious")
    pixels.symlink_to(tmp_path / "precious")
    before = (tmp_path / "precious").read_bytes()
    save_pair(data_dir, "new", 9)
    assert_right(load(data_dir), data_dir)
    assert (tmp_path / "precious").read_bytes() == before


def test_every_bit_of_the_index_counts(data_dir):
    load(data_dir)
    path = data_dir / ".cache" / f"pairs_{SIZE}.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 31):
        harmed = bytearray(whole)
        harmed[position] ^= 1 << position % 8
        path.write_bytes(harmed)
        assert_right(load(data_dir), data_dir)
        path.write_bytes(whole)


def test_with_and_without_a_cache_the_bytes_are_the_same(demo, tmp_path, call_main):
    common = ["--data_dir", demo, "--epochs", 1, *SMALL]
    for name, cache_dir in (("without", ""), ("first", tmp_path / "cache"), ("second", tmp_path / "cache")):
        code, stdout, stderr = call_main(*common, "--output_dir", tmp_path / name, "--cache_dir", cache_dir)
        assert code == 0, stderr
        assert ("memory" if not cache_dir else str(cache_dir)) in stdout
    assert list((tmp_path / "cache").glob("faces-*/*.bin"))
    for network in NETWORKS:
        expected = (tmp_path / "without" / network).read_bytes()
        assert (tmp_path / "first" / network).read_bytes() == expected
        assert (tmp_path / "second" / network).read_bytes() == expected


def test_read_only_data_are_cached_elsewhere(data_dir, tmp_path, monkeypatch):
    (data_dir / ".cache").write_bytes(b"")  # root may write anywhere; a file in the way stops even root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    place = choose_cache_dir("auto", data_dir)
    assert place.parent == tmp_path / "home" / "tinybeauty"
    assert place.is_dir()


def test_two_data_sets_share_a_cache_folder(tmp_path):
    places = {choose_cache_dir(str(tmp_path / "cache"), tmp_path / name / "faces") for name in "ab"}
    assert len(places) == 2


def test_a_cache_folder_that_cannot_be_written(demo, tmp_path, one_error):
    (tmp_path / "file").write_bytes(b"")
    message = one_error(
        "--data_dir", demo, "--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "file", *SMALL
    )
    assert str(tmp_path / "file") in message
    assert "cache_dir" in message


# --- pairs that cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize("folder", [".cache", None])
def test_every_unreadable_file_is_named_in_one_message(data_dir, folder):
    whole = (data_dir / "target" / "p1.png").read_bytes()
    (data_dir / "source" / "p0.png").write_text("I am no image")
    (data_dir / "target" / "p1.png").write_bytes(whole[: len(whole) // 2])
    (data_dir / "eye_mask" / "p2.png").write_bytes(b"")
    Image.new("RGB", (16, 16)).save(data_dir / "p3.jpg")
    jpeg = (data_dir / "p3.jpg").read_bytes()
    (data_dir / "source" / "p3.png").write_bytes(jpeg[: len(jpeg) - 20])
    (data_dir / "target" / "p4.png").unlink()
    (data_dir / "target" / "p4.png").symlink_to(data_dir / "target" / "p4.png")  # a link that loops
    (data_dir / ".cache").mkdir()
    with pytest.raises(UserError) as caught:
        decode_pairs(find_pairs(data_dir), SIZE, folder and data_dir / folder, skip_bad=False)
    message = str(caught.value)
    assert "5 images" in message
    for name in ("source/p0.png", "target/p1.png", "eye_mask/p2.png", "source/p3.png", "target/p4.png"):
        assert str(data_dir / name) in message
    assert "p5" not in message


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


def test_no_pair_that_can_be_read_is_an_error(half_broken, tmp_path, one_error):
    for path in (half_broken / "source").iterdir():
        path.write_bytes(b"")
    flags = ["--data_dir", half_broken, "--output_dir", tmp_path / "out", *SMALL, "--skip_bad_pairs"]
    assert "none are left" in one_error(*flags)


def test_odd_exif_prints_no_warnings_that_name_no_file(data_dir):
    for path in (data_dir / "source").iterdir():
        exif = Image.Exif()
        exif[0x010F] = "Maker" * 40
        Image.open(path).save(path.with_suffix(".jpg"), exif=exif.tobytes()[:30])
        path.unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(data_dir / "source" / "p0.jpg") as image:
            image.getexif()
        assert caught  # Pillow does warn
        caught.clear()
        assert len(load(data_dir).pairs) == 6
    assert not caught
