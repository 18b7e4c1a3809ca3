"""Files appear whole or not at all, whatever the disk does; a folder has one writer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, read_files

from tinybeauty.cache import decode_pairs
from tinybeauty.errors import UserError
from tinybeauty.files import lock_folder, make_folder, save_bytes
from tinybeauty.pairs import find_pairs
from tinybeauty.tracking import Tracker
from tinybeauty_training import run_training


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path, durable):
    path = tmp_path / "a.pt"
    save_bytes(path, b"old and long", durable)
    save_bytes(path, b"new", durable)
    assert read_files(tmp_path) == {"a.pt": b"new"}


def test_a_file_that_is_being_written_is_hidden(tmp_path, monkeypatch):
    """Whoever lists the folder in the middle, for `*.pt` say, sees the old file alone."""
    (tmp_path / "a.pt").write_bytes(b"old")
    real, seen = Path.replace, []

    def spy(path: Path, target: Path) -> Path:
        seen.extend(read_files(tmp_path).items())
        return real(path, target)

    monkeypatch.setattr(Path, "replace", spy)
    save_bytes(tmp_path / "a.pt", b"new")
    assert sorted(seen) == [(".a.pt.partial", b"new"), ("a.pt", b"old")]


# --- disks that fill up -----------------------------------------------------------------------------


def save_a_file(folder: Path, demo: Path) -> None:
    save_bytes(folder / "a.pt", bytes(60_000))


def save_the_cache(folder: Path, demo: Path) -> None:
    cache = decode_pairs(find_pairs(demo), 64, folder, skip_bad=False)
    cache.read(list(cache.pairs))  # which looks at the check sums


def train(folder: Path, demo: Path) -> None:
    flags = ["--data_dir", str(demo), "--output_dir", str(folder), "--cache_dir", "", "--epochs", "1"]
    run_training([*flags, *SMALL, "--overwrite"], Tracker())


PICTURE, CONFIG, CSV = "samples_epoch_001.png", "config.yaml", "metrics.csv"
SHIPPED = {"tinybeauty_best_loss.pt", "tinybeauty_best_psnr.pt", "tinybeauty_final.pt"}


@pytest.mark.parametrize(
    ("write", "limit", "what", "left", "remedy"),
    [
        (save_a_file, 50_000, "a.pt", {"a.pt"}, "intact"),
        (save_the_cache, 500_000, "pixels_64_", set(), "Make room, or set cache_dir"),
        (train, 50_000, "tinybeauty_best_loss.pt", set(), "go on with --resume, or with --overwrite"),
        (train, 200_000, "tinybeauty_last.ckpt", {*SHIPPED, PICTURE, CONFIG, CSV}, "--overwrite"),
    ],
    ids=["a file", "the cache", "a network", "the state"],
)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, demo, write, limit, what, left, remedy):
    """The system itself refuses to let a file grow beyond the limit; mended, the same call goes through."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if "a.pt" in left:
        (tmp_path / "a.pt").write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError) as caught:
            write(tmp_path, demo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert message.startswith("cannot write ")
    assert str(tmp_path / what) in message
    assert "File too large" in message
    assert remedy in message
    assert "\n" not in message
    files = read_files(tmp_path)
    assert set(files) - {".lock"} == left
    assert files.get("a.pt") in (None, b"old")
    write(tmp_path, demo)
    assert not [name for name in read_files(tmp_path) if "partial" in name]


# --- folders ----------------------------------------------------------------------------------------


def test_a_folder_is_made_and_tried_out(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(OSError, match="file"):
            make_folder(place)


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    """Not the file that was tried out."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: (dir / "tmp1").open())
    with pytest.raises(OSError, match="No such file") as caught:
        make_folder(tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")


def test_a_locked_folder_is_refused_or_waited_for(tmp_path, capsys):
    order = []

    def wait() -> None:
        with lock_folder(tmp_path, wait=True):
            order.append("second")

    with lock_folder(tmp_path):
        with pytest.raises(UserError, match="another run is writing into") as caught, lock_folder(tmp_path):
            order.append("never")
        assert str(tmp_path) in str(caught.value)
        thread = threading.Thread(target=wait)
        thread.start()
        while "waiting" not in capsys.readouterr().out:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_killed_run_holds_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tinybeauty.files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError), lock_folder(tmp_path):
            pass
        other.kill()
    with lock_folder(tmp_path):
        pass
