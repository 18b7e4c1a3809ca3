"""Decoded pairs in one memory-mapped file: no picture is opened twice, in no epoch and in no later run."""

from __future__ import annotations

import hashlib
import math
import os
import textwrap
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, field_validator
from tqdm import tqdm

from tinybeauty.errors import UserError, list_some, one_line, readable
from tinybeauty.files import lock_folder, make_folder, save_bytes
from tinybeauty.images import describe_reader, read_resized
from tinybeauty.oddities import LOOK, Signs, are_plausible, describe_oddities, describe_unread, look_over
from tinybeauty.pairs import Pair, join_problems, match_pairs, split_pairs
from tinybeauty.workers import count_cores

DECODED_AT_ONCE = 64  # pairs; bounds the memory while decoding

# Name, bytes, time of writing and of change in ns, inode. `cp -p`, rsync and unzip set the time of writing
# back, but nobody can set the last two; a system that has none says 0 for them, or others each time, which
# costs a decoding and no more.
Files = list[tuple[str, int, int, int, int]]


class CachedPair(NamedTuple):
    """One entry of a cache's index."""

    row: int
    checksum: int  # CRC-32 of the pixels
    files: Files  # that it was decoded from
    signs: Signs


class Maker(BaseModel):
    """The part of an index that says who made it, whatever else is in there."""

    reader: str = ""  # what the pixels depend on besides the files; older formats did not say


class CacheIndex(Maker):
    """What `pairs_256.json` holds; checked like settings, for data sets come from anywhere."""

    pixels: str = Field(pattern=r"^pixels_\d+_[0-9a-f]+\.bin$")  # a name: no way out of the folder
    rows: int = Field(ge=0)
    pairs: dict[str, CachedPair]

    @field_validator("pairs")
    @classmethod
    def _check_rows(cls, pairs: dict[str, CachedPair], info: Any) -> dict[str, CachedPair]:
        if not all(0 <= pair.row < info.data.get("rows", 0) for pair in pairs.values()):
            raise ValueError("rows that do not exist")
        if not all(are_plausible(pair.signs) for pair in pairs.values()):
            raise ValueError("signs that do not exist")
        return pairs


def describe_files(pair: Pair) -> Files:
    """Return what would show that a file of a pair has changed."""
    described = []
    for path in (pair.source, pair.target, pair.eye_mask):
        if path is not None:
            with suppress(OSError):  # a file that has just gone: decoding will say so
                stat = path.stat()
                times = stat.st_mtime_ns, stat.st_ctime_ns
                described.append((readable(path.name), stat.st_size, *times, stat.st_ino))
    return described


def describe_maker() -> str:
    """Return what the rows and signs of a cache depend on besides the files."""
    return f"look {LOOK}, {describe_reader()}"


class Decoded(NamedTuple):
    """What comes of one pair."""

    pixels: np.ndarray  # (H, W, 7) uint8: source RGB, target RGB, eye mask (white without one)
    problems: list[str]  # why it cannot be trained on
    signs: Signs | None  # what is odd about it; None where there are problems


def decode_pair(pair: Pair, image_size: int) -> Decoded:
    """Read the files of a pair, or those that are there, and take one look at them."""
    pixels, problems = np.full((image_size, image_size, 7), 255, np.uint8), []
    images: list[Image.Image | None] = [None, None, None]
    shapes = []
    for place, (path, mode) in enumerate(((pair.source, "RGB"), (pair.target, "RGB"), (pair.eye_mask, "L"))):
        try:
            if path is not None:
                images[place], shape = read_resized(path, mode, image_size)
                shapes.append(shape)
                array = np.asarray(images[place]).reshape(image_size, image_size, -1)
                for channel in range(array.shape[2]):  # five times as fast as all at once
                    pixels[:, :, 3 * place + channel] = array[:, :, channel]
        except UserError as error:
            problems.append(str(error))
    whole = not problems and images[0] and images[1]
    return Decoded(pixels, problems, look_over(*images, shapes) if whole else None)


def map_pixels(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels in a file: mapped or, where its file system maps none, read into memory."""
    try:
        return np.memmap(path, np.uint8, "r", shape=shape)
    except OSError as error:
        print(f"          {path} cannot be mapped ({error.strerror}): it is read into memory instead")
        return np.fromfile(path, np.uint8, math.prod(shape)).reshape(shape)


class PixelCache:
    """Decoded pairs, one (H, W, 7) uint8 row each, in a file or, without a folder, in memory.

    `pixels_256_*.bin` holds the rows, `pairs_256.json` says whose they are. Rows are only ever appended
    and the index is replaced last: a kill leaves the old index and its rows as they were, and a run that
    is reading is not disturbed by one that adds pairs. Where most rows belong to nobody any more, a new
    file is begun.

    Attributes:
        pairs: {stem: its entry}.
        pixels: (rows, H, W, 7) uint8, memory-mapped and read-only where there is a folder.
    """

    def __init__(self, folder: Path | None, image_size: int) -> None:
        self.folder, self.shape = folder, (image_size, image_size, 7)
        self.pairs: dict[str, CachedPair] = {}
        self.pixels = np.empty((0, *self.shape), np.uint8)
        self._row_count = 0
        self._unchecked: set[str] = set()
        if folder is not None:
            self.index_path = folder / f"pairs_{image_size}.json"
            self.pixels_path = folder / f"pixels_{image_size}_{time.time_ns():x}.bin"

    def update(self, pairs: list[Pair]) -> dict[str, list[str]]:
        """Decode those of the pairs that are new or have changed, with a progress bar; forget all others.

        Returns:
            {stem: what is wrong} of the pairs that cannot be read.

        Raises:
            UserError: the cache cannot be written; what it held before is intact.
        """
        if self.folder is None:
            self.pixels = np.empty((len(pairs), *self.shape), np.uint8)
            return self._decode(pairs, self.pixels.__setitem__)
        with lock_folder(self.folder, wait=True):
            self._read_index()
            known, files = self.pairs, {pair.stem: describe_files(pair) for pair in pairs}
            self.pairs = {stem: known[stem] for stem in files if stem in known}
            self.pairs = {stem: entry for stem, entry in self.pairs.items() if entry.files == files[stem]}
            missing = [pair for pair in pairs if pair.stem not in self.pairs]
            broken = self._append(missing)
            if self.pairs != known:
                self._write_index()
        if self._row_count:
            self.pixels = map_pixels(self.pixels_path, (self._row_count, *self.shape))
        self._unchecked = set(self.pairs)
        return broken

    def read(self, stems: list[str]) -> np.ndarray:
        """Return the pixels of some pairs, (B, H, W, 7) uint8; a pair's first time, check them.

        Raises:
            UserError: the cache is damaged; it is thrown away, so that the next run makes a new one.
        """
        pixels = self.pixels[[self.pairs[stem].row for stem in stems]]
        for stem, row in zip(stems, pixels, strict=True):
            if stem in self._unchecked and zlib.crc32(row) != self.pairs[stem].checksum:
                self.index_path.unlink(missing_ok=True)
                raise UserError(
                    f"the cache {self.pixels_path} is damaged (pair {stem}) and has been given up; "
                    "start again, the pairs are then decoded anew"
                )
            self._unchecked.discard(stem)
        return pixels

    def _read_index(self) -> None:
        if not self.index_path.exists():
            return
        try:
            checksum, body = self.index_path.read_bytes().split(b"\n", 1)
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError("its check sum is wrong")
            if Maker.model_validate_json(body).reader != describe_maker():
                return  # whole, but of another reader or an older format: nothing to worry about
            index = CacheIndex.model_validate_json(body)
            path = self.folder / index.pixels
            if path.is_symlink() or path.stat().st_size < index.rows * math.prod(self.shape):
                raise ValueError(f"{path.name} is cut off or a link")
        except (OSError, ValueError) as error:
            reason = textwrap.shorten(one_line(error), 100)
            print(f"          the cache {self.index_path} is damaged ({reason}): decoding anew")
            return
        if index.rows <= 2 * len(index.pairs):
            self.pixels_path, self._row_count, self.pairs = path, index.rows, index.pairs

    def _write_index(self) -> None:
        name, reader = self.pixels_path.name, describe_maker()
        index = CacheIndex(reader=reader, pixels=name, rows=self._row_count, pairs=self.pairs)
        body = index.model_dump_json().encode()
        save_bytes(self.index_path, b"%08x\n%s" % (zlib.crc32(body), body))
        for path in self.folder.glob(f"pixels_{self.shape[0]}_*.bin"):
            if path != self.pixels_path:
                with suppress(OSError):  # Windows keeps what another run has open
                    path.unlink()

    def _append(self, pairs: list[Pair]) -> dict[str, list[str]]:
        row_bytes, rows_before = math.prod(self.shape), self._row_count
        try:
            with self.pixels_path.open("r+b" if rows_before else "wb") as file:

                def write(row: int, pixels: np.ndarray) -> None:
                    file.seek(row * row_bytes)
                    file.write(pixels)

                broken = self._decode(pairs, write)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not rows_before:
                self.pixels_path.unlink(missing_ok=True)
            raise UserError(
                f"cannot write the cache {self.pixels_path}: {error.strerror}; it takes "
                f"{(rows_before + len(pairs)) * row_bytes / 1e6:,.0f} MB. Make room, or set cache_dir to "
                "another folder, or to '' (in memory)"
            ) from None
        return broken

    def _decode(self, pairs: list[Pair], write: Callable[[int, np.ndarray], None]) -> dict[str, list[str]]:
        broken = {}
        with (
            ThreadPoolExecutor(
                min(count_cores() + 4, 32)
            ) as executor,  # Pillow decodes and resizes outside of Python's lock
            tqdm(desc="reading pairs", total=len(pairs), unit="pair", disable=None, leave=False) as bar,
        ):
            for first in range(0, len(pairs), DECODED_AT_ONCE):
                some = pairs[first : first + DECODED_AT_ONCE]
                files = [describe_files(pair) for pair in some]  # before they are read: a change shows later
                decoded = executor.map(decode_pair, some, repeat(self.shape[0]))
                for pair, (pixels, problems, signs), read_files in zip(some, decoded, files, strict=True):
                    bar.update()
                    if problems:
                        broken[pair.stem] = problems
                    if signs is None:
                        continue
                    write(self._row_count, pixels)
                    entry = CachedPair(self._row_count, zlib.crc32(pixels), read_files, signs)
                    self.pairs[pair.stem] = entry
                    self._row_count += 1
        return broken


def choose_cache_dir(cache_dir: str, data_dir: Path) -> Path | None:
    """Return the folder for the decoded pairs, made where it is missing; None for in memory.

    Args:
        cache_dir: '' for in memory; `auto` for `.cache` in `data_dir` or, where that is read-only, a folder
            in the user's cache; any other folder can serve several data sets: each gets its own inside.
        data_dir: the data set.

    Raises:
        UserError: the configured folder cannot be written to.
    """
    if not cache_dir:
        return None
    data_dir, place = data_dir.resolve(), Path(cache_dir)
    if cache_dir == "auto":
        with suppress(OSError):
            make_folder(data_dir / ".cache")
            return data_dir / ".cache"
        users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
        if users.startswith("~"):  # neither a HOME nor an entry in /etc/passwd: there Path's raises
            print("          there is no folder for a cache: the decoded pairs stay in memory")
            return None
        place = Path(users) / "tinybeauty"
    place /= f"{data_dir.name}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]}"
    try:
        make_folder(place)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {place}: {error.strerror}; set cache_dir to another folder, "
            "or to '' to keep the pairs in memory"
        ) from None
    return place


def decode_pairs(pairs: list[Pair], image_size: int, folder: Path | None, skip_bad: bool) -> PixelCache:
    """Return a cache that holds the pairs; decode what it does not hold yet.

    Args:
        pairs: the files.
        image_size: pixels a side; images of other sizes are resized.
        folder: of the cache; None keeps the pixels in memory.
        skip_bad: leave out the pairs that cannot be read, and say how many.

    Raises:
        UserError: without `skip_bad`, names the files that cannot be read, after all have been tried;
            the cache cannot be written.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of odd EXIF: they do not name the file
    cache = PixelCache(folder, image_size)
    broken = cache.update(pairs)
    if broken and not skip_bad:
        raise UserError(describe_broken(broken))
    if broken:
        problems = [problem for of_pair in broken.values() for problem in of_pair]
        print(f"          left out {len(broken):,} pairs that cannot be read: {list_some(problems)}")
    return cache


def describe_broken(broken: dict[str, list[str]]) -> str:
    """Return the message that names the files that cannot be read, {stem: what is wrong} of their pairs."""
    problems = [problem for of_pair in broken.values() for problem in of_pair]
    return (
        f"cannot read {len(problems):,} images; replace or remove them, or set skip_bad_pairs: true"
        + "".join(f"\n  {problem}" for problem in problems[:5])
        + (f"\n  and {len(problems) - 5:,} more" if len(problems) > 5 else "")
    )


def read_pairs(
    data_dir: Path,
    image_size: int,
    cache_dir: str,
    skip_bad: bool,
    val_fraction: float,
    person_pattern: str,
) -> tuple[list[Pair], list[Pair], PixelCache]:
    """Return the training and the validation pairs of a data set, and a cache that holds them.

    What looks odd about them is printed.

    Args:
        data_dir: the data set.
        image_size: as in `decode_pairs`, like the next two.
        cache_dir: as in `choose_cache_dir`.
        skip_bad: leave out the pairs that cannot be read.
        val_fraction: as in `split_pairs`, like the next one.
        person_pattern: which pairs are of one person.

    Raises:
        UserError: says all that is wrong with the pairs, their names and their pictures, at once.
    """
    for line in describe_unread(data_dir):
        print(f"data looks odd: {line}")
    (pairs, alone, problems), parts = match_pairs(data_dir), ([], [])
    folder = choose_cache_dir(cache_dir, data_dir)  # not before: it would make a data_dir that is not there
    try:
        parts = split_pairs(sorted(pairs + alone), val_fraction, person_pattern) if pairs else parts
    except UserError as error:
        problems.append(str(error))
    if problems and not skip_bad:  # then the pictures that cannot be read belong into the same list
        broken = PixelCache(folder, image_size).update(pairs) | PixelCache(None, image_size).update(alone)
        problems += [describe_broken(broken)] if broken else []
    if problems:
        raise UserError(join_problems(problems, data_dir))
    used = sorted({*parts[0], *parts[1]})
    if unused := len(pairs) - len(used):
        print(f"          {unused:,} variants of people held out are not used")
    cache = decode_pairs(used, image_size, folder, skip_bad)
    train, val = ([pair.stem for pair in part if pair.stem in cache.pairs] for part in parts)
    if not (train and val):
        raise UserError("without the pairs that cannot be read, none are left to train on or validate with")
    signs = {stem: entry.signs for stem, entry in cache.pairs.items()}
    for line in describe_oddities(signs, train, val if val_fraction else []):
        print(f"data looks odd: {line}")
    return *parts, cache
