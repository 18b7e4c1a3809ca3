"""Write a look as phones read it: ONNX, LiteRT, Core ML; the same numbers as the `.pt`, checked.

    python tinybeauty_export.py evening --to onnx litert coreml --out phone
    python tinybeauty_export.py my_run/tinybeauty_best_psnr.pt --to onnx --float --out phone

Each file takes `source`, an aligned face, and `strength`, and gives `made_up`. Before a file gets its name
it is run, and refused where it differs from the network. tinybeauty_model/README.md says how to use one.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import tinybeauty  # noqa: F401  before torch: it says how threads wait
from tinybeauty.errors import Parser, UserError, find_similar, run_command
from tinybeauty.files import make_folder, path_flag

if TYPE_CHECKING:
    from tinybeauty.phones.graph import Graph

HERE = Path(__file__).resolve().parent
LOOKS = HERE / "tinybeauty_model" / "pretrained"
# format: (its room, imported only when asked for; suffix of the file; largest difference in levels of 255)
FORMATS = {
    "onnx": ("tinybeauty.phones.onnx", ".onnx", 0.001),
    "litert": ("tinybeauty.phones.litert", ".tflite", 0.001),
    "coreml": ("tinybeauty.phones.coreml", ".mlpackage", 0.5),
}
MOST_ODD = 1e-5  # share of 8-bit values that may round the other way
SIDE = 256


def find_look(look: str) -> Path:
    """Return the file of a look: one that ships, by name, or the path of a .pt; raises UserError."""
    path = path_flag(look)
    if look.endswith(".pt") or path.is_file():
        return path  # whether it is there, and a network, is said where it is loaded
    known = sorted(path.stem for path in LOOKS.glob("*.pt"))
    if look not in known:
        similar = find_similar(look, known)
        hint = f", did you mean {similar}? There are" if similar else "; there are"
        raise UserError(f"there is no look {look!r}{hint} {', '.join(known)}, or give the path of a .pt")
    return LOOKS / f"{look}.pt"


def find_writer(name: str) -> ModuleType:
    """Return the room of a format; raises UserError where a package lacks."""
    writer = importlib.import_module(FORMATS[name][0])
    lacking = [package for package in writer.PACKAGES if importlib.util.find_spec(package) is None]
    if lacking:
        raise UserError(f"{name} needs the package {lacking[0]}: pip install -r requirements.txt")
    return writer


def draw_faces(count: int = 4) -> list[np.ndarray]:
    """Return demo faces, (SIDE, SIDE, 3) uint8; raises UserError where they cannot be drawn."""
    with tempfile.TemporaryDirectory() as folder:
        tool = [sys.executable, str(HERE / "data" / "make_demo.py"), "--out", f"{folder}/demo"]
        run = subprocess.run(
            [*tool, "--count", str(count), "--size", str(SIDE)], capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise UserError(f"no faces to check with: {run.stderr.strip().splitlines()[-1:]}")
        paths = sorted(Path(folder, "demo", "source").iterdir())
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def find_truth(graph: Graph, face: np.ndarray, strength: float) -> np.ndarray:
    """Return what PyTorch makes of a face (H, W, 3) uint8, in float levels of 255."""
    import torch

    source = torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float().div(255)
    with torch.inference_mode():
        made_up = (source + strength * graph.model(source)).clamp(0, 1)
    return made_up[0].permute(1, 2, 0).numpy() * 255.0


Runner = Callable[[np.ndarray, float], np.ndarray]


def check(graph: Graph, name: str, run: Runner, use_float: bool, faces: list[np.ndarray]) -> str:
    """Return how far the file is from the network, in words; raises UserError where it is too far."""
    largest, total, odd, values = 0.0, 0.0, 0, 0
    for face in faces:
        for strength in (1.0, 0.5, 0.0):
            truth, made_up = find_truth(graph, face, strength), run(face, strength)
            if made_up.shape != truth.shape:
                raise UserError(f"{name}: the file gives {made_up.shape}, not {truth.shape}")
            exact = use_float or name == "coreml"  # whose levels are looked at before they are rounded
            difference = np.abs(made_up - (truth if exact else truth.round()))
            largest, total = max(largest, float(difference.max())), total + float(difference.sum())
            odd, values = odd + int((difference > 0).sum()), values + difference.size
    most = FORMATS[name][2]
    good = largest <= most if use_float or name == "coreml" else largest <= 1 and odd <= MOST_ODD * values
    words = f"differs by {largest:.4g} at most, {total / values:.2g} on average, of 255"
    if not good:
        raise UserError(f"{name}: {words}: not written (a file may differ by {most}, one byte in 100,000)")
    return words


def export(graph: Graph, name: str, flags: argparse.Namespace, faces: list[np.ndarray]) -> str:
    """Write one format, checked; return a line about it; raises UserError and leaves no file then."""
    writer = find_writer(name)
    path = flags.out / f"{graph.name}{FORMATS[name][1]}"
    with tempfile.TemporaryDirectory(dir=flags.out, prefix=".partial") as folder:
        partial = Path(folder) / path.name
        writer.write(graph, partial, flags.float)
        words = "not checked"
        lacks = getattr(writer, "RUNTIME", "numpy")
        if flags.check and importlib.util.find_spec(lacks) is None:
            words = f"not checked: {lacks} is not installed"
        elif flags.check:
            words = check(graph, name, writer.make_runner(partial, flags.float), flags.float, faces)
        parts = [part for part in partial.rglob("*") if part.is_file()] or [partial]
        size = sum(part.stat().st_size for part in parts)
        if path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    return f"{path}: {size:,} bytes, {words}"


def export_look(argv: list[str]) -> None:
    """Do what the command line asks for; raises UserError."""
    parser = Parser(__doc__, epilog="tinybeauty_model/README.md says how an app uses the files.")
    add = parser.add_argument
    add("look", help="one that ships (natural, evening, bold) or the path of a .pt file")
    add("--to", nargs="+", required=True, choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    add("--out", required=True, type=path_flag, metavar="FOLDER", help="where the files go")
    add("--float", action="store_true", help="floats in [0, 1] in and out instead of bytes")
    add("--check", action=argparse.BooleanOptionalAction, default=True, help="run what was written")
    flags = parser.parse_args(argv)
    path = find_look(flags.look)
    for name in flags.to:
        find_writer(name)  # what lacks is said before anything is made
    from tinybeauty.phones.graph import read_graph
    from tinybeauty_training import load_model

    graph = read_graph(path, load_model(path), path.stem)
    faces = draw_faces() if flags.check else []
    try:
        make_folder(flags.out)
    except OSError as error:
        raise UserError(f"cannot write to {flags.out}: {error.strerror}") from None
    for name in dict.fromkeys(flags.to):
        print(export(graph, name, flags, faces), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(export_look, argv, interrupted="stopped; nothing is half-written")


if __name__ == "__main__":
    sys.exit(main())
