"""MediaPipe's face detector and face mesh without its package: where the files come from, how they run.

The three files (3.4 MB, Apache-2.0) come once, out of the wheel of `mediapipe==0.10.21`, into the user's
cache folder. Importing this costs nothing; PyTorch comes with the first `FaceModels`.
Source: mediapipe/modules/face_detection and face_landmark, release 0.10.21.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinybeauty.errors import UserError, list_some, one_line

Array = np.ndarray
PACKAGE = "mediapipe==0.10.21"  # the last release that carries its models; newer ones must download them
# Any system and any Python can unpack this wheel: only the models are taken out of it.
WHEEL_FLAGS = ("--no-deps", "--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--implementation",
               "cp", "--python-version", "3.12", "--abi", "cp312")  # fmt: skip
FILES = {  # name -> folder in the wheel, SHA-256
    "face_detection_short_range.tflite": (
        "mediapipe/modules/face_detection",
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    ),
    "face_detection_full_range_sparse.tflite": (
        "mediapipe/modules/face_detection",
        "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
    ),
    "face_landmark_with_attention.tflite": (
        "mediapipe/modules/face_landmark",
        "e06a804e0144f9929eda782122916b35d60c697c3c9344013ca2bbe76a6ce2b4",
    ),
}

# ======================================================================================================
# The files
# ======================================================================================================


def find_cache() -> Path:
    """Return the user's folder for the models; it need not exist.

    Raises:
        UserError: there is no home folder to put it in.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "tinybeauty" / "face_models"
    try:
        return Path.home() / ".cache" / "tinybeauty" / "face_models"
    except RuntimeError:
        raise UserError(
            "no home folder to keep the face models in: set XDG_CACHE_HOME to a folder, or give one that "
            "has the models with --face_models"
        ) from None


def find_bad_files(folder: Path) -> list[str]:
    """Return the names of those models that `folder` lacks or holds damaged."""
    bad = []
    for name, (_, digest) in FILES.items():
        try:
            good = hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        except OSError:
            good = False
        if not good:
            bad.append(name)
    return bad


def download_wheel(folder: Path) -> Path:
    """Download MediaPipe's wheel with pip; return its path.

    Raises:
        UserError: there is no pip, no network, or no such wheel.
    """
    command = [sys.executable, "-m", "pip", "download", PACKAGE, *WHEEL_FLAGS, "--dest", str(folder)]
    command += ["--quiet", "--progress-bar", "off", "--disable-pip-version-check", "--no-input"]
    remedy = (
        f"; where that works, unpack the wheel of {PACKAGE} (a zip file) and give the folder with "
        f"{', '.join(FILES)} as --face_models"
    )
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot fetch the face models with pip: {one_line(error)}{remedy}") from None
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        if "No module named pip" in result.stderr:
            raise UserError(
                "cannot fetch the face models: this Python has no pip; `python -m ensurepip` "
                f"(with uv: `uv pip install pip`) adds it{remedy}"
            )
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        lines = lines or result.stderr.splitlines() or [f"exit code {result.returncode}"]
        reason = lines[-1].removeprefix("ERROR:").strip()
        raise UserError(f"cannot fetch the face models, pip says: {reason}{remedy}")
    return wheels[0]


def unpack_wheel(wheel: Path, folder: Path, names: list[str]) -> None:
    """Put models out of a wheel into the folder, each whole or not at all.

    Raises:
        UserError: the wheel is damaged, or holds other models than those we know.
        OSError: the folder cannot be written.
    """
    for name in names:
        where, digest = FILES[name]
        try:
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(f"{where}/{name}")
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise UserError(f"cannot read {name} in {wheel.name}: {one_line(error)}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise UserError(f"{name} in {wheel.name} is not the file it should be (SHA-256); nothing was kept")
        # A name of its own: two processes may be here at once, and both write the same bytes.
        handle, partial = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, folder / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise


def fetch_face_models(folder: Path | None = None) -> Path:
    """Return a folder that holds the three models, whole; they are downloaded once if need be.

    Args:
        folder: Where they lie already (a given folder is never written to). None: the user's cache.

    Raises:
        UserError: they cannot be had; says what to do.
    """
    if folder is not None:
        if bad := find_bad_files(folder):
            raise UserError(
                f"--face_models {folder} lacks, or holds damaged: {list_some(bad)}; they are in the wheel "
                f"of {PACKAGE} (a zip file), under mediapipe/modules/"
            )
        return folder
    cache = find_cache()
    bad = find_bad_files(cache)
    if not bad:
        return cache
    print(f"fetching the face models, once: pip download {PACKAGE} (36 MB) ...", file=sys.stderr, flush=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            unpack_wheel(download_wheel(Path(scratch)), cache, bad)
    except OSError as error:
        raise UserError(
            f"cannot keep the face models in {cache}: {error.strerror or error}; set XDG_CACHE_HOME to a "
            "folder that can be written, or give one that has the models with --face_models"
        ) from None
    print(f"face models: {cache}", file=sys.stderr, flush=True)
    return cache


# ======================================================================================================
# The models
# ======================================================================================================

MESH_SIDE = 192  # of the mesh's picture in pixels


@dataclass(frozen=True)
class Detection:
    """A face as a detector sees it.

    Attributes:
        score: 0 to 1.
        box: (2, 2) pixels, its top left and bottom right corner.
        keys: (6, 2) pixels: the eyes (left in the picture first), nose, mouth, ears.
    """

    score: float
    box: Array
    keys: Array


@dataclass(frozen=True)
class Mesh:
    """What the face mesh sees in a square.

    Attributes:
        points: (478, 2) in the pixels of the picture that the square was cut from.
        depths: (478,) in the same unit, smaller is nearer.
        presence: 0 to 1, how sure it is that there is a face.
    """

    points: Array
    depths: Array
    presence: float


def make_anchors(layers: tuple[tuple[int, int], ...]) -> Array:
    """Return the centres (N, 2), 0 to 1, that a detector's boxes count from; a layer is (cells, boxes a cell)."""
    parts = []
    for cells, boxes in layers:
        centres = (np.arange(cells) + 0.5) / cells
        x, y = np.meshgrid(centres, centres)
        parts.append(np.stack((x, y), -1).reshape(-1, 1, 2).repeat(boxes, 1).reshape(-1, 2))
    return np.concatenate(parts)


def find_overlaps(box: Array, boxes: Array) -> Array:
    """Return the overlap of a box (2, 2) with boxes (N, 2, 2): intersection over union."""
    low, high = np.maximum(box[0], boxes[:, 0]), np.minimum(box[1], boxes[:, 1])
    common = (high - low).clip(0).prod(1)
    return common / ((box[1] - box[0]).prod() + (boxes[:, 1] - boxes[:, 0]).prod(1) - common)


def merge(scores: Array, shapes: Array, least: float = 0.3) -> list[tuple[float, Array]]:
    """Return one (score, shape) for each heap of boxes: the mean, weighted by the scores.

    Args:
        scores: (N,)
        shapes: (N, 8, 2), the corners of a box and the six key points.
        least: Boxes that overlap more are of one heap.

    Source: mediapipe/calculators/util/non_max_suppression_calculator.cc, WEIGHTED.
    """
    order = np.argsort(-scores, kind="stable")
    scores, shapes, merged = scores[order], shapes[order], []
    while len(scores):
        near = find_overlaps(shapes[0, :2], shapes[:, :2]) > least
        near[0] = True
        merged.append((float(scores[0]), np.average(shapes[near], 0, scores[near])))
        scores, shapes = scores[~near], shapes[~near]
    return merged


class Detector:
    """One of the two detectors: pictures to `Detection`s."""

    def __init__(self, graph: Any, side: int, layers: tuple[tuple[int, int], ...]) -> None:
        """Keep the graph, the side of its picture in pixels, and its anchors."""
        self.graph, self.side, self.anchors = graph, side, make_anchors(layers)

    def __call__(self, pictures: Array, least: float = 0.5) -> list[list[Detection]]:
        """Return what is seen in pictures (B, side, side, 3) uint8, the surest first."""
        import torch

        images = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
        outputs = [output.numpy().astype(np.float64) for output in self.graph(images)]
        shapes, scores = sorted(outputs, key=lambda output: -output.shape[-1])
        return [self.decode(*pair, least) for pair in zip(shapes, scores[..., 0], strict=True)]

    def decode(self, shapes: Array, scores: Array, least: float) -> list[Detection]:
        """Return the detections of raw outputs (N, 16) and (N,)."""
        scores = 1.0 / (1.0 + np.exp(-scores.clip(-100, 100)))
        sure = scores >= least
        shapes = shapes[sure].reshape(-1, 8, 2)  # centre, size, six key points
        anchors = self.anchors[sure, None]
        centre, half = shapes[:, :1] + anchors * self.side, shapes[:, 1:2] / 2
        keys = shapes[:, 2:] + anchors * self.side
        shapes = np.concatenate((centre - half, centre + half, keys), 1)
        return [Detection(score, shape[:2], shape[2:]) for score, shape in merge(scores[sure], shapes)]


class FaceModels:
    """The detectors and the mesh, ready to run.

    Attributes:
        near: detector of faces that fill a good part of the picture, 128 px.
        far: detector of small faces too, down to a fifteenth of the picture, 192 px.
    """

    def __init__(self, folder: Path) -> None:
        """Read the three files of a folder that `fetch_face_models` returned."""
        from tinybeauty.graphs import Graph

        near, far, self.mesh = (Graph((folder / name).read_bytes()) for name in FILES)
        self.near = Detector(near, 128, ((16, 2), (8, 6)))
        self.far = Detector(far, 192, ((48, 1),))

    def find_mesh(self, picture: Array, square: Array) -> Mesh:
        """Return the mesh of a face.

        Args:
            picture: (H, W, 3) uint8; outside it its border goes on.
            square: (3, 2): its top left corner and the vectors along its upper and its left side, in pixels.
        """
        import torch
        from torch.nn import functional

        corner, right, down = square
        height, width = picture.shape[:2]
        steps = np.arange(MESH_SIDE) / MESH_SIDE
        # MediaPipe counts pixels from their centres here, which matters where the square is far from 192 px.
        where = corner + steps[None, :, None] * right + steps[:, None, None] * down
        where = where / (width - 1, height - 1) * 2 - 1
        image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
        grid = torch.from_numpy(where[None].astype(np.float32))
        with torch.inference_mode():
            cut = functional.grid_sample(image, grid, padding_mode="border", align_corners=True)
            outputs = self.mesh(cut.round_() / 255.0)
        mesh, lips, *eyes, flag = [output.double().numpy().ravel() for output in outputs]
        points = np.empty((478, 3))
        points[:468] = mesh.reshape(468, 3)
        contours = self.mesh.subsets  # lips, eyes: the numbers of their points
        for numbers, part in zip(contours, (lips, *eyes[:2]), strict=True):
            points[numbers, :2] = part.reshape(-1, 2)
        for first, numbers, iris in zip((468, 473), contours[1:], eyes[2:], strict=True):
            points[first : first + 5, :2] = iris.reshape(5, 2)
            points[first : first + 5, 2] = points[numbers[:16], 2].mean()  # of the eye's edge
        points /= MESH_SIDE
        moved = corner + points[:, :1] * right + points[:, 1:2] * down
        return Mesh(moved, points[:, 2] * float(np.hypot(*right)), float(1.0 / (1.0 + np.exp(-flag[0]))))
