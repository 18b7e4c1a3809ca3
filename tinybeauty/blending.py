"""Makeup back into the photo: the network's residual of the 256 px face, laid onto the pixels it belongs to.

Only the difference is enlarged, never the face: pores, hairs and grain of the photo stay. Away from the
face's square not one pixel changes. Coordinates are pixels counted from the top left corner of the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw

from tinybeauty import faces
from tinybeauty.alignment import find_side, move_to_square, soften
from tinybeauty.errors import LeftOut
from tinybeauty.landmarks import BROW_BASE, BROW_TOP, LIPS_OUTER, LOWER_LID, UPPER_LID

if TYPE_CHECKING:
    from torch import nn

    from tinybeauty.face_models import FaceModels

Array = np.ndarray
Box = tuple[int, int, int, int]  # left, top, right, bottom
Change = Callable[[Array, Array], Array]
SIDE = 256  # pixels of the aligned face that the network looks at
FADE = 8  # of these: on the worst of 10 faces the residual is 10 grey levels at the square's border
MEETING = 0.05  # of a square's side: over so much one face's makeup ends and the next one's begins
BAND = 1 << 16  # pixels that are worked on at a time: what fits into a processor's cache


@dataclass(frozen=True)
class Request:
    """What is asked for; of a strength 1 is as the network has learnt it.

    Attributes:
        strength: of everything.
        lips, eyes, skin: of these parts, on top; eyes are lids, liner, lashes and brows, skin is the rest.
        which: all faces, or the largest alone.
        smallest: side of a face's square in pixels; smaller faces stay as they are.
        compare: write before and after side by side.
    """

    strength: float = 1.0
    lips: float = 1.0
    eyes: float = 1.0
    skin: float = 1.0
    which: Literal["all", "largest"] = "all"
    smallest: int = faces.MIN_SIDE
    compare: bool = False

    @property
    def nothing(self) -> bool:
        """Whether no pixel changes."""
        return not self.strength or not (self.lips or self.eyes or self.skin)


def choose_faces(
    photo: Image.Image, models: FaceModels, request: Request
) -> tuple[list[faces.Face], list[faces.Face], list[str]]:
    """Return the faces of a photo that get makeup, the largest first, all its faces, and why others get none.

    Raises:
        LeftOut: there is none.
    """
    found = faces.find_faces(photo, models)
    chosen, left_out = [], list(found.left_out)
    for face in found.faces:
        x, y = face.points.mean(0)
        try:
            faces.check_face(photo, face.points, request.smallest)
            chosen.append(face)
        except LeftOut as reason:
            left_out.append(f"the face at ({x:.0f}, {y:.0f}): {reason}")
    if not chosen:
        raise LeftOut("; ".join(["no face found", *left_out] if not found.faces else left_out))
    return chosen[:1] if request.which == "largest" else chosen, found.faces, left_out


@cache
def make_fade() -> Array:
    """Return weights (SIDE, SIDE, 1): 1 inside, to 0 at the border over FADE pixels."""
    distance = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1]) / FADE
    ramp = np.clip(distance, 0.0, 1.0)
    ramp = (ramp * ramp * (3.0 - 2.0 * ramp)).astype(np.float32)
    return np.minimum(ramp[:, None], ramp[None, :])[..., None]


def fill_softly(outlines: list[Array], radius: float) -> Array:
    """Return (SIDE, SIDE), 1 inside any of the outlines (N, 2), with edges `radius` pixels soft."""
    mask = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(mask)
    for outline in outlines:
        pen.polygon([tuple(point) for point in (outline - 0.5).tolist()], fill=255)
    return soften(np.asarray(mask, np.float32) / 255.0, radius).clip(0.0, 1.0)


def weigh_parts(points: Array, request: Request) -> Array | float:
    """Return how much of the residual each pixel gets, (SIDE, SIDE, 1), or one number for all.

    Args:
        points: (478, 2) landmarks in the aligned face.
        request: what is asked for.
    """
    if request.lips == request.eyes == request.skin:
        return request.strength * request.skin
    unit = float(np.hypot(*(points[UPPER_LID[1][0]] - points[UPPER_LID[0][0]])))  # between the outer corners
    lips = points[list(LIPS_OUTER)]
    middle = lips.mean(0)
    lip_mask = fill_softly([middle + (lips - middle) * (1.08, 1.18)], 0.03 * unit)
    outlines = []
    for side, sign in ((0, -1.0), (1, 1.0)):
        upper, lower = points[list(UPPER_LID[side])], points[list(LOWER_LID[side])]
        top = points[list(BROW_TOP[side])] - (0.0, 0.05 * unit)
        wing = upper[0] + (sign * 0.24 * unit, -0.12 * unit)
        below = np.add(lower[::-1], (0.0, 0.08 * unit))
        nose = upper[-1] + (-sign * 0.03 * unit, 0.0)
        # From the brow's outer end to the inner one, down to the nose, below the lashes, out along the wing.
        tail = points[[BROW_BASE[side][0]]] + (sign * 0.05 * unit, 0.0)
        outlines.append(np.concatenate((tail, top, nose[None], below, wing[None])))
    eye_mask = fill_softly(outlines, 0.05 * unit) * (1.0 - lip_mask)
    weights = request.skin + (request.lips - request.skin) * lip_mask
    weights = weights + (request.eyes - request.skin) * eye_mask
    return (request.strength * weights)[..., None].astype(np.float32)


def find_own(points: Array, others: list[Array], way: Array) -> Array | float:
    """Return how much of each pixel of an aligned face is the face's own, (SIDE, SIDE, 1), or 1.0: all.

    A pixel belongs to the face whose middle is nearest, counted in sides of its square: cheek to cheek,
    what is in one's square of the other stays free of the one's makeup.

    Args:
        points: (478, 2) landmarks in the photo.
        others: those of the photo's other faces.
        way: (2, 3) from the photo's pixels to the aligned face's.
    """
    if not others:
        return 1.0
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    scale = np.sqrt(np.linalg.det(way[:, :2]))

    def measure(face: Array) -> Array:
        """Return how far the pixels are from a face's middle, its square's side being 1."""
        across, down = move_to_square(face.mean(0), way)
        return np.hypot(x - across, y - down) / (scale * find_side(face))

    nearer = np.min([measure(other) for other in others], axis=0) - measure(points)
    return (0.5 + nearer / (2 * MEETING)).clip(0.0, 1.0)[..., None].astype(np.float32)


def find_residual(picture: Image.Image, points: Array, model: nn.Module, request: Request) -> Array:
    """Return what the makeup adds to an aligned face, (SIDE, SIDE, 3) float32 in grey levels of 255.

    Args:
        picture: the face, SIDE x SIDE, RGB.
        points: (478, 2) landmarks in it.
        model: the network.
        request: what is asked for.
    """
    import torch

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().div(255)
    with torch.inference_mode():
        residual = model(pixels.contiguous(memory_format=torch.channels_last))
        # What the network adds to a white glint or takes from black counts no further than white and black.
        residual = (pixels + residual).clamp(0, 1) - pixels
    levels = residual[0].permute(1, 2, 0).numpy() * 255.0
    return levels * make_fade() * weigh_parts(points, request)


def find_box(way: Array, size: tuple[int, int]) -> Box | None:
    """Return the part of a photo of `size` that a face's square touches; None: it lies outside.

    Args:
        way: (2, 3) from the photo's pixels to the aligned face's.
        size: of the photo.
    """
    corners = np.array(((0, 0), (0, SIDE), (SIDE, SIDE), (SIDE, 0)), np.float64)
    corners = (corners - way[:, 2]) @ np.linalg.inv(way[:, :2]).T
    left, top = np.floor(corners.min(0)).clip(0, size).astype(int).tolist()
    right, bottom = np.ceil(corners.max(0)).clip(0, size).astype(int).tolist()
    return (left, top, right, bottom) if left < right and top < bottom else None


def enlarge(residual: Array, way: Array, box: Box) -> Array:
    """Return the residual as it lies in a part of the photo, (H, W, C) float32; 0 outside the square.

    Args:
        residual: (N, N, C).
        way: (2, 3) from the photo's pixels to the residual's.
        box: the part.

    Source: Keys 1981, "Cubic convolution interpolation", as in `torch.nn.functional.grid_sample`.
    """
    import torch
    from torch.nn import functional

    left, top, right, bottom = box
    to_x, to_y = torch.from_numpy(way * 2 / len(residual)).float()  # grid_sample's square is -1 to 1
    x, y = torch.arange(left, right) + 0.5, torch.arange(top, bottom)[:, None] + 0.5
    grid = torch.stack([row[0] * x + row[1] * y + (row[2] - 1) for row in (to_x, to_y)], dim=2)
    image = torch.from_numpy(residual).permute(2, 0, 1)[None].contiguous()
    with torch.inference_mode():
        laid = functional.grid_sample(image, grid[None], "bicubic", align_corners=False)
    return laid[0].permute(1, 2, 0).numpy()


def shrink(residual: Array, way: Array) -> tuple[Array, Array]:
    """Return a residual (N, N, C) no finer than the photo, or it would jag, and the way to it."""
    fine = float(np.sqrt(abs(np.linalg.det(way[:, :2]))))
    if fine < 1.2:
        return residual, way
    size = max(round(len(residual) / fine), 8)
    channels = [
        Image.fromarray(np.ascontiguousarray(channel)).resize((size, size), Image.Resampling.BICUBIC)
        for channel in np.moveaxis(residual, 2, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2), way * (size / len(residual))


def add_levels(pixels: Array, residual: Array) -> Array:
    """Return pixels (H, W, 3) and a residual in levels of 255 added up, in the pixels' own type."""
    if pixels.dtype == np.uint16:
        residual = residual * 257.0
    total = np.rint(pixels + residual)  # float32: exact for 16 bits
    return total.clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def lay_residual(pixels: Array, residual: Array, way: Array, change: Change = add_levels) -> Box | None:
    """Lay a face's residual onto a photo in place; return the part that was touched, None for none.

    Args:
        pixels: (H, W, C) of the photo, writable.
        residual: (SIDE, SIDE, 3) in levels of 255.
        way: (2, 3) from the photo's pixels to the aligned face's.
        change: gets some pixels and their residual (H, W, 3), returns the new pixels.
    """
    box = find_box(way, pixels.shape[1::-1])
    if box is None or not residual.any():
        return None
    residual, way = shrink(residual, way)
    left, top, right, bottom = box
    step = max(BAND // (right - left), 1)
    for first in range(top, bottom, step):
        last = min(first + step, bottom)
        part = pixels[first:last, left:right]
        laid = enlarge(residual, way, (left, first, right, last))
        part[:] = np.where((np.abs(laid) > 1e-3).any(2, keepdims=True), change(part, laid), part)
    return box
