"""Pictures of a photo, or of one face in it, as the detectors and the mesh want them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tinybeauty.landmarks import EYE_CORNERS

if TYPE_CHECKING:
    from tinybeauty.face_models import Detection, Detector, FaceModels

Array = np.ndarray
VIEW = 288  # pixels of the upright picture of one face, half as wide again as the square the mesh looks at
REACH = (0.03, 0.03, 0.06, 0.1)  # how far off the middle: right, down, size, angle in radians


def make_square(centre: Array, side: float, angle: float) -> Array:
    """Return a square (3, 2): its top left corner and the vectors along its upper and its left side."""
    right = side * np.array((np.cos(angle), np.sin(angle)))
    down = np.array((-right[1], right[0]))
    return np.stack((centre - (right + down) / 2, right, down))


def find_frame(points: Array) -> Array:
    """Return the square (3, 2) around a face that the mesh wants: upright, 1.5 times as wide as the points.

    Source: mediapipe/modules/face_landmark/face_landmark_landmarks_to_roi.pbtxt, but in the face's own axes,
    so that it turns with the face.
    """
    across = points[EYE_CORNERS[1]] - points[EYE_CORNERS[0]]
    angle = float(np.arctan2(across[1], across[0]))
    axes = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    turned = points @ axes
    low, high = turned.min(0), turned.max(0)
    return make_square(axes @ ((low + high) / 2), 1.5 * float((high - low).max()), angle)


def cut_view(photo: Image.Image, square: Array, size: int, grow: float = 1.0) -> tuple[Array, Array]:
    """Return the upright picture (size, size, 3) of a square, and the larger square (3, 2) that it shows.

    Outside the photo its border goes on.
    """
    corner, right, down = square
    corner = corner - (right + down) * (grow - 1) / 2
    right, down = right * grow, down * grow
    quad = np.stack((corner, corner + down, corner + right + down, corner + right))
    low, high = np.floor(quad.min(0)).astype(int) - 2, np.ceil(quad.max(0)).astype(int) + 2
    box = (*low.clip(0, np.array(photo.size) - 1).tolist(), *high.clip(1, photo.size).tolist())
    part = photo.crop(box)
    pad = np.maximum((box[0] - low[0], box[1] - low[1], high[0] - box[2], high[1] - box[3]), 0)
    shrink = max(int(np.hypot(*right) / size), 1)
    if shrink > 1:
        part = part.reduce(shrink)
    quad, pad = (quad - box[:2]) / shrink, -(-pad // shrink)
    if pad.any():
        part = Image.fromarray(np.pad(np.asarray(part), ((pad[1], pad[3]), (pad[0], pad[2]), (0, 0)), "edge"))
        quad = quad + pad[:2]
    corners = quad.flatten().tolist()
    view = part.transform((size, size), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    return np.asarray(view), np.stack((corner, right, down))


def shrink_onto(photo: Image.Image, longer: int, multiple: int) -> tuple[Array, float]:
    """Return a photo made small, on black, and how many of its pixels are one of these.

    Args:
        photo: the photo.
        longer: pixels of its longer side when it is small.
        multiple: both sides of the picture are one of this.
    """
    scale = max(photo.size) / longer
    size = [max(round(length / scale), 1) for length in photo.size]
    small = photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    canvas = np.zeros((-(-size[1] // multiple) * multiple, -(-size[0] // multiple) * multiple, 3), np.uint8)
    canvas[: size[1], : size[0]] = np.asarray(small)
    return canvas, scale


def look_turned(
    detector: Detector, picture: Array, turns: tuple[int, ...], least: float
) -> Iterator[tuple[int, Detection]]:
    """Yield (turn, detection) for a picture turned by quarters, in the pixels of the picture as it is."""
    height, width = picture.shape[:2]
    pictures = [np.ascontiguousarray(np.rot90(picture, turn)) for turn in turns]
    if height != width:  # one batch for those of one shape
        batches = [[index for index, turn in enumerate(turns) if turn % 2 == odd] for odd in (0, 1)]
    else:
        batches = [list(range(len(turns)))]
    # How a point of the turned picture comes back: x, y -> matrix @ (x, y) + shift.
    ways = {
        0: ((1, 0), (0, 1), (0, 0)),
        1: ((0, -1), (1, 0), (width, 0)),
        2: ((-1, 0), (0, -1), (width, height)),
        3: ((0, 1), (-1, 0), (0, height)),
    }
    for batch in filter(None, batches):
        for index, seen in zip(
            batch, detector(np.stack([pictures[index] for index in batch]), least), strict=True
        ):
            first, second, shift = ways[turns[index]]
            way = np.array((first, second)).T
            for one in seen:
                corners = one.box @ way + shift
                box = np.stack((corners.min(0), corners.max(0)))
                yield turns[index], replace(one, box=box, keys=one.keys @ way + shift)


def choose_places(number: int) -> Array:
    """Return where the mesh looks in a round (4, 4): right, down, size, angle, balanced around (0, 0, 1, 0).

    Source: Roberts 2018, "The Unreasonable Effectiveness of Quasirandom Sequences", R4.
    """
    steps = np.array((0.8566749, 0.7338919, 0.6287067, 0.5385973))
    first, second = ((np.array((2 * number + 1, 2 * number + 2))[:, None] * steps) % 1.0 * 2 - 1) * REACH
    return np.stack((first, -first, second, -second)) + np.array((0, 0, 1, 0))


def look_closely(
    photo: Image.Image, models: FaceModels, square: Array, places: Array
) -> tuple[Array, Array, list[float]]:
    """Return a face's landmarks and depths (N, 478, 3), in the photo's pixels, and how sure the mesh is.

    Args:
        photo: the photo.
        models: the models.
        square: (3, 2) around the face.
        places: (N, 4) to look from: right, down, size and angle off the square.
    """
    view, (corner, right, down) = cut_view(photo, square, VIEW, 1.5)
    axes, side = np.stack((right, down)) / VIEW, VIEW / 1.5
    squares = [make_square(VIEW / 2 + side * place[:2], side * place[2], place[3]) for place in places]
    meshes = models.find_meshes(view, np.stack(squares))
    looks = [np.c_[mesh.points @ axes + corner, mesh.depths * np.hypot(*axes[0])] for mesh in meshes]
    return np.stack(looks), [mesh.presence for mesh in meshes]
