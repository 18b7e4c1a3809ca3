"""Turn photos into training pairs: find the faces, align them as FFHQ does, put a look on.

    python data/prepare_pairs.py PHOTOS --look evening --out data/evening
    python data/prepare_pairs.py PHOTOS --variants 4          # and each face three times more, varied
    python data/prepare_pairs.py --masks-only data/faces      # adds eye_mask/ to pairs

Writes `source/NAME.png`, `target/NAME.png`, `eye_mask/NAME.png` (further faces: NAME_2 ...; variants:
NAME~v2 ...), `skipped.csv` and `preview.png`. The look is one of `looks.yaml`. Landmarks are MediaPipe's
478; a `NAME.json` beside the photo, `{"landmarks": [[x, y] * 478]}` in its pixels, spares the search. A pair
depends on the photo, its landmarks, the look, the size and a variant's number alone. The same command goes on
where it was stopped. How faces are found stands in tinybeauty/faces.py, how makeup is painted in
data/makeup.py, how variants are made in data/variants.py.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import os
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `python data/...` puts data/ alone there

from makeup import VERSION, Portrait, draw_eye_mask, load_look, paint_look, to_linear_look
from variants import VARIATION, draw_variant, vary

from tinybeauty.alignment import Array, align
from tinybeauty.errors import LeftOut, Parser, UserError, list_some, readable, run_command
from tinybeauty.face_models import fetch_face_models, load_face_models
from tinybeauty.faces import check_colours, check_face, check_shape, check_sharpness, find_faces
from tinybeauty.files import lock_folder, make_folder, path_flag, save_bytes
from tinybeauty.images import IMAGE_SUFFIXES, READER, VARIANT, find_unread, list_images, open_image
from tinybeauty.landmarks import UPPER_LID, read_landmarks
from tinybeauty.workers import count_cores, run_jobs

HERE = Path(__file__).resolve().parent
KINDS = ("source", "target", "eye_mask")
FINDER = 2  # number of the way to find faces: another one, and pairs of faces it found are made anew
MARK = "tinybeauty"  # the text in a PNG that says what it was made from
HEADER = ("file", "reason")  # of skipped.csv
LONGEST = 255 - len(".NAME_10~v100.png.partial") + len("NAME")  # bytes of a photo's stem, as files have 255


# ======================================================================================================
# Pairs and their files
# ======================================================================================================


@dataclass(frozen=True)
class Job:
    """One photo and what to do with it; goes to a worker process.

    Attributes:
        photo: Where it is; its landmarks may lie beside it.
        out: Folder of the pairs.
        look: The look's parts as in looks.yaml, its colours as `#rrggbb`.
        size: Side of the pairs in pixels.
        face_models: Folder of the models that find faces; None for the user's cache.
        settings: What the pairs depend on besides the photo and its landmarks, as text.
        taken: Names that further faces must not get: other photos have them.
        variants: Pairs to make of each face: its own, and variants of it.
    """

    photo: Path
    out: Path
    look: dict[str, dict[str, Any]]
    size: int
    face_models: Path | None
    settings: str = ""
    taken: frozenset[str] = frozenset()
    variants: int = 1


@dataclass
class Result:
    """What came of a photo: its pairs' names, what was left out, (file, reason), how many were there."""

    names: list[str]
    left_out: list[tuple[str, str]]
    there: int = 0


def save_png(path: Path, picture: Image.Image, mark: dict[str, Any]) -> None:
    """Write a PNG whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text(MARK, json.dumps(mark))
    picture.save(file, "PNG", compress_level=1, compress_type=3, pnginfo=info)  # RLE: fast and small
    # Not durable: to wait for the disk thousands of times costs more than to make a lost pair anew.
    save_bytes(path, file.getvalue(), durable=False)


def read_mark(path: Path) -> dict[str, Any] | None:
    """Return what the PNG at `path` was made from, None if it says nothing or is not there."""
    try:
        with Image.open(path) as image:
            return json.loads(image.info[MARK])
    except (OSError, ValueError, KeyError):
        return None


def name_pairs(names: list[str], variants: int) -> list[str]:
    """Return the names of the pairs of a photo's faces: each face's own, then those of its variants."""
    return [
        f"{name}~v{number}" if number > 1 else name for name in names for number in range(1, variants + 1)
    ]


def mark_pair(name: str, mark: dict[str, Any]) -> dict[str, Any]:
    """Return the mark of a pair, given its photo's: variants also depend on how they are made."""
    return mark | {"made_from": f"{mark['made_from']} {VARIATION}"} if VARIANT.fullmatch(name) else mark


def is_there(job: Job, name: str, mark: dict[str, Any]) -> bool:
    """Return whether the pair `name` of a photo with this mark is there and nothing has changed since."""
    # All three: a run with other settings may have been stopped between them.
    files = [job.out / kind / f"{name}.png" for kind in KINDS]
    return all(read_mark(file) == mark_pair(name, mark) for file in files)


def find_finished(job: Job, fingerprint: str) -> Result | None:
    """Return the earlier result of a photo if all its pairs are there and nothing has changed since."""
    mark = read_mark(job.out / "target" / f"{job.photo.stem}.png") or {}
    if mark.get("made_from") != fingerprint:
        return None
    names = name_pairs(mark["names"], job.variants)
    if not all(is_there(job, name, mark) for name in names):
        return None
    return Result(names, [tuple(row) for row in mark["left_out"]], len(names))


def read_files(photo: Path) -> tuple[bytes, bytes | None]:
    """Return the bytes of a photo and of the landmarks beside it, None where there are none.

    Raises:
        LeftOut: one of the two cannot be read, or files of the pairs could not be named after it.
    """
    if len(os.fsencode(photo.stem)) > LONGEST:
        raise LeftOut(f"its name is too long for those of its pairs: over {LONGEST} bytes; rename it")
    beside = photo.with_suffix(".json")
    try:
        return photo.read_bytes(), beside.read_bytes() if beside.is_file() else None
    except OSError as error:
        raise LeftOut(f"cannot be read: {error.strerror}") from None


def read_photo(data: bytes) -> Image.Image:
    """Return a photo as the training reads it: upright, RGB, at its own size.

    Raises:
        LeftOut: the file is broken, no image, or too large, also for the memory.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of odd EXIF: they do not name the file
    try:
        return open_image(io.BytesIO(data))
    except ValueError as error:
        raise LeftOut(f"cannot be read: {error}") from None
    except MemoryError:
        raise LeftOut("there is too little memory for it") from None


def look_for_faces(
    photo: Image.Image, landmarks: bytes | None, models: Path | None
) -> tuple[list[Array], list[str]]:
    """Return the landmarks (478, 2) of a photo's faces, the largest first, and why others are left out.

    Args:
        photo: upright, RGB.
        landmarks: what the json file beside the photo holds; None finds the faces.
        models: the folder of the face models; None for the user's cache.

    Raises:
        LeftOut: there is none.
    """
    if landmarks is not None:
        return [read_landmarks(landmarks)], []
    found = find_faces(photo, load_face_models(models))
    faces, left_out = [], list(found.left_out)
    for face in found.faces:
        try:
            check_shape(face)
            faces.append(face.points)
        except LeftOut as reason:
            left_out.append(str(reason))
    if not (faces or left_out):
        raise LeftOut("no face found")
    return faces, left_out


def take_faces(
    job: Job, photo: Image.Image, faces: list[Array]
) -> tuple[list[tuple[str, int, Image.Image, Array]], list[str]]:
    """Return name, number, aligned picture and landmarks of the faces to make up, and why others are not."""
    taken, left_out = [], []
    for number, points in enumerate(faces, start=1):
        try:
            check_face(photo, points)
            picture, aligned = align(photo, points, job.size)
            check_sharpness(picture, aligned)
            check_colours(picture, aligned)
            name = job.photo.stem + (f"_{len(taken) + 1}" if taken else "")
            if name in job.taken:
                raise LeftOut(f"its pair would be named {name}, and so is another photo")
            taken.append((name, number, picture, aligned))
        except LeftOut as reason:
            left_out.append(f"face {number}: {reason}" if len(faces) > 1 else str(reason))
    return taken, left_out


def make_pairs(job: Job) -> Result:
    """Make and write the pairs of one photo and of its variants, unless they are there.

    Raises:
        UserError: the folder cannot be written.
    """
    file = job.photo.name
    try:
        if VARIANT.fullmatch(job.photo.stem):
            raise LeftOut("its name ends as those of variants do: rename it")
        data, landmarks = read_files(job.photo)
        # Names that are taken decide which of the faces found get a pair.
        found = [b"found by %d" % FINDER, *(os.fsencode(name) for name in sorted(job.taken))]
        made_of = [job.settings.encode(), data, landmarks or b"".join(found)]
        fingerprint = hashlib.sha256(b"".join(made_of)).hexdigest()[:16]
        if finished := find_finished(job, fingerprint):
            return finished
        photo = read_photo(data)
        faces, reasons = look_for_faces(photo, landmarks, job.face_models)
    except LeftOut as reason:
        return Result([], [(file, str(reason))])
    taken, more_reasons = take_faces(job, photo, faces)
    names = [name for name, *_ in taken]
    left_out = [[file, reason] for reason in (*reasons, *more_reasons)]  # lists, as in a mark that was read
    mark = {"made_from": fingerprint, "names": names, "left_out": left_out}
    look, there = to_linear_look(job.look), 0
    # The first pair's target comes last of all: where it is, the photo is finished.
    for name, face, picture, aligned in reversed(taken):
        for number, pair_name in reversed(list(enumerate(name_pairs([name], job.variants), start=1))):
            if is_there(job, pair_name, mark):
                there += 1
                continue
            pair = (picture, aligned)
            if number > 1:
                pair = vary(photo, faces[face - 1], job.size, draw_variant(data, face, number))
            write_pair(job, pair_name, *pair, look, mark_pair(pair_name, mark))
    return Result(name_pairs(names, job.variants), [(file, reason) for file, reason in left_out], there)


def write_pair(
    job: Job, name: str, source: Image.Image, points: Array, look: dict[str, Any], mark: dict[str, Any]
) -> None:
    """Put the look on an aligned face and write the pair, its target last.

    Raises:
        UserError: the folder cannot be written.
    """
    face = Portrait(np.asarray(source), points)
    target, eye_mask = Image.fromarray(paint_look(face, look)), Image.fromarray(draw_eye_mask(face))
    for kind, picture in (("source", source), ("eye_mask", eye_mask), ("target", target)):
        save_png(job.out / kind / f"{name}.png", picture, mark)


def add_mask(job: Job) -> Result:
    """Write the eye mask of one source picture as it is, without aligning; all its faces count.

    Raises:
        UserError: the folder cannot be written.
    """
    name = job.photo.name
    try:
        data, landmarks = read_files(job.photo)
        photo = read_photo(data)
        faces, reasons = look_for_faces(photo, landmarks, job.face_models)
        for points in faces:
            check_colours(photo, points)
            eyes = points[[*UPPER_LID[0], *UPPER_LID[1]]]
            if (eyes < 0).any() or (eyes > photo.size).any() or np.ptp(eyes, axis=0).max() < 8:
                raise LeftOut("cut off or too small: eyes outside the picture or under 8 px apart")
    except LeftOut as reason:
        return Result([], [(name, str(reason))])
    left_out = [(name, reason) for reason in reasons]
    if not faces:
        return Result([], left_out)
    masks = [draw_eye_mask(Portrait(np.asarray(photo), points)) for points in faces]
    save_png(job.out / "eye_mask" / f"{job.photo.stem}.png", Image.fromarray(np.max(masks, axis=0)), {})
    return Result([job.photo.stem], left_out)


# ======================================================================================================
# A folder of photos
# ======================================================================================================


def list_photos(folder: Path) -> list[Path]:
    """Return the images of a folder sorted by name.

    Raises:
        UserError: the folder cannot be listed, holds no images, or two of one stem.
    """
    photos = list(list_images(folder).values())
    if not photos:
        unread = list_some(path.name for path in find_unread(folder))
        others = f"; {unread}: save them as PNG or JPEG" if unread else ""
        raise UserError(f"{folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}){others}")
    return photos


def name_unread(folder: Path) -> list[Result]:
    """Return a result for each picture of a kind that is not read: it is left out."""
    reason = "not read: {} pictures are not supported, save it as PNG or JPEG"
    return [Result([], [(path.name, reason.format(path.suffix))]) for path in find_unread(folder)]


def find_models(photos: list[Path], face_models: Path | None) -> Path | None:
    """Return the folder of the models that find faces, fetched if need be; None if no photo needs them.

    Raises:
        UserError: they cannot be had.
    """
    if all(path.with_suffix(".json").is_file() for path in photos):
        return None
    return fetch_face_models(face_models)


@contextmanager
def open_folders(out: Path, kinds: tuple[str, ...]) -> Iterator[None]:
    """Make the output folders, keep other runs out, and remove what a killed run left half-written.

    Raises:
        UserError: another run is writing into them.
        OSError: they cannot be written.
    """
    for kind in kinds:
        make_folder(out / kind)
    with lock_folder(out):
        for kind in kinds:
            for path in (out / kind).glob(".*.partial"):
                path.unlink()
        yield


def find_taken(stems: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return {stem: those of other photos that its further faces would have} (`anna_2` of `anna`)."""
    taken: dict[str, set[str]] = defaultdict(set)
    for stem in stems:
        first, _, number = stem.rpartition("_")
        if number.isdecimal():
            taken[first].add(stem)
    return {first: frozenset(names) for first, names in taken.items()}


def is_strange(path: Path) -> bool:
    """Return whether a picture or a report is there that this tool did not make."""
    if not path.exists() or (path.is_file() and not path.stat().st_size):  # as the power's failure leaves it
        return False
    if path.suffix == ".csv":
        return not path.read_bytes().startswith(",".join(HEADER).encode())
    # What is no picture, such as Windows' Thumbs.db, is in nobody's way.
    return path.suffix.lower() in IMAGE_SUFFIXES and read_mark(path) is None


def check_strangers(out: Path) -> None:
    """Refuse a folder with files of somebody else's: they would be overwritten or mixed in.

    Raises:
        UserError: names some of them.
    """
    own = {kind: sorted((out / kind).iterdir()) if (out / kind).is_dir() else [] for kind in KINDS}
    for kind, paths in ({"": [out / "preview.png", out / "skipped.csv"]} | own).items():
        folder = out / kind
        if others := [path.name for path in paths if path.name[0] != "." and is_strange(path)]:
            raise UserError(
                f"{folder} holds files that this tool did not make: {list_some(others)}; "
                "choose another folder with --out"
            )


def save_report(folder: Path, results: list[Result]) -> int:
    """Write skipped.csv, with a header alone if nothing was left out; return its number of rows."""
    rows = [map(readable, row) for result in results for row in result.left_out]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    save_bytes(folder / "skipped.csv", text.getvalue().encode())
    return len(rows)


def save_preview(out: Path, names: list[str], columns: int = 3, rows: int = 4, side: int = 224) -> None:
    """Write preview.png: pairs from all over the folder, bare and made up side by side."""
    count = min(len(names), columns * rows)
    chosen = [names[index * len(names) // count] for index in range(count)]
    columns = min(columns, count)
    sheet = Image.new(
        "RGB", (columns * (2 * side + 8) - 8, math.ceil(count / columns) * (side + 8) - 8), "white"
    )
    for index, name in enumerate(chosen):
        for half, kind in enumerate(("source", "target")):
            with Image.open(out / kind / f"{name}.png") as picture:
                small = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(
                small, (index % columns * (2 * side + 8) + half * side, index // columns * (side + 8))
            )
    save_png(out / "preview.png", sheet, {})


def explain_left_out(results: list[Result]) -> str:
    """Return the commonest reasons for leaving photos out, for a message."""
    reasons = [
        re.sub(r"face \d+: ", "", reason).split(":")[0] for result in results for _, reason in result.left_out
    ]
    counts = sorted(((reasons.count(reason), reason) for reason in set(reasons)), reverse=True)
    return ", ".join(f"{count:,} {reason}" for count, reason in counts[:4])


# ======================================================================================================
# Command line
# ======================================================================================================


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Return the checked flags.

    Raises:
        UserError: a flag is unknown, out of range or missing.
    """
    parser = Parser(__doc__, epilog="data/README.md says more.")
    parser.add_argument("photos", type=path_flag, nargs="?", metavar="PHOTOS", help="folder of photos")
    parser.add_argument("--look", default="evening", help="name of a look (default: %(default)s)")
    parser.add_argument(
        "--looks",
        type=path_flag,
        default=HERE / "looks.yaml",
        help="file (default: data/looks.yaml)",
    )
    parser.add_argument("--out", type=path_flag, help="folder for the pairs (default: data/LOOK)")
    parser.add_argument(
        "--size", type=int, default=512, help="pixels, a multiple of 8 (default: %(default)s)"
    )
    parser.add_argument(
        "--variants",
        type=int,
        default=1,
        metavar="N",
        help="pairs of each face: its own and N - 1 in other light, crops, cameras (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=min(count_cores(), 32), help="processes (default: one a core)"
    )
    parser.add_argument(
        "--masks-only", type=path_flag, metavar="DATA_DIR", help="add eye_mask/ to pairs without it"
    )
    parser.add_argument(
        "--face_models",
        type=path_flag,
        metavar="FOLDER",
        help="models that find faces (default: fetched once)",
    )
    flags = parser.parse_args(argv)
    if flags.size % 8 or not 64 <= flags.size <= 1024:
        raise UserError(f"--size must be a multiple of 8 from 64 to 1024, got {flags.size}")
    if not 1 <= flags.variants <= 100:
        raise UserError(f"--variants must be from 1 to 100, got {flags.variants}")
    if not 1 <= flags.workers <= 256:
        raise UserError(f"--workers must be from 1 to 256, got {flags.workers}")
    if (flags.photos is None) == (flags.masks_only is None):
        raise UserError("give either a folder of photos or --masks-only DATA_DIR; see --help")
    pairs_alone = [f"--{key}" for key in ("look", "looks", "out", "size", "variants")
                   if getattr(flags, key) != parser.get_default(key)]  # fmt: skip
    if flags.masks_only and pairs_alone:
        raise UserError(
            f"--masks-only adds masks to the pairs in its folder: leave out {', '.join(pairs_alone)}"
        )
    return flags


def prepare_pairs(
    photos: Path,
    look: str,
    looks: Path,
    out: Path,
    size: int,
    variants: int,
    workers: int,
    face_models: Path | None,
) -> str:
    """Make pairs from a folder of photos; return the last line to print.

    Raises:
        UserError: names what to mend.
        OSError: the output folder cannot be written.
    """
    started = time.monotonic()
    groups = load_look(looks, look)
    paths = list_photos(photos)
    if photos.resolve() in {folder.resolve() for folder in (out, *(out / kind for kind in KINDS))}:
        raise UserError(f"{out} holds the photos; choose another folder for the pairs with --out")
    check_strangers(out)
    models = find_models(paths, face_models)
    settings = json.dumps([VERSION, READER, size, groups], sort_keys=True)
    taken = find_taken(path.stem for path in paths)
    jobs = [
        Job(path, out, groups, size, models, settings, taken.get(path.stem, frozenset()), variants)
        for path in paths
    ]
    with open_folders(out, KINDS):
        results = run_jobs(make_pairs, jobs, workers, f"putting {look} on") + name_unread(photos)
        lines = save_report(out, results)
        names = [name for result in results for name in result.names]
        if not names:
            raise UserError(
                f"none of the {len(paths):,} photos gave a pair: {explain_left_out(results)}; "
                f"see {out / 'skipped.csv'}"
            )
        save_preview(out, sorted(names))
    strays = {path.stem for kind in KINDS for path in (out / kind).glob("[!.]*.png")} - set(names)
    if strays:
        stray = f"{len(strays):,} pairs in {out} are of no photo or variant of this run"
        stray += f": {list_some(sorted(strays))}"
        stray += "; a training takes them too, whatever look they show"
        print(f"note: {stray}; delete them or choose another --out", file=sys.stderr)
    seconds = time.monotonic() - started
    there = sum(result.there for result in results)
    text = f"{len(names):,} pairs of {size} px ({look}) in {out}, with preview.png and skipped.csv"
    varied = sum(VARIANT.fullmatch(name) is not None for name in names)
    text += f"; {varied:,} of them are variants" if varied else ""
    text += f"; {there:,} of them were there" if there else ""
    text += f"; left out: {explain_left_out(results)}" if lines else ""
    return f"{text} ({seconds:.0f} s, {len(paths) / seconds:.1f} photos/s)"


def add_masks(data_dir: Path, workers: int, face_models: Path | None) -> str:
    """Add the missing eye masks to a folder of pairs; return the last line to print.

    Raises:
        UserError: names what to mend.
        OSError: the folder cannot be written.
    """
    paths = list_photos(data_dir / "source")
    masks = data_dir / "eye_mask"
    have = (
        {readable(path.stem) for path in masks.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
        if masks.is_dir()
        else set()
    )
    lacking = [path for path in paths if readable(path.stem) not in have]
    if not lacking:
        return f"all {len(paths):,} pairs in {data_dir} have their eye masks already"
    if is_strange(report := data_dir / "skipped.csv"):
        raise UserError(f"{report} is there, and this tool did not make it: move it away")
    models = find_models(lacking, face_models)
    jobs = [Job(path, data_dir, {}, 0, models) for path in lacking]
    with open_folders(data_dir, ("eye_mask",)):
        results = run_jobs(add_mask, jobs, workers, "drawing eye masks") + name_unread(data_dir / "source")
        lines = save_report(data_dir, results)
    made = sum(len(result.names) for result in results)
    if not made:
        reasons = explain_left_out(results)
        raise UserError(f"none of the {len(lacking):,} pictures gave an eye mask: {reasons}")
    text = f"{made:,} eye masks added to {masks}"
    return text + (
        f"; left out: {explain_left_out(results)}, see {data_dir / 'skipped.csv'}" if lines else ""
    )


def prepare(argv: list[str]) -> None:
    """Run the command line.

    Raises:
        UserError: names what to mend.
    """
    flags = parse_flags(argv)
    out = flags.masks_only or flags.out or HERE / flags.look
    try:
        if flags.masks_only:
            print(add_masks(out, flags.workers, flags.face_models))
        else:
            what = (flags.photos, flags.look, flags.looks, out, flags.size, flags.variants, flags.workers)
            print(prepare_pairs(*what, flags.face_models))
    except OSError as error:
        remedy = "" if flags.masks_only else "; choose another folder with --out"
        raise UserError(f"cannot write {error.filename or out}: {error.strerror or error}{remedy}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return run_command(prepare, argv, "stopped; what is finished stays, the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
