"""The files of a data set: found, paired by their stems, split by person."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from tinybeauty.errors import UserError, list_some
from tinybeauty.files import lock_folder
from tinybeauty.images import IMAGE_SUFFIXES, VARIANT, list_images


class Pair(NamedTuple):
    """The files of one pair; `eye_mask` is None where there is none, of one `alone` also source or target."""

    stem: str
    source: Path | None
    target: Path | None
    eye_mask: Path | None


class Matched(NamedTuple):
    """What is in the folders of a data set."""

    pairs: list[Pair]
    alone: list[Pair]  # without a partner: source or target is None
    problems: list[str]  # that do not allow to train on it


def match_pairs(data_dir: Path) -> Matched:
    """Return the pairs of `data_dir`, matched by whole stems, sorted, and all that is wrong with the names.

    Raises:
        UserError: a folder is missing or cannot be listed.
    """
    folders = [data_dir / "source", data_dir / "target"] if data_dir.is_dir() else [data_dir]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise UserError(
            f"there is no folder {' and no '.join(missing)}; a data set holds source/NAME.png and "
            "target/NAME.png"
        )
    problems: list[str] = []
    source, target = (list_images(folder, problems) for folder in folders)
    lacking = []
    for name, here, other_name, other in (
        ("target", target, "source", source),
        ("source", source, "target", target),
    ):
        if missing := sorted(other.keys() - here.keys()):
            count = f"{len(missing):,} of the {len(other):,} images in {other_name}"
            lacking.append(f"{data_dir / name} lacks {count}: {list_some(missing)}")
    if lacking:
        problems.append("\n  ".join([*lacking, "add the missing files or remove their partners"]))
    if not source and not target:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        problems.append(f"{data_dir / 'source'} and {data_dir / 'target'} hold no images ({kinds})")
    masks = list_images(data_dir / "eye_mask", problems) if (data_dir / "eye_mask").is_dir() else {}
    if strays := sorted(masks.keys() - source.keys() - target.keys()):
        print(f"          {len(strays):,} eye masks belong to no pair: {list_some(strays)}")
    everything = [
        Pair(stem, source.get(stem), target.get(stem), masks.get(stem))
        for stem in sorted(source.keys() | target.keys())
    ]
    pairs = [pair for pair in everything if pair.source and pair.target]
    return Matched(pairs, [pair for pair in everything if not (pair.source and pair.target)], problems)


def find_pairs(data_dir: Path) -> list[Pair]:
    """Return the pairs of `data_dir`, matched by whole stems, sorted.

    Raises:
        UserError: a folder or a partner is missing, two images share a stem, or there are no pairs.
    """
    pairs, _, problems = match_pairs(data_dir)
    if problems:
        raise UserError(join_problems(problems, data_dir))
    return pairs


def join_problems(problems: list[str], data_dir: Path) -> str:
    """Return one message of all that is wrong with the pairs."""
    if len(problems) == 1:
        return problems[0]
    lines = "\n".join(problems).replace("\n", "\n  ")
    return f"{len(problems)} things are wrong with the pairs in {data_dir}:\n  {lines}"


def check_person_pattern(pattern: str) -> str:
    """Return a `person_pattern` as it is.

    Raises:
        ValueError: it is no regular expression, or has no group.
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"must be a regular expression, got {pattern!r} ({error})") from None
    if not groups:
        raise ValueError(f"must have a group that catches the person, such as '(.+)_look', got {pattern!r}")
    return pattern


PersonPattern = Annotated[str, AfterValidator(check_person_pattern)]


def is_empty(folder: Path) -> bool:
    """Return whether nothing is in a folder, or it is not there."""
    return not (folder.is_dir() and any(folder.iterdir()))


def lacks_demo(data_dir: Path, demo_dirs: tuple[Path, ...]) -> bool:
    """Return whether a folder is that of the demo, however it was typed, and nothing is in it yet."""
    return data_dir.resolve() in {folder.resolve() for folder in demo_dirs} and is_empty(data_dir)


def draw_demo_pairs(tool: Path, data_dir: Path) -> None:
    """Draw the demo pairs with the tool that draws them; where another run does, wait for it.

    Raises:
        UserError: it has failed, and said why.
    """
    command = [sys.executable, str(tool), "--out", str(data_dir)]
    with lock_folder(data_dir.parent, wait=True, name=f".{data_dir.name}.lock"):  # a run may write there too
        if not is_empty(data_dir):  # the other run has drawn them
            return
        with subprocess.Popen(command) as drawing:  # which waits, also after Ctrl-C, until it has cleaned up
            failed = drawing.wait()
    if failed:
        raise UserError("the demo pairs could not be drawn, see above")


def strip_variant(stem: str) -> str:
    """Return the stem that a variant (`anna~v2`) was made from, whether that is there or not."""
    while match := VARIANT.fullmatch(stem):
        stem = match.group(1)
    return stem


def find_originals(stems: Iterable[str]) -> dict[str, str]:
    """Return {stem: the pair it is a variant of, or itself}; the first one stands in for a lost original."""
    firsts: dict[str, str] = {}
    for stem in sorted(stems, key=lambda stem: (len(stem), stem)):  # anna, anna~v2, anna~v10
        firsts.setdefault(strip_variant(stem), stem)
    return {stem: firsts[strip_variant(stem)] for stem in stems}


def count_variants(stems: Sequence[str]) -> int:
    """Return how many of the pairs of these stems are variants of others among them."""
    return len(stems) - len({strip_variant(stem) for stem in stems})


def find_people(stems: Sequence[str], person_pattern: str) -> dict[str, str]:
    """Return {file stem: the person it belongs to}; a variant is of its original's person.

    Raises:
        UserError: the pattern does not match some of the stems.
    """
    matches = {stem: re.match(person_pattern, strip_variant(stem)) for stem in stems}
    if others := [stem for stem, match in matches.items() if not match or match.group(1) is None]:
        of_all = f"{len(others):,} of the {len(stems):,} file stems"
        raise UserError(f"person_pattern {person_pattern!r} does not match {of_all}: {list_some(others)}")
    return {stem: match.group(1) for stem, match in matches.items()}


def split_pairs(pairs: list[Pair], val_fraction: float, person_pattern: str) -> tuple[list[Pair], list[Pair]]:
    """Return (training, validation) pairs, split by a hash of the person.

    Variants are only trained on: those of people held out are on neither side, so that scores compare with
    those of a run without variants. No person is on both sides, and adding or removing a pair moves no other
    pair: who is held out depends on the name alone. So the share is `val_fraction` on the average, not to
    the pair. Where the hash leaves a side empty (a handful of people), the person nearest to it goes there.
    With a `val_fraction` of 0 nobody is held out: all pairs are on one side, their originals on the other.

    Raises:
        UserError: there are fewer than two people, or the pattern does not match a stem.
    """
    people = find_people([pair.stem for pair in pairs], person_pattern)
    originals = find_originals(people)
    if not val_fraction:
        return pairs, [pair for pair in pairs if originals[pair.stem] == pair.stem]
    ranks = {
        person: int(hashlib.sha256(person.encode()).hexdigest()[:15], 16) / 16**15
        for person in people.values()
    }
    if len(ranks) < 2:
        raise UserError(
            f"all {len(pairs)} pairs are of one person ({list_some(ranks)}); training needs at least two, "
            "one to learn from and one to validate with: add pairs, change person_pattern, or set "
            "val_fraction: 0"
        )
    by_rank = sorted(ranks, key=ranks.get)
    held_out = {person for person in ranks if ranks[person] < val_fraction} | {by_rank[0]}
    held_out -= {by_rank[-1]}
    train = [pair for pair in pairs if people[pair.stem] not in held_out]
    val = [pair for pair in pairs if people[pair.stem] in held_out]
    return train, [pair for pair in val if originals[pair.stem] == pair.stem]
