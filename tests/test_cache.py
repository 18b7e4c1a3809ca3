"""The cache of decoded pairs: nothing is decoded twice, nothing stale or damaged is ever trained on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NETWORKS, ROOT, SMALL
from PIL import Image

import tinybeauty_training as program
from tinybeauty_training import MakeupPairs, UserError, find_pairs

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
    real = program.decode_pair

    def spy(pair, image_size):
        stems.append(pair.stem)
        return real(pair, image_size)

    monkeypatch.setattr(program, "decode_pair", spy)
    return stems


def load(data_dir: Path, image_size: int = SIZE, **options) -> MakeupPairs:
    """Read all pairs through the cache in `data_dir`."""
    cache_dir = data_dir / ".cache"
    cache_dir.mkdir(exist_ok=True)
    return MakeupPairs(find_pairs(data_dir), image_size, cache_dir=cache_dir, **options)


def assert_right(pairs: MakeupPairs, data_dir: Path, image_size: int = SIZE) -> None:
    """Compare with the same pairs decoded into memory."""
    expected = MakeupPairs(find_pairs(data_dir), image_size)
    everything = torch.arange(len(expected))
    assert pairs.stems == expected.stems
    assert pairs.checksums == expected.checksums
    assert torch.equal(pairs.read(everything), expected.read(everything))


def test_a_second_start_decodes_nothing(data_dir, decoded):
    assert_right(load(data_dir), data_dir)
    decoded.clear()
    second = load(data_dir)
    assert decoded == []
    assert_right(second, data_dir)


def test_the_pixels_are_mapped_and_not_held_in_memory(data_dir):
    pairs = load(data_dir)
    assert isinstance(pairs.cache.pixels, np.memmap)
    assert not pairs.cache.pixels.flags.writeable


def test_only_what_has_changed_is_decoded_again(data_dir, decoded):
    load(data_dir)
    save_pair(data_dir, "p1", 100)  # changed
    save_pair(data_dir, "new", 101)  # added
    for kind in ("source", "target", "eye_mask"):
        (data_dir / kind / "p4.png").unlink()  # removed
    (data_dir / "eye_mask" / "p5.png").unlink()  # lost its mask
    (data_dir / "source" / "p2.png").rename(data_dir / "source" / "p2.bmp")  # another name
    decoded.clear()
    pairs = load(data_dir)
    assert sorted(decoded) == ["new", "p1", "p2", "p5"]
    assert_right(pairs, data_dir)


def test_a_file_of_the_same_size_and_another_time_is_decoded_again(data_dir, decoded):
    load(data_dir)
    path = data_dir / "target" / "p3.png"
    size = path.stat().st_size
    save_pair(data_dir, "p3", 300)  # stored uncompressed, so the size is the same
    assert path.stat().st_size == size
    decoded.clear()
    pairs = load(data_dir)
    assert decoded == ["p3"]
    assert_right(pairs, data_dir)


def test_another_image_size_has_a_cache_of_its_own(data_dir, decoded):
    load(data_dir)
    assert_right(load(data_dir, 8), data_dir, 8)
    decoded.clear()
    load(data_dir)
    load(data_dir, 8)
    assert decoded == []


def test_a_run_that_reads_is_not_disturbed_by_one_that_changes_the_cache(data_dir):
    reading = load(data_dir)
    before = MakeupPairs(find_pairs(data_dir), SIZE).read(torch.arange(6))
    for turn in range(4):  # often enough for the cache to begin a new file
        for index in range(6):
            save_pair(data_dir, f"p{index}", 1000 * (turn + 1) + index)
        assert_right(load(data_dir), data_dir)
    assert torch.equal(reading.read(torch.arange(6)), before)


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
    pairs = load(data_dir, skip_bad=True)
    assert decoded == ["p2"]
    assert "p2" not in pairs.stems
    save_pair(data_dir, "p2", 2)
    decoded.clear()
    assert_right(load(data_dir), data_dir)
    assert decoded.count("p2") == 2  # once for the cache, once for the comparison


def test_a_decoding_that_is_interrupted_leaves_the_old_cache(data_dir, decoded, monkeypatch):
    load(data_dir)
    for index in range(6, 9):
        save_pair(data_dir, f"p{index}", index)
    real = program.decode_pair
    with monkeypatch.context() as patch:

        def stop(pair, image_size):
            if pair.stem == "p8":
                raise KeyboardInterrupt
            return real(pair, image_size)

        patch.setattr(program, "decode_pair", stop)
        with pytest.raises(KeyboardInterrupt):
            load(data_dir)
    decoded.clear()
    assert_right(load(data_dir), data_dir)
    assert {"p6", "p7", "p8"} <= set(decoded)


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tinybeauty_training import MakeupPairs, find_pairs
data_dir = Path({data_dir!r})
print("ready", flush=True)
MakeupPairs(find_pairs(data_dir), 256, cache_dir=data_dir / ".cache")
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
    for position in range(0, len(whole), 7):
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
    place = program.make_cache_dir(program.Config(data_dir=str(data_dir)))
    assert place.parent == tmp_path / "home" / "tinybeauty"
    assert place.is_dir()


def test_two_data_sets_share_a_cache_folder(tmp_path):
    places = {
        program.make_cache_dir(
            program.Config(data_dir=str(tmp_path / name / "faces"), cache_dir=str(tmp_path / "cache"))
        )
        for name in "ab"
    }
    assert len(places) == 2


def test_a_cache_folder_that_cannot_be_written(demo, tmp_path, one_error):
    (tmp_path / "file").write_bytes(b"")
    message = one_error(
        "--data_dir", demo, "--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "file", *SMALL
    )
    assert str(tmp_path / "file") in message
    assert "cache_dir" in message


def test_a_disk_that_fills_up_while_caching(data_dir):
    """The system itself refuses to let the file grow, in a process of its own."""
    code = KILLED.format(root=str(ROOT), data_dir=str(data_dir)).replace(
        "print(", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); print("
    )
    (data_dir / ".cache").mkdir()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: cannot write the cache" in run.stderr
    assert "cache_dir" in run.stderr
    assert not list((data_dir / ".cache").glob("*.bin"))
    assert_right(load(data_dir, 256), data_dir, 256)
