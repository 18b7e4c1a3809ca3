"""Is a written file the network? It is run on faces, and what comes out is compared with PyTorch's."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tinybeauty.blending import SIDE
from tinybeauty.errors import UserError
from tinybeauty.images import list_images, read_image
from tinybeauty.phones.networks import Network

Array = np.ndarray
Runner = Callable[[Array, float], Array]  # a face (H, W, 3) uint8 and a strength to levels of 255, (H, W, 3)
ROUNDS = 7  # of measuring time


@dataclass(frozen=True)
class Difference:
    """How far a file is from PyTorch, in grey levels of 255.

    Attributes:
        largest, mean: absolute.
        odd: share of the values that differ at all.
        psnr_db: over all faces.
    """

    largest: float
    mean: float
    odd: float
    psnr_db: float

    def __str__(self) -> str:
        return f"differs by {self.largest:.2g} of 255 levels at most, {self.mean:.2g} on average"


@dataclass(frozen=True)
class Limit:
    """What a file may differ by, in grey levels of 255: what rounding accounts for, and no more."""

    largest: float
    mean: float = 1.0
    odd: float = 1.0
    psnr_db: float = 0.0

    def allows(self, difference: Difference) -> bool:
        """Tell whether a file is the network."""
        wide = difference.largest > self.largest or difference.mean > self.mean
        return not wide and difference.odd <= self.odd and difference.psnr_db >= self.psnr_db


EXACT = Limit(0.001)
ROUNDED = Limit(1.0, odd=1e-4)  # a value between two levels may be rounded the other way; shipped looks: 1e-5
HALF = Limit(0.5)  # float16, the levels before they are rounded
HALF_ROUNDED = Limit(1.0)
INTEGERS = Limit(64.0, mean=0.5, psnr_db=48.0)  # the looks that ship: 0.31 and 51 dB


def find_limit(name: str, flags: argparse.Namespace) -> Limit:
    """Return what a format may differ by, with the flags of tinybeauty_export."""
    if name == "coreml":
        return HALF_ROUNDED if sys.platform == "darwin" and not flags.float else HALF
    if flags.full_int8 and name == "litert":
        return INTEGERS
    return EXACT if flags.float else ROUNDED


def draw_faces(tool: Path, count: int) -> list[Array]:
    """Return demo faces, (SIDE, SIDE, 3) uint8.

    Args:
        tool: data/make_demo.py.
        count: of them.

    Raises:
        UserError: they cannot be drawn.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(tool), "--out", f"{folder}/demo", "--size", str(SIDE)]
        run = subprocess.run([*command, "--count", str(count)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise UserError(f"no faces to check with: {' '.join(run.stderr.split())[-200:]}")
        return read_faces(Path(folder, "demo", "source"), count)


def read_faces(folder: Path, most: int) -> list[Array]:
    """Return the first faces of a folder of aligned ones, (SIDE, SIDE, 3) uint8; raises UserError."""
    paths = list(list_images(folder).values())[:most]
    if not paths:
        raise UserError(f"{folder} holds no picture of a face")
    return [read_image(path, "RGB", SIDE) for path in paths]


def find_truth(model: nn.Module, face: Array, strength: float) -> Array:
    """Return what a network in PyTorch makes of a face (H, W, 3) uint8, in float levels of 255."""
    source = torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float().div(255)
    with torch.inference_mode():
        made_up = (source + strength * model(source)).clamp(0, 1)
    return made_up[0].permute(1, 2, 0).numpy() * 255.0


def compare(
    network: Network, run: Runner, faces: list[Array], strengths: tuple[float, ...], rounded: bool
) -> Difference:
    """Return the difference over all these faces and strengths.

    Args:
        network: the look.
        run: the file.
        faces: (H, W, 3) uint8.
        strengths: of the makeup.
        rounded: compare with PyTorch's rounded levels.

    Raises:
        UserError: the file gives no picture of the face's size.
    """
    differences = []
    for face in faces:
        for strength in strengths:
            truth, made_up = find_truth(network.model, face, strength), run(face, strength)
            if made_up.shape != truth.shape:
                raise UserError(f"the file gives {made_up.shape}, not {truth.shape}")
            differences.append(np.abs(made_up - (truth.round() if rounded else truth)))
    together = np.stack(differences)
    if not np.isfinite(together).all():
        raise UserError("the file gives numbers that are none")
    squared = max(float(np.square(together).mean()), 1e-12)
    odd = float((together > 0).mean())
    return Difference(float(together.max()), float(together.mean()), odd, 10 * np.log10(255**2 / squared))


def check(network: Network, run: Runner, faces: list[Array], limit: Limit, use_bytes: bool) -> str:
    """Return how far a file is from the network, in words.

    Args:
        network: the look.
        run: the file.
        faces: (H, W, 3) uint8.
        limit: one of those above.
        use_bytes: the file gives bytes.

    Raises:
        UserError: it is too far.
    """
    strengths = (1.0,) if limit is INTEGERS else (1.0, 0.5, 0.0)
    difference = compare(network, run, faces, strengths, use_bytes and limit is not HALF)
    if not limit.allows(difference):
        raise UserError(f"what was written is not the network, {difference}")
    return f"{difference} ({difference.psnr_db:.1f} dB)" if limit is INTEGERS else str(difference)


def find_ratio(run: Runner, yardstick: Runner, face: Array) -> float:
    """Return how many times as long as `yardstick` something takes; both in turns, the median."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for runner, taken in zip((run, yardstick), times, strict=True):
            start = time.perf_counter()
            runner(face, 1.0)
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def tell_time(network: Network, run: Runner, face: Array, folder: Path) -> str:
    """Return the time beside ONNX Runtime's in float32, one thread, in words; empty where it is missing."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return ""
    from tinybeauty.phones import onnx

    onnx.write_onnx(network, folder / "yardstick", True)  # unpacked when loaded: it computes in float32
    ratio = find_ratio(run, onnx.open_onnx(folder / "yardstick", True), face)
    return f", {ratio:.1f} times the time of ONNX Runtime in float32"
