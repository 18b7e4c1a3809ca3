"""What a cache depends on: another picture under the same name, size and time, or another reader, is seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinybeauty import cache as cache_room
from tinybeauty.cache import decode_pair, decode_pairs
from tinybeauty.pairs import find_pairs

SIZE = 16
KINDS = (("source", (SIZE, SIZE, 3)), ("target", (SIZE, SIZE, 3)), ("eye_mask", (SIZE, SIZE)))


def save_picture(path: Path, seed: int, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> Path:
    """Write noise, uncompressed: every picture has as many bytes as another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)
    return path


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """Four pairs, decoded into their cache."""
    for index in range(4):
        for number, (kind, shape) in enumerate(KINDS):
            save_picture(tmp_path / "data" / kind / f"p{index}.png", 10 * index + number, shape)
    load(tmp_path / "data")
    return tmp_path / "data"


def load(data_dir: Path, size: int = SIZE):
    """Read all pairs through the cache beside them."""
    (data_dir / ".cache").mkdir(exist_ok=True)
    return decode_pairs(find_pairs(data_dir), size, data_dir / ".cache", skip_bad=False)


def count_decoded(data_dir: Path, monkeypatch) -> int:
    """Load the pairs and return how many were decoded for that."""
    stems = []

    def spy(pair, *arguments):
        stems.append(pair.stem)
        return decode_pair(pair, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(cache_room, "decode_pair", spy)
        load(data_dir)
    return len(stems)


def assert_right(data_dir: Path) -> None:
    """Compare what the cache gives, and what a resume goes by, with the pairs decoded anew."""
    pairs, cached = find_pairs(data_dir), load(data_dir)
    fresh = decode_pairs(pairs, SIZE, None, skip_bad=False)
    stems = [pair.stem for pair in pairs]
    assert np.array_equal(cached.read(stems), fresh.read(stems))
    for stem in stems:
        assert cached.pairs[stem].checksum == fresh.pairs[stem].checksum


def copy_p(new: Path, old: Path) -> None:
    """Like `cp -p` over a file: the same inode, the old time of writing."""
    old.write_bytes(new.read_bytes())


def rsync(new: Path, old: Path) -> None:
    """Like rsync: beside it, then renamed."""
    shutil.copy(new, old.with_name(".partial"))
    old.with_name(".partial").replace(old)


def unzip(new: Path, old: Path) -> None:
    """Like `unzip -o`: deleted, then made anew."""
    with zipfile.ZipFile(new.with_suffix(".zip"), "w") as archive:
        archive.write(new, old.name)
    old.unlink()
    with zipfile.ZipFile(new.with_suffix(".zip")) as archive:
        archive.extract(old.name, old.parent)


def link(new: Path, old: Path) -> None:
    """A hard link to another file takes the name."""
    old.unlink()
    old.hardlink_to(new)


def point(new: Path, old: Path) -> None:
    """A symbolic link to another file takes the name."""
    old.unlink()
    old.symlink_to(new)


def rename(new: Path, old: Path) -> None:
    """The file is moved away and another takes the name: as old as it was, and changed by nobody."""
    old.rename(old.with_suffix(".before"))
    new.rename(old)


WAYS = [copy_p, rsync, unzip, link, point, rename]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_other_pixels_under_the_same_name_size_and_time_are_seen(data_dir, tmp_path, way, kind):
    old = data_dir / kind / "p2.png"
    before = old.stat()
    new = save_picture(tmp_path / "new.png", 99, dict(KINDS)[kind])
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    way(new, old)
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = old.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)  # the case at all
    assert_right(data_dir)


def test_two_files_that_swap_their_names_are_seen(data_dir):
    a, b = data_dir / "target" / "p0.png", data_dir / "target" / "p1.png"
    os.utime(b, ns=(a.stat().st_atime_ns, a.stat().st_mtime_ns))
    load(data_dir)
    a.rename(a.with_suffix(".tmp"))
    b.rename(a)
    a.with_suffix(".tmp").rename(b)
    assert_right(data_dir)


def test_real_cp_p(data_dir, tmp_path):
    if not shutil.which("cp"):
        pytest.skip("no cp here")
    old = data_dir / "source" / "p0.png"
    new = save_picture(tmp_path / "new.png", 98)
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    subprocess.run(["cp", "-p", str(new), str(old)], check=True)
    assert_right(data_dir)


def test_a_copied_data_set_is_decoded_anew_and_right(data_dir, tmp_path, monkeypatch):
    """With its cache and its times, as tar and rsync bring it to another machine."""
    shutil.copytree(data_dir, tmp_path / "copy")
    assert count_decoded(tmp_path / "copy", monkeypatch) == 4
    assert_right(tmp_path / "copy")


def test_a_moved_data_set_is_not_decoded_again(data_dir, tmp_path, monkeypatch):
    data_dir.rename(tmp_path / "moved")
    assert count_decoded(tmp_path / "moved", monkeypatch) == 0


def test_a_system_without_inodes_and_change_times_still_has_a_cache(data_dir, monkeypatch):
    class Poor:
        """What FAT or an old network drive tells of a file."""

        def __init__(self, path):
            real = os.stat(path)  # noqa: PTH116 - Path's is replaced
            self.st_size, self.st_mtime_ns = real.st_size, real.st_mtime_ns
            self.st_ctime_ns, self.st_ino, self.st_mode = 0, 0, real.st_mode

    monkeypatch.setattr(cache_room.Path, "stat", lambda path, **_: Poor(path))
    described = cache_room.describe_files(find_pairs(data_dir)[0])
    assert [row[3:] for row in described] == [(0, 0)] * 3


@pytest.mark.parametrize("change", ["reader", "Pillow"])
def test_another_reader_is_noticed(data_dir, monkeypatch, capsys, change):
    from tinybeauty import images

    assert count_decoded(data_dir, monkeypatch) == 0
    if change == "reader":
        monkeypatch.setattr(images, "READER", images.READER + 1)
    else:
        monkeypatch.setattr("PIL.features.version", lambda name: f"{name} of tomorrow")
    capsys.readouterr()
    assert count_decoded(data_dir, monkeypatch) == 4
    assert "damaged" not in capsys.readouterr().out
    assert count_decoded(data_dir, monkeypatch) == 0
    assert len(list((data_dir / ".cache").glob("pixels_*.bin"))) == 1


def write_index(data_dir: Path, change) -> None:
    """Rewrite the index, with its check sum."""
    path = data_dir / ".cache" / f"pairs_{SIZE}.json"
    index = json.loads(path.read_bytes().split(b"\n", 1)[1])
    body = json.dumps(change(index)).encode()
    path.write_bytes(b"%08x\n%s" % (zlib.crc32(body), body))


def to_older(index: dict) -> dict:
    """Return an index as it was before it knew its reader: name, size and time of a file."""
    rows = index["pairs"].items()
    pairs = {stem: [row, crc, [file[:3] for file in files]] for stem, (row, crc, files, *_) in rows}
    return {"pixels": index["pixels"], "rows": index["rows"], "pairs": pairs}


def test_an_older_index_is_decoded_anew_without_noise(data_dir, monkeypatch, capsys):
    write_index(data_dir, to_older)
    capsys.readouterr()
    assert count_decoded(data_dir, monkeypatch) == 4
    assert capsys.readouterr().out == ""
    assert_right(data_dir)


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'{"reader": 5}', b"[" * 100_000])
def test_an_index_that_is_no_index_is_told_and_made_anew(data_dir, capsys, body):
    path = data_dir / ".cache" / f"pairs_{SIZE}.json"
    path.write_bytes(b"%08x\n%s" % (zlib.crc32(body), body))
    load(data_dir)
    assert "is damaged" in capsys.readouterr().out
    assert_right(data_dir)


def test_every_size_has_its_own_pixels(data_dir, monkeypatch):
    assert load(data_dir, 8).pixels.shape[1:3] == (8, 8)
    assert count_decoded(data_dir, monkeypatch) == 0
    assert_right(data_dir)
