"""Draw a scene with several people, one of them with her head tilted: a photo of nobody to try things on.

    python data/draw_scene.py scene.jpg --width 1600
    python tinybeauty_apply.py scene.jpg --look evening --compare --out made_up

The same command draws the same scene. README's picture is made_up/scene_compare.jpg, made small.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python data/...` puts data/ alone there

from make_demo import draw_pair

from tinybeauty.errors import Parser, UserError, one_line, run_command
from tinybeauty.files import path_flag

Array = np.ndarray
SEED = 42  # of make_demo's faces
# From back to front: number of the face, where its picture is (x, y, size) in widths of the scene, degrees.
PEOPLE = ((0, 0.22, 0.24, 0.26, 3), (3, 0.52, 0.22, 0.26, 4), (6, 0.80, 0.25, 0.26, -6),
          (2, 0.36, 0.42, 0.33, 24), (7, 0.69, 0.45, 0.33, -3))  # fmt: skip


def cut_person(index: int, size: int) -> Image.Image:
    """Return one drawn person without a backdrop, RGBA, `size` wide; the body goes on below."""
    dark, light = (draw_pair(index, size, SEED, grey)[0].astype(np.float32) for grey in (0.25, 0.75))
    through = ((light - dark).mean(2, keepdims=True) / 127.5).clip(0, 1)  # how much of the backdrop shows
    colour = (dark - through * 63.75) / np.maximum(1 - through, 0.02)
    person = np.concatenate((colour, 255 * (1 - through)), axis=2).clip(0, 255)
    person = Image.fromarray(np.rint(person).astype(np.uint8))
    cloth = np.median(np.asarray(person)[-3:, [size // 12, size - size // 12], :3].reshape(-1, 3), axis=0)
    cloth = tuple(np.rint(cloth).astype(int).tolist())
    whole = Image.new("RGBA", (2 * size, 2 * size), (*cloth, 0))  # room to turn in
    whole.paste(person, (size // 2, 0))
    body = Image.new("L", (size * 4, size * 4))  # twice as large, then averaged: no stairs
    pen = ImageDraw.Draw(body)
    pen.rounded_rectangle([size, 1.98 * size, 3 * size, 5 * size], 0.05 * size, fill=255)
    pen.ellipse([1.5 * size, 1.88 * size, 2.5 * size, 2.2 * size], fill=255)  # a round collar ends the neck
    whole.paste(cloth, mask=body.reduce(2))
    return whole


def draw_garden(width: int, height: int) -> Image.Image:
    """Return a garden in the evening, out of focus."""
    rng = np.random.default_rng(SEED)
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - rows) * (126, 160, 196) + rows * (250, 214, 176)
    picture = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    x = np.linspace(0, 1, 200)
    for number, colour in enumerate(((96, 124, 112), (74, 104, 78), (58, 86, 56))):
        hill = (
            0.36 + 0.10 * number + 0.05 * np.sin((7 - number) * x + 2 * number) + 0.01 * rng.normal(size=200)
        )
        points = [(a * width, b * height) for a, b in zip(x, hill, strict=True)]
        pen.polygon([*points, (width, height), (0, height)], fill=colour)
    picture = picture.filter(ImageFilter.GaussianBlur(0.012 * width))
    lights = Image.new("L", picture.size)
    pen = ImageDraw.Draw(lights)
    for spot in np.linspace(0.02, 0.98, 13):
        y, radius = (0.05 + 0.22 * spot * (1 - spot)) * height, 0.011 * width
        pen.ellipse([spot * width - radius, y - radius, spot * width + radius, y + radius], fill=200)
    picture.paste((255, 232, 178), mask=lights.filter(ImageFilter.GaussianBlur(0.002 * width)))
    return picture


def draw_scene(width: int) -> Image.Image:
    """Return the scene, RGB, three fifths as high as it is wide."""
    height = round(0.6 * width)
    scene = draw_garden(width, height)
    for index, x, y, size, tilt in PEOPLE:
        side = round(size * width / 8) * 8
        person = cut_person(index, side)
        middle = (side, 0.55 * side)  # of the face: it turns about it
        person = person.rotate(tilt, Image.Resampling.BICUBIC, center=middle)
        scene.paste(person, (round(x * width - middle[0]), round(y * width - middle[1])), person)
    noise = np.random.default_rng(SEED).normal(0, 1.5, (height, width, 1))
    return Image.fromarray((np.asarray(scene) + noise).clip(0, 255).astype(np.uint8))


def run_drawing(argv: list[str]) -> None:
    """Run the command line; raises UserError."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=path_flag, help="where the picture goes; its name says in which format")
    parser.add_argument("--width", type=int, default=1600, help="pixels, 400 to 6400 (default: 1600)")
    flags: argparse.Namespace = parser.parse_args(argv)
    if not 400 <= flags.width <= 6400:
        raise UserError(f"--width must be from 400 to 6400, got {flags.width}")
    try:
        draw_scene(flags.width).save(flags.out, quality=95)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {flags.out}: {one_line(error)}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(run_drawing, argv, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
