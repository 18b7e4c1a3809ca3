"""Faces drawn for the tests, on the mean landmarks of many faces; no real person is shown.

`mean_face.json` has them in tenths of a pixel of a 256 px picture: MediaPipe's 478.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tinybeauty.landmarks import BROW_BASE, BROW_TOP, FACE_OVAL, LIPS_INNER, LIPS_OUTER, LOWER_LID, UPPER_LID

MEAN = np.array(json.loads((Path(__file__).parent / "mean_face.json").read_text())) / 10.0
SKINS = {"dark": (74, 46, 34), "brown": (141, 94, 68), "light": (224, 180, 155)}


def draw_face(
    points: np.ndarray, size: tuple[int, int], skin=SKINS["light"], wall=(90, 110, 130), texture=6.0, seed=0
) -> Image.Image:
    """Draw a face on its landmarks: skin, brows, eyes, lips and teeth, with grain like a photo's."""
    scale = 3
    image = Image.new("RGB", (size[0] * scale, size[1] * scale), wall)
    pen = ImageDraw.Draw(image)

    def fill(indices, colour) -> None:
        pen.polygon([tuple(point) for point in (points[list(indices)] * scale).tolist()], fill=colour)

    fill(FACE_OVAL, skin)
    lips = tuple(int(part * factor) for part, factor in zip(skin, (0.85, 0.75, 0.77), strict=True))
    fill(LIPS_OUTER, lips)
    fill(LIPS_INNER, (235, 232, 225))
    for side in (0, 1):
        fill((*BROW_TOP[side], *BROW_BASE[side][::-1]), (45, 32, 25))
        fill((*UPPER_LID[side], *LOWER_LID[side][::-1]), (230, 228, 226))
        centre, rim = points[(468, 473)[side]] * scale, points[(469, 474)[side]] * scale
        radius = np.hypot(*(rim - centre)) * 0.8
        pen.ellipse([*(centre - radius), *(centre + radius)], fill=(60, 80, 110))
    image = image.resize(size, Image.Resampling.LANCZOS)
    grain = np.random.default_rng(seed).normal(0, texture, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def place(points: np.ndarray, side: float, centre: tuple[float, float], degrees: float = 0.0) -> np.ndarray:
    """Move the landmarks of a 256 px crop into a photo: the crop gets `side` px wide, and tilted."""
    angle = np.radians(degrees)
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    return (points - 128) * (side / 256) @ turn + centre


def save_photo(folder: Path, name: str, image: Image.Image, points: np.ndarray | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    if points is not None:
        content = {"id": name, "landmarks": np.round(points, 2).tolist()}
        (folder / name).with_suffix(".json").write_text(json.dumps(content))
    return folder / name
