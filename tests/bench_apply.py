"""Measure tinybeauty_apply on a folder of photos with one face each: figures, nothing asserted.

    python tests/bench_apply.py PHOTOS [--look bold] [--face_models FOLDER] [--threads 2]

Prints, against the painter at full size: PSNR, correlation of the fine texture, the step at the square's
border; seconds for a 12-megapixel JPEG; memory for 48 megapixels; frames a second of a video of 640 x 480,
how much a still face's square moves and its pixels flicker. Nothing is written but to a scratch folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as in the command: before PyTorch is loaded
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import numpy as np
import torch
from makeup import Portrait, load_look, paint_look, to_linear_look
from PIL import Image
from scipy.ndimage import gaussian_filter

from tinybeauty import blending
from tinybeauty.alignment import align, find_quad, find_side, find_square, find_way_back
from tinybeauty.blending import SIDE, Request
from tinybeauty.face_models import FaceModels, load_face_models
from tinybeauty.faces import find_faces
from tinybeauty.following import Follower
from tinybeauty.images import list_images, open_image
from tinybeauty.landmarks import BARE_SKIN
from tinybeauty.videos import make_up_video, paint_frame, view_planes
from tinybeauty_apply import Order, fill_order, find_look, open_look

Array = np.ndarray
ROOT = Path(__file__).resolve().parents[1]


def psnr(image: Array, truth: Array) -> float:
    """Return the PSNR in dB of images of 255 levels."""
    return float(10 * np.log10(255**2 / np.square(image.astype(float) - truth).mean()))


def find_texture(image: Array) -> Array:
    """Return what is finer than about a pixel (Gaussian of 1), in grey levels."""
    grey = image.astype(float) @ (0.299, 0.587, 0.114)
    return grey - gaussian_filter(grey, 1)


def measure_face(photo: Image.Image, models: FaceModels, model: torch.nn.Module, look: dict) -> list[float]:
    """Return side; PSNR of the photo, of pasting, of adding; texture on skin, everywhere; step."""
    face = find_faces(photo, models).faces[0]
    side = round(face.side)
    square, points = align(photo, face.points, side)
    whole = np.asarray(square)
    truth = paint_look(Portrait(whole, points), look)
    view, small = align(square, points, SIDE)
    way = find_way_back(find_square(square.size, points), SIDE)
    residual = blending.find_residual(view, small, model, Request())
    pasted = Image.fromarray(np.rint((np.asarray(view) + residual).clip(0, 255)).astype(np.uint8))
    pasted = np.asarray(pasted.resize(square.size, Image.Resampling.BICUBIC))
    added = whole.copy()
    blending.lay_residual(added, residual, way)
    textures = [find_texture(image) for image in (whole, added)]
    skin = np.zeros((side, side), bool)  # where no hair grows, and nothing is drawn
    for x, y in points[list(BARE_SKIN)].astype(int):
        skin[max(y - side // 25, 0) : y + side // 25, max(x - side // 25, 0) : x + side // 25] = True
    texture = [np.corrcoef(*(image[part] for image in textures))[0, 1] for part in (skin, skin | True)]
    change = np.abs(added.astype(int) - whole).max(2)
    rim = max(side // SIDE, 1)
    step = max(part.max() for part in (change[:rim], change[-rim:], change[:, :rim], change[:, -rim:]))
    return [
        side,
        psnr(whole, truth),
        psnr(pasted, truth),
        psnr(added, truth),
        *texture,
        step,
    ]


def measure_quality(photos: list[Path], models: FaceModels, model: torch.nn.Module, name: str) -> None:
    """Print how near the result is to what the painter makes of the photo."""
    look = to_linear_look(load_look(ROOT / "data" / "looks.yaml", name))
    rows = np.array([measure_face(open_image(path), models, model, look) for path in photos])
    for title, kept in (
        ("all", rows[:, 0] > 0),
        ("600 to 1,000 px", (rows[:, 0] >= 600) & (rows[:, 0] <= 1000)),
    ):
        _, untouched, pasted, added, skin, texture, step = rows[kept].T
        print(
            f"{name}, {kept.sum()} faces, {title}: against the painter {untouched.mean():.1f} dB untouched, "
            f"{pasted.mean():.1f} pasted, {added.mean():.1f} added (worst {added.min():.1f}); texture "
            f"{texture.mean():.3f} (worst {texture.min():.3f}), on bare skin {skin.mean():.3f} (worst "
            f"{skin.min():.3f}); step at the border {step.max():.0f} levels",
            flush=True,
        )


def make_photo(photo: Image.Image, size: tuple[int, int], path: Path) -> Path:
    """Write a JPEG of a size with a photo in it, over noise."""
    sheet = Image.effect_noise((size[0] // 4, size[1] // 4), 40).convert("RGB").resize(size)
    side = size[1] * 2 // 3
    sheet.paste(photo.resize((side, side), Image.Resampling.BICUBIC), (size[0] // 3, size[1] // 5))
    sheet.save(path, quality=93)
    return path


def measure_photo(photo: Image.Image, flags: argparse.Namespace, folder: Path) -> None:
    """Print seconds for 12 megapixels, and memory for 48."""
    look = find_look(flags.look)
    path = make_photo(photo, (4000, 3000), folder / "large.jpg")
    walls, busy = [], []
    for number in range(4):
        request = Request(strength=1 - number / 100)
        order = Order(path, folder / f"{number}.jpg", look, "", flags.face_models, request, {})
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = fill_order(order)
        walls.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
        assert not outcome.problem, outcome.problem
    print(f"12 megapixels, JPEG of {path.stat().st_size / 1e6:.1f} MB: {min(walls[1:]):.2f} s at best, "
          f"{min(busy[1:]):.2f} s of CPU time, {torch.get_num_threads()} threads", flush=True)  # fmt: skip
    make_photo(photo, (8000, 6000), path)
    command = [
        sys.executable,
        ROOT / "tinybeauty_apply.py",
        path,
        "--look",
        flags.look,
        "--out",
        folder / "out",
    ]
    command += ["--face_models", flags.face_models] if flags.face_models else []
    subprocess.run(command, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"48 megapixels, the whole command: {peak:.2f} GiB at most", flush=True)


def measure_video(photo: Image.Image, models: FaceModels, model: torch.nn.Module, folder: Path) -> None:
    """Print frames a second, and how still a still face is."""
    import av

    rng, picture = np.random.default_rng(0), np.asarray(photo.resize((480, 480), Image.Resampling.BICUBIC))
    sheet = np.full((480, 640, 3), 110, np.uint8)
    sheet[:, 80:560] = picture
    frames = [(sheet + rng.normal(0, 3, sheet.shape)).clip(0, 255).astype(np.uint8) for _ in range(72)]
    with av.open(str(folder / "in.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(25), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    wall, cpu = time.perf_counter(), time.process_time()
    make_up_video(folder / "in.mp4", folder / "out.mp4", model, models, Request())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"video of 640 x 480: {72 / wall:.1f} frames/s, {1000 * cpu / 72:.0f} ms of CPU time a frame",
        flush=True,
    )
    follower, quads, before, after = Follower(models, Request()), [], [], []
    for frame in frames[:32]:
        whole = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv444p")
        before.append(view_planes(whole)[0].astype(float))
        one = follower.follow(Image.fromarray(frame))[0]
        paint_frame(whole, one, [], model, Request())
        after.append(view_planes(whole)[0].astype(float))
        quads.append(find_quad(one.points))
    corners = np.stack(quads[8:]) * SIDE / find_side(one.points)
    moved = np.sqrt(np.square(corners - corners.mean(0)).sum(2).mean())
    touched = np.abs(np.mean(after, 0) - np.mean(before, 0)) > 2
    flicker = [np.sqrt(np.var(frames[8:], axis=0)[touched].mean()) for frames in (before, after)]
    print(f"still face with noise: its square moves by {moved:.2f} px RMS of 256; made-up pixels flicker "
          f"{flicker[1] / flicker[0]:.2f} times as much as the video", flush=True)  # fmt: skip


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--look", default="bold")
    parser.add_argument("--face_models", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    photos = list(list_images(flags.photos).values())
    models, model = load_face_models(flags.face_models), open_look(find_look(flags.look))
    measure_quality(photos, models, model, flags.look)
    with tempfile.TemporaryDirectory() as folder:
        first = open_image(photos[0])
        measure_photo(first, flags, Path(folder))
        measure_video(first, models, model, Path(folder))


if __name__ == "__main__":
    main()
