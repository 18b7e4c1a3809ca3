"""Draw demo pairs: a bare face, the same face with evening makeup, and its eye mask.

    python data/make_demo.py                               # 400 pairs of 256 px in data/demo
    python data/make_demo.py --count 8 --size 512 --out /tmp/faces

Writes `source/face_0000.png`, `target/face_0000.png`, `eye_mask/face_0000.png`, ... Every face
is painted with NumPy from a few random traits: skin, pose, light, eyes, mouth, hair. The target
is the same painting with one makeup look, the same for everyone, so a network can learn it.
Pixels outside the makeup are equal in source and target, bit for bit. Pair i depends on
(seed, i, size) alone. Measured on the default set: doing nothing scores 27.2 dB PSNR (mean
over the pairs); 400 pairs take 15 to 35 s on two CPU cores and 75 MB.

DrawnFace units: x right and y down from the point between the eyes, 1 = the image's width. As in
FFHQ the eyes then lie near (-0.13, 0) and (0.13, 0), the mouth near (0, 0.245).
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python data/...` puts data/ alone there

from makeup import lay_colour, smooth

from tinybeauty.errors import Parser, UserError, run_command
from tinybeauty.files import hide, lock_folder, path_flag
from tinybeauty.workers import count_cores, run_jobs

Array = np.ndarray
KINDS = ("source", "target", "eye_mask")

# ======================================================================================================
# Palettes and the makeup look (RGB in [0, 1])
# ======================================================================================================

# fmt: off
SKINS = ((0.98, 0.85, 0.78), (0.96, 0.80, 0.70), (0.92, 0.73, 0.61), (0.87, 0.67, 0.53),
         (0.79, 0.58, 0.43), (0.70, 0.49, 0.35), (0.59, 0.39, 0.28), (0.47, 0.305, 0.22),
         (0.38, 0.24, 0.18))  # from very light to very dark
HAIRS = ((0.10, 0.075, 0.07), (0.16, 0.10, 0.075), (0.27, 0.165, 0.10), (0.40, 0.24, 0.14),
         (0.55, 0.27, 0.13), (0.62, 0.45, 0.26), (0.80, 0.65, 0.42), (0.66, 0.64, 0.63))
IRISES = ((0.24, 0.13, 0.07), (0.33, 0.19, 0.09), (0.42, 0.29, 0.13), (0.36, 0.42, 0.22),
          (0.27, 0.46, 0.40), (0.30, 0.47, 0.62), (0.42, 0.52, 0.60))
CLOTHS = ((0.16, 0.20, 0.30), (0.55, 0.19, 0.20), (0.87, 0.84, 0.78), (0.20, 0.36, 0.33),
          (0.80, 0.58, 0.28), (0.44, 0.30, 0.45), (0.13, 0.13, 0.14), (0.43, 0.55, 0.66))
FRAMES = ((0.08, 0.07, 0.08), (0.30, 0.17, 0.09), (0.55, 0.42, 0.22))  # of glasses
BACKDROPS = ((0.78, 0.72, 0.66), (0.55, 0.64, 0.68), (0.36, 0.42, 0.46), (0.72, 0.60, 0.53),
             (0.47, 0.53, 0.42), (0.83, 0.79, 0.73), (0.30, 0.27, 0.31), (0.62, 0.52, 0.60),
             (0.42, 0.50, 0.62), (0.80, 0.66, 0.48))
# fmt: on

PLUM_LIPS = np.array((0.58, 0.03, 0.27), np.float32)
VIOLET_LIDS = np.array((0.44, 0.08, 0.54), np.float32)
ROSE_CHEEKS = np.array((0.84, 0.22, 0.40), np.float32)
LINER_BLACK = np.array((0.035, 0.025, 0.04), np.float32)
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


class HairStyle(NamedTuple):
    """One hairstyle; lengths in face units."""

    odds: float  # share of the faces
    volume: float  # thickness over the skull
    widening: float  # slope of the outline below the eyes
    end: float  # y of the tips; 0.9 is below the image
    hairline: float  # y of the hairline at the parting
    steepness: float  # exponent of the hairline: 1.7 hangs like a curtain, 9 cuts a fringe
    waves: float  # swing of the strands
    ears: bool = False  # whether it leaves the ears free


HAIRSTYLES = {
    "short": HairStyle(0.12, 0.028, -0.25, 0.04, -0.265, 5.0, 0.000, True),
    "swept": HairStyle(0.10, 0.065, -0.25, 0.06, -0.255, 3.6, 0.004, True),
    "long": HairStyle(0.11, 0.055, 0.10, 0.90, -0.270, 2.6, 0.004),
    "parted": HairStyle(0.13, 0.045, 0.02, 0.90, -0.300, 1.7, 0.003),
    "wavy": HairStyle(0.11, 0.075, 0.22, 0.90, -0.280, 2.2, 0.014),
    "fringe": HairStyle(0.10, 0.055, 0.02, 0.90, -0.118, 9.0, 0.002),
    "bob": HairStyle(0.09, 0.070, 0.16, 0.33, -0.265, 2.5, 0.004),
    "curly": HairStyle(0.07, 0.110, 0.14, 0.90, -0.250, 3.4, 0.010),
    "afro": HairStyle(0.05, 0.135, -0.50, 0.20, -0.250, 4.4, 0.005),
    "bun": HairStyle(0.07, 0.025, -0.30, 0.02, -0.250, 4.0, 0.000, True),
    "bald": HairStyle(0.02, 0.000, -0.30, 0.00, -0.225, 4.0, 0.000, True),
    "scarf": HairStyle(0.03, 0.050, 0.16, 0.90, -0.205, 3.6, 0.000),
}


# ======================================================================================================
# Small painting tools
# ======================================================================================================


def hump(value: Array, centre: float, width: float) -> Array:
    """Return a bell of height 1 that reaches exactly 0 at twice `width` from its centre."""
    rest = np.maximum(1.0 - ((value - centre) / (2.0 * width)) ** 2, 0.0)
    return rest * rest * rest  # much faster than ** 3


def bell(grid: Grid, x: float, y: float, width: float, height: float, tilt: float = 0.0) -> Array:
    """Return a soft round spot: 1 in the middle, exactly 0 from two widths on."""
    dx, dy = grid.x - x, grid.y - y
    if tilt:
        cos, sin = math.cos(tilt), math.sin(tilt)
        dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
    rest = np.maximum(1.0 - (dx / (2.0 * width)) ** 2 - (dy / (2.0 * height)) ** 2, 0.0)
    return rest * rest * rest


def cover(shape: Array) -> Array:
    """Return the share of each pixel inside `shape` < 0, for edges without stairs."""
    slope_y, slope_x = np.gradient(shape)
    return np.clip(0.5 - shape / (np.hypot(slope_x, slope_y) + 1e-6), 0.0, 1.0)


def touched(alpha: Array) -> tuple[slice, slice]:
    """Return the smallest window that holds every pixel of `alpha` that is not 0."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def lay(canvas: Array, colour: Array | tuple, alpha: Array) -> None:
    """Paint `colour`, one or (H, W, 3), over `canvas` in place, `alpha` (H, W) thick."""
    part, colour = touched(alpha), np.asarray(colour, np.float32)
    lay_colour(canvas, part, colour[part] if colour.ndim == 3 else colour, alpha[part])


def tint(canvas: Array, factor: tuple, alpha: Array) -> None:
    """Multiply `canvas` by a colour in place where `alpha` is 1, and less where it is less."""
    part = touched(alpha)
    canvas[part] *= 1.0 + (np.array(factor, np.float32) - 1.0) * alpha[part][..., None]


def cloud(rng: np.random.Generator, cells: int, size: int) -> Array:
    """Return soft noise (size, size), about -1..1, the same picture for every size."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def blur(alpha: Array, cells: int) -> Array:
    """Return `alpha` softened to about `cells` patches across the image."""
    small = Image.fromarray(alpha.astype(np.float32)).resize((cells, cells), Image.Resampling.BOX)
    return np.asarray(small.resize(alpha.shape[::-1], Image.Resampling.BICUBIC)).clip(0.0, 1.0)


def pick(rng: np.random.Generator, palette: tuple, jitter: float = 0.02) -> Array:
    """Return one colour of a palette, slightly changed."""
    colour = np.array(palette[rng.integers(len(palette))]) + rng.normal(0.0, jitter, 3)
    return colour.clip(0.03, 1.0).astype(np.float32)


@dataclass
class Grid:
    """Pixel centres in face units.

    Attributes:
        x, y: (H, W) face coordinates.
        pixel: width of a pixel in face units.
    """

    x: Array
    y: Array
    pixel: float

    def crop(self, x: float, y: float, reach: float) -> tuple[Grid, tuple[slice, slice]]:
        """Return the part within `reach` of a point, and its slices of a full image."""
        part = touched((np.abs(self.x - x) < reach) & (np.abs(self.y - y) < reach))
        return Grid(self.x[part], self.y[part], self.pixel), part


# ======================================================================================================
# Traits of one face
# ======================================================================================================


@dataclass
class DrawnFace:
    """Everything that is random about one face; lengths in face units.

    Attributes:
        light: Direction of the lamp, length 1; `warmth` is its colour from -1 (cool) to 1.
        yaw, pitch: Turn of the head, -1 to 1; `roll` is its tilt in radians.
        jaw: How much the head narrows from the cheeks to the chin.
        age, smile, freckles, beard: 0 to 1; a smile slightly below 0 is a frown.
        gap: Height of the open mouth, 0 when it is closed.
        part: x of the hair's parting.
        frame: Colour of the glasses.
        grain: Table of noise that hair, brows and irises look up.
    """

    size: int
    rng: np.random.Generator
    skin: Array
    hair: Array
    iris: Array
    style: str
    light: Array
    warmth: float
    contrast: float
    yaw: float
    pitch: float
    roll: float
    jaw: float
    width: float
    chin: float
    age: float
    smile: float
    gap: float
    open_eyes: float
    eye_tilt: float
    eye_width: float
    crease: float
    gaze: tuple[float, float]
    brow_lift: float
    brow_weight: float
    nose_width: float
    nose_length: float
    lip_fullness: float
    part: float
    freckles: float
    beard: float
    glasses: bool
    frame: Array
    grain: Array = field(repr=False)

    def noise(self, position: Array, row: int = 0) -> Array:
        """Return smooth noise in -1..1 along a coordinate (one unit a cell)."""
        table = self.grain[row % len(self.grain)]
        cell = np.floor(position)
        blend = position - cell
        index = cell.astype(np.int64) % len(table)
        left, right = table[index], table[(index + 1) % len(table)]
        return left + (right - left) * (blend * blend * (3.0 - 2.0 * blend))


def make_face(index: int, size: int, seed: int) -> DrawnFace:
    """Draw the traits of face `index`; none of them depends on `size`."""
    rng = np.random.default_rng((seed, index))
    tone = rng.uniform(0, len(SKINS) - 1.001)
    lighter, darker = np.array(SKINS[int(tone)]), np.array(SKINS[int(tone) + 1])
    skin = (lighter + (darker - lighter) * (tone % 1)) * (1.0 + rng.normal(0, 0.012, 3))
    age = float(rng.beta(1.3, 2.5))
    # Light hair and eyes are rare with dark skin; grey hair comes with age.
    shades = 3 if tone > 5 else 4 if tone > 3 else 7
    grey = age > 0.62 and rng.random() < 0.7
    hair = pick(rng, HAIRS[-1:] if grey else HAIRS[:shades], 0.008)
    style = str(rng.choice(list(HAIRSTYLES), p=[style.odds for style in HAIRSTYLES.values()]))
    mood = rng.choice(("neutral", "closed smile", "open smile", "slightly open"), p=(0.22, 0.30, 0.32, 0.16))
    smile = {
        "neutral": rng.uniform(0.05, 0.35),
        "closed smile": rng.uniform(0.4, 0.9),
        "open smile": rng.uniform(0.7, 1.0),
        "slightly open": rng.uniform(0.1, 0.4),
    }[mood]
    gap = {"open smile": rng.uniform(0.022, 0.038), "slightly open": rng.uniform(0.008, 0.016)}.get(mood, 0.0)
    side, height = rng.choice((-1, 1)) * rng.uniform(0.15, 0.75), rng.uniform(-0.75, -0.25)
    light = np.array((side, height, rng.uniform(0.75, 1.1)))
    bearded = style in ("short", "swept", "bald") and rng.random() < 0.4
    return DrawnFace(
        size=size,
        rng=rng,
        skin=skin.clip(0.1, 0.985).astype(np.float32),
        hair=hair,
        iris=pick(rng, IRISES[:2] if tone > 4.5 else IRISES, 0.01),
        style=style,
        light=(light / np.linalg.norm(light)).astype(np.float32),
        warmth=rng.uniform(-1, 1),
        contrast=rng.uniform(0.6, 1.0),
        yaw=float(np.clip(rng.normal(0, 0.45), -1, 1)),
        pitch=rng.uniform(-0.8, 0.8),
        roll=float(np.clip(rng.normal(0, 0.07), -0.18, 0.18)),
        jaw=rng.uniform(0.24, 0.44),
        width=rng.uniform(0.262, 0.285),
        chin=rng.uniform(0.375, 0.41),
        age=age,
        smile=float(smile),
        gap=float(gap),
        open_eyes=rng.uniform(0.74, 1.16) - 0.1 * smile,
        eye_tilt=rng.uniform(-0.02, 0.14),
        eye_width=rng.uniform(0.067, 0.075),
        crease=rng.uniform(0.012, 0.019),
        gaze=(rng.uniform(-0.012, 0.012), rng.uniform(-0.003, 0.004)),
        brow_lift=rng.uniform(-0.006, 0.010),
        brow_weight=rng.uniform(0.75, 1.15),
        nose_width=rng.uniform(0.85, 1.25),
        nose_length=rng.uniform(-0.010, 0.012),
        lip_fullness=rng.uniform(0.8, 1.25),
        part=rng.uniform(-0.09, 0.09),
        freckles=rng.uniform(0.3, 1.0) if tone < 4 and rng.random() < 0.25 else 0.0,
        beard=rng.uniform(0.45, 1.0) if bearded else 0.0,
        glasses=bool(rng.random() < 0.09),
        frame=pick(rng, FRAMES, 0.01),
        grain=rng.uniform(-1, 1, (6, 512)).astype(np.float32),
    )


def make_grid(face: DrawnFace) -> Grid:
    """Return the face coordinates of every pixel: the alignment jitter, scale and roll."""
    shift_x, shift_y, scale = face.rng.normal(0.0, (0.006, 0.005, 0.025)).tolist()
    scale = min(max(1.0 + scale, 0.94), 1.06)
    steps = (np.arange(face.size, dtype=np.float32) + 0.5) / face.size
    x, y = np.meshgrid(steps - 0.5 - shift_x, steps - 0.475 - shift_y)
    cos, sin = math.cos(face.roll) / scale, math.sin(face.roll) / scale
    return Grid(
        (x * cos + y * sin).astype(np.float32),
        (y * cos - x * sin).astype(np.float32),
        1.0 / (face.size * scale),
    )


@dataclass
class Makeup:
    """Where the look goes: (H, W) strengths in [0, 1], exactly 0 outside; `eyes` is the mask."""

    lips: Array
    lids: Array
    liner: Array
    cheeks: Array
    contour: Array
    brows: Array
    eyes: Array

    @classmethod
    def nothing(cls, size: int) -> Makeup:
        """Return an empty look for a square image."""
        return cls(*(np.zeros((size, size), np.float32) for _ in range(7)))


# ======================================================================================================
# Backdrop, head and skin
# ======================================================================================================


def paint_backdrop(face: DrawnFace, grid: Grid) -> Array:
    """Return a studio wall (H, W, 3): a gradient, blurred lights or shapes, a vignette."""
    rng = face.rng
    first, second = pick(rng, BACKDROPS), pick(rng, BACKDROPS)
    second = first + (second - first) * rng.uniform(0.3, 0.8)
    angle = rng.uniform(0, 2 * np.pi)
    along = smooth(-0.7, 0.7, grid.x * math.cos(angle) + grid.y * math.sin(angle))
    canvas = first + (second - first) * along[..., None]
    for _ in range(rng.integers(0, 9)):
        radius = rng.uniform(0.05, 0.22)
        distance = np.hypot(grid.x - rng.uniform(-0.6, 0.6), grid.y - rng.uniform(-0.6, 0.5))
        disc = smooth(radius * 1.25, radius * 0.75, distance)
        glow = pick(rng, BACKDROPS) * rng.uniform(0.8, 1.3)
        lay(canvas, glow, disc * rng.uniform(0.1, 0.45))
    # A glow behind the head lifts the outline of dark hair off the wall.
    lay(canvas, (1.0, 0.97, 0.92), 0.28 * bell(grid, 0.25 * face.light[0], -0.1, 0.36, 0.36))
    canvas *= 1.0 - 0.22 * smooth(0.35, 0.8, np.hypot(grid.x, grid.y))[..., None]
    return canvas.astype(np.float32)


def head_radius(face: DrawnFace, grid: Grid) -> Array:
    """Return the squared radius of the head: 1 on its outline, 0 in its middle."""
    x = grid.x + 0.055 * face.yaw  # the eyes stay aligned, so the head turns behind them
    y = grid.y - 0.02
    height = np.where(y < 0, np.float32(0.385), np.float32(face.chin - 0.02))
    down = np.clip(y / height, 0.0, 1.0)
    width = face.width * (1.0 - face.jaw * down**1.7)
    return np.abs(x / width) ** 2.25 + np.abs(y / height) ** 2.4


def relief(face: DrawnFace, grid: Grid, radius: Array) -> Array:
    """Return the height of the face's surface, whose slopes the light shades."""
    nose_x = 0.036 * face.yaw
    tip = 0.128 + face.nose_length + 0.012 * face.pitch
    x, y, wide = grid.x, grid.y, face.nose_width
    height = 0.25 * np.sqrt(np.clip(1.04 - radius, 0.004, 1.04))
    down = smooth(-0.07, tip, y)
    ridge = hump((x - nose_x * down) / (0.023 + 0.020 * down * wide), 0.0, 1.0)
    height += 0.040 * down**1.3 * smooth(tip + 0.044, tip - 0.012, y) * ridge
    height += 0.012 * bell(grid, nose_x, tip - 0.002, 0.026 * wide, 0.024)
    for side in (-1, 1):
        height += 0.012 * bell(grid, nose_x + side * 0.032 * wide, tip + 0.008, 0.016, 0.016)
        height -= 0.014 * bell(grid, side * 0.115, 0.0, 0.050, 0.032)
        height += 0.007 * bell(grid, side * 0.125, -0.062, 0.055, 0.022)
        height += (0.012 + 0.008 * face.smile) * bell(grid, side * 0.150, 0.115, 0.055, 0.045)
    height += 0.014 * bell(grid, 0.012 * face.yaw, 0.245, 0.060, 0.035)
    height += 0.012 * bell(grid, 0.010 * face.yaw, face.chin - 0.055, 0.040, 0.030)
    height -= 0.006 * bell(grid, 0.012 * face.yaw, 0.303, 0.045, 0.012)
    return height


def shade(face: DrawnFace, height: Array, pixel: float) -> tuple[Array, Array]:
    """Return diffuse light in [0, 1] and the gloss of a surface, both (H, W)."""
    slope_y, slope_x = np.gradient(height, pixel)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1.0)
    facing = (-slope_x * face.light[0] - slope_y * face.light[1] + face.light[2]) / length
    half = face.light + np.array((0, 0, 1), np.float32)
    half = half / np.linalg.norm(half)
    gloss = (-slope_x * half[0] - slope_y * half[1] + half[2]) / length
    return np.clip((facing + 0.25) / 1.25, 0.0, 1.0), np.clip(gloss, 0.0, 1.0) ** 28


def light_skin(face: DrawnFace, albedo: Array, diffuse: Array, gloss: Array) -> Array:
    """Return lit skin: warm shadows, a red edge between light and shadow, soft highlights."""
    diffuse = 1.0 - face.contrast * (1.0 - diffuse)
    lamp = np.array((1.06 + 0.03 * face.warmth, 1.03, 1.01 - 0.05 * face.warmth), np.float32)
    shadow = np.array((0.44, 0.31, 0.31 - 0.02 * face.warmth), np.float32)
    lit = albedo * (shadow + (lamp - shadow) * smooth(0.0, 1.05, diffuse)[..., None])
    lit += albedo * np.array((0.10, 0.01, 0.0), np.float32) * (diffuse * (1 - diffuse))[..., None]
    return lit + 0.13 * gloss[..., None] * lamp


def paint_body(face: DrawnFace, canvas: Array, grid: Grid) -> None:
    """Paint neck, shoulders and clothes; the head comes over them."""
    x, y = grid.x + 0.035 * face.yaw, grid.y
    half = 0.120 + 0.03 * (face.beard > 0) + 0.25 * np.clip(y - 0.42, 0.0, 1.0) ** 1.3
    neck = cover(np.abs(x) - half) * smooth(0.15, 0.2, y)
    height = 0.16 * np.sqrt(np.clip(1.02 - (x / half) ** 2, 0.01, 1.0))
    diffuse, _ = shade(face, height, grid.pixel)
    under = smooth(0.50, face.chin - 0.03, y + 0.25 * x * x - 0.05 * x * face.light[0])
    lay(canvas, light_skin(face, face.skin * 0.95, diffuse * (1.0 - 0.85 * under), 0 * y), neck)
    collar = 0.455 + 0.055 * face.rng.random() - 0.30 * np.clip(np.abs(x) - 0.15, 0.0, 0.3)
    collar = collar + 0.07 * np.clip(1.0 - np.abs(x) / 0.17, 0.0, 1.0) ** 0.7
    collar = collar + 0.6 * np.clip(np.abs(x) - 0.30, 0.0, 1.0) ** 1.3
    cloth = pick(face.rng, CLOTHS) * (0.82 + 0.18 * smooth(0.0, 0.03, y - collar))[..., None]
    cloth = cloth * (1.0 + 0.35 * face.light[0] * x / 0.5)[..., None]
    lay(canvas, cloth, cover(collar - y))


def paint_ears(face: DrawnFace, canvas: Array, grid: Grid) -> None:
    """Paint both ears; the head and most hairstyles cover a part of them."""
    for side in (-1, 1):
        centre = side * (face.width + 0.006) - 0.055 * face.yaw
        shift = centre + side * -0.03 * max(0.0, side * face.yaw)  # the far ear hides
        part_grid, part = grid.crop(shift, 0.045, 0.12)
        out, y = side * (part_grid.x - shift), part_grid.y - 0.045
        radius = np.sqrt(((out - 0.10 * -y) / 0.034) ** 2 + (y / (0.078 - 0.1 * y)) ** 2)
        height = 0.02 * np.sqrt(np.clip(1.05 - radius**2, 0.01, 1.0))
        diffuse, gloss = shade(face, height, grid.pixel)
        colour = light_skin(face, face.skin * (0.96, 0.86, 0.85), diffuse * 0.85, gloss * 0.3)
        hollow = bell(part_grid, shift + side * 0.002, 0.04, 0.010, 0.024)
        tint(colour, (0.66, 0.52, 0.52), 0.8 * hollow)
        lay(canvas[part], colour, cover(radius - 1.0))


def paint_head(face: DrawnFace, canvas: Array, grid: Grid, look: Makeup, hair_alpha: Array) -> Array:
    """Paint the bare skin of the head, shaded by the lamp and the hair; return its alpha.

    Notes blush on the cheekbones and contour powder along cheeks and jaw in `look`.
    """
    radius = head_radius(face, grid)
    alpha = cover(radius - 1.0)
    diffuse, gloss = shade(face, relief(face, grid, radius), grid.pixel)
    albedo = np.broadcast_to(face.skin, canvas.shape).copy()
    tip = 0.128 + face.nose_length
    for side in (-1, 1):
        tint(albedo, (1.0, 0.85, 0.85), 0.8 * bell(grid, side * 0.16, 0.115, 0.06, 0.05))
        tint(albedo, (0.90, 0.82, 0.84), 0.75 * bell(grid, side * 0.125, 0.008, 0.06, 0.036))
        tint(albedo, (0.93, 0.85, 0.86), face.age * bell(grid, side * 0.12, 0.05, 0.05, 0.016))
    tint(albedo, (1.0, 0.84, 0.82), 0.7 * bell(grid, 0.036 * face.yaw, tip, 0.035, 0.03))
    mottle = cloud(face.rng, 40, face.size) * 0.012 + cloud(face.rng, 120, face.size) * 0.014
    spots = smooth(0.40, 0.95, cloud(face.rng, 130, face.size)) * face.freckles
    zone = hump(grid.y, 0.08, 0.075) * smooth(0.27, 0.16, np.abs(grid.x))
    tint(albedo, (0.84, 0.70, 0.62), spots * zone)
    albedo *= 1.0 + mottle[..., None]
    # The hair's shadow falls away from the lamp.
    drop = max(1, round(0.018 * face.size))
    shadow = np.roll(blur(hair_alpha, 40), (drop, -round(drop * face.light[0])), (0, 1))
    skin = light_skin(face, albedo, diffuse * (1.0 - 0.42 * shadow), gloss * (1.0 - shadow))
    lay(canvas, skin, alpha)
    for side in (-1, 1):
        look.cheeks += bell(grid, side * 0.184, 0.092, 0.076, 0.047, -side * 0.55) * alpha
    sides = 0.4 + 0.6 * smooth(0.04, 0.17, np.abs(grid.x))
    look.contour += sides * smooth(0.40, 1.0, radius) * smooth(-0.01, 0.12, grid.y) * alpha
    return alpha


def paint_folds(face: DrawnFace, canvas: Array, grid: Grid) -> None:
    """Paint nostrils, the shadow under the nose, smile lines and other small darks."""
    nose_x, tip = 0.036 * face.yaw, 0.128 + face.nose_length + 0.012 * face.pitch
    wide = face.nose_width
    below = bell(grid, nose_x * 0.9, tip + 0.034, 0.030 * wide, 0.010)
    tint(canvas, (0.74, 0.62, 0.62), 0.7 * below)
    for side in (-1, 1):
        x = nose_x + side * 0.020 * wide
        nostril = bell(grid, x, tip + 0.020, 0.0095 * wide, 0.0048, side * 0.3)
        tint(canvas, (0.34, 0.22, 0.22), nostril)
        wing = side * (grid.x - nose_x) - 0.042 * wide
        curve = hump(wing - 0.5 * np.abs(grid.y - tip - 0.004), -0.004, 0.0045)
        tint(canvas, (0.78, 0.68, 0.68), 0.8 * curve * hump(grid.y, tip + 0.006, 0.010))
        bend = 0.050 + 0.95 * (grid.y - 0.14) - 4.0 * (grid.y - 0.14) ** 2
        fold = hump(side * (grid.x - nose_x * 0.5) - bend, 0.0, 0.011) * hump(grid.y, 0.185, 0.034)
        strength = 0.05 + 0.26 * max(face.smile, 0.0) + 0.35 * face.age
        tint(canvas, (0.80, 0.71, 0.70), strength * fold)
    tint(canvas, (0.85, 0.78, 0.78), 0.6 * bell(grid, 0.012 * face.yaw, 0.304, 0.042, 0.010))
    tint(canvas, (0.9, 0.85, 0.85), 0.5 * bell(grid, 0.018 * face.yaw, 0.192, 0.006, 0.018))


# ======================================================================================================
# Eyes, brows and mouth: each paints itself bare and returns where its makeup goes
# ======================================================================================================


def eye_grid(face: DrawnFace, grid: Grid, side: int) -> tuple[Grid, tuple[slice, slice]]:
    """Return eye units around one eye: x towards the temple, y down, and the slices."""
    centre = side * 0.130
    near, part = grid.crop(centre, -0.02, 0.135)
    narrow = 1.0 - 0.16 * max(0.0, side * face.yaw)  # the far eye is foreshortened
    x, y = side * (near.x - centre) / narrow, near.y
    cos, sin = math.cos(face.eye_tilt), math.sin(face.eye_tilt)
    return Grid(x * cos - y * sin, y * cos + x * sin, grid.pixel), part


def paint_eye(face: DrawnFace, canvas: Array, grid: Grid, look: Makeup, side: int) -> None:
    """Paint one bare eye and note where liner, lid colour and eye mask go."""
    eye, part = eye_grid(face, grid, side)
    canvas, half = canvas[part], face.eye_width
    along = eye.x / half
    arch = np.clip(1.0 - np.abs(along + 0.10 * (1 - along**2)) ** 2.1, 0.0, 1.0)
    upper = -0.036 * face.open_eyes * arch**0.85
    sag = np.clip(1.0 - (along - 0.12 * (1 - along**2)) ** 2, 0.0, 1.0)
    lower = 0.019 * (0.6 + 0.4 * face.open_eyes) * sag
    slope_y, slope_x = np.gradient(upper - eye.y, grid.pixel)
    above = (upper - eye.y) / np.hypot(slope_x, slope_y)  # distance over the lash line
    opening = np.maximum(np.maximum(upper - eye.y, eye.y - lower), (np.abs(along) - 1.0) * half)
    opened = cover(opening)
    within = smooth(1.18, 0.9, np.abs(along))
    # Lid: a fold above, a soft light on the eyeball's bulge, a shadow below the eye.
    fold = face.crease + 0.006 * arch
    tint(canvas, (0.70, 0.58, 0.57), 0.75 * within * hump(above - fold, 0.0, 0.0035))
    tint(canvas, (1.10, 1.09, 1.08), 0.6 * within * hump(above, 0.5 * face.crease, 0.006))
    bag = within * hump(eye.y - lower, 0.014, 0.006)
    tint(canvas, (0.84, 0.74, 0.74), (0.45 + 0.4 * face.age) * bag)
    paint_eyeball(face, canvas, eye, upper, opened, side)
    lash = 0.0026 + 0.0016 * smooth(-0.8, 0.8, along)
    rim = smooth(1.12, 0.98, np.abs(along))
    lay(canvas, face.hair * 0.3 + 0.03, 0.85 * rim * smooth(lash + 0.0035, lash, np.abs(above)))
    tint(canvas, (0.62, 0.48, 0.46), 0.65 * rim * hump(eye.y - lower, 0.001, 0.0024))
    mark_eye_makeup(look, part, eye, above, opened, lower, half)


def paint_eyeball(face: DrawnFace, canvas: Array, eye: Grid, upper: Array, opened: Array, side: int) -> None:
    """Paint white, iris, pupil and catchlights inside the opening of one eye."""
    gaze_x = side * (face.gaze[0] + 0.006 * face.yaw)
    x, y = eye.x - gaze_x, eye.y + 0.006 - face.gaze[1]
    radius = np.hypot(x, y) / 0.031
    level = 0.86 + 0.10 * float(face.skin.mean())
    white = np.array((0.95, 0.925, 0.91), np.float32) * level
    ball = white * (1.0 - 0.26 * smooth(0.02, 0.075, np.hypot(eye.x, eye.y)))[..., None]
    tint(ball, (0.93, 0.66, 0.64), bell(eye, -face.eye_width * 0.96, 0.003, 0.008, 0.008))
    fibres = face.noise(np.arctan2(y, x) * 9.0, 1) * smooth(0.3, 0.7, radius)
    iris = face.iris * (0.72 + 0.55 * smooth(-0.7, 0.9, y / 0.031) + 0.16 * fibres)[..., None]
    iris = iris * (1.0 - 0.62 * smooth(0.72, 1.0, radius))[..., None]
    soft = eye.pixel / 0.031
    lay(ball, iris, smooth(1.0 + soft, 1.0 - soft, radius))
    lay(ball, (0.025, 0.02, 0.025), smooth(0.42 + soft, 0.42 - soft, radius))
    # The lid's shadow on the eyeball is what makes an eye look alive, not pasted on.
    tint(ball, (0.42, 0.36, 0.38), 0.9 * smooth(0.017, 0.0, eye.y - upper))
    glint = side * math.copysign(0.010, face.light[0])
    lay(ball, (1, 1, 1), 0.95 * smooth(1.3, 0.7, np.hypot(x - glint, y + 0.010) / 0.0065))
    lay(ball, (1, 1, 1), 0.32 * bell(Grid(x, y, eye.pixel), -glint, 0.012, 0.006, 0.004))
    lay(canvas, ball, opened)


def mark_eye_makeup(
    look: Makeup, part: tuple, eye: Grid, above: Array, opened: Array, lower: Array, half: float
) -> None:
    """Note lid colour, liner with its wing, lashes and the eye mask of one eye."""
    along, skin = eye.x / half, 1.0 - opened
    outer = smooth(-1.0, 1.0, along)
    # Lid colour: dense at the lashes and towards the temple, gone below the brow.
    ring = np.hypot((eye.x - 0.012) / (half + 0.052), (eye.y + 0.002) / 0.093)
    lids = (0.80 + 0.20 * outer) * smooth(1.0, 0.54, ring) * smooth(-0.012, 0.0, above)
    lids = lids * smooth(0.006, -0.006, eye.y + 0.10 * (eye.x - 0.5 * half))
    below = smooth(0.022, 0.004, eye.y - lower) * smooth(-0.003, 0.001, eye.y - lower)
    below = 0.85 * below * smooth(-0.5, 0.7, along) * smooth(1.45, 1.0, along)
    look.lids[part] = np.maximum(look.lids[part], np.maximum(lids, below) * skin)
    # Liner: a line that thickens outwards and ends in a wing.
    thick = 0.0055 + 0.0085 * outer
    edge = 1.2 * eye.pixel
    line = smooth(thick + edge, thick - edge, above) * smooth(-0.004 - edge, -0.004 + edge, above)
    line = line * smooth(-1.02, -0.85, along) * smooth(1.06, 1.0, along)
    start, step = (0.88 * half, -0.010), (0.052, -0.024)
    span = math.hypot(*step)
    share = ((eye.x - start[0]) * step[0] + (eye.y - start[1]) * step[1]) / span**2
    off = ((eye.y - start[1]) * step[0] - (eye.x - start[0]) * step[1]) / span
    width = 0.0105 * np.clip(1.0 - share, 0.0, 1.0) ** 0.8
    wing = smooth(width + edge, width - edge, np.abs(off)) * (share > -0.1)
    wing = wing * smooth(1.02, 0.95, share)
    # Lashes: slanted teeth on the line, longer towards the temple.
    comb = np.abs(((along * 6.5 - above * 60.0) % 1.0) - 0.5) * 2.0
    length = 0.020 * smooth(-0.8, 0.7, along)
    lash = smooth(0.8, 0.2, comb + above / (length + 1e-4)) * (above > 0)
    lash = 0.8 * lash * smooth(-0.9, -0.4, along) * smooth(1.05, 0.95, along)
    look.liner[part] = np.maximum(look.liner[part], np.maximum(np.maximum(line, wing), lash))
    ring = ((eye.x - 0.014) / (half + 0.056)) ** 2 + ((eye.y + 0.014) / 0.070) ** 2
    look.eyes[part] = np.maximum(look.eyes[part], ring < 1.0)


def paint_brow(face: DrawnFace, canvas: Array, grid: Grid, look: Makeup, side: int) -> None:
    """Paint one brow, hair by hair, and note where its powder goes."""
    eye, part = eye_grid(face, grid, side)
    along = (eye.x + 0.068) / 0.155  # 0 at the nose, 1 at the temple
    lift = face.brow_lift - 0.008 * face.pitch
    curve = -0.072 - lift - 0.024 * np.sin(np.clip(along, 0, 1.2) * 2.3)
    curve = curve + 0.030 * np.clip(along - 0.62, 0, 1)
    taper = smooth(-0.10, 0.25, along) * (1.0 - 0.72 * np.clip(along, 0, 1) ** 1.6)
    half = 0.0145 * face.brow_weight * taper
    off = (eye.y - curve) / (half + 1e-4)
    shape = smooth(1.35, 0.55, np.abs(off)) * smooth(-0.03, 0.10, along) * smooth(1.02, 0.93, along)
    strand = along * 46.0 + off * (2.2 - 1.4 * along)
    hairs = 0.5 + 0.5 * face.noise(strand, 2 + (side > 0))
    colour = face.hair * 0.62 + 0.02
    lay(canvas[part], colour, shape * (0.54 + 0.20 * hairs))
    look.brows[part] = np.maximum(look.brows[part], shape)


def paint_mouth(face: DrawnFace, canvas: Array, grid: Grid, look: Makeup) -> Array:
    """Paint the bare mouth and note where the lipstick goes; return the lips' alpha."""
    centre_x, centre_y = 0.015 * face.yaw, 0.245 + 0.004 * face.pitch
    near, part = grid.crop(centre_x, centre_y, 0.15)
    half = 0.089 + 0.018 * max(face.smile, 0.0) + 0.15 * face.gap
    x, y = (near.x - centre_x) / half, near.y - centre_y
    bow = np.clip(1.0 - x * x, 0.0, 1.0)
    base = face.smile * (0.012 - 0.034 * x * x) + 0.0015 * np.cos(9.0 * x) * bow
    full = face.lip_fullness * (1.0 - 0.12 * max(face.smile, 0.0))
    cupid = 1.0 - 0.24 * hump(x, 0.0, 0.11)
    top = base - full * 0.030 * bow**0.8 * cupid - 0.30 * face.gap * bow
    inner_top = base - 0.30 * face.gap * bow**0.8
    inner_bottom = base + 0.70 * face.gap * bow**0.7
    bottom = inner_bottom + full * 0.039 * bow**0.72
    mouth = cover(np.maximum(top - y, y - bottom)) * (np.abs(x) < 1.0)
    opened = cover(np.maximum(inner_top - y, y - inner_bottom)) * (np.abs(x) < 1.0) * (face.gap > 0)
    lips = mouth * (1.0 - opened)
    canvas, lower = canvas[part], smooth(-0.002, 0.002, y - inner_bottom)
    rise = np.clip((y - inner_bottom) / (bottom - inner_bottom + 1e-4), 0.0, 1.0)
    tint(canvas, (0.90, 0.66, 0.67), 0.92 * lips)
    tint(canvas, (0.84, 0.80, 0.81), lips * (1.0 - lower))
    tint(canvas, (1.16, 1.12, 1.12), lips * hump(rise, 0.38, 0.20) * bow)
    tint(canvas, (0.93, 0.90, 0.90), lips * (0.5 + 0.5 * face.noise(x * 16.0, 4)) * bow)
    gleam = hump(x, math.copysign(0.25, face.light[0]), 0.22) * hump(rise, 0.34, 0.11)
    lay(canvas, (1.0, 0.96, 0.95), 0.32 * lips * lower * gleam)
    paint_teeth(face, canvas, x, y, inner_top, inner_bottom, opened)
    seam = hump(y - inner_top, 0.0, 0.0028) * smooth(1.04, 0.9, np.abs(x))
    tint(canvas, (0.36, 0.22, 0.23), 0.85 * seam)
    look.lips[part] = lips
    return mouth


def paint_teeth(
    face: DrawnFace, canvas: Array, x: Array, y: Array, top: Array, bottom: Array, opened: Array
) -> None:
    """Paint the inside of an open mouth: dark, with upper teeth when it smiles."""
    inside = np.broadcast_to(np.float32((0.24, 0.07, 0.08)), canvas.shape).copy()
    lay(inside, (0.55, 0.24, 0.25), 0.6 * smooth(0.3, 0.9, (y - top) / (bottom - top + 1e-4)))
    edge = top + 0.024 + 0.004 * (1.0 - x * x)
    teeth = smooth(0.0025, -0.0015, y - edge) * smooth(0.35, 0.6, face.smile)
    ivory = np.float32((0.95, 0.92, 0.87)) * (0.98 - 0.35 * x**2)[..., None]
    gaps = hump(np.abs((x * 5.4) % 1.0 - 0.5), 0.5, 0.035) * smooth(0.9, 0.0, np.abs(x))
    lay(inside, ivory * (1.0 - 0.18 * gaps)[..., None], teeth)
    tint(inside, (0.55, 0.45, 0.45), smooth(0.010, 0.0, y - top) * 0.8)
    lay(canvas, inside, opened)


def paint_beard(face: DrawnFace, canvas: Array, grid: Grid, head: Array, mouth: Array) -> None:
    """Paint stubble or a beard around the mouth and along the jaw."""
    x, y = np.abs(grid.x - 0.01 * face.yaw), grid.y
    line = 0.262 - 1.1 * np.clip(x - 0.075, 0.0, 0.05) - 1.4 * np.clip(x - 0.16, 0.0, 0.2)
    zone = smooth(-0.02, 0.07, y - line)
    moustache = smooth(0.0, 0.014, y - 0.187 - 0.35 * x)
    moustache = moustache * smooth(0.100, 0.080, x) * smooth(0.29, 0.25, y)
    bristle = 0.85 + 0.30 * cloud(face.rng, 200, face.size)
    bristle = bristle + 0.12 * cloud(face.rng, 50, face.size)
    alpha = np.maximum(zone, 0.85 * moustache) * head * (1.0 - mouth) * bristle.clip(0.2, 1.0)
    colour = (face.hair * 0.85) * (0.8 + 0.3 * bristle)[..., None]
    lay(canvas, colour, 0.86 * face.beard * alpha)


# ======================================================================================================
# Hair, scarf and glasses
# ======================================================================================================


@dataclass
class Hair:
    """Alpha of the hair behind and before the face, and its colours, (H, W) and (H, W, 3)."""

    behind: Array
    before: Array
    colour: Array


def make_hair(face: DrawnFace, grid: Grid) -> Hair:
    """Return the hair of a face: strands fall from a parting, past a hairline."""
    style = HAIRSTYLES[face.style]
    x, y = grid.x + 0.055 * face.yaw, grid.y
    swing = np.sin(26.0 * y + 3.0 * face.noise(y * 4.0 + 7.0, 5))
    x = x + style.waves * swing * smooth(-0.2, 0.15, y)
    fall = np.sqrt(0.035 + np.clip(y + 0.44, 0.0, 2.0))
    strand = (x - face.part) / fall  # constant along a strand: a parabola from the parting
    tuft = face.noise(strand * 26.0 + 40.0, 0)
    fine = face.noise(strand * 90.0 + 200.0, 1)
    lumps = cloud(face.rng, 26, face.size)
    if face.style == "afro":
        curls = 0.5 * lumps + 0.5 * cloud(face.rng, 80, face.size)
    else:  # strands that swing to and fro, each clump at its own beat: ringlets
        beat = np.sin(46.0 * y + 9.0 * cloud(face.rng, 9, face.size))
        curls = np.sin(64.0 * strand + 2.2 * beat)
        curls = 0.5 * curls + 0.25 * fine + 0.4 * lumps
    side = face.width + 0.70 * style.volume + style.widening * np.clip(y, 0.0, 1.0)
    top = np.minimum(y - 0.02, 0.0) / (0.385 + style.volume)
    outside = np.sqrt(np.abs(x / side) ** 2.4 + np.abs(top) ** 2.4) - 1.0
    rough = 0.022 * tuft + 0.012 * fine
    if face.style in ("curly", "afro"):
        rough = 0.055 * lumps + 0.01 * curls
    inside = cover((outside + rough * smooth(-0.3, 0.1, y + 0.25)) * 0.3)
    tips = 0.03 * tuft + 0.015 * fine
    inside = inside * smooth(0.010, -0.010, y - style.end + 0.9 * x * x + tips)
    reach = face.width + (0.008 if style.ears else -0.012)
    across = np.abs((x - face.part * (style.steepness < 3.0)) / reach)
    line = style.hairline + 0.46 * across**style.steepness
    if face.style != "fringe":  # keep the eyes and their makeup in sight
        line = np.minimum(line, -0.13 + 2.6 * np.clip(np.abs(grid.x) - 0.18, 0.0, 1.0))
    line = line + (0.012 * tuft + 0.008 * fine) * (1.6 if face.style == "fringe" else 1.0)
    front = smooth(0.012, -0.012, y - line)
    if face.style == "scarf":
        front = cover(np.sqrt((x / (face.width - 0.02)) ** 2 + ((y - 0.085) / 0.295) ** 2) - 1.0)
        front = 1.0 - front
    return Hair(inside, inside * front, colour_hair(face, grid, strand, tuft, fine, curls))


def colour_hair(face: DrawnFace, grid: Grid, strand: Array, tuft: Array, fine: Array, curls: Array) -> Array:
    """Return the colours (H, W, 3) of hair or scarf, with strands and a band of light."""
    x, y = grid.x + 0.055 * face.yaw, grid.y
    toward = x * face.light[0] + 0.4 * y * face.light[1]
    ring = np.sqrt((x / 0.34) ** 2 + ((y + 0.02) / 0.42) ** 2)
    if face.style == "scarf":
        folds = face.noise(np.arctan2(y - 0.1, x) * 5.0 + ring * 3.0, 3)
        return pick(face.rng, CLOTHS) * (0.88 + 0.16 * folds + 0.7 * toward)[..., None]
    streak = 0.5 * tuft + 0.5 * fine
    band = hump(ring + 0.05 * tuft, 0.80, 0.075) * (0.75 + 0.35 * fine)
    if face.style in ("curly", "afro"):
        streak, band = 0.55 * curls, 0.40 * smooth(0.2, 1.0, curls)
    light = 0.82 + 0.26 * streak + 0.75 * toward
    light = light * (1.0 - 0.35 * smooth(0.05, 0.45, y))
    colour = face.hair * light.clip(0.25, 1.5)[..., None]
    sheen = face.hair * 0.9 + np.float32((0.16, 0.14, 0.13))
    return colour + sheen * (0.42 * band * smooth(-0.25, 0.15, toward))[..., None]


def paint_bun(face: DrawnFace, canvas: Array, grid: Grid) -> None:
    """Paint a knot of hair on top of the head."""
    x, y = grid.x + 0.055 * face.yaw - 0.5 * face.part, grid.y + 0.405
    radius = np.sqrt((x / 0.115) ** 2 + (y / 0.085) ** 2)
    coil = face.noise(radius * 7.0 + np.arctan2(y, x) * 1.2, 3)
    light = 0.95 - 0.45 * radius**2 + 0.22 * coil + 1.2 * x * face.light[0]
    ball = face.hair * light[..., None]
    lay(canvas, ball.clip(0.02, 1.0), cover((radius - 1.0 + 0.05 * coil) * 0.1))


def paint_glasses(face: DrawnFace, canvas: Array, grid: Grid) -> None:
    """Paint a pair of glasses over the finished face."""
    alpha = np.zeros_like(grid.x)
    for side in (-1, 1):
        x, y = np.abs(grid.x - side * 0.132) - 0.060, np.abs(grid.y - 0.012) - 0.036
        corner = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
        distance = corner + np.minimum(np.maximum(x, y), 0) - 0.036
        edge = np.abs(distance) - 0.0055
        alpha = np.maximum(alpha, smooth(grid.pixel, -grid.pixel, edge))
        sheen = smooth(0.03, 0.0, np.abs(grid.x - side * 0.132 + 0.8 * grid.y - 0.01))
        lay(canvas, (1, 1, 1), 0.10 * sheen * smooth(0.0, -0.01, distance))
        arm = smooth(grid.pixel, -grid.pixel, np.abs(grid.y + 0.012) - 0.006)
        temple = face.width - 0.02 * side * face.yaw
        arm = arm * (side * grid.x > 0.226) * (side * grid.x < temple)
        alpha = np.maximum(alpha, arm)
    bridge = np.abs(grid.y + 0.008 - 1.2 * grid.x**2 * 4) - 0.005
    alpha = np.maximum(alpha, smooth(grid.pixel, -grid.pixel, bridge) * (np.abs(grid.x) < 0.04))
    lay(canvas, face.frame * (1.0 + 0.5 * smooth(0.0, -0.05, grid.y))[..., None], alpha)


# ======================================================================================================
# The makeup and one pair
# ======================================================================================================


def apply_makeup(bare: Array, look: Makeup) -> Array:
    """Return the face made up; every colour is a smooth function of the bare pixel alone.

    The pigments take the brightness of the skin below, so light, shadow and texture stay.
    """
    made = bare.copy()
    light = (bare * LUMA).sum(axis=2, keepdims=True).clip(0.0, 1.0)
    lay(made, bare * (0.66, 0.51, 0.52), 0.94 * look.contour)
    rose = 0.48 * made + 0.52 * ROSE_CHEEKS * (0.48 + 0.66 * light)
    lay(made, rose, 0.90 * look.cheeks)
    lay(made, bare * (0.42, 0.38, 0.38), 0.90 * look.brows)
    lay(made, VIOLET_LIDS * (0.80 + 0.12 * light), 0.97 * look.lids)
    plum = PLUM_LIPS * (0.34 + 1.00 * np.sqrt(light)) + 0.4 * np.clip(light - 0.45, 0.0, 1.0)
    lay(made, plum, 0.96 * look.lips)
    lay(made, LINER_BLACK + 0.03 * light, 0.96 * look.liner)
    return made


def draw_pair(index: int, size: int, seed: int, backdrop: float | None = None) -> tuple[Array, Array, Array]:
    """Draw pair `index`: bare face, made-up face and eye mask.

    Args:
        index: which; decides about the face together with the seed.
        size: of the pictures in pixels.
        seed: another one draws other faces.
        backdrop: a grey from 0 to 1 instead of a studio wall.

    Returns:
        source (size, size, 3), target (size, size, 3), eye_mask (size, size), all uint8.
    """
    face = make_face(index, size, seed)
    grid, look = make_grid(face), Makeup.nothing(size)
    hair = make_hair(face, grid)
    bare = paint_backdrop(face, grid)
    if backdrop is not None:
        bare[:] = backdrop
    has_hair = face.style != "bald"
    if face.style == "bun":
        paint_bun(face, bare, grid)
    if has_hair:
        lay(bare, hair.colour * 0.55, hair.behind)
    paint_body(face, bare, grid)
    if HAIRSTYLES[face.style].ears:
        paint_ears(face, bare, grid)
    head = paint_head(face, bare, grid, look, hair.before * has_hair)
    paint_folds(face, bare, grid)
    for side in (-1, 1):
        paint_brow(face, bare, grid, look, side)
        paint_eye(face, bare, grid, look, side)
    mouth = paint_mouth(face, bare, grid, look)
    if face.beard:
        whole = np.zeros_like(head)
        whole[grid.crop(0.015 * face.yaw, 0.245 + 0.004 * face.pitch, 0.15)[1]] = mouth
        paint_beard(face, bare, grid, head, whole)
    grain = np.random.default_rng((seed, index, size)).normal(0, 0.007, (size, size, 1))
    pictures = []
    for canvas in (bare, apply_makeup(bare, look)):
        if face.glasses:
            paint_glasses(face, canvas, grid)
        if has_hair:
            lay(canvas, hair.colour, hair.before)
        canvas += grain.astype(np.float32)
        pictures.append((canvas.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    return pictures[0], pictures[1], (look.eyes * 255.0).astype(np.uint8)


# ======================================================================================================
# Command line
# ======================================================================================================


def save_pair(index: int, size: int, seed: int, folder: Path) -> int:
    """Draw pair `index` and write its three PNG files; return the index."""
    pictures = draw_pair(index, size, seed)
    for kind, picture in zip(KINDS, pictures, strict=True):
        Image.fromarray(picture).save(folder / kind / f"face_{index:04d}.png", compress_level=3)
    return index


def make_demo(out: Path, count: int, size: int, seed: int) -> None:
    """Draw `count` pairs into `out`, on all CPU cores; the result does not depend on how many.

    Starts worker processes: a script that calls it needs an `if __name__ == "__main__"` guard.

    Args:
        out: Folder to create; may exist if it is empty.
        count: Pairs, 1 to 9999.
        size: Width and height in pixels, a multiple of 8 from 64 to 1024.
        seed: Any integer from 0 on; another seed draws other faces.

    Raises:
        UserError: `out` is a file or a folder that is not empty, or another run draws it.
        OSError: The folder cannot be written.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} is there already and not an empty folder; delete it, or choose another folder with --out"
        )
    # All files go to a hidden folder beside it first, so that a kill leaves no half-made set.
    hidden = hide(out)
    pairs = hidden / "pairs"
    hidden.mkdir(parents=True, exist_ok=True)
    with lock_folder(hidden):
        try:
            shutil.rmtree(pairs, ignore_errors=True)  # what a kill has left
            for kind in KINDS:
                (pairs / kind).mkdir(parents=True)
            run_jobs(
                partial(save_pair, size=size, seed=seed, folder=pairs), list(range(count)),
                min(count_cores(), 32), "drawing demo faces", "pair", remedy="start the same command again",
            )  # fmt: skip
            if out.exists():
                out.rmdir()
            pairs.replace(out)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the checked flags.

    Raises:
        UserError: a flag is unknown or out of range.
    """
    parser = Parser(
        "Draw demo pairs: bare faces and the same faces made up.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=400, help="pairs to draw, 1 to 9999")
    parser.add_argument("--size", type=int, default=256, help="pixels, a multiple of 8 from 64 to 1024")
    parser.add_argument("--seed", type=int, default=42, help="another seed draws other faces")
    demo = Path(__file__).parent / "demo"
    parser.add_argument("--out", type=path_flag, default=demo, help="folder to create")
    flags = parser.parse_args(argv)
    if not 1 <= flags.count <= 9999:
        raise UserError(f"--count must be from 1 to 9999, got {flags.count}")
    if flags.size % 8 or not 64 <= flags.size <= 1024:
        raise UserError(f"--size must be a multiple of 8 from 64 to 1024, got {flags.size}")
    if flags.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {flags.seed}")
    return flags


def draw_demo(argv: list[str]) -> None:
    """Run the command line.

    Raises:
        UserError: names what to mend.
    """
    started = time.monotonic()
    flags = parse_flags(argv)
    try:
        make_demo(flags.out, flags.count, flags.size, flags.seed)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or flags.out}: {error.strerror or error}; "
            "choose another folder with --out"
        ) from None
    print(
        f"{flags.count} pairs of {flags.size} px in {flags.out} "
        f"({time.monotonic() - started:.0f} s): source/ target/ eye_mask/"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(draw_demo, argv, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
