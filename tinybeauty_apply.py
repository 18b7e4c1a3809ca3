"""Put a look on photos, folders of photos, and videos: every face in them, at full size.

    python tinybeauty_apply.py photo.jpg --look evening --out made_up
    python tinybeauty_apply.py holiday/ --look natural --strength 0.7 --lips 1.2 --out made_up
    python tinybeauty_apply.py clip.mp4 --look my_run/tinybeauty_best_psnr.pt --compare --out made_up

A file keeps its name, format, size, EXIF, colour profile and transparency. Outside the faces' squares no
pixel changes; a JPEG or a video is compressed anew, a JPEG with its own quantisation tables. What was done
before, from the same photo with the same look and flags, is not done again. From Python:

    from tinybeauty_apply import put_makeup_on
    from tinybeauty_training import load_model

    made_up = put_makeup_on(photo, load_model("tinybeauty_model/pretrained/evening.pt"), strength=0.7)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from tinybeauty import blending, faces, outputs, photos, videos
from tinybeauty.blending import SIDE, Strength
from tinybeauty.errors import LeftOut, Parser, UserError, find_similar, run_command
from tinybeauty.face_models import FaceModels, fetch_face_models, load_face_models
from tinybeauty.files import lock_folder, make_folder
from tinybeauty.photos import Photo
from tinybeauty.workers import count_cores, run_jobs

if TYPE_CHECKING:
    from tinybeauty_training import TinyBeauty

VERSION = 1  # of what is put on: another number, and the same command does everything anew
LOOKS = Path(__file__).resolve().parent / "tinybeauty_model" / "pretrained"
FEW = 4  # photos: a process of its own for each core takes three seconds to start


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
        strength: how much of the look.
        which: all faces, or the largest alone.
        smallest: side of a face's square in pixels; smaller faces stay as they are.
        compare: write before and after side by side.
    """

    strength: Strength = Strength()
    which: str = "all"
    smallest: int = faces.MIN_SIDE
    compare: bool = False


# --- A photo ------------------------------------------------------------------------------------------
def choose_faces(photo: Image.Image, models: FaceModels, settings: Settings) -> tuple[list[faces.Face], list[str]]:
    """Return the faces that get makeup, and why others get none.

    Raises:
        LeftOut: there is none.
    """
    found = faces.find_faces(photo, models)
    chosen, left_out = [], list(found.left_out)
    for face in found.faces:
        x, y = face.points.mean(0)
        try:
            side = float(np.hypot(*(face.quad[3] - face.quad[0])))
            if side < settings.smallest:
                raise LeftOut(f"too small: its square has {side:.0f} px, --smallest {settings.smallest}")
            faces.check_face(photo, face.points)
            chosen.append(face)
        except LeftOut as reason:
            left_out.append(f"the face at ({x:.0f}, {y:.0f}): {reason}")
    if not chosen:
        raise LeftOut("; ".join(["no face found", *left_out] if not found.faces else left_out))
    return chosen[:1] if settings.which == "largest" else chosen, left_out


def make_up(photo: Photo, model: TinyBeauty, models: FaceModels, settings: Settings) -> list[str]:
    """Put makeup on a photo, in place; return why some of its faces get none.

    Raises:
        LeftOut: none does.
    """
    upright = photo.to_upright()
    chosen, left_out = choose_faces(upright, models, settings)
    if settings.strength.nothing:
        return left_out
    turn = photo.way_upright()
    plans = []
    for face in chosen:  # all of them are looked at before the first is painted
        picture, points = faces.align(upright, face.points, SIDE)
        residual = blending.find_residual(photo.to_srgb(picture), points, model, settings.strength)
        way = faces.find_way_back(faces.find_square(upright.size, face.points), SIDE)
        plans.append((residual, np.c_[way[:, :2] @ turn[:, :2], way[:, :2] @ turn[:, 2] + way[:, 2]]))
    del upright
    for residual, way in plans:
        box = blending.find_box(way, photo.image.size)
        if box:
            pixels = np.array(photo.image.crop(box))
            moved = np.c_[way[:, :2], way[:, :2] @ box[:2] + way[:, 2]]
            blending.lay_residual(pixels, residual, moved, photo.colours.add)
            photo.image.paste(Image.fromarray(pixels, photo.image.mode), box)
    return left_out


def put_makeup_on(
    photo: Image.Image,
    model: TinyBeauty,
    strength: float = 1.0,
    lips: float = 1.0,
    eyes: float = 1.0,
    skin: float = 1.0,
) -> Image.Image:
    """Return a photo with makeup on all of its faces; it has the same size, mode and info.

    Args:
        photo: RGB, RGBA or CMYK, as opened; EXIF orientation and colour profile are taken from its info.
        model: from `tinybeauty_training.load_model`.
        strength: of everything; 0 gives the photo's own pixels, 1 what the network has learnt.
        lips, eyes, skin: of these parts, on top.

    Raises:
        LeftOut: it has no face that makeup can be put on, or is of another mode.
        UserError: the models that find faces cannot be had.
    """
    photos.check_mode(photo)
    copy = Photo(photo.copy(), photo.format or "", b"")
    make_up(copy, model, load_face_models(), Settings(Strength(strength, lips, eyes, skin)))
    return copy.image


# --- Files --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """A file to do.

    Attributes:
        source: the photo or video.
        target: where it goes.
        look: the network's file.
        look_digest: SHA-256 of it.
        face_models: folder of the models that find faces.
        settings: what is asked for.
        done: what this command has written under the target's name before.
    """

    source: Path
    target: Path
    look: Path
    look_digest: str
    face_models: Path
    settings: Settings
    done: outputs.Done

    def find_fingerprint(self) -> str:
        """Return what tells this result from others; raises LeftOut if the source cannot be read."""
        try:
            digest = outputs.find_digest(self.source)
        except OSError as error:
            raise LeftOut(f"cannot be read: {error.strerror}") from None
        return outputs.find_fingerprint(VERSION, digest, self.look_digest, asdict(self.settings))


@dataclass
class Result:
    """What became of a job.

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


@cache
def load_look(look: Path) -> TinyBeauty:
    """Return the network of a look, loaded once a process."""
    from tinybeauty_training import load_model  # takes two seconds, which --help need not wait for

    return load_model(look)


def do_photo(job: Job) -> Result:
    """Make up a photo and write it, whole or not at all."""
    try:
        fingerprint = job.find_fingerprint()
        if outputs.is_done(job.target, job.done, fingerprint):
            return Result(job.source, is_old=True)
        photo = photos.read_photo(job.source)
        before = photos.turn_upright(photo.image, photo.orientation).copy() if job.settings.compare else None
        notes = make_up(photo, load_look(job.look), load_face_models(job.face_models), job.settings)
        if before is not None:
            data = photos.write_comparison(before, photo)
        elif job.settings.strength.nothing and job.source.suffix == job.target.suffix:
            data = photo.data
        else:
            data = photo.with_image(photo.image)
        outputs.save_marked(job.target, data, fingerprint)
    except (LeftOut, UserError) as reason:
        return Result(job.source, str(reason))
    except MemoryError:
        return Result(job.source, "there is too little memory for it")
    return Result(job.source, notes=notes)


def do_video(job: Job) -> Result:
    """Make up a video and write it, whole or not at all."""
    raise NotImplementedError


def do_jobs(jobs: list[Job], workers: int) -> list[Result]:
    """Do photos, in as many processes as there are cores, and videos, one after the other on all cores."""
    clips = [job for job in jobs if videos.is_video(job.source)]
    pictures = [job for job in jobs if job not in clips]
    if len(pictures) < FEW or workers == 1:
        results = [do_photo(job) for job in tqdm(pictures, unit="photo", disable=None if pictures else True)]
    else:
        results = run_jobs(do_photo, pictures, workers, "photos")
    return results + [do_video(job) for job in clips]


def summarise(results: list[Result], out: Path) -> str:
    """Return the last lines of the command.

    Raises:
        UserError: something could not be done; it lists what.
    """
    problems = [result for result in results if result.problem]
    old = sum(result.is_old for result in results)
    new = len(results) - len(problems) - old
    lines = [f"{result.source}: {note}" for result in results for note in result.notes]
    lines.append(f"{new:,} of {len(results):,} written to {out}" + (f", {old:,} were there already" if old else ""))
    if problems:
        print(*lines, sep="\n")
        listed = "\n".join(f"  {result.source}: {result.problem}" for result in problems)
        raise UserError(f"{len(problems):,} of {len(results):,} could not be done:\n{listed}")
    return "\n".join(lines)


# --- The command line ---------------------------------------------------------------------------------
def find_look(look: str) -> Path:
    """Return the file of a look: one that ships, by name, or the path of a .pt.

    Raises:
        UserError: there is none.
    """
    if look.endswith(".pt") or Path(look).is_file():
        return Path(look)  # whether it is there, and a network, is said where it is loaded
    known = sorted(path.stem for path in LOOKS.glob("*.pt"))
    if look not in known:
        similar = find_similar(look, known)
        hint = f", did you mean {similar}?" if similar else ";"
        raise UserError(f"there is no look {look!r}{hint} there are {', '.join(known)}, or give the path of a .pt")
    return LOOKS / f"{look}.pt"


def number(text: str) -> float:
    """Return a strength that was typed."""
    value = float(text)
    if not 0 <= value <= 1.5:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1.5, got {text}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text}")
        return int(text)

    return read


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the command line's flags."""
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False, epilog="README.md says more.")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="PHOTO|FOLDER|VIDEO")
    parser.add_argument("--look", required=True, help="one that ships (natural, evening, bold) or a .pt file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results; made if need be")
    parser.add_argument("--strength", type=number, default=1.0, help="of everything, 0 to 1.5 (default: 1)")
    for part in ("lips", "eyes", "skin"):
        parser.add_argument(f"--{part}", type=number, default=1.0, help="of this part, 0 to 1.5 (default: 1)")
    parser.add_argument("--faces", choices=("all", "largest"), default="all", help="(default: all)")
    parser.add_argument(
        "--smallest", type=whole(faces.MIN_SIDE), default=faces.MIN_SIDE, metavar="PX",
        help="side of the square around a face; smaller ones stay bare (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="before and after side by side, NAME_compare")
    parser.add_argument("--face_models", type=Path, metavar="FOLDER", help="where there is no network")
    parser.add_argument(
        "--workers", type=whole(1), default=count_cores(), help="photos at a time (default: %(default)s)"
    )
    return parser.parse_args(argv)


def apply(argv: list[str]) -> None:
    """Do what the command line asks for; raises UserError."""
    flags = parse_flags(argv)
    look = find_look(flags.look)
    sources = outputs.list_inputs(flags.inputs, photos.PHOTO_SUFFIXES | videos.VIDEO_SUFFIXES)
    ending = "_compare" if flags.compare else ""
    targets = outputs.find_targets(sources, flags.out, ending, photos.HEIF_SUFFIXES)
    load_look(look)
    face_models = fetch_face_models(flags.face_models)
    try:
        make_folder(flags.out)
    except OSError as error:
        raise UserError(f"cannot write to {flags.out}: {error.strerror}") from None
    strength = Strength(flags.strength, flags.lips, flags.eyes, flags.skin)
    settings = Settings(strength, flags.faces, flags.smallest, flags.compare)
    with lock_folder(flags.out):
        done, digest = outputs.read_marks(flags.out), outputs.find_digest(look)
        jobs = [
            Job(source, target, look, digest, face_models, settings, done.get(target.name, {}))
            for source, target in zip(sources, targets, strict=True)
        ]
        print(summarise(do_jobs(jobs, flags.workers), flags.out))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(apply, argv, interrupted="stopped; the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
