"""Makeup: the looks in YAML and their checks, and a look painted on a face whose landmarks are known.

Makeup is laid on in linear light as a thin layer of pigment: `(1 - alpha) * skin + alpha * colour * shade`,
where shade is the skin's own brightness relative to the face's. So shadows, pores and wrinkles stay.
Lengths are in pixels, or in `unit`: the side of the face's FFHQ square, 1 = the aligned image's width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tinybeauty.alignment import Array, Part, find_side, soften, window
from tinybeauty.errors import UserError, find_similar
from tinybeauty.landmarks import (
    BARE_SKIN,
    BROW_BASE,
    BROW_TOP,
    CHEEK,
    FACE_OVAL,
    LIPS_INNER,
    LIPS_OUTER,
    LOWER_LID,
    UPPER_LID,
)

VERSION = 2  # of the makeup: another number, and the same command makes every pair anew
# L* of the skin in the photo where the pigments for deep skin begin, and where they are alone. The span is
# wide because a photo's exposure moves L* by ten: nobody's makeup jumps with it.
DEEP_SKIN = (80.0, 60.0)


# ======================================================================================================
# Looks: the YAML and its checks
# ======================================================================================================

COLOUR = None
# What a look may hold: group -> key -> lowest and highest value, or COLOUR. looks.yaml says what each does.
# A key that begins with deep_ may be left out; it stands for the key without it, on deep skin.
GROUPS: dict[str, dict[str, tuple[float, float] | None]] = {
    "skin": {"evening": (0, 1)},
    "lips": {"colour": COLOUR, "deep_colour": COLOUR, "opacity": (0, 1), "deep_opacity": (0, 1),
             "gloss": (0, 1)},
    "lids": {"colour": COLOUR, "deep_colour": COLOUR, "inner_colour": COLOUR, "deep_inner_colour": COLOUR,
             "opacity": (0, 1), "deep_opacity": (0, 1), "height": (0.1, 1), "lower": (0, 1)},
    "liner": {"colour": COLOUR, "opacity": (0, 1), "thickness": (0, 0.2), "taper": (0, 1), "wing": (0, 0.6),
              "wing_angle": (0, 60)},
    "lashes": {"colour": COLOUR, "opacity": (0, 1), "length": (0, 0.4), "lower": (0, 1)},
    "blush": {"colour": COLOUR, "deep_colour": COLOUR, "opacity": (0, 1), "deep_opacity": (0, 1),
              "size": (0.3, 2)},
    "brows": {"colour": COLOUR, "opacity": (0, 1)},
}  # fmt: skip


def find_problem(value: Any, allowed: tuple[float, float] | None) -> str:
    """Return what is wrong with one value of a look, empty if nothing is."""
    if allowed is COLOUR:
        good = isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value)
        return "" if good else f'must be a colour like "#aa3344", in quotes, got {value!r}'
    if isinstance(value, bool) or not isinstance(value, int | float):
        is_one = isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value)
        hint = f", which YAML wants as {float(value)}" if is_one else ""
        return f"must be a number, got {value!r}{hint}"
    low, high = allowed
    return "" if low <= value <= high else f"must be from {low} to {high}, got {value}"


def check_keys(found: Any, known: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the known keys of `found` with their values, and a line for each that is not known."""
    if not isinstance(found, dict):
        return {}, [f"{where}: must hold {', '.join(known)}, got {found!r}"]
    lines = []
    for key in found.keys() - known.keys():
        similar = find_similar(str(key), known)
        lines.append(f"{where}.{key}: unknown key" + (f", did you mean {similar}?" if similar else ""))
    return {key: found[key] for key in known if key in found}, sorted(lines)


def check_look(name: str, look: Any) -> list[str]:
    """Return a line for every problem of one look."""
    groups, lines = check_keys(look, GROUPS, name)
    for group, given in groups.items():
        values, unknown = check_keys(given, GROUPS[group], f"{name}.{group}")
        lines += unknown
        for key, allowed in GROUPS[group].items() if isinstance(given, dict) else ():
            if key.startswith("deep_") and key not in values:
                continue
            problem = find_problem(values[key], allowed) if key in values else "is missing"
            if problem:
                lines.append(f"{name}.{group}.{key}: {problem}")
    return lines


def load_look(path: Path, name: str) -> dict[str, dict[str, Any]]:
    """Return one look of a YAML file, as written there.

    Raises:
        UserError: the file cannot be read, the look is not in it, or a look has a wrong key or value.
    """
    from tinybeauty.settings import load_yaml  # pydantic, without which the workers start faster

    looks = load_yaml(path)
    if not isinstance(looks, dict) or not looks:
        raise UserError(f"{path} must hold looks by name, found {type(looks).__name__}")
    looks = {str(key): look for key, look in looks.items()}
    if lines := [line for key, look in looks.items() for line in check_look(key, look)]:
        raise UserError(f"bad looks in {path}:\n  " + "\n  ".join(lines))
    if name not in looks:
        similar = find_similar(name, looks)
        hint = f", did you mean {similar}?" if similar else ";"
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


def curve(points: Array, closed: bool = False, steps: int = 6) -> Array:
    """Return a smooth line through points (N, 2), `steps` to a segment. Source: Catmull and Rom, 1974."""
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    line = np.concatenate((ends[0], points, ends[1]))
    a, b, c, d = (line[i : len(line) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    dense = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    dense = dense.reshape(-1, 2)
    return dense if closed else np.concatenate((dense, points[-1:]))


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


@dataclass
class Portrait:
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
        return find_side(self.points)

    @cached_property
    def light(self) -> Array:
        """Linear light (H, W, 3)."""
        return TO_LINEAR[self.picture]

    @cached_property
    def skin(self) -> Array:
        """Linear colour (3,) of the bare skin: the median over spots on cheeks, forehead and nose."""
        return np.median([self.spot(index) for index in BARE_SKIN], axis=0).astype(np.float32)

    @cached_property
    def lightness(self) -> float:
        """CIE L* of the bare skin, 0 to 100. Source: CIE 15:2004, 8.2.1."""
        luminance = float(self.skin @ LUMA)
        return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance

    @cached_property
    def depth(self) -> float:
        """How far the face calls for pigments for deep skin: 0 on light skin, 1 on dark."""
        return float(smooth(*DEEP_SKIN, np.float64(self.lightness)))

    @cached_property
    def regions(self) -> dict[str, Array]:
        """Where lips, lids and cheeks are: (H, W) bool by name, wherever a look puts makeup on them."""
        regions = {name: np.zeros(self.shape, bool) for name in ("lips", "lids", "cheeks")}
        outer, inner = (curve(self.take(ring), closed=True) for ring in (LIPS_OUTER, LIPS_INNER))
        part = window(outer, 2.0, self.shape)
        regions["lips"][part] = draw([outer], part) - draw([inner], part) > 0.5
        for side in (0, 1):
            eye = find_eye(self, side)
            x, y = eye.x, eye.y
            edge, brow = (
                np.interp(x, *eye.to_frame(line).T) for line in (eye.upper, curve(self.take(BROW_BASE[side])))
            )
            lid = (x > 0) & (x < 1) & (y > edge) & (y < edge + 0.5 * np.maximum(brow - edge, 0.15))
            regions["lids"][eye.part] |= lid & (eye.opening < 0.5)
            cheek, far, _ = find_cheek(self, side, 1.0)
            regions["cheeks"][cheek] |= far < 1.0
        return regions

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
        along, up: (2,) unit vectors of the frame, in the picture's pixels.
        width: from corner to corner, in pixels.
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


def find_eye(face: Portrait, side: int) -> Eye:
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


def lay_colour(canvas: Array, part: Part, colour: Array, alpha: Array) -> None:
    """Paint `colour`, (3,) or (h, w, 3), over a part of the canvas in place, `alpha` (h, w) thick."""
    canvas[part] += (colour - canvas[part]) * alpha[..., None]


def shade_of(canvas: Array, part: Part, reference: float) -> Array:
    """Return the brightness (h, w) of a part relative to `reference`: the light and texture on it."""
    return (canvas[part] @ LUMA) / max(reference, 1e-4)


def lay_pigment(canvas: Array, face: Portrait, part: Part, colour: Array, alpha: Array, shade: Array) -> None:
    """Lay pigment on a part of the canvas; it takes the shade (h, w) of what it covers.

    Glints are light from the surface, not from the pigment: they stay white.
    """
    glint = smooth(1.7, 3.2, shade)
    painted = (colour * face.exposure) * np.minimum(shade, 2.0)[..., None]
    lay_colour(canvas, part, painted, alpha * (1.0 - 0.8 * glint))


def even_skin(canvas: Array, face: Portrait, group: Colours) -> None:
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


def find_cheek(face: Portrait, side: int, size: float) -> tuple[Part, Array, float]:
    """Return a cheek's window, each pixel's place on its slanted ellipse, and how much the cheek is in sight.

    Returns:
        The window; (h, w), 0 in the middle of the ellipse and 1 on its edge; 1 for a cheek that is not
        turned away, less for one that is.
    """
    widths = [float(np.hypot(*(face.points[nose] - face.points[ear]))) for _, _, nose, ear in CHEEK]
    bone, apple, _, ear = CHEEK[side]
    seen = widths[side] / max(*widths, 1e-6)
    centre = 0.62 * face.points[bone] + 0.30 * face.points[apple] + 0.08 * face.points[ear]
    axis = face.points[ear] - face.points[apple]
    axis = axis / max(np.hypot(*axis), 1e-6)
    long = 0.085 * face.unit * size * min(max(seen, 0.5), 1.0)
    short = 0.055 * face.unit * size
    part = window(centre[None], 2.4 * long, face.shape)
    x, y = pixel_centres(part)
    x, y = x - centre[0], y - centre[1]
    far = ((x * axis[0] + y * axis[1]) / long) ** 2 + ((y * axis[0] - x * axis[1]) / short) ** 2
    return part, far, seen


def lay_blush(canvas: Array, face: Portrait, group: Colours) -> None:
    """Lay a soft slanted ellipse on each cheek; a cheek that turns away gets less."""
    oval = curve(face.take(FACE_OVAL), closed=True, steps=3)
    for side in (0, 1):
        part, far, seen = find_cheek(face, side, group["size"])
        alpha = np.exp(-far) * smooth(5.5, 3.0, far)
        inside = soften(draw([oval], part), 0.02 * face.unit).clip(0.0, 1.0)
        alpha *= group["opacity"] * float(smooth(0.2, 0.7, np.float64(seen)))
        alpha *= inside * face.likeness[part]
        shade = shade_of(canvas, part, face.skin @ LUMA)
        lay_pigment(canvas, face, part, group["colour"], alpha, shade)


def lay_lids(canvas: Array, face: Portrait, eye: Eye, brow: Array, group: Colours) -> None:
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


def shape_liner(face: Portrait, eye: Eye, group: Colours) -> Array:
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


def lay_liner(canvas: Array, face: Portrait, eye: Eye, group: Colours) -> None:
    """Draw the liner; the eyeball stays free, but for the pale rim between lashes and eyeball."""
    alpha = soften(draw([shape_liner(face, eye, group)], eye.part), 0.0018 * face.unit)
    eyeball = smooth(0.5, 1.0, soften(eye.opening, 0.004 * face.unit))
    alpha = group["opacity"] * alpha.clip(0.0, 1.0) * (1.0 - eyeball)
    shade = 0.5 + 0.5 * shade_of(canvas, eye.part, face.skin @ LUMA)
    lay_colour(canvas, eye.part, group["colour"] * face.exposure * shade.clip(0, 1.5)[..., None], alpha)


def shape_lashes(face: Portrait, eye: Eye, length: float, upper: bool) -> list[Array]:
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


def lay_lashes(canvas: Array, face: Portrait, eye: Eye, group: Colours) -> None:
    """Draw the lashes of the upper lid, and shorter and fainter ones below."""
    for upper, length in ((True, group["length"]), (False, group["length"] * group["lower"])):
        if length:
            alpha = soften(draw(shape_lashes(face, eye, length, upper), eye.part), 0.0013 * face.unit)
            alpha = group["opacity"] * alpha.clip(0.0, 1.0) * (1.0 - 0.7 * eye.opening)
            alpha = alpha if upper else 0.6 * alpha
            lay_colour(canvas, eye.part, group["colour"] * face.exposure, alpha)


def lay_brows(canvas: Array, face: Portrait, eye: Eye, side: int, group: Colours) -> None:
    """Fill the brow: the hairs get darker, the skin between them a little."""
    outline = np.concatenate((curve(face.take(BROW_TOP[side])), curve(face.take(BROW_BASE[side]))[::-1]))
    inside = soften(draw([outline], eye.part), 0.006 * face.unit).clip(0.0, 1.0)
    shade = shade_of(canvas, eye.part, face.skin @ LUMA)
    hair = smooth(1.0, 0.5, shade)
    colour = group["colour"] * face.exposure * (0.35 + 0.65 * shade.clip(0.0, 1.5))[..., None]
    # A pencil makes nothing lighter than it was: black brows stay as they are.
    alpha = group["opacity"] * inside * (0.4 + 0.6 * hair)
    lay_colour(canvas, eye.part, np.minimum(colour, canvas[eye.part]), alpha)


def find_lip_colours(face: Portrait, part: Part) -> Array:
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


def lay_lips(canvas: Array, face: Portrait, group: Colours) -> None:
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


def lay_gloss(canvas: Array, face: Portrait, part: Part, alpha: Array, shade: Array, gloss: float) -> None:
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


def for_skin(look: dict[str, Colours], depth: float) -> dict[str, Colours]:
    """Return a look with its deep_ keys blended in, `depth` of each and the rest of its twin."""
    blended = {group: dict(values) for group, values in look.items()}
    for group, values in look.items():
        for key, deep in values.items():
            twin = key.removeprefix("deep_")
            if twin != key:
                blended[group][twin] = values[twin] + (deep - values[twin]) * depth
    return blended


def paint_look(face: Portrait, look: dict[str, Colours]) -> Array:
    """Return the made-up picture (H, W, 3) uint8; pixels away from the makeup stay the same bytes."""
    canvas, look = face.light.copy(), for_skin(look, face.depth)
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


def draw_eye_mask(face: Portrait) -> Array:
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
