"""Other photos of the same face, for `prepare_pairs.py --variants`: another light, camera and crop.

A variant is made before the makeup is painted, so its pair is as exact as the photo's own. What is drawn
depends on the photo's bytes, the face and the variant's number alone. The order is that of a camera: the
crop, contrast, the light's direction, colour temperature and exposure in linear light, blur, noise, JPEG.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from makeup import LUMA, STEPS, TO_BYTE, TO_LINEAR
from PIL import Image, ImageDraw

from tinybeauty.alignment import Array, align, find_quad, find_square
from tinybeauty.landmarks import CHIN, FACE_OVAL, FOREHEAD, NEEDED, NOSE_TIP

VARIATION = 1  # of this file: another number, and the same command makes every variant anew
FAR = 0.25  # share of the variants whose shift is a large one; the same for zoom and for tilt
MARGIN = 0.4  # of its width that a picture is mirrored on each side before another crop is cut
DAYLIGHT_K = 6504.0  # the white of sRGB


@dataclass(frozen=True)
class Draw:
    """What makes one variant another picture than its photo.

    Attributes:
        shift: of the crop, right and down, in shares of its side.
        zoom: side of the crop to that of the face's square; above 1 the face gets smaller.
        tilt: degrees.
        contrast: power of linear light around the picture's median.
        light: stops between the face's middle and its brighter edge.
        light_from: degrees, 0 from the right, 90 from above, 180 from the left.
        mireds: change of the colour temperature, 1e6 / K; positive is warmer.
        exposure: -1 to 1, a share of the darkening (below 0) or lightening that the face bears.
        blur: standard deviation in pixels of a 256 px crop.
        noise: 0 to 1.
        quality: of the JPEG; 0 for none.
        grain: seed of the noise.
    """

    shift: tuple[float, float]
    zoom: float
    tilt: float
    contrast: float
    light: float
    light_from: float
    mireds: float
    exposure: float
    blur: float
    noise: float
    quality: int
    grain: int


def draw_variant(photo: bytes, face: int, number: int) -> Draw:
    """Return the draw of a variant: the same on every machine.

    Args:
        photo: the bytes of its file.
        face: which of the photo's faces.
        number: of the variant; 1 is the photo itself.
    """
    seed = hashlib.sha256(photo + b"|%d|%d|%d" % (VARIATION, face, number)).digest()
    random = np.random.default_rng(int.from_bytes(seed[:16], "little"))
    # Landmarks err a little, people who crop by hand now and then a lot.
    far, near, wide = random.random(3) < FAR, random.normal(size=4).clip(-2, 2), random.uniform(-1, 1, 4)
    shift = 0.06 * wide[:2] if far[0] else 0.01 * near[:2]
    zoom = np.exp2(0.32 * wide[2] if far[1] else 0.03 * near[2])
    tilt = 12.0 * wide[3] if far[2] else 1.5 * near[3]
    return Draw(
        shift=(float(shift[0]), float(shift[1])),
        zoom=float(zoom),
        tilt=float(tilt),
        contrast=float(random.triangular(0.85, 1.0, 1.2)),
        light=float(0.6 * random.random() ** 1.5),
        light_from=float(random.uniform(-10, 190)),
        mireds=float(18.0 * random.normal()),
        exposure=float(random.triangular(-1, 0, 1)),
        blur=float(max(random.uniform(-0.6, 0.7), 0.0)),
        noise=float(random.random() ** 2),
        quality=int(random.integers(60, 96)) if random.random() < 0.75 else 0,
        grain=int(random.integers(2**32)),
    )


def vary(photo: Image.Image, points: Array, size: int, draw: Draw) -> tuple[Image.Image, Array]:
    """Return the variant of a face as an aligned picture of `size` pixels, and its landmarks (478, 2).

    Args:
        photo: upright, RGB.
        points: landmarks (478, 2) of the face in it.
        size: width and height of the variant.
        draw: what to change.
    """
    picture, aligned = cut_beside(photo, points, size, draw)
    return Image.fromarray(shoot(np.asarray(picture), aligned, draw)), aligned


# ======================================================================================================
# The crop
# ======================================================================================================


def cut_beside(photo: Image.Image, points: Array, size: int, draw: Draw) -> tuple[Image.Image, Array]:
    """Return the crop of a face a little beside its place, and the landmarks (478, 2) in it."""
    square = find_square(photo.size, points)
    if not np.array_equal(square, find_quad(points)):  # a crop already: nothing is known around it
        pad = round(MARGIN * photo.width)
        pixels = np.pad(np.asarray(photo), ((pad, pad), (pad, pad), (0, 0)), "reflect")
        photo, points, square = Image.fromarray(pixels), points + pad, square + pad
    middle, across, down = square.mean(0), square[3] - square[0], square[1] - square[0]
    seen = points[list(NEEDED)]
    for share in (1.0, 0.5, 0.25, 0.0):
        angle = np.radians(share * draw.tilt)
        turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
        moved = middle + share * (draw.shift[0] * across + draw.shift[1] * down)
        quad = moved + draw.zoom**share * (square - middle) @ turn
        sides = np.stack((quad[3] - quad[0], quad[1] - quad[0]), axis=1)
        inside = np.linalg.solve(sides, (seen - quad[0]).T)
        if inside.min() > 0.02 and inside.max() < 0.98:  # a crop never cuts off what is made up
            break
    return align(photo, points, size, quad)


# ======================================================================================================
# The light and the camera
# ======================================================================================================


def find_temperature_gains(mireds: float) -> Array:
    """Return what red, green and blue are multiplied with when the light gets warmer; luminance stays.

    Source: Kang et al. 2002, "Design of advanced color temperature control system", equations 8 and 9: the
    colours of black bodies of 4,000 to 25,000 K.
    """
    whites = []
    for kelvin in (DAYLIGHT_K, 1e6 / (1e6 / DAYLIGHT_K + float(np.clip(mireds, -45, 45)))):
        t = 1000.0 / kelvin
        x = -3.0258469 * t**3 + 2.1070379 * t**2 + 0.2226347 * t + 0.240390
        y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
        white = np.array((x / y, 1.0, (1.0 - x - y) / y))
        to_rgb = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
        whites.append(np.array(to_rgb) @ white)  # IEC 61966-2-1
    gains = whites[1] / whites[0]
    return (gains / (LUMA @ gains)).astype(np.float32)


def find_light(points: Array, size: int, draw: Draw) -> Array:
    """Return the gain (size, size) of light from one side: it follows the face, and ends around the head."""
    middle, chin, top = points[NOSE_TIP], points[CHIN], points[FOREHEAD]
    oval = points[list(FACE_OVAL)]
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    down = (chin - top) / max(np.hypot(*(chin - top)), 1e-6)
    across = np.array((down[1], -down[0]))  # to the right, as the face is tilted
    reach = (oval - middle) @ np.stack((across, down), axis=1)
    low, high = np.minimum(reach.min(0), -0.05 * size), np.maximum(reach.max(0), 0.05 * size)
    # From the nose to each edge, so that the face of a turned head is lit in its own middle, too.
    u, v = ((x - middle[0]) * axis[0] + (y - middle[1]) * axis[1] for axis in (across, down))
    u, v = (np.where(s < 0, s / -low[i], s / high[i]).astype(np.float32) for i, s in enumerate((u, v)))
    angle = np.radians(draw.light_from)
    side = np.tanh(1.3 * (np.cos(angle) * u - np.sin(angle) * v))
    around = np.clip((2.2 - np.sqrt(u * u + v * v)) / 1.2, 0.0, 1.0)  # 1 on the face, 0 behind it
    return np.exp2(draw.light * side * around * around * (3.0 - 2.0 * around)).astype(np.float32)


def find_exposure(luminance: Array, points: Array, share: float) -> float:
    """Return the gain of another exposure, within what keeps the face from being crushed or clipped.

    Args:
        luminance: linear (H, W), before.
        points: landmarks (478, 2).
        share: -1 the darkest, 1 the lightest that the face bears.
    """
    mask = Image.new("L", luminance.shape[::-1])
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points[list(FACE_OVAL)].tolist()], fill=255)
    face = luminance[np.asarray(mask) > 0]
    middle, bright = np.percentile(face if face.size else luminance, (50, 97)).clip(1e-4)
    # 0.03 is grey level 48 of 255, 0.85 is 237; over 1.2 stops its noise would show.
    darkest = np.clip(np.log2(0.03 / middle), -1.8, 0.0)
    lightest = np.clip(np.log2(0.85 / bright), 0.0, 1.2)
    return float(np.exp2(share * lightest if share > 0 else -share * darkest))


def defocus(light: Array, sigma_px: float) -> Array:
    """Return (H, W, 3) blurred by a Gaussian."""
    if sigma_px < 0.15:  # under a thousandth of a neighbour
        return light
    reach = max(int(np.ceil(3 * sigma_px)), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(reach, reach) if axis == dimension else (0, 0) for dimension in range(3)]
        wide, length = np.pad(light, pad, "edge"), light.shape[axis]
        parts = (np.take(wide, range(i, i + length), axis) * weight for i, weight in enumerate(weights))
        light = sum(parts)
    return light


def shoot(pixels: Array, points: Array, draw: Draw) -> Array:
    """Return a picture (S, S, 3) uint8 as another camera sees it in another light."""
    size = pixels.shape[0]
    # All three channels alike, as a tone curve does it; by a table, as powers are slow.
    pivot = max(float(np.median(TO_LINEAR[pixels[::4, ::4]] @ LUMA)), 0.01)
    light = (pivot * (TO_LINEAR.astype(np.float64) / pivot) ** draw.contrast).astype(np.float32)[pixels]
    light *= find_light(points, size, draw)[..., None] * find_temperature_gains(draw.mireds)
    light *= np.float32(find_exposure(light @ LUMA, points, draw.exposure))
    light = defocus(light, draw.blur * size / 256)
    # Photons, and the sensor's own: two to three grey levels at most on medium skin.
    random = np.random.default_rng(draw.grain)
    deviation = np.sqrt(2.5e-4 * light.clip(0.0) + 1e-6) * np.float32(draw.noise)
    light += deviation * random.standard_normal(light.shape, dtype=np.float32)
    shot = TO_BYTE[np.rint(light.clip(0.0, 1.0) * STEPS).astype(np.int32)]
    if not draw.quality:
        return shot
    file = io.BytesIO()
    Image.fromarray(shot).save(file, "JPEG", quality=draw.quality)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
