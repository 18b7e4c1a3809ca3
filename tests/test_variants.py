"""Variants of photos: the same on every machine, plausible, their landmarks where the face is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, read_files
from drawn_faces import MEAN, SKINS, draw_face, place, save_photo
from PIL import Image
from test_prepare_pairs import KINDS, make, one_error, read_skipped, run_tool

from tinybeauty.landmarks import DLIB_EYES, LIPS_OUTER

sys.path.insert(0, str(ROOT / "data"))

from makeup import LUMA, TO_LINEAR
from variants import Draw, cut_beside, draw_variant, find_light, find_temperature_gains, vary

STILL = Draw((0.0, 0.0), 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A crop that is aligned already, and a whole photo."""
    folder = tmp_path_factory.mktemp("photos")
    save_photo(folder, "aligned.png", draw_face(MEAN, (256, 256)), MEAN)
    points = place(MEAN, 380, (330, 300), 20)
    save_photo(folder, "tilted.jpg", draw_face(points, (700, 600), SKINS["dark"]), points)
    return folder


# --- the command ------------------------------------------------------------------------------------


def test_more_variants_leave_what_is_there_and_fewer_name_the_rest(photos, tmp_path):
    out = tmp_path / "out"
    make(photos, out, "--variants", 2)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*/*.png")}
    assert len(first) == 2 * 2 * 3
    told = make(photos, out, "--variants", 3)
    assert "6 pairs of 128 px" in told
    assert "4 of them are variants; 4 of them were there" in told
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert sorted(path.stem for path in (out / "target").iterdir()) == [
        *("aligned", "aligned~v2", "aligned~v3", "tilted", "tilted~v2", "tilted~v3")
    ]
    assert "4 of them are variants; 6 of them were there" in make(photos, out, "--variants", 3)
    at_once = tmp_path / "at_once"
    make(photos, at_once, "--variants", 3, "--workers", 1)
    assert read_files(at_once) == read_files(out)
    (out / "eye_mask" / "tilted~v2.png").unlink()
    make(photos, out, "--variants", 3)
    assert read_files(at_once) == read_files(out)
    fewer = run_tool(photos, "--out", out, "--size", 128, "--variants", 1)
    assert fewer.returncode == 0
    assert "note: 4 pairs" in fewer.stderr
    assert "aligned~v2" in fewer.stderr
    shutil.rmtree(out)
    make(photos, out)
    for kind in KINDS:  # originals are the same with variants and without
        for name in ("aligned.png", "tilted.png"):
            assert (out / kind / name).read_bytes() == (at_once / kind / name).read_bytes()


def test_photos_named_like_variants_are_left_out(photos, tmp_path):
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    for suffix in (".png", ".json"):
        shutil.copy(mine / f"aligned{suffix}", mine / f"aligned~v2{suffix}")
        shutil.copy(mine / f"aligned{suffix}", mine / f"aligned~2{suffix}")  # as phones name edits
    make(mine, tmp_path / "out", "--variants", 2)
    assert read_skipped(tmp_path / "out") == {
        "aligned~v2.png": "its name ends as those of variants do: rename it"
    }
    assert (tmp_path / "out" / "target" / "aligned~2~v2.png").is_file()


@pytest.mark.parametrize("number", ["0", "-1", "101"])
def test_numbers_of_variants_that_make_no_sense(photos, tmp_path, number):
    message = one_error(photos, "--out", tmp_path / "out", "--variants", number)
    assert message == f"--variants must be from 1 to 100, got {number}"
    assert not (tmp_path / "out").exists()


# --- what a variant is ------------------------------------------------------------------------------


def test_draws_depend_on_photo_face_and_number():
    draws = {
        draw_variant(photo, face, number) for photo in (b"a", b"b") for face in (1, 2) for number in (2, 3)
    }
    assert len(draws) == 8
    assert draw_variant(b"a", 1, 2) == draw_variant(b"a", 1, 2)


def test_draws_are_mostly_small_and_now_and_then_large():
    draws = [draw_variant(b"photo", 1, number) for number in range(2, 802)]
    for values, near, most in (
        (np.abs([draw.shift for draw in draws]).ravel(), 0.02, 0.06),
        (np.abs(np.log2([draw.zoom for draw in draws])), 0.06, 0.32),
        (np.abs([draw.tilt for draw in draws]), 3.0, 12.0),
    ):
        assert values.max() <= most
        assert values.max() > 0.95 * most
        assert 0.75 <= (values <= near + 1e-9).mean() <= 0.92


def test_no_change_is_the_photo():
    photo = draw_face(MEAN, (256, 256))
    picture, points = vary(photo, MEAN, 256, STILL)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(photo)).max() <= 1
    assert np.allclose(points, MEAN)


@pytest.mark.parametrize("whole", [False, True])
def test_landmarks_move_with_the_crop(whole):
    points = place(MEAN, 420, (330, 300), 9) if whole else MEAN
    photo = draw_face(points, (700, 640) if whole else (256, 256), texture=0)
    move = Draw(**vars(STILL) | {"shift": (0.05, -0.04), "zoom": 1.2, "tilt": 10.0})
    picture, moved = cut_beside(photo, points, 256, move)
    redrawn = np.asarray(draw_face(moved, (256, 256), texture=0)).astype(int)
    face = (slice(90, 180), slice(70, 170))
    assert np.abs(np.asarray(picture).astype(int) - redrawn)[face].mean() < 3
    still = cut_beside(photo, points, 256, STILL)[1]

    def find_eyes(points: np.ndarray) -> np.ndarray:
        return points[list(DLIB_EYES[1])].mean(0) - points[list(DLIB_EYES[0])].mean(0)

    assert np.hypot(*find_eyes(moved)) == pytest.approx(np.hypot(*find_eyes(still)) / 1.2, rel=1e-6)
    turned = np.degrees(np.arctan2(*find_eyes(moved)[::-1]) - np.arctan2(*find_eyes(still)[::-1]))
    assert abs(turned) == pytest.approx(10, abs=1e-6)


@pytest.mark.parametrize("skin", SKINS)
def test_no_face_is_crushed_or_clipped(skin):
    photo = draw_face(MEAN, (256, 256), SKINS[skin], texture=2.0)
    levels = []
    for number in range(2, 42):
        draw = draw_variant(skin.encode(), 1, number)
        picture, points = vary(photo, MEAN, 128, draw)
        light = TO_LINEAR[np.asarray(picture)] @ LUMA
        cheeks = points[[50, 280]].round().astype(int)
        levels.append(np.median([light[y, x] for x, y in cheeks]))
        assert (points[list(LIPS_OUTER)] > 0).all()
        assert (points[list(LIPS_OUTER)] < 128).all()
    assert min(levels) > 0.008
    assert max(levels) < 0.95
    assert max(levels) / min(levels) > 2


def test_light_comes_from_where_it_is_said_to():
    for degrees, brighter, darker in ((0, (190, 130), (66, 130)), (180, (66, 130), (190, 130)),
                                      (90, (128, 70), (128, 230))):  # fmt: skip
        gain = find_light(MEAN, 256, Draw(**vars(STILL) | {"light": 0.6, "light_from": degrees}))
        assert gain[brighter[::-1]] > 1.15
        assert gain[darker[::-1]] < 0.87
        assert np.abs(np.diff(gain, axis=0)).max() < 0.03
        assert np.abs(np.diff(gain, axis=1)).max() < 0.03


def test_warmer_light_has_more_red_and_the_same_luminance():
    warm, cold = find_temperature_gains(30.0), find_temperature_gains(-30.0)
    assert warm[0] > 1 > warm[2]
    assert cold[0] < 1 < cold[2]
    assert LUMA @ warm == pytest.approx(1, abs=1e-5)
    assert np.allclose(find_temperature_gains(0.0), 1)


def test_training_takes_variants(photos, tmp_path):
    mine = tmp_path / "photos"
    for number in range(8):
        save_photo(mine, f"face_{number}.png", draw_face(MEAN, (128, 128), seed=number), MEAN / 2)
    make(mine, tmp_path / "pairs", "--variants", 3)
    command = [sys.executable, str(ROOT / "tinybeauty_training.py"), "--data_dir", str(tmp_path / "pairs")]
    command += ["--image_size", "64", "--epochs", "1", "--wandb_mode", "disabled", "--val_fraction", "0.25"]
    run = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("data  "))
    assert "of them variants; validation is on originals), " in line
    used, held_out = (int(re.search(rf"(\d+) {words}", line)[1]) for words in ("pairs in", "held out"))
    assert used == 24 - 2 * held_out
    assert f"          {2 * held_out} variants of people held out are not used\n" in run.stdout
    with Image.open(tmp_path / "pairs" / "source" / "face_0~v2.png") as image:
        assert image.size == (128, 128)
