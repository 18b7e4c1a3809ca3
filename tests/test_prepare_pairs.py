"""The tool that turns photos into pairs: alignment, makeup that keeps to its place, files, errors.

The faces are drawn here, on the mean landmarks of many faces (`mean_face.json`: tenths of a pixel of a
256 px picture, MediaPipe's 478). One test makes an environment with MediaPipe and uses a real photo.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from tinybeauty_training import find_pairs

sys.path.insert(0, str(ROOT / "data"))
import prepare_pairs as tool

TOOL = ROOT / "data" / "prepare_pairs.py"
LOOKS = ROOT / "data" / "looks.yaml"
MEAN = np.array(json.loads((Path(__file__).parent / "mean_face.json").read_text())) / 10.0
SKINS = {"dark": (74, 46, 34), "brown": (141, 94, 68), "light": (224, 180, 155)}
KINDS = ("source", "target", "eye_mask")


def draw_face(
    points: np.ndarray, size: tuple[int, int], skin=SKINS["light"], wall=(90, 110, 130), texture=6.0, seed=0
) -> Image.Image:
    """Draw a face on its landmarks: skin, brows, eyes, lips and teeth, with grain like a photo's."""
    scale = 3
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), wall)
    pen = ImageDraw.Draw(image)

    def fill(indices, colour) -> None:
        pen.polygon([tuple(point) for point in (points[list(indices)] * scale).tolist()], fill=colour)

    fill(tool.FACE_OVAL, skin)
    lips = tuple(int(part * factor) for part, factor in zip(skin, (0.85, 0.75, 0.77), strict=True))
    fill(tool.LIPS_OUTER, lips)
    fill(tool.LIPS_INNER, (235, 232, 225))
    for side in (0, 1):
        fill((*tool.BROW_TOP[side], *tool.BROW_BASE[side][::-1]), (45, 32, 25))
        fill((*tool.UPPER_LID[side], *tool.LOWER_LID[side][::-1]), (230, 228, 226))
        centre, rim = points[(468, 473)[side]] * scale, points[(469, 474)[side]] * scale
        radius = np.hypot(*(rim - centre)) * 0.8
        pen.ellipse([*(centre - radius), *(centre + radius)], fill=(60, 80, 110))
    image = image.resize(size, Image.Resampling.LANCZOS)
    grain = np.random.default_rng(seed).normal(0, texture, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def place(points: np.ndarray, side: float, centre: tuple[float, float], degrees: float = 0.0) -> np.ndarray:
    """Move the landmarks of a 256 px crop into a photo: the crop gets `side` px wide, and tilted."""
    angle = np.radians(degrees)
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    return (points - 128) * (side / 256) @ turn + centre


def save_photo(folder: Path, name: str, image: Image.Image, points: np.ndarray | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    if points is not None:
        content = {"id": name, "landmarks": np.round(points, 2).tolist()}
        (folder / name).with_suffix(".json").write_text(json.dumps(content))
    return folder / name


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Five photos: two aligned already, three whole ones of several sizes, tilts and skins."""
    folder = tmp_path_factory.mktemp("photos")
    save_photo(folder, "aligned.png", draw_face(MEAN, (256, 256)), MEAN)
    save_photo(folder, "dark.jpg", draw_face(MEAN, (256, 256), SKINS["dark"]), MEAN)
    for name, size, side, centre, degrees in (
        ("tilted.jpg", (700, 600), 380, (330, 300), 20),
        ("corner.png", (500, 420), 400, (280, 170), -8),
        ("large.jpg", (1500, 1300), 1100, (760, 640), 3),
    ):
        points = place(MEAN, side, centre, degrees)
        save_photo(folder, name, draw_face(points, size, SKINS["brown"], seed=side), points)
    (folder / "notes.txt").write_text("not a photo")
    return folder


def run_tool(*flags: object, python: str = sys.executable, **more) -> subprocess.CompletedProcess:
    command = [python, str(TOOL), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, **more)


def make(photos: Path, out: Path, *flags: object) -> str:
    """Run the real command; return its last line."""
    run = run_tool(photos, "--out", out, "--size", 128, "--workers", 2, *flags)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def one_error(*flags: object) -> str:
    """Run a command that must fail in a friendly way; return its message."""
    run = run_tool(*flags)
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("error: ")
    return run.stderr.removeprefix("error: ").strip()


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_skipped(out: Path) -> dict[str, str]:
    with (out / "skipped.csv").open(newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def made(photos, tmp_path_factory) -> Path:
    """The pairs of the five photos."""
    out = tmp_path_factory.mktemp("made") / "pairs"
    assert re.fullmatch(
        rf"5 pairs of 128 px \(evening\) in {re.escape(str(out))}, with preview.png and skipped.csv "
        r"\(\d+ s, [\d.]+ photos/s\)",
        make(photos, out, "--look", "evening"),
    )
    return out


# ======================================================================================================
# Files
# ======================================================================================================


def test_the_layout_is_what_the_training_reads(made):
    names = ["aligned", "corner", "dark", "large", "tilted"]
    assert [pair.stem for pair in find_pairs(made)] == names
    assert all(pair.eye_mask for pair in find_pairs(made))
    for kind, mode in zip(KINDS, ("RGB", "RGB", "L"), strict=True):
        for name in names:
            with Image.open(made / kind / f"{name}.png") as image:
                assert (image.size, image.mode) == ((128, 128), mode)
    assert (made / "skipped.csv").read_text() == "file,reason\n"
    with Image.open(made / "preview.png") as sheet:
        assert sheet.size == (3 * 448 + 16, 2 * 224 + 8)
    assert {path.name for path in made.iterdir()} == {*KINDS, "skipped.csv", "preview.png"}


def test_the_same_command_makes_the_same_bytes_with_any_number_of_workers(photos, made, tmp_path):
    make(photos, tmp_path / "again", "--workers", 1)
    assert read_files(tmp_path / "again") == read_files(made)


def test_a_second_call_makes_only_what_changed(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    make(mine, out)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*/*.png")}
    assert "5 of them were there" in make(mine, out)

    def find_changed() -> set[str]:
        changed = {path.stem for path in out.rglob("*/*.png") if path.stat().st_mtime_ns != first.get(path)}
        first.update({path: path.stat().st_mtime_ns for path in out.rglob("*/*.png")})
        return changed

    assert not find_changed()
    save_photo(mine, "dark.jpg", draw_face(MEAN, (256, 256), SKINS["brown"]), MEAN)
    make(mine, out)
    assert find_changed() == {"dark"}
    save_photo(mine, "aligned.png", draw_face(MEAN, (256, 256)), MEAN + 1.0)  # other landmarks
    make(mine, out)
    assert find_changed() == {"aligned"}
    (out / "eye_mask" / "large.png").unlink()
    make(mine, out)
    assert find_changed() == {"large"}
    make(mine, tmp_path / "other", "--size", 64)  # as if stopped at another size, before the target
    shutil.copy(tmp_path / "other" / "source" / "dark.png", out / "source" / "dark.png")
    find_changed()
    make(mine, out)
    assert find_changed() == {"dark"}
    for flags in (["--look", "bold"], ["--size", 64]):
        make(mine, out, *flags)
        assert find_changed() == {"aligned", "corner", "dark", "large", "tilted"}


def test_pairs_of_photos_that_are_gone_are_named(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    make(mine, out)
    (mine / "dark.jpg").unlink()
    run = run_tool(mine, "--out", out, "--size", 128)
    assert run.returncode == 0
    assert "note: 1 pairs" in run.stderr
    assert "dark" in run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_stops_it_and_the_same_command_goes_on(tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    for number in range(100):
        save_photo(mine, f"face_{number:03d}.png", draw_face(MEAN, (256, 256), seed=number), MEAN)
    command = [sys.executable, str(TOOL), str(mine), "--out", str(out), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("target/*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "stopped; what is finished stays, the same command goes on"
    assert "Traceback" not in stderr
    assert len(list(out.glob("target/*.png"))) < 100
    assert "of them were there" in make(mine, out, "--size", 512)


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_kill_leaves_nothing_half_written(tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    for number in range(24):
        save_photo(mine, f"face_{number:02d}.png", draw_face(MEAN, (256, 256), seed=number), MEAN)
    command = [sys.executable, str(TOOL), str(mine), "--out", str(out), "--size", "512", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while len(list(out.glob("target/*.png"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    killed = {path.stem for path in (out / "target").glob("[!.]*.png")}
    assert 3 <= len(killed) < 24
    for path in out.rglob("[!.]*.png"):
        Image.open(path).load()  # whole
    for name in killed:
        assert all((out / kind / f"{name}.png").is_file() for kind in KINDS)
    (out / "source" / ".face_23.png.partial").write_bytes(b"half")
    told = make(mine, out, "--size", 512)
    assert f"{len(killed)} of them were there" in told
    assert len(find_pairs(out)) == 24
    assert not list(out.rglob("*.partial"))


# ======================================================================================================
# Alignment
# ======================================================================================================


def ffhq_quad(lm: np.ndarray) -> np.ndarray:
    """The published formula on dlib's 68 points, in its own terms."""
    eye_left, eye_right = np.mean(lm[36:42], axis=0), np.mean(lm[42:48], axis=0)
    eye_avg = (eye_left + eye_right) * 0.5
    eye_to_eye = eye_right - eye_left
    mouth_avg = (lm[48] + lm[54]) * 0.5
    eye_to_mouth = mouth_avg - eye_avg
    x = eye_to_eye - np.flipud(eye_to_mouth) * [-1, 1]
    x /= np.hypot(*x)
    x *= max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    y = np.flipud(x) * [-1, 1]
    c = eye_avg + eye_to_mouth * 0.1
    return np.stack([c - x - y, c - x + y, c + x + y, c + x - y])


def to_dlib(points: np.ndarray) -> np.ndarray:
    lm = np.full((68, 2), np.nan)
    lm[36:42] = points[[33, 160, 158, 133, 153, 144]]
    lm[42:48] = points[[362, 385, 387, 263, 373, 380]]
    lm[48], lm[54] = points[61], points[291]
    return lm


@settings(max_examples=50, deadline=None)
@given(st.floats(80, 3000), st.floats(-180, 180), st.floats(0.7, 1.4), st.floats(-0.3, 0.3))
def test_the_square_is_ffhqs(side, degrees, stretch, skew):
    points = place(MEAN @ np.array(((stretch, 0), (skew, 1))), side, (500, 400), degrees)
    np.testing.assert_allclose(tool.find_quad(points), ffhq_quad(to_dlib(points)), atol=1e-6 * side)


@pytest.mark.parametrize("side", [150, 256, 700, 2600])
@pytest.mark.parametrize("degrees", [-35, 0, 12])
def test_the_picture_shows_what_the_landmarks_say(side, degrees):
    """A dot on the photo at a landmark is found at the aligned landmark, to half a percent of the width."""
    points = place(MEAN, side, (0.62 * side, 0.55 * side), degrees)
    photo = Image.new("RGB", (int(1.3 * side), int(1.2 * side)), (90, 90, 90))
    pen = ImageDraw.Draw(photo)
    chosen = [33, 263, 61, 291, 1, 152]
    for index in chosen:
        radius = 0.012 * side
        low, high = points[index] - radius, points[index] + radius
        pen.ellipse([*low.tolist(), *high.tolist()], fill=(255, 255, 255))
    picture, aligned = tool.align(photo, points, 256)
    assert picture.size == (256, 256)
    np.testing.assert_allclose(
        ffhq_quad(to_dlib(aligned)), [[0, 0], [0, 256], [256, 256], [256, 0]], atol=0.01
    )
    bright = np.asarray(picture.convert("L")).astype(float) - 120
    y, x = np.mgrid[:256, :256] + 0.5
    for index in chosen:
        near = np.hypot(x - aligned[index, 0], y - aligned[index, 1]) < 8
        weight = bright.clip(0) * near
        found = np.array(((weight * x).sum(), (weight * y).sum())) / weight.sum()
        assert np.hypot(*(found - aligned[index])) < 0.005 * 256


def test_beyond_the_photo_it_is_mirrored_and_blurred():
    points = place(MEAN, 300, (150, 100))  # a third of the square lies above the photo
    stripes = np.zeros((260, 300, 3), np.uint8)
    stripes[:, ::4], stripes[:, 1::4] = 255, 255
    picture = np.asarray(tool.align(Image.fromarray(stripes), points, 256)[0]).astype(float)
    assert picture[60:200, 100:150, 0].std() > 60  # inside: as it was
    assert picture[:8, 100:150, 0].std() < 10  # far outside: blurred
    assert 60 < picture[:8].mean() < 200  # no black border


def test_an_aligned_picture_is_taken_as_it_is(photos, made, tmp_path):
    make(photos, tmp_path / "out", "--size", 256)
    with (
        Image.open(tmp_path / "out/source/aligned.png") as source,
        Image.open(photos / "aligned.png") as photo,
    ):
        assert source.tobytes() == photo.tobytes()


# ======================================================================================================
# Makeup
# ======================================================================================================


def make_up(picture: Image.Image, points: np.ndarray, look: dict | str) -> np.ndarray:
    groups = tool.load_look(LOOKS, look) if isinstance(look, str) else look
    return tool.put_makeup_on(tool.Face(np.asarray(picture), points), tool.to_linear_look(groups))


def mask_of(points: np.ndarray, indices, shrink: float = 1.0, size: int = 256) -> np.ndarray:
    ring = points[list(indices)]
    ring = (ring - ring.mean(0)) * shrink + ring.mean(0)
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon([tuple(point) for point in ring.tolist()], fill=255)
    return np.asarray(image) > 0


OPEN = MEAN.copy()  # a mouth 14 px open
OPEN[list(tool.LIPS_INNER[11:])] += (0, 9)
OPEN[list(tool.LIPS_OUTER[11:])] += (0, 9)


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("look", ["natural", "evening", "bold"])
def test_it_keeps_to_its_place(look, skin):
    picture = draw_face(OPEN, (256, 256), SKINS[skin], wall=SKINS[skin])  # so colour alone does not tell
    made = make_up(picture, OPEN, look)
    change = np.abs(made.astype(int) - np.asarray(picture)).max(2)
    face = mask_of(MEAN, tool.FACE_OVAL, 1.15)  # its edge is soft
    assert not change[~face].any()  # wall, hair: the same bytes
    assert change[mask_of(OPEN, tool.LIPS_INNER, 0.7)].max() <= 3  # teeth
    for side in (0, 1):
        eye = (*tool.UPPER_LID[side], *tool.LOWER_LID[side][::-1])
        assert np.median(change[mask_of(OPEN, eye, 0.6)]) == 0  # iris and white of the eye
        assert np.percentile(change[mask_of(OPEN, eye, 0.5)], 90) <= 8


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("look", ["natural", "evening", "bold"])
def test_it_is_seen_on_every_skin(look, skin):
    picture = draw_face(MEAN, (256, 256), SKINS[skin], texture=2)
    bare = np.asarray(picture).astype(float)
    made = make_up(picture, MEAN, look).astype(float)
    lips = mask_of(MEAN, tool.LIPS_OUTER, 0.95) & ~mask_of(MEAN, tool.LIPS_INNER, 1.1)
    assert np.abs(made - bare)[lips].mean() > 6

    def redness(image: np.ndarray, where: np.ndarray) -> float:
        return float((image[where][:, 0] - image[where][:, 1:].mean(1)).mean())

    assert redness(made, lips) > redness(bare, lips) + 6
    for bone, apple, _, _ in tool.CHEEK:
        spot = mask_of(MEAN, tool.FACE_OVAL, 0.08)
        centre = (0.62 * MEAN[bone] + 0.3 * MEAN[apple] + 0.08 * MEAN[bone]).astype(int)
        spot = np.roll(spot, centre - MEAN[list(tool.FACE_OVAL)].mean(0).astype(int), (1, 0))
        assert redness(made, spot) > redness(bare, spot) + 3
        # Not chalky: pigment on dark skin does not lighten it to grey.
        assert made[spot].mean() < 1.25 * bare[spot].mean()
    for lid in (tool.UPPER_LID[0], tool.UPPER_LID[1]):
        x, y = (MEAN[list(lid)].mean(0) - (0, 5)).astype(int)
        assert np.abs(made - bare)[y - 2 : y + 2, x - 4 : x + 4].mean() > 4


def test_light_and_texture_stay():
    """Lips that are half in the shadow stay so, and their grain is there under opaque pigment."""
    light = np.linspace(1.0, 0.55, 256)[None, :, None]
    picture = draw_face(MEAN, (256, 256), texture=7)
    picture = Image.fromarray((np.asarray(picture) * light).astype(np.uint8))
    made = make_up(picture, MEAN, "bold").astype(float)[..., 0]
    bare = np.asarray(picture).astype(float)[..., 0]
    lips = mask_of(MEAN, tool.LIPS_OUTER, 0.9) & ~mask_of(MEAN, tool.LIPS_INNER, 1.2)
    grain = [image - ndimage.gaussian_filter(image, 1.5) for image in (made, bare)]
    assert np.corrcoef(grain[0][lips], grain[1][lips])[0, 1] > 0.8
    halves = [made[lips & side].mean() for side in (np.arange(256) < 118, np.arange(256) > 138)]
    assert halves[0] > 1.06 * halves[1]


def test_no_lipstick_on_beard_hair():
    """Dark hair over the upper lip stays as dark and as colourless as it was."""
    picture = draw_face(MEAN, (256, 256))
    pen = ImageDraw.Draw(picture)
    rows = MEAN[list(tool.LIPS_OUTER[2:9])]
    for x in range(int(rows[0, 0]), int(rows[-1, 0]), 4):
        pen.line([(x, 160), (x, 196)], fill=(30, 24, 20), width=2)
    bare, made = np.asarray(picture).astype(int), make_up(picture, MEAN, "bold").astype(int)
    lips = mask_of(MEAN, tool.LIPS_OUTER, 0.9) & ~mask_of(MEAN, tool.LIPS_INNER, 1.1)
    hair = lips & (bare.sum(2) < 90)
    assert hair.sum() > 30
    assert np.abs(made - bare)[hair].mean() < 12
    assert np.abs(made - bare)[lips & ~hair].mean() > 25


def test_a_group_that_is_left_out_is_not_put_on():
    picture, groups = draw_face(MEAN, (256, 256)), tool.load_look(LOOKS, "bold")
    bare = np.asarray(picture).astype(int)
    assert (make_up(picture, MEAN, {}) == bare).all()
    regions = {}
    for group in groups:
        changed = (make_up(picture, MEAN, {group: groups[group]}) != bare).any(2)
        assert changed.any(), group
        rows, columns = np.nonzero(changed)
        regions[group] = (rows.min(), rows.max(), columns.min(), columns.max())
    nose, brow = MEAN[1, 1], MEAN[list(tool.BROW_TOP[0]), 1].min()
    assert regions["lips"][0] > nose
    assert regions["blush"][0] > brow
    for group in ("lids", "liner", "lashes", "brows"):
        assert brow - 8 < regions[group][0]
        assert regions[group][1] < nose


def test_a_cheek_that_turns_away_gets_less():
    turned = MEAN.copy()
    turned[:, 0] = 128 + np.where(MEAN[:, 0] < 128, 1.0, 0.35) * (MEAN[:, 0] - 128)
    picture = draw_face(turned, (256, 256), texture=1)
    groups = tool.load_look(LOOKS, "bold")
    change = np.abs(
        make_up(picture, turned, {"blush": groups["blush"]}).astype(int) - np.asarray(picture)
    ).max(2)
    near, far = change[:, :128].max(), change[:, 128:].max()
    assert near > 15
    assert far < 0.6 * near


def test_the_looks_that_ship_get_stronger():
    scores = {}
    picture = draw_face(MEAN, (256, 256), SKINS["brown"])
    for look in ("natural", "evening", "bold"):
        assert set(tool.load_look(LOOKS, look)) == set(tool.GROUPS)
        error = make_up(picture, MEAN, look) / 255 - np.asarray(picture) / 255
        scores[look] = 10 * np.log10(1 / (error**2).mean())
    assert 40 > scores["natural"] > scores["evening"] > scores["bold"] > 22


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 30), st.booleans())
def test_no_landmarks_break_it(seed, jitter, flat):
    """Noise, closed eyes and mouths, points outside: a picture of the same size comes out."""
    points = MEAN + np.random.default_rng(seed).normal(0, jitter, MEAN.shape)
    if flat:
        points[:, 1] = 128.0
    picture = Image.effect_noise((256, 256), 60).convert("RGB")
    assert make_up(picture, points, "bold").shape == (256, 256, 3)
    assert tool.draw_eye_mask(tool.Face(np.asarray(picture), points)).shape == (256, 256)


def test_the_eye_mask_covers_eye_lid_and_wing_with_soft_edges():
    picture = draw_face(MEAN, (256, 256), texture=1)
    mask = tool.draw_eye_mask(tool.Face(np.asarray(picture), MEAN))
    for side in (0, 1):
        eye = (*tool.UPPER_LID[side], *tool.LOWER_LID[side][::-1])
        assert mask[mask_of(MEAN, eye)].min() > 150
    assert 0.01 < (mask > 127).mean() < 0.08
    assert ((mask > 20) & (mask < 235)).sum() > 100
    assert not mask[150:].any()
    groups = tool.load_look(LOOKS, "bold")
    change = np.abs(make_up(picture, MEAN, {"liner": groups["liner"]}).astype(int) - np.asarray(picture)).max(
        2
    )
    assert (change * (mask > 127)).sum() > 0.97 * change.sum()


def test_bytes_go_through_linear_light_and_back_unchanged():
    every = np.arange(256)
    assert (tool.TO_BYTE[(tool.TO_LINEAR * tool.STEPS + 0.5).astype(np.uint16)] == every).all()


# ======================================================================================================
# Masks only
# ======================================================================================================


def test_masks_are_added_where_there_are_none(tmp_path):
    data = tmp_path / "pairs"
    for name, side in (("a", 256), ("b", 200)):
        points = place(MEAN, side, (140, 130))
        photo = draw_face(points, (280, 260))
        save_photo(data / "source", f"{name}.png", photo, points)
        save_photo(data / "target", f"{name}.png", photo)
    (data / "source" / "c.png").write_bytes(b"broken")
    (data / "source" / "c.json").write_text("{}")
    save_photo(data / "eye_mask", "a.png", Image.new("L", (9, 9), 7))
    before = read_files(data)
    run = run_tool("--masks-only", data)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"1 eye masks added to {data / 'eye_mask'}; left out: 1 cannot be read")
    after = read_files(data)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"eye_mask/b.png", "skipped.csv"}
    with Image.open(data / "eye_mask" / "b.png") as mask:
        assert (mask.size, mask.mode) == ((280, 260), "L")
        left, right = (place(MEAN, 200, (140, 130))[list(lid)].mean(0) for lid in tool.UPPER_LID)
        assert mask.getpixel(tuple(left.astype(int).tolist())) == 255
        assert mask.getpixel(tuple(right.astype(int).tolist())) == 255
    (data / "source" / "c.png").unlink()
    run = run_tool("--masks-only", data)
    assert run.stdout == f"all 2 pairs in {data} have their eye masks already\n"


# ======================================================================================================
# What goes wrong
# ======================================================================================================


def test_photos_that_give_no_pair_are_listed_with_the_reason(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    sharp = draw_face(MEAN, (256, 256))
    save_photo(mine, "blurred.png", sharp.filter(ImageFilter.GaussianBlur(6)), MEAN)
    small = place(MEAN, 80, (100, 100))
    save_photo(mine, "small.png", draw_face(small, (200, 200)), small)
    outside = place(MEAN, 300, (60, 150))
    save_photo(mine, "cut.png", draw_face(outside, (300, 300)), outside)
    turned = MEAN.copy()
    turned[1] += (60, 0)
    save_photo(mine, "turned.png", sharp, turned)
    (mine / "broken.jpg").write_bytes((mine / "dark.jpg").read_bytes()[:700])
    (mine / "broken.json").write_text((mine / "dark.json").read_text())
    (mine / "empty.png").write_bytes(b"")
    (mine / "empty.json").write_text("{}")
    save_photo(mine, "few.png", sharp, MEAN[:400])
    save_photo(mine, "words.png", sharp)
    (mine / "words.json").write_text("no json")
    told = make(mine, out)
    reasons = read_skipped(out)
    for name, start in {
        "blurred.png": "blurred: sharpness 0.0",
        "small.png": "too small: the face's square has 8",
        "cut.png": "cut off: ",
        "turned.png": "turned away: ",
        "broken.jpg": "cannot be read: ",
        "empty.png": "cannot be read: ",
        "few.png": "the landmarks beside it must be 478 points [x, y], found shape (400, 2)",
        "words.png": "the landmarks beside it cannot be read: ",
    }.items():
        assert reasons.pop(name).startswith(start), name
    assert not reasons
    assert told.startswith("5 pairs of 128 px")
    assert "left out: " in told
    assert "2 cannot be read" in told
    assert len(find_pairs(out)) == 5


def test_all_photos_left_out_is_an_error(tmp_path):
    save_photo(tmp_path / "photos", "a.png", Image.new("RGB", (300, 300)), MEAN * 300 / 256)
    told = one_error(tmp_path / "photos", "--out", tmp_path / "out")
    assert told == f"none of the 1 photos gave a pair: 1 blurred; see {tmp_path / 'out' / 'skipped.csv'}"


def test_without_mediapipe_photos_need_landmarks(photos, tmp_path):
    import importlib.util

    if importlib.util.find_spec("mediapipe"):
        pytest.skip("MediaPipe is installed in this Python")
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    (mine / "dark.json").unlink()
    told = one_error(mine, "--out", tmp_path / "out")
    assert told.startswith(
        "1 of 5 photos have no landmarks (NAME.json) beside them (dark.jpg), and MediaPipe"
    )
    assert "uv run data/prepare_pairs.py" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_photos(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.txt", "b.csv", ".hidden.png"):
        (texts / name).write_text("words")
    told = one_error(texts, "--out", tmp_path / "out")
    assert told == f"{texts} holds no images (.bmp .jpeg .jpg .png .webp)"
    assert one_error(tmp_path / "none") == f"cannot list {tmp_path / 'none'}: No such file or directory"
    assert "cannot list" in one_error(texts / "a.txt")
    assert "source" in one_error("--masks-only", texts)


def test_two_photos_of_one_name(tmp_path):
    for name in ("anna.png", "anna.jpg"):
        save_photo(tmp_path, name, Image.new("RGB", (9, 9)))
    told = one_error(tmp_path, "--out", tmp_path / "out")
    assert told == f"{tmp_path} has two images of one name: anna.jpg and anna.png; rename one"


def test_pictures_of_somebody_else_are_never_overwritten(photos, tmp_path):
    for kind in KINDS:
        out = tmp_path / kind
        save_photo(out / kind, "dark.png", Image.new("RGB", (9, 9)))
        before = read_files(out)
        told = one_error(photos, "--out", out)
        assert told.startswith(f"{out / kind} holds files that this tool did not make: dark.png")
        assert read_files(out) == before


def test_the_pairs_go_to_another_folder_than_the_photos(photos):
    before = read_files(photos)
    told = one_error(photos, "--out", photos / ".." / photos.name)
    assert told.endswith("holds the photos; choose another folder for the pairs with --out")
    assert read_files(photos) == before


def test_an_output_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        told = one_error(photos, "--out", out)
        assert told.startswith("cannot write ")
        assert str(tmp_path / "file") in told
    # A folder where a picture should go: found by a worker, told by the command.
    (tmp_path / "out" / "target" / "dark.png" / "x").mkdir(parents=True)
    assert "dark.png" in one_error(photos, "--out", tmp_path / "out")


def test_a_look_that_does_not_exist(photos, tmp_path):
    told = one_error(photos, "--look", "evning", "--out", tmp_path / "out")
    expected = f"there is no look 'evning' in {LOOKS}, did you mean evening? it has: natural, evening, bold"
    assert told == expected
    assert not (tmp_path / "out").exists()


def test_every_problem_of_a_look_is_named_at_once(photos, tmp_path):
    looks = yaml.safe_load(LOOKS.read_text())
    mine = looks["evening"]
    mine["lips"]["opacty"] = mine["lips"].pop("opacity")
    mine["blush"]["opacity"] = 3
    mine["lids"]["colour"] = "red"
    mine["liner"]["wing"] = "1e-3"
    mine["lashes"]["length"] = float("nan")
    mine["browz"] = mine.pop("brows")
    looks["empty"] = None
    path = tmp_path / "looks.yaml"
    path.write_text(yaml.safe_dump(looks))
    told = one_error(photos, "--looks", path, "--look", "natural", "--out", tmp_path / "out")
    assert told.startswith(f"bad looks in {path}:")
    assert set(map(str.strip, told.splitlines()[1:])) == {
        "evening.browz: unknown key, did you mean brows?",
        "evening.lips.opacty: unknown key, did you mean opacity?",
        "evening.lips.opacity: is missing",
        "evening.lids.colour: must be a colour like \"#aa3344\", in quotes, got 'red'",
        "evening.liner.wing: must be a number, got '1e-3'",
        "evening.lashes.length: must be from 0 to 0.4, got nan",
        "evening.blush.opacity: must be from 0 to 1, got 3",
        "empty: must hold skin, lips, lids, liner, lashes, blush, brows, got None",
    }


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", "\xff"])
def test_a_file_of_looks_that_is_none(photos, tmp_path, content):
    path = tmp_path / "looks.yaml"
    path.write_bytes(content.encode("latin-1"))
    told = one_error(photos, "--looks", path, "--out", tmp_path / "out")
    assert str(path) in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--size", 100], "--size must be a multiple of 8 from 64 to 1024, got 100"),
        (["--workers", 0], "--workers must be from 1 to 256, got 0"),
        (["--masks-only", "x"], "give either a folder of photos or --masks-only DATA_DIR; see --help"),
        (["--sise", 64], "unrecognized arguments: --sise 64; see --help"),
    ],
)
def test_wrong_flags(photos, flags, told):
    assert one_error(photos, *flags) == told


# ======================================================================================================
# MediaPipe: the real detector on a real photo
# ======================================================================================================


def read_header() -> tuple[list[str], list[str]]:
    """The needs and the exclusions of the script's PEP 723 header."""
    block = re.search(r"(?m)^# /// script\n((?:#(?: .*)?\n)+?)# ///$", TOOL.read_text(encoding="utf-8"))
    text = "".join(line[2:] + "\n" for line in block.group(1).splitlines())
    lists = {
        name: re.findall(r'"([^"]+)"', re.sub(r"#.*", "", body))
        for name, body in re.findall(r"(?ms)^([a-z-]+) = \[(.*?)\]$", text)
    }
    return lists["dependencies"], lists["exclude-dependencies"]


@pytest.fixture(scope="session")
def mediapipe_python(tmp_path_factory) -> str:
    """A Python with what the script's header asks for; skipped only where packages cannot be had."""
    needs, _ = read_header()
    folder = tmp_path_factory.mktemp("mediapipe") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(next(folder.glob("[bS]*/python*")))
    mediapipe = [need for need in needs if need.startswith("mediapipe==")]
    others = [need for need in needs if need not in mediapipe]
    for names in (["--no-deps", *mediapipe], others):
        install = subprocess.run(
            [python, "-m", "pip", "install", "-q", *names], capture_output=True, text=True, timeout=600
        )
        if install.returncode:
            pytest.skip(f"packages cannot be installed here: {install.stderr.strip().splitlines()[-1]}")
    return python


def test_a_real_photo_with_the_real_detector(mediapipe_python, tmp_path):
    """Grace Hopper, an official photo (public domain) that matplotlib carries: alone, twice, absent, tiny."""
    where = "import matplotlib, pathlib; print(pathlib.Path(matplotlib.get_data_path()) / 'sample_data')"
    found = subprocess.run([mediapipe_python, "-c", where], capture_output=True, text=True, check=True)
    hopper = Image.open(Path(found.stdout.strip()) / "grace_hopper.jpg").convert("RGB")  # 512 x 600
    mine, out = tmp_path / "photos", tmp_path / "out"
    save_photo(mine, "hopper.jpg", hopper)
    both = Image.new("RGB", (1000, 600), (70, 80, 90))
    both.paste(hopper, (0, 0))
    both.paste(hopper.resize((410, 480)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (550, 60))
    save_photo(mine, "both.jpg", both)
    save_photo(mine, "twins.jpg", both)
    save_photo(mine, "twins_2.jpg", hopper)
    save_photo(mine, "wall.png", Image.new("RGB", (400, 300), (120, 130, 140)))
    save_photo(mine, "tiny.png", hopper.resize((100, 117)))
    flags = [mine, "--look", "evening", "--out", out, "--size", 256]
    run = run_tool(*flags, python=mediapipe_python, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "W0000" not in run.stderr  # MediaPipe's own log
    assert "XNNPACK" not in run.stderr
    assert [pair.stem for pair in find_pairs(out)] == ["both", "both_2", "hopper", "twins", "twins_2"]
    reasons = read_skipped(out)
    assert reasons["wall.png"] == "no face found"
    assert reasons["tiny.png"].startswith(("too small", "no face found"))
    assert reasons["twins.jpg"] == "face 2: its pair would be named twins_2, and so is another photo"
    assert set(reasons) == {"wall.png", "tiny.png", "twins.jpg"}
    # Where FFHQ has them: the eyes at 0.48 of the height, the mouth below; she wears no lipstick yet.
    source, target, mask = (np.asarray(Image.open(out / kind / "hopper.png")).astype(int) for kind in KINDS)
    rows, columns = np.nonzero(mask > 127)
    assert abs(rows.mean() - 0.45 * 256) < 0.04 * 256
    assert abs(columns.mean() - 128) < 0.04 * 256
    change = target - source
    lips = change[176:208, 108:148]
    assert lips[..., 1].min() < -30  # less green: redder
    assert not change[:20].any()
    # The same photo found again, alone and among others: the same place, to 2 % of the width.
    other = np.asarray(Image.open(out / "eye_mask" / "both.png")).astype(int)
    assert abs(np.argwhere(other > 127).mean(0) - np.argwhere(mask > 127).mean(0)).max() < 0.02 * 256
    assert "5 of them were there" in run_tool(*flags, python=mediapipe_python, timeout=300).stdout


def test_the_header_keeps_mediapipes_heavy_needs_out():
    needs, excluded = read_header()
    assert {"mediapipe==0.10.21", "opencv-python-headless==4.11.0.86"} <= set(needs)
    assert {"jax", "opencv-contrib-python", "sounddevice"} <= set(excluded)
