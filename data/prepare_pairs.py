# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#     "mediapipe==0.10.21",  # the last release that carries its models; newer ones must download them
#     "numpy>=1.26,<2",
#     "protobuf>=4.25.3,<5",
#     "absl-py", "attrs", "flatbuffers", "matplotlib",
#     "opencv-python-headless==4.11.0.86",
#     "pillow>=10.1", "pyyaml>=6.0", "tqdm>=4.66",
# ]
#
# [tool.uv]
# # What mediapipe asks for and finding landmarks never loads: 300 MB, and libraries a server has not.
# exclude-dependencies = ["jax", "jaxlib", "opencv-contrib-python", "sounddevice", "sentencepiece"]
# ///
"""Turn photos into training pairs: find the faces, align them as FFHQ does, put a look on.

    uv run data/prepare_pairs.py PHOTOS --look evening --out data/evening
    python data/prepare_pairs.py PHOTOS --look evening --out data/evening   # landmarks beside the photos
    uv run data/prepare_pairs.py --masks-only data/faces                    # adds eye_mask/ to pairs

Writes `source/NAME.png`, `target/NAME.png`, `eye_mask/NAME.png` (further faces: NAME_2 ...), `skipped.csv`
and `preview.png`. The look is one of `looks.yaml`. Landmarks are MediaPipe's 478; a `NAME.json` beside
the photo, `{"landmarks": [[x, y] * 478]}` in its pixels, spares MediaPipe. A pair depends on the photo, its
landmarks, the look and the size alone. The same command goes on where it was stopped.

Makeup is laid on in linear light as a thin layer of pigment: `(1 - alpha) * skin + alpha * colour * shade`,
where shade is the skin's own brightness relative to the face's. So shadows, pores and wrinkles stay.
Lengths are in pixels, or in `unit`: the side of the face's FFHQ square, 1 = the aligned image's width.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray
Part = tuple[slice, slice]  # rows and columns of a full image

# ======================================================================================================
# Painting tools
# ======================================================================================================

LUMA = np.array((0.2126, 0.7152, 0.0722), np.float32)  # of linear light, ITU-R BT.709
STEPS = 65535
FINE = 4  # thin strokes are drawn this much larger, then averaged: no stairs at any size


def srgb_to_linear(value: Array) -> Array:
    """Return linear light for sRGB values, both 0 to 1. Source: IEC 61966-2-1."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(value: Array) -> Array:
    """Return sRGB values for linear light, both 0 to 1. Source: IEC 61966-2-1."""
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


# Powers are slow: both ways go through tables, and back and forth gives every byte again.
TO_LINEAR = srgb_to_linear(np.arange(256) / 255.0)
TO_BYTE = np.rint(255.0 * linear_to_srgb(np.arange(STEPS + 1) / STEPS)).astype(np.uint8)


def smooth(low: float, high: float, value: Array) -> Array:
    """Return 0 at low, 1 at high and a soft step between; low may be the larger one."""
    ramp = np.clip((value - low) / (high - low), 0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def soften(image: Array, radius_px: float) -> Array:
    """Return (H, W) blurred by about `radius_px`: made small and large again, which costs little."""
    if radius_px < 0.5:
        return image
    height, width = image.shape
    small = max(round(width / (1.5 * radius_px)), 2), max(round(height / (1.5 * radius_px)), 2)
    reduced = Image.fromarray(image.astype(np.float32)).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BICUBIC))


def curve(points: Array, closed: bool = False, steps: int = 6) -> Array:
    """Return a smooth line through points (N, 2), `steps` to a segment. Source: Catmull and Rom, 1974."""
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    line = np.concatenate((ends[0], points, ends[1]))
    a, b, c, d = (line[i : len(line) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    dense = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    dense = dense.reshape(-1, 2)
    return dense if closed else np.concatenate((dense, points[-1:]))


def window(points: Array, margin: float, shape: tuple[int, int]) -> Part:
    """Return the part of an image (H, W) that holds all points and `margin` pixels around them."""
    low, high = np.floor(points.min(0) - margin), np.ceil(points.max(0) + margin)
    (left, top), (right, bottom) = low.clip(0, shape[::-1]), high.clip(0, shape[::-1])
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def draw(polygons: list[Array], part: Part) -> Array:
    """Return the share of each pixel of `part` that lies inside any of the polygons, 0 to 1."""
    rows, columns = part
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if height <= 0 or width <= 0:
        return np.zeros((max(height, 0), max(width, 0)), np.float32)
    image = Image.new("L", (width * FINE, height * FINE))
    pen = ImageDraw.Draw(image)
    for polygon in polygons:  # Pillow counts from the centre of the first pixel, landmarks from its edge
        moved = (polygon - (columns.start, rows.start)) * FINE - 0.5
        pen.polygon([tuple(point) for point in moved.tolist()], fill=255)
    return np.asarray(image.reduce(FINE), np.float32) / 255.0


def pixel_centres(part: Part) -> tuple[Array, Array]:
    """Return x and y of the pixels of `part`, in the full image's coordinates."""
    rows, columns = part
    y, x = np.mgrid[rows, columns].astype(np.float32) + 0.5
    return x, y


# ======================================================================================================
# A face: where things are, how bright it is
# ======================================================================================================

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


def find_quad(points: Array) -> Array:
    """Return FFHQ's square around a face: corners (4, 2) top left, bottom left, bottom right, top right.

    Source: Karras et al. 2019, appendix A; NVlabs/ffhq-dataset, `recreate_aligned_images`.
    """
    left, right = (points[list(eye)].mean(0) for eye in DLIB_EYES)
    eyes, across = (left + right) / 2, right - left
    down = points[list(MOUTH_CORNERS)].mean(0) - eyes
    x = across + (down[1], -down[0])  # the mouth's direction turned by 90 degrees, so both decide the tilt
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / max(np.hypot(*x), 1e-6)
    y = np.array((-x[1], x[0]))
    centre = eyes + 0.1 * down
    return np.stack((centre - x - y, centre - x + y, centre + x + y, centre + x - y))


@dataclass
class Face:
    """A face in its picture.

    Attributes:
        picture: (H, W, 3) uint8 sRGB.
        points: (478, 2) landmarks in pixels; (0, 0) is the picture's top left corner.
    """

    picture: Array
    points: Array

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.picture.shape[:2]

    @cached_property
    def unit(self) -> float:
        """Side of the FFHQ square in pixels: every length is a share of it."""
        quad = find_quad(self.points)
        return float(np.hypot(*(quad[3] - quad[0])))

    @cached_property
    def light(self) -> Array:
        """Linear light (H, W, 3)."""
        return TO_LINEAR[self.picture]

    @cached_property
    def skin(self) -> Array:
        """Linear colour (3,) of the bare skin: the median over spots on cheeks, forehead and nose."""
        return np.median([self.spot(index) for index in BARE_SKIN], axis=0).astype(np.float32)

    @cached_property
    def exposure(self) -> float:
        """How bright pigment is here, relative to medium skin in even light.

        A photo does not tell dark skin from little light. The root lies between the two: pigment
        gets deeper on dark skin, but less so than the skin itself, so it stays in sight.
        """
        return float(np.clip((self.skin @ LUMA / 0.30) ** 0.45, 0.35, 1.1))

    def spot(self, index: int) -> Array:
        """Return the mean linear colour (3,) around a landmark."""
        reach = max(0.008 * self.unit, 1.0)
        part = window(self.points[index : index + 1], reach, self.shape)
        patch = self.light[part].reshape(-1, 3)
        return patch.mean(0) if len(patch) else np.full(3, 0.2, np.float32)

    def take(self, indices: tuple[int, ...]) -> Array:
        """Return landmarks (N, 2)."""
        return self.points[list(indices)]

    @cached_property
    def eye_width(self) -> float:
        """Distance between an eye's corners, of the wider one: a turned head narrows the other."""
        return max(float(np.hypot(*(self.points[lid[0]] - self.points[lid[-1]]))) for lid in UPPER_LID)


@dataclass
class Eye:
    """One eye, with a frame of its own: x from the outer to the inner corner (0 to 1), y up to the brow.

    Attributes:
        part: The window around eye, lid, wing and brow.
        upper, lower: (N, 2) edge of the lids in pixels, outer corner first.
        x, y: (h, w) frame coordinates of the window's pixels, in distances between the corners.
        opening: (h, w) 1 where the eyeball is in sight.
    """

    part: Part
    upper: Array
    lower: Array
    along: Array
    up: Array
    width: float
    x: Array
    y: Array
    opening: Array

    def to_frame(self, points: Array) -> Array:
        """Return points (N, 2) in the frame of the eye, sorted by x."""
        moved = (points - self.upper[0]) / self.width
        frame = np.stack((moved @ self.along, moved @ self.up), axis=1)
        return frame[np.argsort(frame[:, 0], kind="stable")]


def find_eye(face: Face, side: int) -> Eye:
    """Return the eye on one side of the picture, 0 left or 1 right."""
    upper, lower = curve(face.take(UPPER_LID[side])), curve(face.take(LOWER_LID[side]))
    along = upper[-1] - upper[0]
    width = max(float(np.hypot(*along)), 1e-3)
    along = along / width
    up = np.array((along[1], -along[0])) if side == 0 else np.array((-along[1], along[0]))
    around = np.concatenate((upper, lower, face.take(BROW_TOP[side])))
    part = window(around, 0.55 * face.eye_width, face.shape)
    x, y = pixel_centres(part)
    x, y = x - upper[0, 0], y - upper[0, 1]
    return Eye(
        part, upper, lower, along, up, width,
        (x * along[0] + y * along[1]) / width,
        (x * up[0] + y * up[1]) / width,
        draw([np.concatenate((upper, lower[::-1]))], part),
    )  # fmt: skip


# ======================================================================================================
# The makeup, group by group
# ======================================================================================================

Colours = dict[str, Any]  # one group of a look: numbers, and colours as linear light (3,)


def lay(canvas: Array, part: Part, colour: Array, alpha: Array) -> None:
    """Paint `colour`, (3,) or (h, w, 3), over a part of the canvas in place, `alpha` (h, w) thick."""
    canvas[part] += (colour - canvas[part]) * alpha[..., None]


def shade_of(canvas: Array, part: Part, reference: float) -> Array:
    """Return the brightness (h, w) of a part relative to `reference`: the light and texture on it."""
    return (canvas[part] @ LUMA) / max(reference, 1e-4)


def lay_pigment(canvas: Array, face: Face, part: Part, colour: Array, alpha: Array, shade: Array) -> None:
    """Lay pigment on a part of the canvas; it takes the shade (h, w) of what it covers.

    Glints are light from the surface, not from the pigment: they stay white.
    """
    glint = smooth(1.7, 3.2, shade)
    painted = (colour * face.exposure) * np.minimum(shade, 2.0)[..., None]
    lay(canvas, part, painted, alpha * (1.0 - 0.8 * glint))


def find_skin(face: Face, part: Part) -> Array:
    """Return how much each pixel of a part looks like the face's own skin, 0 to 1.

    Hair, glasses and beard differ in hue or are much darker; a shadow on the cheek is not that dark.
    """
    patch = np.sqrt(face.light[part])  # roughly as the eye sees it
    skin = np.sqrt(face.skin)
    level, reference = patch.mean(2) + 0.02, float(skin.mean()) + 0.02
    hue = patch / level[..., None] - skin / reference
    distance = (hue * hue).sum(2) / 0.22**2 + (np.log(level / reference).clip(-9, 0) / 0.62) ** 4
    return np.exp(-distance)


def even_skin(canvas: Array, face: Face, group: Colours) -> None:
    """Fade blotches: soften the band between pores and cheeks where it is faint; strong edges stay."""
    oval = curve(face.take(FACE_OVAL), closed=True, steps=3)
    part = window(oval, 0.02 * face.unit, face.shape)
    keep_out = [curve(face.take(LIPS_OUTER), closed=True)]
    for side in (0, 1):
        keep_out.append(np.concatenate((face.take(UPPER_LID[side]), face.take(LOWER_LID[side])[::-1])))
        keep_out.append(np.concatenate((face.take(BROW_TOP[side]), face.take(BROW_BASE[side])[::-1])))
    inside = soften(draw([oval], part), 0.012 * face.unit) * (1.0 - soften(draw(keep_out, part), 0.008 * face.unit))
    weight = np.clip(inside, 0.0, 1.0) * find_skin(face, part)
    patch = np.sqrt(canvas[part])
    fine, coarse = 0.004 * face.unit, 0.022 * face.unit
    spread = soften(weight, coarse).clip(0.02)
    for channel in range(3):
        # Only skin counts in the mean, so that hair and lips do not bleed into it.
        mean = soften(patch[..., channel] * weight, coarse) / spread
        band = soften(patch[..., channel], fine) - mean
        faint = np.exp(-((band / 0.07) ** 2))
        patch[..., channel] -= group["evening"] * weight * faint * band
    # Foundation: redness and pale spots move towards the face's own hue, as bright as they were.
    level = patch.mean(2, keepdims=True)
    skin = np.sqrt(face.skin)
    cover = 0.6 * group["evening"] * weight[..., None]
    patch += (skin / skin.mean() * level - patch) * cover
    canvas[part] = patch.clip(0.0, 1.0) ** 2


def lay_blush(canvas: Array, face: Face, group: Colours) -> None:
    """Lay a soft slanted ellipse on each cheek; a cheek that turns away gets less."""
    widths = [float(np.hypot(*(face.points[nose] - face.points[ear]))) for _, _, nose, ear in CHEEK]
    oval = curve(face.take(FACE_OVAL), closed=True, steps=3)
    for (bone, apple, _, ear), width in zip(CHEEK, widths, strict=True):
        seen = width / max(widths)
        centre = 0.62 * face.points[bone] + 0.30 * face.points[apple] + 0.08 * face.points[ear]
        axis = face.points[ear] - face.points[apple]
        axis = axis / max(np.hypot(*axis), 1e-6)
        long = 0.085 * face.unit * group["size"] * min(max(seen, 0.5), 1.0)
        short = 0.055 * face.unit * group["size"]
        part = window(centre[None], 2.4 * long, face.shape)
        x, y = pixel_centres(part)
        x, y = x - centre[0], y - centre[1]
        u, v = (x * axis[0] + y * axis[1]) / long, (y * axis[0] - x * axis[1]) / short
        alpha = np.exp(-(u * u + v * v)) * smooth(5.5, 3.0, u * u + v * v)
        inside = soften(draw([oval], part), 0.02 * face.unit).clip(0.0, 1.0)
        alpha *= group["opacity"] * float(smooth(0.2, 0.7, np.float64(seen)))
        alpha *= inside * soften(find_skin(face, part), 0.006 * face.unit).clip(0.0, 1.0)
        shade = shade_of(canvas, part, face.skin @ LUMA)
        lay_pigment(canvas, face, part, group["colour"], alpha, shade)


def lay_lids(canvas: Array, face: Face, eye: Eye, brow: Array, group: Colours) -> None:
    """Shade the lid: strongest at the lashes, gone at `height` of the way to the brow."""
    x, y = eye.x, eye.y
    margin, base = eye.to_frame(eye.upper), eye.to_frame(brow)
    edge = np.interp(x, *margin.T)
    room = np.maximum(np.interp(x, *base.T) - edge, 0.15)
    rise = (y - edge) / room  # 0 at the lashes, 1 at the brow
    # Past the outer corner the shadow climbs along the wing, so that the eye is drawn up, not down.
    rise = rise - np.maximum(-x, 0.0) * 0.9
    up = smooth(group["height"], 0.25 * group["height"], rise) * smooth(-0.10, 0.04, rise)
    along = smooth(-0.38, -0.02, x) * smooth(1.14, 0.92, x)
    below = eye.to_frame(eye.lower)
    drop = (np.interp(x, *below.T) - y) / 0.16
    smudge = group["lower"] * smooth(1.0, 0.0, drop) * smooth(-0.15, 0.05, drop)
    smudge = smudge * smooth(-0.12, 0.05, x) * smooth(1.0, 0.45, x)
    alpha = group["opacity"] * np.maximum(up * along, smudge) * (1.0 - eye.opening)
    deep = np.maximum(smooth(0.62, 0.12, x), 0.8 * smooth(0.30, 0.62, rise / group["height"]))[..., None]
    colour = group["inner_colour"] + (group["colour"] - group["inner_colour"]) * deep
    shade = shade_of(canvas, eye.part, face.skin @ LUMA)
    lay_pigment(canvas, face, eye.part, colour, alpha, shade)


def shape_liner(face: Face, eye: Eye, group: Colours) -> Array:
    """Return the outline (N, 2) of the liner: along the upper lid, tapered, out into the wing."""
    line = eye.upper[::-1]  # from the inner corner outwards
    t = np.linspace(0.0, 1.0, len(line))
    normal = np.stack((np.gradient(line[:, 1]), -np.gradient(line[:, 0])), axis=1)
    normal *= np.sign(normal @ eye.up).sum() or 1.0
    normal /= np.maximum(np.hypot(*normal.T), 1e-6)[:, None]
    thick = group["thickness"] * face.eye_width * (1.0 - group["taper"] * (1.0 - t) ** 0.7)
    thick *= smooth(-0.02, 0.12, t)
    top = line + normal * thick[:, None]
    base = line - normal * (0.25 * thick)[:, None]
    if not group["wing"]:
        thick_end = smooth(1.02, 0.9, t)[:, None]
        return np.concatenate((base, (line + (top - line) * thick_end)[::-1]))
    angle = math.radians(group["wing_angle"])
    tip = line[-1] + group["wing"] * eye.width * (-math.cos(angle) * eye.along + math.sin(angle) * eye.up)
    # The upper edge leaves the lid where it starts to fall and sweeps to the tip: a quadratic Bezier.
    start = int(0.72 * len(line))
    bend = top[start] + (top[start] - top[start - 2]) / max(np.hypot(*(top[start] - top[start - 2])), 1e-6) * (
        0.55 * float(np.hypot(*(tip - top[start])))
    )
    bend = 0.5 * bend + 0.5 * (0.45 * top[start] + 0.55 * tip)
    s = np.linspace(0.0, 1.0, 12)[:, None]
    sweep = (1 - s) ** 2 * top[start] + 2 * s * (1 - s) * bend + s**2 * tip
    return np.concatenate((base, sweep[::-1], top[:start][::-1]))


def lay_liner(canvas: Array, face: Face, eye: Eye, group: Colours) -> None:
    """Draw the liner; the eyeball stays free."""
    alpha = soften(draw([shape_liner(face, eye, group)], eye.part), 0.0018 * face.unit)
    alpha = group["opacity"] * alpha.clip(0.0, 1.0) * (1.0 - 0.85 * eye.opening)
    shade = 0.5 + 0.5 * shade_of(canvas, eye.part, face.skin @ LUMA)
    lay(canvas, eye.part, group["colour"] * face.exposure * shade.clip(0, 1.5)[..., None], alpha)


def shape_lashes(face: Face, eye: Eye, length: float, upper: bool) -> list[Array]:
    """Return thin curved triangles, fanned out over one lid; `length` of the longest, in eye widths."""
    edge, up, count = (eye.upper, eye.up, 30) if upper else (eye.lower, -eye.up, 22)
    thin = (0.011 if upper else 0.007) * face.eye_width
    s = np.linspace(0.0, 1.0, 6)[:, None]
    lashes = []
    for i in range(count):
        t = 0.03 + 0.85 * i / (count - 1)  # 0 at the outer corner
        root = edge[round(t * (len(edge) - 1))]
        # They sweep outwards at the outer corner and a little inwards at the nose; no two are quite alike.
        lean = 1.05 - 1.5 * t + 0.12 * math.sin(2.4 * i)
        reach = length * face.eye_width * (1.0 - 0.6 * t) * (0.85 + 0.15 * math.sin(5.1 * i + 1.0))
        out = up - lean * eye.along
        out = out / np.hypot(*out)
        tip = root + reach * (out + (0.35 if upper else 0.0) * up)  # the upper ones curl up
        spine = (1 - s) ** 2 * root + 2 * s * (1 - s) * (root + 0.6 * reach * out) + s**2 * tip
        side = thin * (1 - s) * (-out[1], out[0])
        lashes.append(np.concatenate((spine + side, (spine - side)[::-1])))
    return lashes


def lay_lashes(canvas: Array, face: Face, eye: Eye, group: Colours) -> None:
    """Draw the lashes of the upper lid, and shorter and fainter ones below."""
    for upper, length in ((True, group["length"]), (False, group["length"] * group["lower"])):
        if length:
            alpha = group["opacity"] * draw(shape_lashes(face, eye, length, upper), eye.part)
            alpha = alpha * (1.0 - 0.7 * eye.opening) * (1.0 if upper else 0.6)
            lay(canvas, eye.part, group["colour"] * face.exposure, alpha)


def lay_brows(canvas: Array, face: Face, eye: Eye, side: int, group: Colours) -> None:
    """Fill the brow: the hairs get darker, the skin between them a little."""
    outline = np.concatenate((curve(face.take(BROW_TOP[side])), curve(face.take(BROW_BASE[side]))[::-1]))
    inside = soften(draw([outline], eye.part), 0.006 * face.unit).clip(0.0, 1.0)
    shade = shade_of(canvas, eye.part, face.skin @ LUMA)
    hair = smooth(1.0, 0.5, shade)
    colour = group["colour"] * face.exposure * (0.35 + 0.65 * shade.clip(0.0, 1.5))[..., None]
    # A pencil makes nothing lighter than it was: black brows stay as they are.
    lay(canvas, eye.part, np.minimum(colour, canvas[eye.part]), group["opacity"] * inside * (0.4 + 0.6 * hair))


def find_lip_colours(face: Face, part: Part) -> Array:
    """Return the bare lips' own linear colour (h, w, 3): one for the upper lip and one for the lower.

    Many people have a dark upper and a pink lower lip; with one colour for both, the pink would pass
    for teeth.
    """
    half = len(LIPS_OUTER) // 2
    middle = (face.take(LIPS_OUTER) + face.take(LIPS_INNER)) / 2  # on the red, from corner to corner and back
    middle = middle.clip(0, np.array(face.shape[::-1]) - 1)
    reach = max(0.005 * face.unit, 1.0)
    patches = [face.light[window(point[None], reach, face.shape)].mean((0, 1)) for point in middle]
    upper, lower = np.median(patches[2 : half - 1], axis=0), np.median(patches[half + 2 : -1], axis=0)
    seam = (face.take(LIPS_INNER[: half + 1]) + face.take((LIPS_INNER[0], *LIPS_INNER[: half - 1 : -1]))) / 2
    along = seam[-1] - seam[0]
    along = along / max(np.hypot(*along), 1e-6)
    x, y = pixel_centres(part)
    u, v = x * along[0] + y * along[1], y * along[0] - x * along[1]
    line = np.stack((seam @ along, seam @ (-along[1], along[0])), axis=1)
    line = line[np.argsort(line[:, 0], kind="stable")]
    below = smooth(-0.004 * face.unit, 0.004 * face.unit, v - np.interp(u, *line.T))[..., None]
    return (upper + (lower - upper) * below).astype(np.float32)


def lay_lips(canvas: Array, face: Face, group: Colours) -> None:
    """Colour the lips between their outer and inner edge; teeth and beard stay bare."""
    outer, inner = (curve(face.take(ring), closed=True) for ring in (LIPS_OUTER, LIPS_INNER))
    part = window(outer, 0.03 * face.unit, face.shape)
    lips = soften(draw([outer], part), 0.003 * face.unit).clip(0.0, 1.0)
    mouth = soften(draw([inner], part), 0.0015 * face.unit).clip(0.0, 1.0)
    own = find_lip_colours(face, part)
    own_level, level = own @ LUMA + 1e-3, canvas[part] @ LUMA
    shade = level / own_level
    # Teeth and white hair are brighter and paler than the lip; beard hair and the dark between are darker.
    redness, own_redness = canvas[part][..., 0] / (level + 1e-3) - 1.0, own[..., 0] / own_level - 1.0
    paler = smooth(0.75, 0.35, redness / np.maximum(own_redness, 0.05))
    bare = np.maximum(smooth(1.35, 2.0, shade) * paler, smooth(0.35, 0.12, shade))
    alpha = group["opacity"] * lips * (1.0 - mouth) * (1.0 - bare)
    # Pigment hides half of the difference between the two lips; the rest is light, and stays.
    shade = shade * np.sqrt(own_level / np.median(own_level))
    lay_pigment(canvas, face, part, group["colour"], alpha, shade)
    lay_gloss(canvas, face, part, alpha, shade, group["gloss"])


def lay_gloss(canvas: Array, face: Face, part: Part, alpha: Array, shade: Array, gloss: float) -> None:
    """Add shine: more of the photo's own highlights, and a soft one in the middle of the lower lip."""
    top, low = face.points[14], face.points[17]
    corner = face.points[LIPS_OUTER[10]] - face.points[LIPS_OUTER[0]]
    x, y = pixel_centres(part)
    centre = 0.58 * top + 0.42 * low
    wide, high = max(0.20 * np.hypot(*corner), 1.0), max(0.30 * np.hypot(*(low - top)), 1.0)
    along = corner / max(np.hypot(*corner), 1e-6)
    u = ((x - centre[0]) * along[0] + (y - centre[1]) * along[1]) / wide
    v = ((y - centre[1]) * along[0] - (x - centre[0]) * along[1]) / high
    local = soften(shade, 0.004 * face.unit) / np.maximum(soften(shade, 0.016 * face.unit), 0.05)
    shine = 0.10 * np.exp(-(u * u + v * v)) * smooth(0.5, 1.1, shade) + 0.15 * smooth(1.05, 1.5, local)
    canvas[part] += (gloss * face.exposure * alpha * shine)[..., None]


def put_makeup_on(face: Face, look: dict[str, Colours]) -> Array:
    """Return the made-up picture (H, W, 3) uint8; pixels away from the makeup stay the same bytes."""
    canvas = face.light.copy()
    if "skin" in look:
        even_skin(canvas, face, look["skin"])
    if "blush" in look:
        lay_blush(canvas, face, look["blush"])
    for side in (0, 1):
        eye = find_eye(face, side)
        if "lids" in look:
            lay_lids(canvas, face, eye, curve(face.take(BROW_BASE[side])), look["lids"])
        if "brows" in look:
            lay_brows(canvas, face, eye, side, look["brows"])
        if "liner" in look:
            lay_liner(canvas, face, eye, look["liner"])
        if "lashes" in look:
            lay_lashes(canvas, face, eye, look["lashes"])
    if "lips" in look:
        lay_lips(canvas, face, look["lips"])
    return TO_BYTE[(canvas.clip(0.0, 1.0) * STEPS + 0.5).astype(np.uint16)]


def draw_eye_mask(face: Face) -> Array:
    """Return (H, W) uint8, white over eyes, lids, liner and wing, with soft edges; the same for every look."""
    mask = np.zeros(face.shape, np.float32)
    for side in (0, 1):
        eye = find_eye(face, side)
        base = eye.to_frame(curve(face.take(BROW_BASE[side])))
        upper, lower = eye.to_frame(eye.upper), eye.to_frame(eye.lower)
        x = np.linspace(-0.42, 1.12, 40)
        edge, brow = np.interp(x, *upper.T), np.interp(x, *base.T)
        top = edge + 0.75 * np.maximum(brow - edge, 0.15) * smooth(1.35, 0.9, x) + 0.10 * smooth(0.1, -0.4, x)
        bottom = np.interp(x, *lower.T) - 0.17 * smooth(-0.5, 0.1, x) * smooth(1.3, 0.9, x)
        frame = np.concatenate((np.stack((x, top), 1), np.stack((x, bottom), 1)[::-1])) * eye.width
        outline = eye.upper[0] + frame[:, :1] * eye.along + frame[:, 1:] * eye.up
        soft = soften(draw([outline], eye.part), 0.008 * face.unit)
        mask[eye.part] = np.maximum(mask[eye.part], soft)
    return (mask.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
