"""Put a look on photos, folders of photos, and videos: every face in them, at full size.

    python tinybeauty_apply.py photo.jpg --look evening --out made_up
    python tinybeauty_apply.py holiday/ --look natural --strength 0.7 --lips 1.2 --out made_up
    python tinybeauty_apply.py clip.mp4 --look my_run/tinybeauty_best_psnr.pt --compare --out made_up

A file keeps its name, format, size, EXIF, colour profile and transparency. Outside the faces' squares no
pixel changes, but that JPEGs (with their own tables), WebPs that are lossy, AVIFs and videos are compressed
anew. From Python:

    made_up = put_makeup_on(photo, load_model("tinybeauty_model/pretrained/evening.pt"), strength=0.7)
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from tinybeauty import outputs, photos, videos
from tinybeauty.alignment import align, find_square, find_way_back
from tinybeauty.blending import SIDE, Request, choose_faces, find_own, find_residual
from tinybeauty.errors import LeftOut, Parser, UserError, readable, run_command
from tinybeauty.face_models import FaceModels, fetch_face_models, load_face_models
from tinybeauty.faces import MIN_SIDE, check_colours
from tinybeauty.files import hide, lock_folder, make_folder, path_flag
from tinybeauty.looks import find_look
from tinybeauty.photos import Photo
from tinybeauty.workers import count_cores, run_jobs

if TYPE_CHECKING:
    from tinybeauty_training import TinyBeauty

VERSION = 3  # of what is put on: another number, and the same command does everything anew
FEW = 4  # photos: processes of their own take three seconds to start


# --- A photo ------------------------------------------------------------------------------------------
def make_up(photo: Photo, model: TinyBeauty, models: FaceModels, request: Request) -> list[str]:
    """Put makeup on a photo, in place; return why some of its faces get none.

    Raises:
        LeftOut: no face gets any.
    """
    upright = photo.to_upright()
    chosen, everyone, left_out = choose_faces(upright, models, request)
    residuals = []
    for face in chosen:  # all are looked at before the first is painted
        picture, points = align(upright, face.points, SIDE)
        picture = photo.to_srgb(picture)
        try:
            check_colours(picture, points)
        except LeftOut as reason:
            left_out.append(str(reason))
        else:
            way = find_way_back(find_square(upright.size, face.points), SIDE)
            neighbours = [other.points for other in everyone if other is not face]
            residual = find_residual(picture, points, model, request)
            residuals.append((residual * find_own(face.points, neighbours, way), way))
    if not residuals:
        raise LeftOut("; ".join(left_out))
    del upright  # of a large photo it is a large copy
    for residual, way in residuals:
        photo.lay_residual(residual, way)
    return left_out


def put_makeup_on(
    photo: Image.Image,
    model: TinyBeauty,
    strength: float = 1.0,
    lips: float = 1.0,
    eyes: float = 1.0,
    skin: float = 1.0,
) -> Image.Image:
    """Return a photo with makeup on its faces, but for those too small, turned away, cut off or grey.

    It has the same size, mode and info.

    Args:
        photo: RGB, RGBA or CMYK, as opened; EXIF orientation and colour profile are taken from its info.
        model: from `tinybeauty_training.load_model`.
        strength: of everything; 0 gives the photo's own pixels, 1 what the network has learnt.
        lips: of the lips, on top; likewise
        eyes: of lids, liner, lashes and brows, and
        skin: of all the rest.

    Raises:
        ValueError: a strength is not from 0 to 1.5.
        LeftOut: it has no face that makeup can be put on, or is of another mode.
        UserError: the models that find faces cannot be had.
    """
    if not all(0 <= value <= 1.5 for value in (strength, lips, eyes, skin)):
        raise ValueError("strength, lips, eyes and skin must be from 0 to 1.5")
    photos.check_mode(photo)
    copy = Photo(photo.copy(), photo.format or "", b"")
    make_up(copy, model, load_face_models(), Request(strength, lips, eyes, skin))
    return copy.image


# --- Files --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Order:
    """A file to do.

    Attributes:
        source: the photo or video.
        target: where it goes.
        look: the network's file.
        look_digest: SHA-256 of it.
        face_models: folder of the models that find faces.
        request: what is asked for.
        done: what this command has written under the target's name before.
    """

    source: Path
    target: Path
    look: Path
    look_digest: str
    face_models: Path
    request: Request
    done: outputs.Done


@dataclass
class Outcome:
    """What became of an order.

    Attributes:
        source: the photo or video.
        problem: why nothing was written; empty if it was, or was before.
        is_old: it was there already.
        notes: faces that get no makeup, and why.
    """

    source: Path
    problem: str = ""
    is_old: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the photo or video, as it can be printed."""
        return readable(self.source)


@cache
def open_look(look: Path) -> TinyBeauty:
    """Return the network of a look, loaded once a process."""
    from tinybeauty_training import load_model  # takes two seconds, which --help need not wait for

    return load_model(look)


def fill_order(order: Order) -> Outcome:
    """Make up a photo or a video and write it, whole or not at all; what was done is not done again."""
    warnings.filterwarnings("ignore", module="PIL")  # of odd EXIF: it is kept as it is
    try:
        digest = outputs.find_source_digest(order.source)
        fingerprint = outputs.find_fingerprint(VERSION, digest, order.look_digest, asdict(order.request))
        if outputs.is_done(order.target, order.done, fingerprint):
            return Outcome(order.source, is_old=True)
        make_up_file = make_up_clip if videos.is_video(order.source) else make_up_photo
        return Outcome(order.source, notes=make_up_file(order, fingerprint))
    except (LeftOut, UserError) as reason:
        return Outcome(order.source, str(reason))
    except MemoryError:
        return Outcome(order.source, "there is too little memory for it")


def make_up_photo(order: Order, fingerprint: str) -> list[str]:
    """Make up a photo and write it; return why some faces get no makeup; raises LeftOut and UserError."""
    photo = photos.open_photo(order.source)
    compare = order.request.compare
    before = photos.turn_upright(photo.image, photo.orientation).copy() if compare else None
    left_out = make_up(photo, open_look(order.look), load_face_models(order.face_models), order.request)
    if before is not None:
        data = photos.write_comparison(before, photo)
    elif order.request.nothing and order.source.suffix == order.target.suffix:
        data = photo.data
    else:
        data = photo.encode()
    outputs.save_marked(order.target, data, fingerprint)
    return left_out


def make_up_clip(order: Order, fingerprint: str) -> list[str]:
    """Make up a video and write it; return why some faces get no makeup; raises LeftOut and UserError."""
    hidden = hide(order.target, order.target.suffix)  # FFmpeg goes by it
    model, models = open_look(order.look), load_face_models(order.face_models)
    left_out = videos.make_up_video(order.source, hidden, model, models, order.request)
    outputs.move_marked(hidden, order.target, fingerprint)
    return left_out


def fill_orders(orders: list[Order], workers: int) -> list[Outcome]:
    """Do photos in `workers` processes, few of them in this one; then videos one by one on all cores."""
    clips = [order for order in orders if videos.is_video(order.source)]
    pictures = [order for order in orders if not videos.is_video(order.source)]
    if len(pictures) < FEW or workers == 1:
        bar = tqdm(pictures, desc="photos", unit="photo", disable=None if pictures else True)
        outcomes = [fill_order(order) for order in bar]
    else:
        outcomes = run_jobs(fill_order, pictures, workers, "photos")
    return outcomes + [fill_order(order) for order in clips]


def summarise(outcomes: list[Outcome], out: Path) -> str:
    """Return the last lines of the command: faces without makeup, and how many files were written."""
    old = sum(outcome.is_old for outcome in outcomes)
    new = sum(not outcome.problem for outcome in outcomes) - old
    lines = [f"{outcome.name}: without makeup: {note}" for outcome in outcomes for note in outcome.notes]
    lines.append(f"{new:,} of {len(outcomes):,} written to {out}")
    return "\n".join(lines) + (f", {old:,} were there already" if old else "")


# --- The command line ---------------------------------------------------------------------------------
def read_number(kind: type, low: float, high: float, text: str) -> float:
    """Return a number that was typed; raises argparse's error where it is none between low and high."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}, got {text!r}")
    return value


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the command line's flags."""
    strength, pixels = partial(read_number, float, 0, 1.5), partial(read_number, int, MIN_SIDE, 10_000)
    parser = Parser(__doc__, epilog="README.md says more.")
    add = parser.add_argument
    add("inputs", nargs="+", type=path_flag, metavar="PHOTO|FOLDER|VIDEO")
    add("--look", required=True, help="one that ships (natural, evening, bold) or the path of a .pt file")
    add("--out", required=True, type=path_flag, metavar="FOLDER", help="where the results go")
    add("--strength", type=strength, default=1.0, help="how strong the makeup is, 0 to 1.5; default 1")
    for part in ("lips", "eyes", "skin"):
        add(f"--{part}", type=strength, default=1.0, help="how strong it is there, on top; default 1")
    add("--faces", choices=("all", "largest"), default="all", help="which get makeup; default all")
    add("--smallest", type=pixels, default=MIN_SIDE, metavar="PX",
        help=f"side of the square around a face; smaller ones stay bare; default {MIN_SIDE}")  # fmt: skip
    add("--compare", action="store_true", help="write before and after side by side, as NAME_compare")
    add("--face_models", type=path_flag, metavar="FOLDER", help="with the models that find faces, if offline")
    add("--workers", type=partial(read_number, int, 1, 1024), default=count_cores(),
        help="photos at a time; default %(default)s")  # fmt: skip
    return parser.parse_args(argv)


def apply_look(argv: list[str]) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: it cannot be done, or not for all files; lists which.
    """
    flags = parse_flags(argv)
    look = find_look(flags.look)
    sources = outputs.list_inputs(flags.inputs, photos.PHOTO_SUFFIXES | videos.VIDEO_SUFFIXES, flags.out)
    targets = outputs.find_targets(sources, flags.out, "_compare" * flags.compare, photos.HEIF_SUFFIXES)
    open_look(look)  # a damaged file is said before anything is fetched or made
    face_models = fetch_face_models(flags.face_models)
    try:
        make_folder(flags.out)
    except OSError as error:
        raise UserError(f"cannot write to {flags.out}: {error.strerror}") from None
    parts = (flags.strength, flags.lips, flags.eyes, flags.skin)
    request = Request(*parts, which=flags.faces, smallest=flags.smallest, compare=flags.compare)
    with lock_folder(flags.out):
        done, digest = outputs.read_marks(flags.out), outputs.find_digest(look)
        orders = [
            Order(source, target, look, digest, face_models, request, done.get(target.name, {}))
            for source, target in zip(sources, targets, strict=True)
        ]
        outcomes = fill_orders(orders, flags.workers)
    print(summarise(outcomes, flags.out))
    if problems := [f"  {outcome.name}: {outcome.problem}" for outcome in outcomes if outcome.problem]:
        raise UserError("\n".join((f"{len(problems):,} could not be done:", *problems)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(apply_look, argv, interrupted="stopped; the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
