"""One look over the pairs as they are decoded: what can be trained on, but would teach something else.

`look_over` is called once a pair and is cheap: it looks at 64 x 64 pixels. What it finds is kept with the
decoded pair; `describe_oddities` puts it together, with what only shows when pairs are compared. Nothing
here stops a run. Every threshold stands between what was measured on good pairs (863 portraits in four looks,
400 drawn faces) and on the same pairs with the fault; tests/README.md has the table.
"""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tinybeauty.errors import list_some
from tinybeauty.images import IMAGE_SUFFIXES, UNREAD

LOOK = 1  # count up when `look_over` finds other things: pairs decoded before are then looked at anew
SIDE, BLOCKS, THUMB = 64, 16, 12  # pixels a side: for edges, for colours, and kept to compare pairs by
SAME_THUMB = 3.0  # grey levels; copies differ by less than 2, other faces by 10 and more
ALIGNED, MISPLACED = 0.8, 0.65  # correlation of edges; good pairs 0.77 and more, other faces at most 0.63
MEANING = {  # fault: what it is of a pair, and what it would mean
    "moved": (
        "targets are shifted against their sources",
        "the network would learn to move pixels; align them",
    ),
    "mirrored": ("targets are mirrored", "the network would learn nothing but blur; mirror them back"),
    "upside down": ("targets are upside down", "the network would learn nothing but blur; turn them"),
    "turned": ("targets are turned", "the network would learn nothing but blur; turn them back"),
    "negative": ("targets are negatives of their sources", "the network would learn to invert colours"),
    "other picture": (
        "targets do not lie on their sources",
        "another face, another crop or turned a little: the network would learn nothing but blur",
    ),
    "layer": (
        "targets are mostly one colour",
        "the makeup alone, without the face? A target is the whole made-up face",
    ),
    "flat": ("sources or targets are one flat colour", "there is nothing to learn from them"),
    "same": ("targets show no makeup", "they are their sources: the network would learn to do nothing"),
    "grey target": ("targets are grey", "the network would learn to take colours away"),
    "grey source": ("sources are grey, their targets are not", "the network would learn to colour them"),
    "channels": ("targets have red and blue swapped", "saved as BGR? The network would learn to swap them"),
    "tone": (
        "targets differ all over, at the border too",
        "another exposure or a lost colour profile: the network would learn that, too",
    ),
    "shape": (
        "pairs have files of different shapes",
        "they are squeezed differently and do not lie on each other; crop them alike",
    ),
    "not square": ("pairs are not square", "faces are squeezed to a square; crop them"),
    "small": ("pairs are smaller than half of image_size", "they are enlarged and soft; lower image_size"),
    "mask empty": ("eye masks are black everywhere", "the eyeliner loss looks at nothing there"),
    "mask dark": ("eye masks are nearly black", "saved as 0 and 1? White is 255"),
    "mask wide": (
        "eye masks are white on more than a third",
        "inverted, or of the whole face? The eyeliner loss wants the eyes",
    ),
    "mask grey": ("eye masks are neither black nor white", "pictures instead of masks?"),
}


class Signs(NamedTuple):
    """What a look at one pair has found; goes into the cache's index."""

    faults: list[str]  # keys of MEANING, some with details behind a colon
    thumbs: str  # base64 of source and target, THUMB x THUMB grey each


def look_over(
    source: Image.Image, target: Image.Image, mask: Image.Image | None, shapes: list[tuple[int, int]]
) -> Signs:
    """Return what is odd about a pair.

    Args:
        source: RGB, as it is trained on.
        target: the same size.
        mask: L, or None.
        shapes: width and height of the files before they were resized: source, target, mask if there is one.
    """
    size, side = source.width, min(SIDE, source.width)
    small = [
        picture.resize((side, side), Image.Resampling.BOX, reducing_gap=1) for picture in (source, target)
    ]
    greys = [picture.convert("L") for picture in small]
    blocks = [
        np.asarray(picture.resize((BLOCKS, BLOCKS), Image.Resampling.BOX))
        .astype(np.float32)
        .transpose(2, 0, 1)
        for picture in small
    ]
    faults = find_shape_faults(shapes, size)
    if any(high - low < 8 for low, high in (grey.getextrema() for grey in greys)):
        faults.append("flat")
    else:
        edges = [find_edges(grey) for grey in greys]
        if correlate(*edges) < ALIGNED:
            faults += find_place_faults(*small, *edges, size)
        if not faults:
            faults += find_colour_faults(*blocks)
    faults += find_mask_faults(mask) if mask else []
    thumbs = [grey.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes() for grey in greys]
    return Signs(faults, base64.b64encode(b"".join(thumbs)).decode())


def find_shape_faults(shapes: list[tuple[int, int]], size: int) -> list[str]:
    """Return what is odd about the shapes of a pair's files; 2 % are rounding."""
    ratios = [math.log(width / height) for width, height in shapes]
    texts = list(dict.fromkeys(f"{width} x {height}" for width, height in shapes))
    if max(ratios) - min(ratios) > 0.02:
        return ["shape:" + " and ".join(texts)]
    faults = [f"not square:{texts[0]}"] if abs(ratios[0]) > 0.05 else []
    smallest = min(min(shape) for shape in shapes[:2])
    return faults + ([f"small:{smallest} px"] if 2 * smallest < size else [])


def find_colour_faults(source: np.ndarray, target: np.ndarray) -> list[str]:
    """Return what is odd about the colours of a target that lies on its source.

    Args:
        source: means of blocks, (3, BLOCKS, BLOCKS): makeup shows in them, a JPEG's noise does not.
        target: the same.
    """
    difference = np.abs(source - target)
    most = difference.max(0)
    # The fourth largest: 5.5 and more of a light look, 2.4 at most of a JPEG of quality 75.
    if np.partition(most.ravel(), -4)[-4] < 3.5:
        return ["same"]
    mean = difference.mean()
    if mean < 2:  # all that follows changes more
        return []
    if mean > 3 and mean > 1.5 * np.abs(source[::-1] - target).mean():
        return ["channels"]
    colourful = [float((picture.max(0) - picture.min(0)).mean()) for picture in (source, target)]
    if min(colourful) < 4 and max(colourful) > 12:
        return ["grey target" if colourful[1] < colourful[0] else "grey source"]
    border = np.concatenate([most[0], most[-1], most[1:-1, 0], most[1:-1, -1]])  # there nobody wears makeup
    return ["tone"] if (border > 6).mean() > 0.5 else []


def find_place_faults(
    source: Image.Image, target: Image.Image, edges: np.ndarray, others: np.ndarray, size: int
) -> list[str]:
    """Return how a target lies that is not quite on its source, by their edges: those of makeup are few.

    Args:
        source: RGB, at most SIDE pixels a side.
        target: the same.
        edges: of the source.
        others: of the target.
        size: of the decoded pair, for what is said.
    """
    if find_commonest(target) - find_commonest(source) > 0.25:
        return ["layer"]
    straight = correlate(edges, others)
    if straight < -MISPLACED:
        return ["negative"]
    moved, right, down = find_shift(edges, others)
    if (right or down) and moved > MISPLACED and moved > straight + 0.1:
        step = size / source.width
        return [f"moved:{describe_shift(right * step, down * step)}"]
    if straight >= MISPLACED:
        return []
    turns = {
        "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
        "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
        "turned:180": Image.Transpose.ROTATE_180,
        "turned:90": Image.Transpose.ROTATE_90,
        "turned:270": Image.Transpose.ROTATE_270,
    }
    grey = target.convert("L")
    fits = {name: correlate(edges, find_edges(grey.transpose(turn))) for name, turn in turns.items()}
    best = max(fits, key=fits.get)
    return [best] if fits[best] > MISPLACED else ["other picture"]


def find_commonest(picture: Image.Image) -> float:
    """Return the share of the commonest of 17 x 17 x 17 colours; the middle of grey lies within one."""
    red, green, blue = ((np.asarray(picture).astype(np.int16) + 8) >> 4).reshape(-1, 3).T
    return float(np.bincount(red * 289 + green * 17 + blue).max() / red.size)


def find_edges(picture: Image.Image) -> np.ndarray:
    """Return the gradients in x and y, (2, N - 2, N - 2)."""
    grey = np.asarray(picture).astype(np.float32)
    return np.stack([grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]])


def correlate(edges: np.ndarray, others: np.ndarray) -> float:
    """Return how alike edges are: 1 the same, 0 not at all, -1 of a negative."""
    return float(np.vdot(edges, others) / math.sqrt(np.vdot(edges, edges) * np.vdot(others, others) + 1e-9))


def find_shift(edges: np.ndarray, others: np.ndarray) -> tuple[float, int, int]:
    """Return the correlation at the shift where edges are most alike, and its pixels right and down."""
    waves, other_waves = np.fft.rfft2(edges), np.fft.rfft2(others)
    fits = np.fft.irfft2((waves.conj() * other_waves).sum(0), s=edges.shape[1:])
    row, column = np.unravel_index(fits.argmax(), fits.shape)
    half = fits.shape[0] // 2  # a shift to the left stands at the end
    down, right = (row + half) % fits.shape[0] - half, (column + half) % fits.shape[0] - half
    most = fits.max() / math.sqrt(np.vdot(edges, edges) * np.vdot(others, others) + 1e-9)
    return float(most), int(right), int(down)


def describe_shift(right: float, down: float) -> str:
    """Return a shift in words, such as `16 px right`."""
    words = [(abs(right), "right" if right > 0 else "left"), (abs(down), "down" if down > 0 else "up")]
    return " and ".join(f"{length:.0f} px {way}" for length, way in words if length)


def find_mask_faults(mask: Image.Image) -> list[str]:
    """Return what is odd about an eye mask."""
    _, brightest = mask.getextrema()
    if brightest < 32:
        return [f"mask dark:at most {brightest} of 255"] if brightest else ["mask empty"]
    counts, area = mask.histogram(), mask.width * mask.height
    white = sum(counts[128:]) / area
    if sum(counts[32:224]) / area > 0.3:
        return ["mask grey"]
    if white > 1 / 3:
        return [f"mask wide:{white:.0%}"]
    return [] if white else ["mask empty"]


def describe_oddities(signs: dict[str, Signs], train: list[str], val: list[str]) -> list[str]:
    """Return a line for each thing that is odd about a data set: how many pairs, some names, what it means.

    Args:
        signs: of the pairs, by their stems.
        train: the stems that are trained on.
        val: those that are held out.
    """
    stems = sorted(train + val)
    thumbs = np.array([read_thumbs(signs[stem]) for stem in stems]).reshape(-1, 2, THUMB, THUMB)
    lines = []
    for kind, (what, meaning) in MEANING.items():
        names = []
        for number, stem in enumerate(stems):
            details = [
                fault.partition(":")[2] for fault in signs[stem].faults if fault.partition(":")[0] == kind
            ]
            if details and kind == "other picture" and len(names) < 5:  # as many as are shown
                details = [find_partner(number, thumbs, stems)]
            names += [f"{stem} ({detail})" if detail else stem for detail in details]
        if names:
            lines.append(f"{len(names):,} of {len(stems):,} {what}: {list_some(names)}. {meaning}")
    sides = [np.isin(stems, part) for part in (train, val)]
    if copies := find_copies(thumbs[:, 0], stems, *sides):
        lines.append(
            f"{len(copies):,} of {len(val):,} held-out pairs show a picture that is trained on as well: "
            f"{list_some(copies)}. The scores would be too good; remove the copies, or let person_pattern "
            "tell whose pictures they are"
        )
    return lines


def read_thumbs(signs: Signs) -> np.ndarray:
    """Return the thumbs of source and target, (2, THUMB, THUMB) float32."""
    return np.frombuffer(base64.b64decode(signs.thumbs), np.uint8).reshape(2, THUMB, THUMB).astype(np.float32)


def find_distances(thumbs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of each of (N, THUMB, THUMB) from each of (M, ...), (N, M)."""
    a, b = thumbs.reshape(-1, THUMB**2), others.reshape(-1, THUMB**2)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(squares.clip(0) / THUMB**2)


def find_partner(number: int, thumbs: np.ndarray, stems: list[str]) -> str:
    """Return `like NAME` for a target that lies on another pair's source, '' where there is none.

    Args:
        number: of the target.
        thumbs: (N, 2, THUMB, THUMB), of sources and targets.
        stems: their names.
    """
    distances = find_distances(thumbs[number, 1], thumbs[:, 0])[0]
    nearest = distances.argmin()
    return f"like {stems[nearest]}" if distances[nearest] < distances[number] / 2 else ""


def find_copies(
    sources: np.ndarray, stems: list[str], trained: np.ndarray, held_out: np.ndarray
) -> list[str]:
    """Return `NAME = OTHER` for held-out sources that are trained on, too, perhaps mirrored or saved anew.

    Args:
        sources: (N, THUMB, THUMB).
        stems: their names.
        trained: (N,) bool.
        held_out: (N,) bool.
    """
    copies = []
    numbers, others = np.flatnonzero(held_out), np.flatnonzero(trained)
    for first in range(0, len(numbers), 256):  # bounds the memory
        some = numbers[first : first + 256]
        for way in (1, -1):
            distances = find_distances(sources[some][:, :, ::way], sources[others])
            nearest = distances.argmin(1)
            alike = distances[np.arange(len(some)), nearest] < SAME_THUMB
            copies += [
                (number, other) for number, other in zip(some[alike], others[nearest[alike]], strict=True)
            ]
    names = {stems[number]: stems[other] for number, other in reversed(copies)}
    return [f"{name} = {names[name]}" for name in sorted(names)]


def are_plausible(signs: Signs) -> bool:
    """Return whether signs read from a file can be those of a pair."""
    kinds = {fault.partition(":")[0] for fault in signs.faults}
    thumbs = re.fullmatch(rf"[A-Za-z0-9+/]{{{8 * THUMB**2 // 3}}}", signs.thumbs)
    return bool(thumbs) and kinds <= MEANING.keys() and all(fault.isprintable() for fault in signs.faults)


def find_unread(data_dir: Path) -> list[str]:
    """Return a line for each folder with pictures that nobody reads: of other kinds, too deep, misnamed."""
    lines = []
    folders = [data_dir / "source", data_dir / "target", data_dir / "eye_mask"]
    for folder in folders:
        paths = sorted(folder.glob("[!.]*"))
        if names := [path.name for path in paths if path.suffix.lower() in UNREAD]:
            lines.append(
                f"{len(names):,} pictures in {folder} are of kinds that nobody reads: {list_some(names)}. "
                "They are left out; save them as PNG or JPEG"
            )
        if deeper := [f"{path.name}/" for path in paths if holds_pictures(path)]:
            lines.append(
                f"{len(deeper):,} folders in {folder} hold pictures that nobody reads: {list_some(deeper)}. "
                f"They are left out; move them up into {folder}"
            )
    others = [
        path for path in sorted(data_dir.glob("*mask*")) if path not in folders and holds_pictures(path)
    ]
    if others and not holds_pictures(folders[2]):
        lines.append(f"nobody reads the masks in {list_some(others)}. They belong into {folders[2]}")
    return lines


def holds_pictures(folder: Path) -> bool:
    """Return whether pictures lie in a folder, of whatever kind."""
    kinds = UNREAD | IMAGE_SUFFIXES
    return folder.is_dir() and any(path.suffix.lower() in kinds for path in folder.glob("[!.]*"))
