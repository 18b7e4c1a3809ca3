"""Faces in a photo: found by MediaPipe or given as landmarks, checked, aligned as FFHQ does.

Landmarks are MediaPipe's 478, an array (478, 2) in pixels; (0, 0) is the picture's top left corner. A face's
square is the one that FFHQ cuts out: 1 = the aligned image's width.
"""

from __future__ import annotations

import json
import math
import os
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tinybeauty.errors import LeftOut, UserError, one_line

Array = np.ndarray
Part = tuple[slice, slice]  # rows and columns of a full image
MIN_SIDE = 100  # of the FFHQ square in pixels: a smaller face shows no eyeliner
MAX_TURN = 0.45  # nose's shift from the middle of the eyes, in their distance; about 45 degrees
MIN_SHARPNESS = 0.08  # 863 sharp portraits have 0.23 to 0.96; blurred by 2 px of 256 they have 0.04 to 0.11
MAX_FACES = 8
SAME_SQUARE = 0.03  # a picture this near to its face's FFHQ square, in its width, is aligned already

# Numbers of MediaPipe's face mesh. "Left" is left in the picture; outer corner first, then to the nose.
# Source: mediapipe/python/solutions/face_mesh_connections.py, release 0.10.21.
UPPER_LID = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
LOWER_LID = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (263, 249, 390, 373, 374, 380, 381, 382, 362))
BROW_TOP = ((70, 63, 105, 66, 107), (300, 293, 334, 296, 336))
BROW_BASE = ((46, 53, 52, 65, 55), (276, 283, 282, 295, 285))
LIPS_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
LIPS_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
             152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)  # fmt: skip
CHEEK = ((50, 205, 129, 234), (280, 425, 358, 454))  # cheekbone, apple, wing of the nose, ear
BARE_SKIN = (50, 101, 118, 205, 280, 330, 347, 425, 9, 151, 108, 337, 195, 5)  # no hair grows there
# The six points of dlib's 68 around each eye, and the corners of the mouth.
DLIB_EYES = ((33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380))
MOUTH_CORNERS = (61, 291)


def soften(image: Array, radius_px: float) -> Array:
    """Return (H, W) blurred by about `radius_px`: made small and large again, which costs little."""
    if radius_px < 0.5:
        return image
    height, width = image.shape
    small = max(round(width / (1.5 * radius_px)), 2), max(round(height / (1.5 * radius_px)), 2)
    reduced = Image.fromarray(image.astype(np.float32)).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BICUBIC))


def window(points: Array, margin: float, shape: tuple[int, int]) -> Part:
    """Return the part of an image (H, W) that holds all points and `margin` pixels around them."""
    low, high = np.floor(points.min(0) - margin), np.ceil(points.max(0) + margin)
    (left, top), (right, bottom) = low.clip(0, shape[::-1]), high.clip(0, shape[::-1])
    return slice(int(top), int(bottom)), slice(int(left), int(right))


# ======================================================================================================
# Landmarks: from a file, or from MediaPipe
# ======================================================================================================


def read_landmarks(data: bytes) -> Array:
    """Return the landmarks (478, 2) of a photo's json file.

    Raises:
        LeftOut: it holds no 478 points.
    """
    try:
        points = np.array(json.loads(data)["landmarks"], np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise LeftOut(f"the landmarks beside it cannot be read: {one_line(error)}") from None
    if points.shape[:1] != (478,) or points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
        raise LeftOut(f"the landmarks beside it must be 478 points [x, y], found shape {points.shape}")
    return points[:, :2]


@cache
def load_mediapipe() -> tuple[Any, Any]:
    """Return MediaPipe's face detector and face mesh, loaded once a process.

    Raises:
        UserError: MediaPipe is missing, or a release without its models.
    """
    # Its C++ logs before its log level counts. This is a worker: what matters comes back as a result.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        from mediapipe.python.solutions import face_detection, face_mesh

        # Model 1 sees faces that fill a tenth of the picture; model 0, the mesh's own, only large ones.
        return (
            face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5),
            face_mesh.FaceMesh(static_image_mode=True, max_num_faces=MAX_FACES, refine_landmarks=True),
        )
    except Exception as error:
        raise UserError(
            f"MediaPipe does not run here ({one_line(error)}); `uv run data/prepare_pairs.py ...` gives "
            "it an environment of its own, data/README.md says how to do it with pip"
        ) from None


def find_views(photo: Image.Image, areas: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Return a square around every face that the detector sees in some areas of a photo, two faces wide."""
    detector, _ = load_mediapipe()
    views = []
    for area in areas:
        picture = photo.crop(area)
        picture.thumbnail((640, 640))
        scale = np.array((area[2] - area[0], area[3] - area[1]))
        for detection in detector.process(np.asarray(picture)).detections or []:
            box = detection.location_data.relative_bounding_box
            centre = np.array((box.xmin + box.width / 2, box.ymin + box.height / 2)) * scale + area[:2]
            reach = max(box.width * scale[0], box.height * scale[1])
            views.append(tuple(np.rint((*(centre - reach), *(centre + reach))).astype(int).tolist()))
    return views


def find_landmarks(photo: Image.Image) -> list[Array]:
    """Return the landmarks (478, 2) of every face in a photo, the largest face first."""
    _, mesh = load_mediapipe()
    (width, height), side = photo.size, max(photo.size)
    half = max(min(width, height) // 2, 1)
    tiles = [(x, y, x + half, y + half) for y in range(0, height - half // 2, half // 2 + 1)
             for x in range(0, width - half // 2, half // 2 + 1)]  # fmt: skip
    faces: list[Array] = []
    # The detector misses faces that fill the picture, which the mesh finds, and small ones, hence the tiles.
    for look_up in (
        lambda: find_views(photo, [(0, 0, width, height)]),
        lambda: [(0, 0, side, side)],
        lambda: find_views(photo, tiles),
    ):
        for view in look_up():
            picture = photo.crop(view)
            picture.thumbnail((640, 640))
            for face in mesh.process(np.asarray(picture)).multi_face_landmarks or []:
                points = np.array([(point.x, point.y) for point in face.landmark])
                points = points * (view[2] - view[0]) + view[:2]
                # Neighbouring views show the same face: it counts once.
                apart = [np.hypot(*(points.mean(0) - other.mean(0))) / np.ptp(other[:, 0]) for other in faces]
                if min(apart, default=1.0) > 0.5:
                    faces.append(points)
        if faces:
            break
    return sorted(faces, key=lambda points: -np.ptp(points[:, 0]))


# ======================================================================================================
# Alignment as in FFHQ
# ======================================================================================================


def find_quad(points: Array) -> Array:
    """Return FFHQ's square around a face: corners (4, 2) top left, bottom left, bottom right, top right.

    Source: Karras et al. 2019, appendix A; NVlabs/ffhq-dataset, `recreate_aligned_images`.
    """
    left, right = (points[list(eye)].mean(0) for eye in DLIB_EYES)
    eyes, across = (left + right) / 2, right - left
    down = points[list(MOUTH_CORNERS)].mean(0) - eyes
    x = across + np.array((down[1], -down[0]))  # so eyes and mouth both decide the tilt
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / max(np.hypot(*x), 1e-6)
    y = np.array((-x[1], x[0]))
    centre = eyes + 0.1 * down
    return np.stack((centre - x - y, centre - x + y, centre + x + y, centre + x - y))


def pad_mirrored(pixels: Array, pad: tuple[int, int, int, int], side: float) -> Array:
    """Return a picture with mirrored borders that get blurred and pale outwards.

    Args:
        pixels: (H, W, 3) uint8.
        pad: Pixels to add left, top, right and bottom.
        side: Of the face's square in pixels; the blur is 0.02 of it.

    Source: NVlabs/ffhq-dataset, `recreate_aligned_images`.
    """
    left, top, right, bottom = pad
    image = np.pad(pixels.astype(np.float32), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    across = np.minimum(x / left, (width - 1 - x) / right).astype(np.float32)
    down = np.minimum(y / top, (height - 1 - y) / bottom).astype(np.float32)
    outside = (1.0 - np.minimum(across, down))[..., None]
    blurred = np.stack([soften(image[..., channel], 0.02 * side) for channel in range(3)], axis=2)
    image += (blurred - image) * np.clip(3.0 * outside + 1.0, 0.0, 1.0)
    median = np.median(image[::4, ::4], axis=(0, 1))  # of every 16th pixel: it takes long
    image += (median - image) * np.clip(outside, 0.0, 1.0)
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def align(photo: Image.Image, points: Array, size: int) -> tuple[Image.Image, Array]:
    """Return the face's FFHQ square as a picture of `size` pixels, and the landmarks (478, 2) in it.

    A picture that is this square already, to `SAME_SQUARE` of its width, is only resized: to align it again
    would soften it and give it mirrored borders.
    """
    quad = find_quad(points)
    width, height = photo.size
    own = np.array(((0, 0), (0, height), (width, height), (width, 0)))
    if width == height and np.abs(quad - own).max() <= SAME_SQUARE * width:
        picture = photo if width == size else photo.resize((size, size), Image.Resampling.LANCZOS)
        return picture, points * size / width
    across = quad[3] - quad[0]
    side = float(np.hypot(*across))
    frame = np.stack((across, (-across[1], across[0])), axis=1) / side
    aligned = (points - quad[0]) @ frame * size / side
    # Cut out the square with a border, so that what follows is cheap on large photos.
    border = max(round(0.1 * side), 3)
    low = np.floor(quad.min(0)).astype(int) - border
    high = np.ceil(quad.max(0)).astype(int) + border
    box = (max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height))
    photo, quad = photo.crop(box), quad - box[:2]
    if (shrink := int(side / size * 0.5)) > 1:
        photo, quad, side = photo.reduce(shrink), quad / shrink, side / shrink
        border = max(round(0.1 * side), 3)
    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    lacking = np.maximum((*-low, *(high - photo.size)), -border) + border
    if lacking.max() > border - 4:
        pad = np.maximum(lacking, round(0.3 * side))
        photo = Image.fromarray(pad_mirrored(np.asarray(photo), tuple(pad.tolist()), side))
        quad = quad + pad[:2]
    fine = math.ceil(side / size)  # then averaged: the transform alone would skip pixels
    smoothly = Image.Resampling.BICUBIC if fine == 1 else Image.Resampling.BILINEAR
    corners = quad.flatten().tolist()
    picture = photo.transform((size * fine, size * fine), Image.Transform.QUAD, corners, smoothly)
    return picture.reduce(fine), aligned


# ======================================================================================================
# Checks: is it a face that shows its makeup
# ======================================================================================================


def check_face(photo: Image.Image, points: Array) -> None:
    """Refuse a face that shows too little of the makeup.

    Raises:
        LeftOut: it is too small, cut off or turned away.
    """
    quad = find_quad(points)
    side = float(np.hypot(*(quad[3] - quad[0])))
    if side < MIN_SIDE:
        raise LeftOut(f"too small: the face's square has {side:.0f} px, {MIN_SIDE} are needed")
    inner = points[[*BARE_SKIN, *LIPS_OUTER, *UPPER_LID[0], *UPPER_LID[1]]]
    if (inner < 0).any() or (inner > photo.size).any():
        raise LeftOut("cut off: eyes, mouth or cheeks lie outside the picture")
    left, right = points[UPPER_LID[0][0]], points[UPPER_LID[1][0]]
    across = right - left
    turn = abs((points[1] - (left + right) / 2) @ across) / max(across @ across, 1e-6)
    if turn > MAX_TURN:
        raise LeftOut(
            f"turned away: the nose lies {turn:.2f} eye distances beside the middle, {MAX_TURN} at most"
        )


def check_sharpness(picture: Image.Image, points: Array) -> None:
    """Refuse an aligned face that is blurred: edges of a pixel width at 256 px, relative to its contrast.

    Raises:
        LeftOut: it is blurred.
    """
    grey = np.asarray(picture.convert("L").resize((256, 256), Image.Resampling.LANCZOS), np.float32)
    part = window(points * 256 / picture.width, 0, (254, 254))
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    edges = (4 * grey[1:-1, 1:-1] - around)[part]
    sharpness = float(np.sqrt((edges**2).mean()) / max(grey[part].std(), 1e-3))
    if sharpness < MIN_SHARPNESS:
        raise LeftOut(f"blurred: sharpness {sharpness:.3f}, {MIN_SHARPNESS} is needed")
