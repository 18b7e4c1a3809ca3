"""The tool that draws demo pairs: the same faces each time, makeup where makeup goes, whole sets only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw_demo, read_files
from make_demo import parse_flags
from PIL import Image
from scipy import ndimage

from tinybeauty.files import lock_folder

TOOL = ROOT / "data" / "make_demo.py"
KINDS = ("source", "target", "eye_mask")


def run_tool(*flags: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, flags)], capture_output=True, text=True)


def read_pixels(folder: Path, kind: str) -> np.ndarray:
    return np.stack([np.array(Image.open(path)) for path in sorted((folder / kind).iterdir())])


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """16 faces of the usual size."""
    return draw_demo(tmp_path_factory.mktemp("faces") / "set", 16, 256)


def test_count_size_and_names(demo):
    for kind, mode in zip(KINDS, ("RGB", "RGB", "L"), strict=True):
        paths = sorted((demo / kind).iterdir())
        assert len(paths) == 24
        assert [path.name for path in paths] == sorted(path.name for path in (demo / "source").iterdir())
        for path in paths:
            with Image.open(path) as image:
                assert (image.size, image.mode) == ((64, 64), mode)
    assert {path.name for path in demo.glob("[!.]*")} == set(KINDS)


def test_the_same_command_draws_the_same_bytes_and_more_of_them_change_none(demo, tmp_path):
    again = read_files(draw_demo(tmp_path / "again", 5, 64))
    first = read_files(demo)
    assert len(again) == 15
    assert again == {name: first[name] for name in again}
    assert len(set(first.values())) == 72  # no face twice


def test_another_seed_draws_other_faces(demo, tmp_path):
    other = read_files(draw_demo(tmp_path / "other", 2, 64, "--seed", "7"))
    first = read_files(demo)
    assert all(first[name] != data for name, data in other.items())


def test_doing_nothing_scores_below_29_db(faces):
    source, target = (read_pixels(faces, kind) / 255 for kind in KINDS[:2])
    scores = 10 * np.log10(1 / ((source - target) ** 2).mean((1, 2, 3)))
    assert scores.mean() < 29
    assert scores.min() > 15  # it is the same face still


def test_faces_differ_from_each_other(faces):
    source = read_pixels(faces, "source") / 255
    assert source.mean((1, 2)).std(0).min() > 0.05  # colours of skin, hair and wall
    assert source.std((1, 2)).min() > 0.08  # none is a flat area


def test_only_the_made_up_part_of_the_face_differs(faces):
    """Eyes, brows, cheeks, lips and the face's outline; never the wall, the top of the head, the corners."""
    changed = (read_pixels(faces, "source") != read_pixels(faces, "target")).any(-1)
    assert changed.mean((1, 2)).max() < 0.45
    assert changed.mean((1, 2)).min() > 0.05
    assert not changed[:, :40].any()
    assert not changed[:, :, :25].any()
    assert not changed[:, :, -25:].any()
    assert not changed[:, -10:].any()


def test_eyes_and_lips_are_made_up(faces):
    source, target = (read_pixels(faces, kind).astype(int) for kind in KINDS[:2])
    difference = np.abs(source - target).max(-1)
    for top, bottom, left, right in ((95, 150, 64, 128), (95, 150, 128, 192), (160, 210, 80, 176)):
        assert (difference[:, top:bottom, left:right].max((1, 2)) > 60).all()


def test_the_eye_mask_covers_both_eyes(faces):
    masks = read_pixels(faces, "eye_mask")
    assert set(np.unique(masks)) == {0, 255}
    source, target = (read_pixels(faces, kind) @ np.array([0.299, 0.587, 0.114]) for kind in KINDS[:2])
    for mask, bare, made in zip(masks > 0, source, target, strict=True):
        _, count = ndimage.label(mask)
        assert count == 2
        for half, eye in ((mask[:, :128], 96), (mask[:, 128:], 160)):
            assert 0.005 < half.mean() < 0.12
            y, x = ndimage.center_of_mass(half)
            assert abs(y - 122) < 20
            assert abs(x + 128 * (eye > 128) - eye) < 20
        # The liner is the darkest that the makeup adds around the eyes: it lies inside.
        liner = (made < 45) & (bare - made > 40)
        liner[:106], liner[155:] = False, False  # not the brows, not the rest
        if liner.sum() > 20:
            assert (liner & mask).sum() > 0.9 * liner.sum()


@pytest.mark.parametrize("content", ["notes.txt", "source/mine.png"])
def test_an_existing_folder_is_refused(tmp_path, content):
    out = tmp_path / "out"
    (out / content).parent.mkdir(parents=True)
    (out / content).write_bytes(b"mine")
    run = run_tool("--count", 1, "--size", 64, "--out", out)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert str(out) in run.stderr
    assert read_files(tmp_path) == {f"out/{content}": b"mine"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--count", 0], ("--count", "0")),
        (["--size", 100], ("--size", "multiple of 8", "100")),
        (["--size", 8], ("--size", "8")),
        (["--seed", -1], ("--seed", "-1")),
        (["--sise", 64], ("--sise", "--help")),
        (["--out", "notes/deeper"], ("notes",)),
    ],
)
def test_wrong_flags(tmp_path, flags, told):
    (tmp_path / "notes").write_text("a file")
    flags = [
        "--out",
        tmp_path / "out",
        *(tmp_path / flag if flag == "notes/deeper" else flag for flag in flags),
    ]
    run = run_tool("--count", 1, "--size", 64, *flags)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    for word in told:
        assert word in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_defaults_are_what_the_readme_says():
    """Nothing else draws the 400 faces of a fresh checkout here: it takes half a minute."""
    words = re.search(r"python data/make_demo\.py (.*)", (ROOT / "data" / "README.md").read_text())[1].split()
    told = parse_flags(words)
    told.out = ROOT / told.out
    assert parse_flags([]) == told


def test_what_lies_beside_stays_and_nobody_else_draws_there(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / ".out.partial").mkdir()
    with lock_folder(tmp_path / ".out.partial"):  # as another run of the tool does
        run = run_tool("--count", 1, "--size", 64, "--out", tmp_path / "out")
    assert run.returncode == 1
    assert "another run is writing into" in run.stderr
    draw_demo(tmp_path / "out", 1, 64)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial"}


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_kill_leaves_no_half_made_set(tmp_path):
    """Killed after its first face, it leaves no `out`; the next call is not held up by the rest."""
    out = tmp_path / "out"
    command = [sys.executable, str(TOOL), "--count", "2000", "--size", "512", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not list(tmp_path.glob(".out.partial/pairs/eye_mask/*.png")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    assert not out.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".out.partial"}
    draw_demo(out, 2, 64)
    assert len(read_files(out)) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
