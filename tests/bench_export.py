"""Measure the files of tinybeauty_export: bytes, and time beside ONNX Runtime's float32; asserts nothing.

    python tests/bench_export.py evening [--rounds 30]

One thread and its processor time, a face of 256 x 256. All are run in turns, so that whatever else the
machine does meets all alike; the figure is the median. The yardstick is what torch.onnx.export writes of
the same function in float32.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as in the command: before PyTorch is loaded
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tinybeauty.looks import find_look
from tinybeauty.phones import integers, litert, onnx
from tinybeauty.phones.checks import Runner, draw_faces
from tinybeauty.phones.networks import Network, read_network
from tinybeauty_training import load_model

TOOL = Path(__file__).resolve().parents[1] / "data" / "make_demo.py"


class MadeUp(nn.Module):
    """What the files do, in PyTorch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, strength: Tensor) -> Tensor:
        """Return the made-up face, (1, 3, H, W) in [0, 1]."""
        return (source + strength * self.model(source)).clamp(0, 1)


def export_float32(network: Network) -> bytes:
    """Return what torch.onnx.export writes."""
    buffer = io.BytesIO()
    example = (torch.rand(1, 3, 256, 256), torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            MadeUp(network.model), example, buffer, dynamo=False, opset_version=17,
            input_names=["source", "strength"], output_names=["made_up"],
        )  # fmt: skip
    return buffer.getvalue()


def make_runners(network: Network, faces: list[np.ndarray], folder: Path) -> dict[str, tuple[Runner, int]]:
    """Return {what: (function, bytes)}."""
    (folder / "base").write_bytes(export_float32(network))
    runners = {"torch.onnx.export, float": (onnx.open_onnx(folder / "base", True), 0)}
    for use_float, kind in ((True, "float"), (False, "bytes")):
        path = folder / f"{kind}.onnx"
        onnx.write_onnx(network, path, use_float)
        runners[f"ONNX, {kind}"] = (onnx.open_onnx(path, use_float), path.stat().st_size)
        path = folder / f"{kind}.tflite"
        litert.write_litert(network, path, use_float)
        runners[f"LiteRT, {kind}"] = (litert.open_litert(path, use_float), path.stat().st_size)
    path = folder / "integers.tflite"
    integers.write_integers(network, path, faces)
    runners["LiteRT, full int8"] = (litert.open_litert(path, False), path.stat().st_size)
    return runners


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("look", help="one that ships, or the path of a .pt")
    parser.add_argument("--rounds", type=int, default=30, help="default 30")
    flags = parser.parse_args()
    path = find_look(flags.look)
    network, faces = read_network(path, load_model(path), path.stem), draw_faces(TOOL, 8)
    with tempfile.TemporaryDirectory() as folder:
        runners = make_runners(network, faces, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(flags.rounds):
            for name, (runner, _) in runners.items():
                start = time.thread_time()
                runner(faces[0], 1.0)
                times[name].append(time.thread_time() - start)
    base = statistics.median(times["torch.onnx.export, float"])
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}; 1 is {base * 1e3:.1f} ms")
    for name, (_, size) in runners.items():
        ratio = statistics.median(times[name]) / base
        print(f"| {name} | {size:,} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
