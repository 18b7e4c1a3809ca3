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

import argparse
import csv
import difflib
import hashlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin
from tqdm import tqdm

Array = np.ndarray
Part = tuple[slice, slice]  # rows and columns of a full image
HERE = Path(__file__).resolve().parent
KINDS = ("source", "target", "eye_mask")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MAX_PIXELS = 2**26  # of a photo; a phone's 48 million pass, a decompression bomb does not
VERSION = 1  # of the makeup: another number, and the same command makes every pair anew
MARK = "tinybeauty"  # the text in a PNG that says what it was made from


class UserError(Exception):
    """Something a person can mend; `main` prints it after `error: ` and exits with code 1."""


class LeftOut(Exception):
    """Why a photo or a face gives no pair; goes to skipped.csv."""


def list_some(names: list[str], most: int = 5) -> str:
    """Return up to `most` names for a message, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: Exception) -> str:
    """Return the message of an error of somebody else's, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


# ======================================================================================================
# Looks: the YAML and its checks
# ======================================================================================================

COLOUR = None
# What a look may hold: group -> key -> lowest and highest value, or COLOUR. looks.yaml says what each does.
GROUPS: dict[str, dict[str, tuple[float, float] | None]] = {
    "skin": {"evening": (0, 1)},
    "lips": {"colour": COLOUR, "opacity": (0, 1), "gloss": (0, 1)},
    "lids": {"colour": COLOUR, "inner_colour": COLOUR, "opacity": (0, 1), "height": (0.1, 1),
             "lower": (0, 1)},
    "liner": {"colour": COLOUR, "opacity": (0, 1), "thickness": (0, 0.2), "taper": (0, 1), "wing": (0, 0.6),
              "wing_angle": (0, 60)},
    "lashes": {"colour": COLOUR, "opacity": (0, 1), "length": (0, 0.4), "lower": (0, 1)},
    "blush": {"colour": COLOUR, "opacity": (0, 1), "size": (0.3, 2)},
    "brows": {"colour": COLOUR, "opacity": (0, 1)},
}  # fmt: skip


def find_problem(value: Any, allowed: tuple[float, float] | None) -> str:
    """Return what is wrong with one value of a look, empty if nothing is."""
    if allowed is COLOUR:
        good = isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value)
        return "" if good else f'must be a colour like "#aa3344", in quotes, got {value!r}'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be a number, got {value!r}"
    low, high = allowed
    return "" if low <= value <= high else f"must be from {low} to {high}, got {value}"


def check_keys(found: Any, known: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the known keys of `found` with their values, and a line for each that is not known."""
    if not isinstance(found, dict):
        return {}, [f"{where}: must hold {', '.join(known)}, got {found!r}"]
    lines = []
    for key in found.keys() - known.keys():
        close = difflib.get_close_matches(str(key), known, n=1)
        lines.append(f"{where}.{key}: unknown key" + (f", did you mean {close[0]}?" if close else ""))
    return {key: found[key] for key in known if key in found}, sorted(lines)


def check_look(name: str, look: Any) -> list[str]:
    """Return a line for every problem of one look."""
    groups, lines = check_keys(look, GROUPS, name)
    for group, given in groups.items():
        values, unknown = check_keys(given, GROUPS[group], f"{name}.{group}")
        lines += unknown
        for key, allowed in GROUPS[group].items() if isinstance(given, dict) else ():
            problem = find_problem(values[key], allowed) if key in values else "is missing"
            if problem:
                lines.append(f"{name}.{group}.{key}: {problem}")
    return lines


def load_look(path: Path, name: str) -> dict[str, dict[str, Any]]:
    """Return one look of a YAML file, as written there.

    Raises:
        UserError: the file cannot be read, the look is not in it, or a look has a wrong key or value.
    """
    try:
        looks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the looks in {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(looks, dict) or not looks:
        raise UserError(f"{path} must hold looks by name, found {type(looks).__name__}")
    looks = {str(key): look for key, look in looks.items()}
    if lines := [line for key, look in looks.items() for line in check_look(key, look)]:
        raise UserError(f"bad looks in {path}:\n  " + "\n  ".join(lines))
    if name not in looks:
        close = difflib.get_close_matches(name, looks, n=1)
        hint = f", did you mean {close[0]}?" if close else ";"
        raise UserError(f"there is no look {name!r} in {path}{hint} it has: {', '.join(looks)}")
    return looks[name]


def to_linear_look(look: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a look with its colours as linear light (3,)."""
    return {
        group: {
            key: TO_LINEAR[list(bytes.fromhex(value[1:]))] if isinstance(value, str) else value
            for key, value in values.items()
        }
        for group, values in look.items()
    }


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
    x = across + np.array((down[1], -down[0]))  # so eyes and mouth both decide the tilt
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

        A photo does not tell dark skin from little light. The power lies between the two: on dark skin
        pigment gets deeper, or it would look like chalk, but less so than the skin, or it would vanish.
        """
        return float(np.clip((self.skin @ LUMA / 0.30) ** 0.6, 0.15, 1.1))

    def spot(self, index: int) -> Array:
        """Return the mean linear colour (3,) around a landmark."""
        reach = max(0.008 * self.unit, 1.0)
        part = window(self.points[index : index + 1], reach, self.shape)
        patch = self.light[part].reshape(-1, 3)
        return patch.mean(0) if len(patch) else np.full(3, 0.2, np.float32)

    @cached_property
    def likeness(self) -> Array:
        """How much each pixel (H, W) looks like the face's own skin, 0 to 1.

        Hair, glasses and beard differ in hue or are much darker; a shadow on the cheek is not that dark.
        """
        step = max(round(self.unit / 200), 1)  # a soft mask needs no more than 200 pixels
        small = np.asarray(Image.fromarray(self.picture).reduce(step))
        patch, skin = np.sqrt(TO_LINEAR[small]), np.sqrt(self.skin)  # roughly as the eye sees it
        level, reference = patch.mean(2) + 0.02, skin.mean() + 0.02
        hue = patch / level[..., None] - skin / reference
        darker = np.square(np.log(np.minimum(level / reference, 1.0)) / 0.62)
        mask = np.exp(-np.square(hue).sum(2) / 0.22**2 - darker * darker)
        full = Image.fromarray(mask.astype(np.float32)).resize(self.shape[::-1], Image.Resampling.BILINEAR)
        return np.asarray(full)

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


def even_skin(canvas: Array, face: Face, group: Colours) -> None:
    """Fade blotches: soften the band between pores and cheeks where it is faint; strong edges stay."""
    oval = curve(face.take(FACE_OVAL), closed=True, steps=3)
    part = window(oval, 0.02 * face.unit, face.shape)
    keep_out = [curve(face.take(LIPS_OUTER), closed=True)]
    for side in (0, 1):
        keep_out.append(np.concatenate((face.take(UPPER_LID[side]), face.take(LOWER_LID[side])[::-1])))
        keep_out.append(np.concatenate((face.take(BROW_TOP[side]), face.take(BROW_BASE[side])[::-1])))
    inside = soften(draw([oval], part), 0.012 * face.unit).clip(0.0, 1.0)
    outside = soften(draw(keep_out, part), 0.008 * face.unit).clip(0.0, 1.0)
    weight = inside * (1.0 - outside) * face.likeness[part]
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
        seen = width / max(*widths, 1e-6)
        centre = 0.62 * face.points[bone] + 0.30 * face.points[apple] + 0.08 * face.points[ear]
        axis = face.points[ear] - face.points[apple]
        axis = axis / max(np.hypot(*axis), 1e-6)
        long = 0.085 * face.unit * group["size"] * min(max(seen, 0.5), 1.0)
        short = 0.055 * face.unit * group["size"]
        part = window(centre[None], 2.4 * long, face.shape)
        x, y = pixel_centres(part)
        x, y = x - centre[0], y - centre[1]
        far = ((x * axis[0] + y * axis[1]) / long) ** 2 + ((y * axis[0] - x * axis[1]) / short) ** 2
        alpha = np.exp(-far) * smooth(5.5, 3.0, far)
        inside = soften(draw([oval], part), 0.02 * face.unit).clip(0.0, 1.0)
        alpha *= group["opacity"] * float(smooth(0.2, 0.7, np.float64(seen)))
        alpha *= inside * face.likeness[part]
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
    heading = top[start] - top[start - 2]
    heading = heading / max(np.hypot(*heading), 1e-6) * np.hypot(*(tip - top[start]))
    bend = 0.5 * (top[start] + 0.55 * heading) + 0.5 * (0.45 * top[start] + 0.55 * tip)
    s = np.linspace(0.0, 1.0, 12)[:, None]
    sweep = (1 - s) ** 2 * top[start] + 2 * s * (1 - s) * bend + s**2 * tip
    return np.concatenate((base, sweep[::-1], top[:start][::-1]))


def lay_liner(canvas: Array, face: Face, eye: Eye, group: Colours) -> None:
    """Draw the liner; the eyeball stays free, but for the pale rim between lashes and eyeball."""
    alpha = soften(draw([shape_liner(face, eye, group)], eye.part), 0.0018 * face.unit)
    eyeball = smooth(0.5, 1.0, soften(eye.opening, 0.004 * face.unit))
    alpha = group["opacity"] * alpha.clip(0.0, 1.0) * (1.0 - eyeball)
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
        out = out / max(np.hypot(*out), 1e-6)
        tip = root + reach * (out + (0.35 if upper else 0.0) * up)  # the upper ones curl up
        spine = (1 - s) ** 2 * root + 2 * s * (1 - s) * (root + 0.6 * reach * out) + s**2 * tip
        side = thin * (1 - s) * (-out[1], out[0])
        lashes.append(np.concatenate((spine + side, (spine - side)[::-1])))
    return lashes


def lay_lashes(canvas: Array, face: Face, eye: Eye, group: Colours) -> None:
    """Draw the lashes of the upper lid, and shorter and fainter ones below."""
    for upper, length in ((True, group["length"]), (False, group["length"] * group["lower"])):
        if length:
            alpha = soften(draw(shape_lashes(face, eye, length, upper), eye.part), 0.0013 * face.unit)
            alpha = group["opacity"] * alpha.clip(0.0, 1.0) * (1.0 - 0.7 * eye.opening)
            alpha = alpha if upper else 0.6 * alpha
            lay(canvas, eye.part, group["colour"] * face.exposure, alpha)


def lay_brows(canvas: Array, face: Face, eye: Eye, side: int, group: Colours) -> None:
    """Fill the brow: the hairs get darker, the skin between them a little."""
    outline = np.concatenate((curve(face.take(BROW_TOP[side])), curve(face.take(BROW_BASE[side]))[::-1]))
    inside = soften(draw([outline], eye.part), 0.006 * face.unit).clip(0.0, 1.0)
    shade = shade_of(canvas, eye.part, face.skin @ LUMA)
    hair = smooth(1.0, 0.5, shade)
    colour = group["colour"] * face.exposure * (0.35 + 0.65 * shade.clip(0.0, 1.5))[..., None]
    # A pencil makes nothing lighter than it was: black brows stay as they are.
    alpha = group["opacity"] * inside * (0.4 + 0.6 * hair)
    lay(canvas, eye.part, np.minimum(colour, canvas[eye.part]), alpha)


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
    """Return (H, W) uint8, white over eyes, lids, liner and wing, soft at the edges, for every look."""
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


# ======================================================================================================
# Photos and landmarks
# ======================================================================================================

MIN_SIDE = 100  # of the FFHQ square in pixels: a smaller face shows no eyeliner
MAX_TURN = 0.45  # nose's shift from the middle of the eyes, in their distance; about 45 degrees
MIN_SHARPNESS = 0.08  # 863 sharp portraits have 0.23 to 0.96; blurred by 2 px of 256 they have 0.04 to 0.11
MAX_FACES = 8


def read_photo(data: bytes) -> Image.Image:
    """Return a photo upright (EXIF), as RGB, as the training reads it: transparency over white, 16 to 8 bits.

    Raises:
        LeftOut: the file is broken, no image, or too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
                image = Image.fromarray(grey)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return image.convert("RGB")
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise LeftOut(f"cannot be read: {one_line(error)}") from None


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


# ======================================================================================================
# Alignment as in FFHQ
# ======================================================================================================

SAME_SQUARE = 0.03  # a picture this near to its face's FFHQ square, in its width, is aligned already


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
# Pairs and their files
# ======================================================================================================


@dataclass(frozen=True)
class Job:
    """One photo and what to do with it; goes to a worker process.

    Attributes:
        settings: What the pairs depend on besides the photo and its landmarks, as text.
        taken: Names that further faces must not get: other photos have them.
    """

    photo: Path
    out: Path
    look: dict[str, dict[str, Any]]
    size: int
    settings: str = ""
    taken: frozenset[str] = frozenset()


@dataclass
class Result:
    """What came of a photo: the names of its pairs, and what was left out, (file, reason)."""

    names: list[str]
    left_out: list[tuple[str, str]]
    was_there: bool = False


def save_png(path: Path, picture: Image.Image, mark: dict[str, Any]) -> None:
    """Write a PNG whole or not at all: beside it under a hidden name, then renamed."""
    info = PngImagePlugin.PngInfo()
    info.add_text(MARK, json.dumps(mark))
    hidden = path.with_name(f".{path.name}.partial")
    with hidden.open("wb") as file:
        picture.save(file, "PNG", compress_level=1, compress_type=3, pnginfo=info)  # RLE: fast and small
    hidden.replace(path)


def read_mark(path: Path) -> dict[str, Any] | None:
    """Return what the PNG at `path` was made from, None if it says nothing or is not there."""
    try:
        with Image.open(path) as image:
            return json.loads(image.info[MARK])
    except (OSError, ValueError, KeyError):
        return None


def find_finished(job: Job, fingerprint: str) -> Result | None:
    """Return the earlier result of a photo if all its pairs are there and nothing has changed since."""
    mark = read_mark(job.out / "target" / f"{job.photo.stem}.png") or {}
    if mark.get("made_from") != fingerprint:
        return None
    # All three: a run with other settings may have been stopped between them.
    files = [job.out / kind / f"{name}.png" for name in mark["names"] for kind in KINDS]
    if any((read_mark(file) or {}).get("made_from") != fingerprint for file in files):
        return None
    return Result(mark["names"], [tuple(row) for row in mark["left_out"]], was_there=True)


def find_faces(photo: Image.Image, landmarks: bytes | None) -> list[Array]:
    """Return the landmarks (478, 2) of the photo's faces, from the json file or from MediaPipe.

    Raises:
        LeftOut: there is none.
    """
    faces = [read_landmarks(landmarks)] if landmarks is not None else find_landmarks(photo)
    if not faces:
        raise LeftOut("no face found")
    return faces


def read_files(photo: Path) -> tuple[bytes, bytes | None]:
    """Return the bytes of a photo and of the landmarks beside it, None where there are none.

    Raises:
        LeftOut: one of the two cannot be read.
    """
    beside = photo.with_suffix(".json")
    try:
        return photo.read_bytes(), beside.read_bytes() if beside.is_file() else None
    except OSError as error:
        raise LeftOut(f"cannot be read: {error.strerror}") from None


def make_pairs(job: Job) -> Result:
    """Make and write the pairs of one photo, unless they are there.

    Raises:
        OSError: the folder cannot be written.
    """
    name = job.photo.name
    try:
        data, landmarks = read_files(job.photo)
        fingerprint = hashlib.sha256(job.settings.encode() + data + (landmarks or b"")).hexdigest()[:16]
        if finished := find_finished(job, fingerprint):
            return finished
        photo = read_photo(data)
        faces = find_faces(photo, landmarks)
    except LeftOut as reason:
        return Result([], [(name, str(reason))])
    left_out, pairs = [], []
    look = to_linear_look(job.look)
    for number, points in enumerate(faces, start=1):
        try:
            check_face(photo, points)
            picture, aligned = align(photo, points, job.size)
            check_sharpness(picture, aligned)
            pair_name = job.photo.stem + (f"_{len(pairs) + 1}" if pairs else "")
            if pair_name in job.taken:
                raise LeftOut(f"its pair would be named {pair_name}, and so is another photo")
            face = Face(np.asarray(picture), aligned)
            made = Image.fromarray(put_makeup_on(face, look))
            pairs.append((pair_name, picture, made, Image.fromarray(draw_eye_mask(face))))
        except LeftOut as reason:
            left_out.append((name, f"face {number}: {reason}" if len(faces) > 1 else str(reason)))
    result = Result([pair[0] for pair in pairs], left_out)
    mark = {"made_from": fingerprint, "names": result.names, "left_out": left_out}
    # The first pair's target comes last of all: where it is, the photo is finished.
    for pair_name, source, target, eye_mask in reversed(pairs):
        save_png(job.out / "source" / f"{pair_name}.png", source, mark)
        save_png(job.out / "eye_mask" / f"{pair_name}.png", eye_mask, mark)
        save_png(job.out / "target" / f"{pair_name}.png", target, mark)
    return result


def add_mask(job: Job) -> Result:
    """Write the eye mask of one source picture as it is, without aligning; all its faces count.

    Raises:
        OSError: the folder cannot be written.
    """
    name = job.photo.name
    try:
        data, landmarks = read_files(job.photo)
        photo = read_photo(data)
        faces = find_faces(photo, landmarks)
    except LeftOut as reason:
        return Result([], [(name, str(reason))])
    eyes = [points[[*UPPER_LID[0], *UPPER_LID[1]]] for points in faces]
    if any((eye < 0).any() or (eye > photo.size).any() or np.ptp(eye) < 8 for eye in eyes):
        return Result([], [(name, "cut off or too small: eyes outside the picture or under 8 px apart")])
    masks = [draw_eye_mask(Face(np.asarray(photo), points)) for points in faces]
    save_png(job.out / "eye_mask" / f"{job.photo.stem}.png", Image.fromarray(np.max(masks, axis=0)), {})
    return Result([job.photo.stem], [])


# ======================================================================================================
# A folder of photos
# ======================================================================================================


def list_photos(folder: Path) -> list[Path]:
    """Return the images of a folder sorted by name; other and hidden files are passed over.

    Raises:
        UserError: the folder cannot be listed, holds no images, or two of one stem.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from None
    photos: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.stem in photos:
            raise UserError(
                f"{folder} has two images of one name: {photos[path.stem].name} and {path.name}; rename one"
            )
        photos[path.stem] = path
    if not photos:
        raise UserError(f"{folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return list(photos.values())


def check_mediapipe(photos: list[Path]) -> None:
    """Refuse to start where photos have no landmarks beside them and nothing can find any.

    Raises:
        UserError: MediaPipe is not installed.
    """
    lacking = [path.name for path in photos if not path.with_suffix(".json").is_file()]
    if lacking and importlib.util.find_spec("mediapipe") is None:
        raise UserError(
            f"{len(lacking):,} of {len(photos):,} photos have no landmarks (NAME.json) beside them "
            f"({list_some(lacking, 2)}), and MediaPipe is not installed in this Python: start it with "
            "`uv run data/prepare_pairs.py ...`, or see data/README.md for pip"
        )


def run_jobs(task: Callable[[Job], Result], jobs: list[Job], workers: int, label: str) -> list[Result]:
    """Return the results of all jobs in their order; they do not depend on the number of processes.

    Raises:
        UserError: a worker died.
    """
    bar = partial(tqdm, total=len(jobs), unit="photo", desc=label, disable=None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers: one a core is enough
    # "spawn" works alike on every system. Ctrl-C is for this process alone, which then stops the workers.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            return list(bar(pool.map(task, jobs, chunksize=4)))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was ended from outside (out of memory?); the same command goes on, "
                "with fewer --workers it needs less memory"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def make_folders(out: Path, kinds: tuple[str, ...]) -> None:
    """Make the output folders and remove what a killed run left half-written."""
    for kind in kinds:
        (out / kind).mkdir(parents=True, exist_ok=True)
        for path in (out / kind).glob(".*.partial"):
            path.unlink()


def check_strangers(out: Path) -> None:
    """Refuse a folder with pictures of somebody else's: they would be overwritten or mixed in.

    Raises:
        UserError: names some of them.
    """
    for folder in (out / kind for kind in KINDS):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        if others := [path.name for path in paths if path.name[0] != "." and read_mark(path) is None]:
            raise UserError(
                f"{folder} holds files that this tool did not make: {list_some(others)}; "
                "choose another folder with --out"
            )


def save_report(folder: Path, results: list[Result]) -> int:
    """Write skipped.csv, with a header alone if nothing was left out; return its number of rows."""
    rows = [row for result in results for row in result.left_out]
    hidden = folder / ".skipped.csv.partial"
    with hidden.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "reason"), *rows])
    hidden.replace(folder / "skipped.csv")
    return len(rows)


def save_preview(out: Path, names: list[str], columns: int = 3, rows: int = 4, side: int = 224) -> None:
    """Write preview.png: pairs from all over the folder, bare and made up side by side."""
    count = min(len(names), columns * rows)
    chosen = [names[index * len(names) // count] for index in range(count)]
    columns = min(columns, count)
    sheet = Image.new(
        "RGB", (columns * (2 * side + 8) - 8, math.ceil(count / columns) * (side + 8) - 8), "white"
    )
    for index, name in enumerate(chosen):
        for half, kind in enumerate(("source", "target")):
            with Image.open(out / kind / f"{name}.png") as picture:
                small = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(
                small, (index % columns * (2 * side + 8) + half * side, index // columns * (side + 8))
            )
    save_png(out / "preview.png", sheet, {})


def explain_left_out(results: list[Result]) -> str:
    """Return the commonest reasons for leaving photos out, for a message."""
    reasons = [
        re.sub(r"face \d+: ", "", reason).split(":")[0] for result in results for _, reason in result.left_out
    ]
    counts = sorted(((reasons.count(reason), reason) for reason in set(reasons)), reverse=True)
    return ", ".join(f"{count:,} {reason}" for count, reason in counts[:4])


# ======================================================================================================
# Command line
# ======================================================================================================


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with a command line like every other error of the program."""

    def error(self, message: str) -> None:
        """Raise UserError instead of printing the usage and exiting with code 2."""
        raise UserError(f"{message}; see --help")


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the checked flags.

    Raises:
        UserError: a flag is unknown, out of range or missing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = Parser(
        description=__doc__.split("\n")[0], allow_abbrev=False, epilog="data/README.md says more."
    )
    parser.add_argument("photos", type=Path, nargs="?", metavar="PHOTOS", help="folder of photos")
    parser.add_argument("--look", default="evening", help="name of a look (default: %(default)s)")
    parser.add_argument(
        "--looks", type=Path, default=HERE / "looks.yaml", help="file of looks (default: data/looks.yaml)"
    )
    parser.add_argument("--out", type=Path, help="folder for the pairs (default: data/LOOK)")
    parser.add_argument(
        "--size", type=int, default=512, help="pixels, a multiple of 8 (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=min(cores, 32), help="processes (default: one a core)")
    parser.add_argument(
        "--masks-only", type=Path, metavar="DATA_DIR", help="add eye_mask/ to pairs without it"
    )
    flags = parser.parse_args(argv)
    if flags.size % 8 or not 64 <= flags.size <= 1024:
        raise UserError(f"--size must be a multiple of 8 from 64 to 1024, got {flags.size}")
    if not 1 <= flags.workers <= 256:
        raise UserError(f"--workers must be from 1 to 256, got {flags.workers}")
    if (flags.photos is None) == (flags.masks_only is None):
        raise UserError("give either a folder of photos or --masks-only DATA_DIR; see --help")
    return flags


def prepare_pairs(photos: Path, look: str, looks: Path, out: Path, size: int, workers: int) -> str:
    """Make pairs from a folder of photos; return the last line to print.

    Raises:
        UserError: names what to mend.
        OSError: the output folder cannot be written.
    """
    started = time.monotonic()
    groups = load_look(looks, look)
    paths = list_photos(photos)
    check_mediapipe(paths)
    if out.resolve() == photos.resolve():
        raise UserError(f"{out} holds the photos; choose another folder for the pairs with --out")
    check_strangers(out)
    make_folders(out, KINDS)
    settings = json.dumps([VERSION, size, groups], sort_keys=True)
    stems = {path.stem for path in paths}
    jobs = []
    for path in paths:
        taken = stems & {f"{path.stem}_{number}" for number in range(2, MAX_FACES + 1)}
        jobs.append(Job(path, out, groups, size, settings, frozenset(taken)))
    results = run_jobs(make_pairs, jobs, min(workers, len(jobs)), f"putting {look} on")
    lines = save_report(out, results)
    names = [name for result in results for name in result.names]
    if not names:
        raise UserError(
            f"none of the {len(paths):,} photos gave a pair: {explain_left_out(results)}; "
            f"see {out / 'skipped.csv'}"
        )
    save_preview(out, sorted(names))
    strays = {path.stem for kind in KINDS for path in (out / kind).glob("*.png")} - set(names)
    if strays:
        stray = f"{len(strays):,} pairs in {out} are of no photo of this run: {list_some(sorted(strays))}"
        print(f"note: {stray}; delete them or choose another --out", file=sys.stderr)
    seconds = time.monotonic() - started
    there = sum(len(result.names) for result in results if result.was_there)
    text = f"{len(names):,} pairs of {size} px ({look}) in {out}, with preview.png and skipped.csv"
    text += f"; {there:,} of them were there" if there else ""
    text += f"; left out: {explain_left_out(results)}" if lines else ""
    return f"{text} ({seconds:.0f} s, {len(paths) / seconds:.1f} photos/s)"


def add_masks(data_dir: Path, workers: int) -> str:
    """Add the missing eye masks to a folder of pairs; return the last line to print.

    Raises:
        UserError: names what to mend.
        OSError: the folder cannot be written.
    """
    paths = list_photos(data_dir / "source")
    masks = data_dir / "eye_mask"
    have = (
        {path.stem for path in masks.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        if masks.is_dir()
        else set()
    )
    lacking = [path for path in paths if path.stem not in have]
    if not lacking:
        return f"all {len(paths):,} pairs in {data_dir} have their eye masks already"
    check_mediapipe(lacking)
    make_folders(data_dir, ("eye_mask",))
    jobs = [Job(path, data_dir, {}, 0) for path in lacking]
    results = run_jobs(add_mask, jobs, min(workers, len(jobs)), "drawing eye masks")
    lines = save_report(data_dir, results)
    made = len(lacking) - lines
    if not made:
        reasons = explain_left_out(results)
        raise UserError(f"none of the {len(lacking):,} pictures gave an eye mask: {reasons}")
    text = f"{made:,} eye masks added to {masks}"
    return text + (
        f"; left out: {explain_left_out(results)}, see {data_dir / 'skipped.csv'}" if lines else ""
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    out: Path | None = None
    try:
        flags = parse_flags(sys.argv[1:] if argv is None else argv)
        if flags.masks_only:
            out = flags.masks_only
            print(add_masks(out, flags.workers))
        else:
            out = flags.out or HERE / flags.look
            print(prepare_pairs(flags.photos, flags.look, flags.looks, out, flags.size, flags.workers))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write {error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is finished stays, the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
