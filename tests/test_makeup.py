"""Makeup keeps to its place, is seen on every skin, leaves light and texture; a wrong look is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from drawn_faces import MEAN, SKINS, draw_face
from hypothesis import given, settings
from hypothesis import strategies as st
from makeup import (
    GROUPS,
    STEPS,
    TO_BYTE,
    TO_LINEAR,
    Portrait,
    draw_eye_mask,
    load_look,
    paint_look,
    to_linear_look,
)
from PIL import Image, ImageDraw
from scipy import ndimage

from tinybeauty.errors import UserError
from tinybeauty.landmarks import BROW_TOP, CHEEK, FACE_OVAL, LIPS_INNER, LIPS_OUTER, LOWER_LID, UPPER_LID

LOOKS = ROOT / "data" / "looks.yaml"


def make_up(picture: Image.Image, points: np.ndarray, look: dict | str) -> np.ndarray:
    groups = load_look(LOOKS, look) if isinstance(look, str) else look
    return paint_look(Portrait(np.asarray(picture), points), to_linear_look(groups))


def mask_of(points: np.ndarray, indices, shrink: float = 1.0, size: int = 256) -> np.ndarray:
    ring = points[list(indices)]
    ring = (ring - ring.mean(0)) * shrink + ring.mean(0)
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon([tuple(point) for point in ring.tolist()], fill=255)
    return np.asarray(image) > 0


OPEN = MEAN.copy()  # a mouth 14 px open
OPEN[list(LIPS_INNER[11:])] += (0, 9)
OPEN[list(LIPS_OUTER[11:])] += (0, 9)


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("look", ["natural", "evening", "bold"])
def test_it_keeps_to_its_place(look, skin):
    picture = draw_face(OPEN, (256, 256), SKINS[skin], wall=SKINS[skin])  # so colour alone does not tell
    made = make_up(picture, OPEN, look)
    change = np.abs(made.astype(int) - np.asarray(picture)).max(2)
    face = mask_of(MEAN, FACE_OVAL, 1.15)  # its edge is soft
    assert not change[~face].any()  # wall, hair: the same bytes
    assert change[mask_of(OPEN, LIPS_INNER, 0.7)].max() <= 3  # teeth
    for side in (0, 1):
        eye = (*UPPER_LID[side], *LOWER_LID[side][::-1])
        assert np.median(change[mask_of(OPEN, eye, 0.6)]) == 0  # iris and white of the eye
        assert np.percentile(change[mask_of(OPEN, eye, 0.5)], 90) <= 8


@pytest.mark.parametrize("skin", SKINS)
@pytest.mark.parametrize("look", ["natural", "evening", "bold"])
def test_it_is_seen_on_every_skin(look, skin):
    picture = draw_face(MEAN, (256, 256), SKINS[skin], texture=2)
    bare = np.asarray(picture).astype(float)
    made = make_up(picture, MEAN, look).astype(float)
    lips = mask_of(MEAN, LIPS_OUTER, 0.95) & ~mask_of(MEAN, LIPS_INNER, 1.1)
    assert np.abs(made - bare)[lips].mean() > 6

    def redness(image: np.ndarray, where: np.ndarray) -> float:
        return float((image[where][:, 0] - image[where][:, 1:].mean(1)).mean())

    # Of what light there is: on deep skin lipstick is darker than the lips.
    assert redness(made, lips) / made[lips].mean() > 1.2 * redness(bare, lips) / bare[lips].mean()
    for bone, apple, _, _ in CHEEK:
        spot = mask_of(MEAN, FACE_OVAL, 0.08)
        centre = (0.62 * MEAN[bone] + 0.3 * MEAN[apple] + 0.08 * MEAN[bone]).astype(int)
        spot = np.roll(spot, centre - MEAN[list(FACE_OVAL)].mean(0).astype(int), (1, 0))
        assert redness(made, spot) > redness(bare, spot) + 3
        # Not chalky: pigment on dark skin does not lighten it to grey.
        assert made[spot].mean() < 1.25 * bare[spot].mean()
    for lid in (UPPER_LID[0], UPPER_LID[1]):
        x, y = (MEAN[list(lid)].mean(0) - (0, 5)).astype(int)
        assert np.abs(made - bare)[y - 2 : y + 2, x - 4 : x + 4].mean() > 4


def test_light_and_texture_stay():
    """Lips that are half in the shadow stay so, and their grain is there under opaque pigment."""
    light = np.linspace(1.0, 0.55, 256)[None, :, None]
    picture = draw_face(MEAN, (256, 256), texture=7)
    picture = Image.fromarray((np.asarray(picture) * light).astype(np.uint8))
    made = make_up(picture, MEAN, "bold").astype(float)[..., 0]
    bare = np.asarray(picture).astype(float)[..., 0]
    lips = mask_of(MEAN, LIPS_OUTER, 0.9) & ~mask_of(MEAN, LIPS_INNER, 1.2)
    grain = [image - ndimage.gaussian_filter(image, 1.5) for image in (made, bare)]
    assert np.corrcoef(grain[0][lips], grain[1][lips])[0, 1] > 0.75
    halves = [made[lips & side].mean() for side in (np.arange(256) < 118, np.arange(256) > 138)]
    assert halves[0] > 1.06 * halves[1]


def test_no_lipstick_on_beard_hair():
    """Dark hair over the upper lip stays as dark and as colourless as it was."""
    picture = draw_face(MEAN, (256, 256))
    pen = ImageDraw.Draw(picture)
    rows = MEAN[list(LIPS_OUTER[2:9])]
    for x in range(int(rows[0, 0]), int(rows[-1, 0]), 4):
        pen.line([(x, 160), (x, 196)], fill=(30, 24, 20), width=2)
    bare, made = np.asarray(picture).astype(int), make_up(picture, MEAN, "bold").astype(int)
    lips = mask_of(MEAN, LIPS_OUTER, 0.9) & ~mask_of(MEAN, LIPS_INNER, 1.1)
    hair = lips & (bare.sum(2) < 90)
    assert hair.sum() > 30
    assert np.abs(made - bare)[hair].mean() < 12
    assert np.abs(made - bare)[lips & ~hair].mean() > 25


def test_a_group_that_is_left_out_is_not_put_on():
    picture, groups = draw_face(MEAN, (256, 256)), load_look(LOOKS, "bold")
    bare = np.asarray(picture).astype(int)
    assert (make_up(picture, MEAN, {}) == bare).all()
    regions = {}
    for group in groups:
        changed = (make_up(picture, MEAN, {group: groups[group]}) != bare).any(2)
        assert changed.any(), group
        rows, columns = np.nonzero(changed)
        regions[group] = (rows.min(), rows.max(), columns.min(), columns.max())
    nose, brow = MEAN[1, 1], MEAN[list(BROW_TOP[0]), 1].min()
    assert regions["lips"][0] > nose
    assert regions["blush"][0] > brow
    for group in ("lids", "liner", "lashes", "brows"):
        assert brow - 8 < regions[group][0]
        assert regions[group][1] < nose


def test_a_cheek_that_turns_away_gets_less():
    turned = MEAN.copy()
    turned[:, 0] = 128 + np.where(MEAN[:, 0] < 128, 1.0, 0.35) * (MEAN[:, 0] - 128)
    picture = draw_face(turned, (256, 256), texture=1)
    groups = load_look(LOOKS, "bold")
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
        assert set(load_look(LOOKS, look)) == set(GROUPS)
        error = make_up(picture, MEAN, look) / 255 - np.asarray(picture) / 255
        scores[look] = 10 * np.log10(1 / (error**2).mean())
    assert 40 > scores["natural"] > scores["evening"] > scores["bold"] > 22


def test_deep_skin_gets_the_pigments_for_it_and_light_skin_none():
    groups = load_look(LOOKS, "evening")
    bare = {g: {k: v for k, v in keys.items() if "deep_" not in k} for g, keys in groups.items()}
    light, dark = (draw_face(MEAN, (256, 256), colour) for colour in ((246, 222, 206), (96, 62, 44)))
    assert (make_up(light, MEAN, groups) == make_up(light, MEAN, bare)).all()
    own = {
        g: keys | {k[5:]: v for k, v in groups[g].items() if k.startswith("deep_")}
        for g, keys in bare.items()
    }
    assert (make_up(dark, MEAN, groups) == make_up(dark, MEAN, own)).all()
    assert (make_up(dark, MEAN, groups) != make_up(dark, MEAN, bare)).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 30), st.booleans())
def test_no_landmarks_break_it(seed, jitter, flat):
    """Noise, closed eyes and mouths, points outside: a picture of the same size comes out."""
    points = MEAN + np.random.default_rng(seed).normal(0, jitter, MEAN.shape)
    if flat:
        points[:, 1] = 128.0
    picture = Image.effect_noise((256, 256), 60).convert("RGB")
    assert make_up(picture, points, "bold").shape == (256, 256, 3)
    assert draw_eye_mask(Portrait(np.asarray(picture), points)).shape == (256, 256)


def test_the_eye_mask_covers_eye_lid_and_wing_with_soft_edges():
    picture = draw_face(MEAN, (256, 256), texture=1)
    mask = draw_eye_mask(Portrait(np.asarray(picture), MEAN))
    for side in (0, 1):
        eye = (*UPPER_LID[side], *LOWER_LID[side][::-1])
        assert mask[mask_of(MEAN, eye)].min() > 150
    assert 0.01 < (mask > 127).mean() < 0.08
    assert ((mask > 20) & (mask < 235)).sum() > 100
    assert not mask[150:].any()
    groups = load_look(LOOKS, "bold")
    change = np.abs(make_up(picture, MEAN, {"liner": groups["liner"]}).astype(int) - np.asarray(picture)).max(
        2
    )
    assert (change * (mask > 127)).sum() > 0.97 * change.sum()


def test_bytes_go_through_linear_light_and_back_unchanged():
    every = np.arange(256)
    assert (TO_BYTE[(TO_LINEAR * STEPS + 0.5).astype(np.uint16)] == every).all()


# ======================================================================================================
# Looks
# ======================================================================================================


def bad_look(path: Path) -> str:
    """Load a look of a file that must be refused; return the message."""
    with pytest.raises(UserError) as caught:
        load_look(path, "natural")
    return str(caught.value)


def test_every_problem_of_a_look_is_named_at_once(tmp_path):
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
    told = bad_look(path)
    assert told.startswith(f"bad looks in {path}:")
    assert set(map(str.strip, told.splitlines()[1:])) == {
        "evening.browz: unknown key, did you mean brows?",
        "evening.lips.opacty: unknown key, did you mean opacity?",
        "evening.lips.opacity: is missing",
        "evening.lids.colour: must be a colour like \"#aa3344\", in quotes, got 'red'",
        "evening.liner.wing: must be a number, got '1e-3', which YAML wants as 0.001",
        "evening.lashes.length: must be from 0 to 0.4, got nan",
        "evening.blush.opacity: must be from 0 to 1, got 3",
        "empty: must hold skin, lips, lids, liner, lashes, blush, brows, got None",
    }


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", "\xff"])
def test_a_file_of_looks_that_is_none(tmp_path, content):
    path = tmp_path / "looks.yaml"
    path.write_bytes(content.encode("latin-1"))
    told = bad_look(path)
    assert str(path) in told
    assert len(told.splitlines()) == 1
