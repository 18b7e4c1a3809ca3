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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

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
            raise UserError(
                f"{name} in {wheel.name} is not the file it should be (SHA-256); nothing was kept"
            )
        # A name of its own: two processes may be here at once, and both write the same bytes.
        handle, hidden = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=folder)
        partial = Path(hidden)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.chmod(0o644)  # mkstemp's are for this user alone, who may share the cache
            partial.replace(folder / name)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
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


def make_anchors(height: int, width: int, layers: tuple[tuple[int, int], ...]) -> Array:
    """Return the centres (N, 2), in pixels, that boxes count from; a layer is (pixels, boxes) of a cell."""
    parts = []
    for step, boxes in layers:
        x, y = np.meshgrid(np.arange(step / 2, width, step), np.arange(step / 2, height, step))
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
    """One of the two detectors: pictures to `Detection`s. Nothing but convolutions: any size does.

    Attributes:
        side: of the pictures it was made for, in pixels.
    """

    def __init__(self, graph: Any, side: int, layers: tuple[tuple[int, int], ...]) -> None:
        """Keep the graph and the layers of its anchors."""
        self.graph, self.side, self.layers = graph, side, layers

    def __call__(self, pictures: Array, least: float = 0.5) -> list[list[Detection]]:
        """Return what is seen in each of some pictures, the surest first.

        Args:
            pictures: (B, H, W, 3) uint8, H and W multiples of 32.
            least: the lowest score that counts.
        """
        import torch

        images = torch.from_numpy(pictures.astype(np.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
        outputs = [output.numpy().astype(np.float64) for output in self.graph(images)]
        shapes, scores = sorted(outputs, key=lambda output: -output.shape[-1])
        anchors = make_anchors(*pictures.shape[1:3], self.layers)
        found = []
        for raw, score in zip(shapes, 1.0 / (1.0 + np.exp(-scores[..., 0].clip(-100, 100))), strict=True):
            sure = score >= least
            shape = raw[sure].reshape(-1, 8, 2)  # centre, size, six key points
            shape[:, [0, 2, 3, 4, 5, 6, 7]] += anchors[sure, None]
            centre, half = shape[:, 0], shape[:, 1] / 2
            shape[:, 0], shape[:, 1] = centre - half, centre + half
            found.append([Detection(score, one[:2], one[2:]) for score, one in merge(score[sure], shape)])
        return found


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
        self.near = Detector(near, 128, ((8, 2), (16, 6)))
        self.far = Detector(far, 192, ((4, 1),))

    def find_meshes(self, picture: Array, squares: Array) -> list[Mesh]:
        """Return the mesh of a face for each of some squares around it.

        Args:
            picture: (H, W, 3) uint8; outside it its border goes on.
            squares: (B, 3, 2): top left corner, vectors along the upper and the left side, in pixels.
        """
        import torch
        from torch.nn import functional

        height, width = picture.shape[:2]
        # MediaPipe counts pixels from their centres here, which matters where a square is far from 192 px.
        ends = squares / (width - 1, height - 1) * 2 - np.array((1, 0, 0))[:, None]  # -1 to 1 in the picture
        corners, right, down = (ends[:, index, None, None].astype(np.float32) for index in range(3))
        steps = (np.arange(MESH_SIDE) / MESH_SIDE).astype(np.float32)[:, None]
        where = (corners + steps * right) + steps[:, None] * down
        image = torch.tensor(picture, dtype=torch.float32).permute(2, 0, 1)
        grid = torch.from_numpy(where)
        with torch.inference_mode():
            images = image.expand(len(squares), -1, -1, -1)
            cut = functional.grid_sample(images, grid, padding_mode="border", align_corners=True)
            outputs = self.mesh(cut.round_() / 255.0)
        rows = [output.double().flatten(1).numpy() for output in outputs]
        return [
            self.decode_mesh([row[index] for row in rows], square) for index, square in enumerate(squares)
        ]

    def decode_mesh(self, outputs: list[Array], square: Array) -> Mesh:
        """Return the mesh in the picture's pixels from outputs: mesh, lips, eyes, irises, flag."""
        mesh, lips, left, right, *irises, flag = outputs
        points = np.empty((478, 3))
        points[:468] = mesh.reshape(468, 3)
        contours = self.mesh.subsets  # of the lips and the eyes: the numbers of their points
        for numbers, part in zip(contours, (lips, left, right), strict=True):
            points[numbers, :2] = part.reshape(-1, 2)
        for first, numbers, iris in zip((468, 473), contours[1:], irises, strict=True):
            points[first : first + 5, :2] = iris.reshape(5, 2)
            points[first : first + 5, 2] = points[numbers[:16], 2].mean()  # the edge of the eye
        points /= MESH_SIDE
        moved = square[0] + points[:, :2] @ square[1:]
        return Mesh(moved, points[:, 2] * float(np.hypot(*square[1])), float(1.0 / (1.0 + np.exp(-flag[0]))))


@cache
def load_face_models(folder: Path | None = None) -> FaceModels:
    """Return the models of a folder, or of the user's cache, loaded once a process; fetched first if need be.

    Raises:
        UserError: they cannot be had.
    """
    return FaceModels(fetch_face_models(folder))
