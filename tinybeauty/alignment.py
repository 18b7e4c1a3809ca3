"""The FFHQ square of a face: where it is, its picture, and the way back into the photo.

A photo's coordinates are pixels counted from the top left corner of the first one, x before y.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from tinybeauty.landmarks import DLIB_EYES, MOUTH_CORNERS

Array = np.ndarray

Part = tuple[slice, slice]  # rows and columns of a full image
SAME_SQUARE = 0.03  # a picture this near to its face's FFHQ square, in its width, is aligned already


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


def find_side(points: Array) -> float:
    """Return the side of FFHQ's square around a face, in pixels."""
    quad = find_quad(points)
    return float(np.hypot(*(quad[3] - quad[0])))


def find_square(size: tuple[int, int], points: Array) -> Array:
    """Return the square that `align` cuts out of a photo of `size`: the face's, or the photo that is one."""
    quad = find_quad(points)
    width, height = size
    own = np.array(((0, 0), (0, height), (width, height), (width, 0)), np.float64)
    return own if width == height and np.abs(quad - own).max() <= SAME_SQUARE * width else quad


def find_way_back(quad: Array, size: int) -> Array:
    """Return the matrix (2, 3) from the photo's pixels to those of the square's picture of `size` pixels.

    Flattened it is what `Image.transform(..., AFFINE, ...)` wants to lay the picture back onto the photo.
    """
    across, down = (quad[3] - quad[0]) / size, (quad[1] - quad[0]) / size
    linear = np.linalg.inv(np.stack((across, down), axis=1))
    return np.concatenate((linear, -(linear @ quad[0])[:, None]), axis=1)


def move_to_square(points: Array, way: Array) -> Array:
    """Return points (N, 2) of the photo where a `find_way_back` has them in the square's picture."""
    return points @ way[:, :2].T + way[:, 2]


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


def align(
    photo: Image.Image, points: Array, size: int, square: Array | None = None
) -> tuple[Image.Image, Array]:
    """Return the face's FFHQ square as a picture of `size` pixels, and the landmarks (478, 2) in it.

    A picture that is this square already, to `SAME_SQUARE` of its width, is only resized: to align it again
    would soften it and give it mirrored borders. Another `square`, corners (4, 2) as of `find_quad`, is cut
    out instead of the face's own.
    """
    quad = find_square(photo.size, points) if square is None else square
    width, height = photo.size
    way = find_way_back(quad, size)
    aligned = move_to_square(points, way)
    across = quad[3] - quad[0]
    side = float(np.hypot(*across))
    if side == width == height and not quad[0].any():
        picture = photo if width == size else photo.resize((size, size), Image.Resampling.LANCZOS)
        return picture, aligned
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
