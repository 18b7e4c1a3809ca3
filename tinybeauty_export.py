"""Write a look as phones read it: ONNX, LiteRT, Core ML; the same numbers as the `.pt`, and checked.

    python tinybeauty_export.py evening --to onnx litert coreml --out phone
    python tinybeauty_export.py my_run/tinybeauty_best_psnr.pt --to onnx --float --out phone
    python tinybeauty_export.py evening --to litert --full-int8 --faces my_photos/source --out phone

A file takes `source`, an aligned face, and `strength`, and gives `made_up`. Before it gets its name it is
run, and refused where it differs from the network. tinybeauty_model/README.md says how an app uses one.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import tinybeauty  # noqa: F401  before torch: it says how threads wait
from tinybeauty.errors import Parser, UserError, run_command
from tinybeauty.files import make_folder, path_flag
from tinybeauty.looks import find_look

if TYPE_CHECKING:
    from tinybeauty.phones.checks import Difference, Runner
    from tinybeauty.phones.networks import Network

HERE = Path(__file__).resolve().parent
# {format: (its room, imported only when it is asked for; what its file's name ends in)}. The room has
# write_FORMAT and, where a file can be run to be checked, open_FORMAT; PACKAGES that it needs, and RUNTIME.
FORMATS = {
    "onnx": ("tinybeauty.phones.onnx", ".onnx"),
    "litert": ("tinybeauty.phones.litert", ".tflite"),
    "coreml": ("tinybeauty.phones.coreml", ".mlpackage"),
}
CHECKED, CALIBRATED = 4, 16  # faces


@dataclass(frozen=True)
class Limit:
    """What a file may differ by, in grey levels of 255: what rounding accounts for, and no more."""

    largest: float
    mean: float = 1.0
    odd: float = 1.0

    def allows(self, difference: Difference) -> bool:
        """Tell whether a file is the network."""
        wide = difference.largest > self.largest or difference.mean > self.mean
        return not wide and difference.odd <= self.odd


EXACT = Limit(0.001)
ROUNDED = Limit(1.0, odd=1e-5)  # a value between two levels may be rounded the other way
HALF = Limit(0.5)  # float16, the levels before they are rounded
HALF_ROUNDED = Limit(1.0)
INTEGERS = Limit(64.0, mean=1.5)


def find_limit(name: str, flags: argparse.Namespace) -> Limit:
    """Return what a format may differ by."""
    if name == "coreml":
        return HALF_ROUNDED if sys.platform == "darwin" and not flags.float else HALF
    if flags.full_int8 and name == "litert":
        return INTEGERS
    return EXACT if flags.float else ROUNDED


def find_writer(name: str) -> ModuleType:
    """Return the room of a format; raises UserError where a package is missing."""
    writer = importlib.import_module(FORMATS[name][0])
    for package in writer.PACKAGES:
        if importlib.util.find_spec(package) is None:
            where = " (for Linux on x86-64 and macOS alone)" if package == "coremltools" else ""
            raise UserError(f"{name} needs the package {package}{where}: pip install {package}")
    return writer


def write_file(network: Network, name: str, path: Path, flags: argparse.Namespace) -> None:
    """Write one file; raises UserError."""
    writer = find_writer(name)
    if flags.full_int8 and name == "litert":
        from tinybeauty.phones import integers

        integers.write_integers(network, path, flags.faces)
    else:
        getattr(writer, f"write_{name}")(network, path, flags.float)


def check(network: Network, name: str, run: Runner, flags: argparse.Namespace) -> str:
    """Return how far a file is from the network, in words; raises UserError where it is too far."""
    from tinybeauty.phones.checks import compare

    limit = find_limit(name, flags)
    strengths = (1.0,) if limit is INTEGERS else (1.0, 0.5, 0.0)
    difference = compare(
        network, run, flags.faces[:CHECKED], strengths, not flags.float and limit is not HALF
    )
    if not limit.allows(difference):
        raise UserError(f"{name}: what was written is not the network, {difference}; no file is left")
    return f"{difference} ({difference.psnr_db:.1f} dB)" if limit is INTEGERS else str(difference)


def time_it(network: Network, name: str, run: Runner, flags: argparse.Namespace, folder: Path) -> str:
    """Return the time beside ONNX Runtime's in float32, one thread, in words; empty where it is missing."""
    if importlib.util.find_spec("onnxruntime") is None or (name == "coreml" and sys.platform != "darwin"):
        return ""
    from tinybeauty.phones import onnx
    from tinybeauty.phones.checks import find_ratio

    onnx.write_onnx(network, folder / "yardstick", True)  # unpacked when loaded: it computes in float32
    ratio = find_ratio(run, onnx.open_onnx(folder / "yardstick", True), flags.faces[0])
    return f", {ratio:.1f} times the time of ONNX Runtime in float32"


def export(network: Network, name: str, flags: argparse.Namespace) -> str:
    """Write one format, whole and checked, or not at all; return a line about it; raises UserError."""
    writer = find_writer(name)
    path = flags.out / f"{network.name}{FORMATS[name][1]}"
    with tempfile.TemporaryDirectory(dir=flags.out, prefix=".partial") as folder:
        partial = Path(folder) / path.name
        write_file(network, name, partial, flags)
        words, opener = "not checked", getattr(writer, f"open_{name}", None)
        if flags.check and opener and importlib.util.find_spec(writer.RUNTIME) is None:
            words += f": pip install {writer.RUNTIME.replace('_', '-')}"
        elif flags.check and opener:
            run = opener(partial, flags.float)
            words = check(network, name, run, flags) + time_it(network, name, run, flags, Path(folder))
            words += writer.describe_delegates(partial) if name == "litert" else ""
        parts = [part for part in partial.rglob("*") if part.is_file()] or [partial]
        size = sum(part.stat().st_size for part in parts)
        try:
            if path.is_dir():
                path.rename(Path(folder) / "old")  # a folder cannot be renamed onto another
            partial.replace(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
    return f"{path}: {size:,} bytes, {words}"


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = Parser(__doc__, epilog="tinybeauty_model/README.md says how an app uses the files.")
    add = parser.add_argument
    add("look", help="one that ships (natural, evening, bold) or the path of a .pt file")
    add("--to", nargs="+", required=True, choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    add("--out", required=True, type=path_flag, metavar="FOLDER", help="where the files go")
    add("--float", action="store_true", help="numbers from 0 to 1 in and out instead of bytes")
    add("--full-int8", action="store_true", help="LiteRT: compute in integers alone, at a loss of accuracy")
    add("--faces", type=path_flag, metavar="FOLDER", help="aligned faces to check and calibrate with")
    add("--check", action=argparse.BooleanOptionalAction, default=True, help="run what was written")
    flags = parser.parse_args(argv)
    if flags.full_int8 and (flags.float or "litert" not in flags.to):
        raise UserError("--full-int8 is for --to litert, and not together with --float")
    return flags


def export_look(argv: list[str]) -> None:
    """Do what the command line asks for; raises UserError."""
    flags = parse_flags(argv)
    path = find_look(flags.look)
    for name in flags.to:
        find_writer(name)  # what is missing is said before anything is made
    from tinybeauty.phones.checks import draw_faces, read_faces
    from tinybeauty.phones.networks import read_network
    from tinybeauty_training import load_model

    network = read_network(path, load_model(path), path.stem)
    if flags.faces is not None:
        flags.faces = read_faces(flags.faces, CALIBRATED)
    elif flags.check or flags.full_int8:
        flags.faces = draw_faces(HERE / "data" / "make_demo.py", CALIBRATED if flags.full_int8 else CHECKED)
    try:
        make_folder(flags.out)
    except OSError as error:
        raise UserError(f"cannot write to {flags.out}: {error.strerror}") from None
    for name in dict.fromkeys(flags.to):
        print(export(network, name, flags), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(export_look, argv, interrupted="stopped; no file is half-written")


if __name__ == "__main__":
    sys.exit(main())
