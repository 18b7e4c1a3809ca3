"""Alignment as in FFHQ, and what is refused: too small, cut off, turned away, blurred, no landmarks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from drawn_faces import MEAN, draw_face, place
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from tinybeauty.alignment import align, find_quad
from tinybeauty.errors import LeftOut
from tinybeauty.faces import check_face, check_sharpness
from tinybeauty.landmarks import read_landmarks


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
    np.testing.assert_allclose(find_quad(points), ffhq_quad(to_dlib(points)), atol=1e-6 * side)


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
    picture, aligned = align(photo, points, 256)
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
    picture = np.asarray(align(Image.fromarray(stripes), points, 256)[0]).astype(float)
    assert picture[60:200, 100:150, 0].std() > 60  # inside: as it was
    assert picture[:8, 100:150, 0].std() < 10  # far outside: blurred
    assert 60 < picture[:8].mean() < 200  # no black border


def test_an_aligned_picture_is_taken_as_it_is():
    photo = draw_face(MEAN, (256, 256))
    picture, points = align(photo, MEAN, 256)
    assert picture.tobytes() == photo.tobytes()
    assert (points == MEAN).all()
    half, points = align(photo, MEAN, 128)
    assert half.tobytes() == photo.resize((128, 128), Image.Resampling.LANCZOS).tobytes()
    assert (points == MEAN / 2).all()


def test_landmarks_out_of_a_file():
    content = json.dumps({"landmarks": [[*point, 0.5] for point in MEAN.tolist()]}).encode()
    np.testing.assert_array_equal(read_landmarks(content), MEAN)  # a depth is passed over


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no json", "the landmarks beside it cannot be read: "),
        (b"{}", 'the landmarks beside it cannot be read: there must be {"landmarks": [[x, y], ...]} in it'),
        (b'{"landmarks": [[1, 2], [3]]}', "the landmarks beside it cannot be read: "),
        (b'{"landmarks": [[1, 2]]}', "the landmarks beside it must be 478 points [x, y], found shape (1, 2)"),
        (json.dumps({"landmarks": [[math.nan, 2]] * 478}).encode(), "the landmarks beside it must be 478"),
        (json.dumps({"landmarks": [[1e308, 2]] * 478}).encode(), "the landmarks beside it must be 478"),
    ],
)
def test_landmarks_that_are_none(content, told):
    with pytest.raises(LeftOut) as left_out:
        read_landmarks(content)
    assert str(left_out.value).startswith(told)


TURNED = MEAN.copy()
TURNED[1] += (60, 0)  # the nose


@pytest.mark.parametrize(
    ("points", "told"),
    [
        (place(MEAN, 98, (200, 200)), "too small: the face's square has 9"),
        (place(MEAN, 300, (60, 200)), "cut off: "),
        (place(MEAN, 300, (200, 330)), "cut off: "),
        (TURNED, "turned away: "),
    ],
)
def test_a_face_that_shows_too_little(points, told):
    with pytest.raises(LeftOut) as left_out:
        check_face(Image.new("RGB", (400, 400)), points)
    assert str(left_out.value).startswith(told)


@pytest.mark.parametrize("points", [place(MEAN, 110, (200, 200)), place(MEAN, 300, (200, 200), 35)])
def test_a_face_that_shows_enough(points):
    check_face(Image.new("RGB", (400, 400)), points)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_a_blurred_face(size):
    points = MEAN * size / 256
    sharp = draw_face(MEAN, (256, 256)).resize((size, size), Image.Resampling.LANCZOS)
    check_sharpness(sharp, points)
    with pytest.raises(LeftOut) as left_out:
        check_sharpness(sharp.filter(ImageFilter.GaussianBlur(6 * size / 256)), points)
    assert str(left_out.value).startswith("blurred: sharpness 0.0")
