"""Measure finding faces on a folder of photos with one upright face each: figures, nothing asserted.

    python tests/bench_faces.py PHOTOS [--mediapipe mp/bin/python] [--tries 500]

Differences of squares are the largest of a corner, in pixels of the aligned picture of 256. `--mediapipe` is
the Python of an environment that has MediaPipe 0.10.21 (record_faces.py says how): then what the mesh saw is
compared with MediaPipe's own graph, given the same pictures and squares, and with MediaPipe left alone with
the photo.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tinybeauty.alignment import find_quad, find_side
from tinybeauty.face_models import FaceModels, fetch_face_models
from tinybeauty.faces import Face, find_faces
from tinybeauty.images import list_images, open_image

ANGLES = (12, 36, 60, 84, 108, 132, 156, 180, -15, -40, -65, -90, -115, -140, -165)
Array = np.ndarray


class Recorder(FaceModels):
    """Keeps what the mesh was shown and what it saw."""

    def find_meshes(self, picture: Array, squares: Array) -> list:
        """Return what the mesh sees, and keep it."""
        meshes = super().find_meshes(picture, squares)
        self.shown.append((picture, squares, meshes))
        return meshes


def compare(quad: Array, expected: Array) -> float:
    """Return the largest difference of a corner, in pixels of 256."""
    side = np.hypot(*(expected[3] - expected[0]))
    return float(np.abs(quad - expected).max() * 256 / side)


def turn(photo: Image.Image, angle: float, quad: Array) -> tuple[Image.Image, Array]:
    """Return a photo turned against the clock, grey around it, and where its face's square is then."""
    turned = photo.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(100, 100, 100))
    radians = -np.deg2rad(angle)
    way = np.array(((np.cos(radians), -np.sin(radians)), (np.sin(radians), np.cos(radians))))
    return turned, (quad - np.array(photo.size) / 2) @ way.T + np.array(turned.size) / 2


def mirror(photo: Image.Image, quad: Array) -> tuple[Image.Image, Array]:
    """Return a photo mirrored, and where its face's square is then."""
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (np.array((photo.width, 0)) + quad * (-1, 1))[
        [3, 2, 1, 0]
    ]


def measure_turned(photos: dict[str, Image.Image], quads: dict[str, Array], models: FaceModels) -> None:
    """Print how far the squares of turned photos are off."""
    off = []
    for name, photo in photos.items():
        for angle in ANGLES:
            turned, expected = turn(photo, angle, quads[name])
            faces = find_faces(turned, models).faces
            off.append(min((compare(face.quad, expected) for face in faces), default=np.inf))
    print(f"turned by {len(ANGLES)} angles: {len(off)} squares, largest difference {max(off):.2f} px, "
          f"95 of 100 within {np.quantile(off, 0.95):.2f} px", flush=True)  # fmt: skip


def make_try(photos: list[tuple[Image.Image, Array]]) -> tuple[Image.Image, list[Array]]:
    """Return a picture of one or two photos, turned, of any size, and the squares in it."""
    names = random.sample(range(len(photos)), random.choice((1, 1, 2)))
    parts = []
    for name in names:
        photo, quad = photos[name]
        scale = random.uniform(0.3, 1.0) if len(names) > 1 else 1.0
        photo = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.LANCZOS)
        parts.append(turn(photo, random.uniform(-180, 180), quad * scale))
    sheet = Image.new(
        "RGB", (sum(p.width for p, _ in parts), max(p.height for p, _ in parts)), (100, 100, 100)
    )
    left, expected = 0, []
    for part, quad in parts:
        sheet.paste(part, (left, 0))
        expected.append(quad + np.array((left, 0)))
        left += part.width
    return sheet, expected


def measure_tries(
    photos: dict[str, Image.Image], quads: dict[str, Array], models: FaceModels, tries: int
) -> None:
    """Print how many squares are wrong (no face within 4 px of 256) or missing among random pictures."""
    random.seed(0)
    upright, mirrored_off = [(photos[name], quads[name]) for name in photos], []
    for photo, quad in list(upright):
        mirrored, expected = mirror(photo, quad)
        # MediaPipe's mesh is not the same for left and right: a mirrored photo has squares of its own.
        for face in find_faces(mirrored, models).faces[:1]:
            mirrored_off.append(compare(face.quad, expected))
            upright.append((mirrored, face.quad))
    print(
        f"mirrored: {len(mirrored_off)} faces, squares differ by {np.median(mirrored_off):.2f} px (median), "
        f"{max(mirrored_off):.2f} px at most",
        flush=True,
    )
    wrong = missing = total = 0
    off = []
    for _ in range(tries):
        sheet, expected = make_try(upright)
        faces = find_faces(sheet, models).faces
        wrong += sum(min(compare(face.quad, quad) for quad in expected) > 4 for face in faces)
        best = [min((compare(face.quad, quad) for face in faces), default=np.inf) for quad in expected]
        missing += sum(one > 4 for one in best)
        off += [one for one in best if one <= 4]
        total += len(expected)
    print(f"{tries} tries, {total} faces: {wrong} wrong squares, {missing} missing, "
          f"the others within {max(off):.2f} px", flush=True)  # fmt: skip


def measure_mediapipe(
    photos: dict[str, Path], shown: dict[str, list], faces: dict[str, Face], python: Path
) -> None:
    """Print how far everything is off MediaPipe's own, given the same, and how far MediaPipe alone is."""
    points_off, squares_off, alone_off = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, views in shown.items():
            for number, (picture, squares, _) in enumerate(views):
                path = Path(folder) / f"{name}_{number}.png"
                Image.fromarray(picture).save(path)
                jobs.append({"picture": str(path), "squares": squares.tolist()})
            jobs.append({"picture": str(photos[name]), "squares": []})
        script = Path(__file__).with_name("record_faces.py")
        result = subprocess.run(
            [python, script], input=json.dumps(jobs), capture_output=True, text=True, check=True
        )
    answers = iter(json.loads(result.stdout))
    for name, views in shown.items():
        ours, theirs = [], []
        for _, _, meshes in views:
            ours += [mesh.points for mesh in meshes]
            theirs += [np.array(mesh)[:, :2] for mesh in next(answers)["meshes"]]
        side = faces[name].side
        for one, other in zip(ours, theirs, strict=True):
            points_off.append(np.abs(one - other).max() * side / find_side(other))
        # The first two looks only find the middle.
        squares_off.append(compare(find_quad(np.mean(ours[2:], 0)), find_quad(np.mean(theirs[2:], 0))))
        alone = next(answers)["alone"]
        alone_off += [compare(faces[name].quad, find_quad(np.array(face)[:, :2])) for face in alone[:1]]
    print(
        f"MediaPipe's graph, same pictures and squares ({len(points_off)} looks): largest difference of a "
        f"point {max(points_off):.2f} px of the photo, of a face's square {max(squares_off):.2f} px"
    )
    print(f"MediaPipe alone with the photo: {len(alone_off)} faces, squares differ by "
          f"{np.median(alone_off):.2f} px (median), {max(alone_off):.2f} px at most")  # fmt: skip


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--face_models", type=Path)
    parser.add_argument("--mediapipe", type=Path, metavar="PYTHON")
    parser.add_argument("--tries", type=int, default=500)
    flags = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    paths = list_images(flags.photos)
    models = Recorder(fetch_face_models(flags.face_models))
    photos, faces, shown, times = {}, {}, {}, []
    models.shown = []
    find_faces(open_image(next(iter(paths.values()))), models)
    for name, path in paths.items():
        photo = open_image(path)
        models.shown = []
        started = time.perf_counter()
        found = find_faces(photo, models)
        times.append(time.perf_counter() - started)
        if len(found.faces) != 1 or found.left_out:
            print(f"{name}: {len(found.faces)} faces; {found.left_out}")
        if found.faces:
            photos[name], faces[name], shown[name] = photo, found.faces[0], models.shown
    quads = {name: face.quad for name, face in faces.items()}
    scores = [face.score for face in faces.values()]
    print(f"{len(faces)} of {len(paths)} photos have a face; {1000 * np.median(times):.0f} ms each (median), "
          f"{1000 * min(times):.0f} ms at best, one thread; scores from {min(scores):.2f}",
          flush=True)  # fmt: skip
    if flags.mediapipe:
        measure_mediapipe({name: paths[name] for name in faces}, shown, faces, flags.mediapipe)
    models.shown = []
    if flags.tries:
        measure_turned(photos, quads, models)
        measure_tries(photos, quads, models, flags.tries)


if __name__ == "__main__":
    main()
