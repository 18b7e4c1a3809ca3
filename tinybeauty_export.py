"""Write looks as phones read them, ONNX, LiteRT, Core ML, or as one web page; the same numbers, checked.

    python tinybeauty_export.py evening --to onnx litert coreml --out phone
    python tinybeauty_export.py my_run/tinybeauty_best_psnr.pt --to onnx --float --out phone
    python tinybeauty_export.py evening --to litert --full-int8 --faces my_photos/source --out phone
    python tinybeauty_export.py evening natural bold --to page --out look.html

A file takes `source`, an aligned face, and `strength`, and gives `made_up`. Before it gets its name it is
run, and refused where it differs from the network. tinybeauty_model/README.md says how an app uses one.
A page finds faces itself: double-click, drop a photo on it or allow the camera; nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import tinybeauty  # noqa: F401  before torch: it says how threads wait
from tinybeauty.errors import Parser, UserError, readable, run_command
from tinybeauty.files import make_folder, path_flag
from tinybeauty.looks import find_look

if TYPE_CHECKING:
    from tinybeauty.phones.networks import Network

HERE = Path(__file__).resolve().parent
# {format: (its room, imported only when it is asked for; what its file's name ends in)}. A room has
# write_FORMAT and, where a file can be run to be checked, open_FORMAT; PACKAGES that it needs, and RUNTIME.
FORMATS = {
    "onnx": ("tinybeauty.phones.onnx", ".onnx"),
    "litert": ("tinybeauty.phones.litert", ".tflite"),
    "coreml": ("tinybeauty.phones.coreml", ".mlpackage"),
}
CHECKED, CALIBRATED = 4, 16  # faces


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
    if flags.full_int8 and name == "litert":
        from tinybeauty.phones import integers

        integers.write_integers(network, path, flags.faces)
    else:
        getattr(find_writer(name), f"write_{name}")(network, path, flags.float)


def check_file(name: str, network: Network, path: Path, flags: argparse.Namespace) -> str:
    """Return what running a file shows, in words; raises UserError where it is not the network."""
    from tinybeauty.phones.checks import check, find_limit, tell_time

    writer = find_writer(name)
    if not flags.check:
        return "not checked"
    if importlib.util.find_spec(writer.RUNTIME) is None:
        return f"not checked: pip install {writer.RUNTIME.replace('_', '-')}"
    run, limit = getattr(writer, f"open_{name}")(path, flags.float), find_limit(name, flags)
    try:
        for faces in flags.checked:
            words = check(network, run, faces, limit, not flags.float)
    except UserError as error:
        raise UserError(f"{name}: {error}; nothing was written") from None
    if name != "coreml" or sys.platform == "darwin":  # where it is not emulated
        words += tell_time(network, run, flags.checked[0][0], path.parent)
    return words + (writer.describe_delegates(path) if name == "litert" else "")


def move_file(partial: Path, path: Path) -> None:
    """Give a file or package its name; an older one is replaced; raises UserError."""
    old = partial.with_name("old")
    try:
        if path.is_dir() and partial.is_dir():
            path.rename(old)  # a folder cannot be renamed onto another
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if old.is_dir() and not path.exists():
            old.rename(path)


def export(network: Network, name: str, flags: argparse.Namespace) -> str:
    """Write one format of a look, whole and checked, or not at all; return a line; raises UserError."""
    path = flags.out / f"{network.name}{FORMATS[name][1]}"
    with tempfile.TemporaryDirectory(dir=flags.out, prefix=".partial") as folder:
        partial = Path(folder) / path.name
        write_file(network, name, partial, flags)
        words = check_file(name, network, partial, flags)
        parts = [part for part in partial.rglob("*") if part.is_file()] or [partial]
        size = sum(part.stat().st_size for part in parts)
        move_file(partial, path)
    return f"{path}: {size:,} bytes, {words}"


def export_page(paths: list[Path], flags: argparse.Namespace) -> str:
    """Write looks as one web page, whole or not at all; return a line about it; raises UserError."""
    from tinybeauty.page.bundle import write_page

    name = paths[0].stem if len(paths) == 1 else "looks"
    path = flags.out if is_page(flags.out) else flags.out / f"{name}.html"
    size = write_page(paths, path, flags.face_models, flags.check, flags.small)
    words = "read back" if flags.check else "not checked"
    return f"{path}: {size:,} bytes, {', '.join(path.stem for path in paths)}, {words}"


def is_page(path: Path) -> bool:
    """Tell whether a path is to be a page, and no folder."""
    return path.suffix.lower() in (".html", ".htm")


def find_looks(names: list[str]) -> list[Path]:
    """Return the looks' files, each once; raises UserError where two would be written to one file."""
    paths: dict[str, Path] = {}
    for path in map(find_look, names):
        other = paths.setdefault(readable(path.stem).casefold(), path)  # a Mac's disk knows no capitals
        if other.resolve() != path.resolve():
            raise UserError(f"{other} and {path} would be written to one file: rename one")
    return list(paths.values())


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = Parser(__doc__, epilog="tinybeauty_model/README.md says how an app uses the files.")
    add, formats = parser.add_argument, [*FORMATS, "page"]
    add("looks", nargs="+", metavar="look", help="that ships (natural, evening, bold) or the path of a .pt")
    add("--to", nargs="+", required=True, choices=formats, metavar="FORMAT", help=", ".join(formats))
    add("--out", required=True, type=path_flag, metavar="FOLDER", help="of the files; a page: or FILE.html")
    add("--float", action="store_true", help="numbers from 0 to 1 in and out instead of bytes")
    add("--full-int8", action="store_true", help="LiteRT: compute in integers alone, at a loss of accuracy")
    add("--faces", type=path_flag, metavar="FOLDER", help="aligned faces to check and calibrate with")
    add("--face_models", type=path_flag, metavar="FOLDER", help="a page's: default is to fetch them, once")
    add("--small", action="store_true", help="a page with less exact face models, 1.2 MB less")
    add("--check", action=argparse.BooleanOptionalAction, default=True, help="run what was written")
    flags = parser.parse_args(argv)
    for flag, wanted in (("float", FORMATS), ("full-int8", ["litert"]), ("faces", FORMATS),
                         ("small", ["page"]), ("face_models", ["page"])):  # fmt: skip
        if getattr(flags, flag.replace("-", "_")) and not set(wanted) & set(flags.to):
            raise UserError(f"--{flag} is for --to {' or '.join(wanted)}")
    if flags.full_int8 and flags.float:
        raise UserError("--full-int8 computes on bytes and --float on numbers: give one of them")
    if is_page(flags.out) and set(flags.to) != {"page"}:
        raise UserError(f"--out {flags.out} is one file, and more are to be written: give a folder")
    return flags


def export_looks(argv: list[str]) -> None:
    """Do what the command line asks for; raises UserError."""
    flags = parse_flags(argv)
    paths, phones = find_looks(flags.looks), [name for name in dict.fromkeys(flags.to) if name != "page"]
    for name in phones:
        find_writer(name)  # what is missing is said before anything is made
    if "page" in flags.to:
        from tinybeauty.face_models import fetch_face_models

        flags.face_models = fetch_face_models(flags.face_models)
    from tinybeauty.phones.checks import draw_faces, read_faces
    from tinybeauty.phones.networks import read_network
    from tinybeauty_training import load_model

    networks = [read_network(path, load_model(path), readable(path.stem)) for path in paths]
    own, drawn = [] if flags.faces is None else read_faces(flags.faces, CALIBRATED), []
    if flags.full_int8 or (phones and flags.check and not own):
        count = CALIBRATED if flags.full_int8 and not own else CHECKED
        drawn = draw_faces(HERE / "data" / "make_demo.py", count)
    flags.faces = own or drawn
    # Ranges from pictures that are no faces suit these very pictures: drawn faces show it.
    flags.checked = [faces[:CHECKED] for faces in (drawn, own) if faces]
    try:
        make_folder(flags.out.parent if is_page(flags.out) else flags.out)
    except OSError as error:
        raise UserError(f"cannot write to {flags.out}: {error.strerror}") from None
    for network in networks:
        for name in phones:
            print(export(network, name, flags), flush=True)
    if "page" in flags.to:
        print(export_page(paths, flags))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(export_looks, argv, interrupted="stopped; no file is half-written")


if __name__ == "__main__":
    sys.exit(main())
