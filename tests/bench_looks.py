"""How well the networks put their looks on people they never saw, and whether all skins are served alike.

    python tests/bench_looks.py PHOTOS --pairs data
    python tests/bench_looks.py PHOTOS --pairs data --displaced   # faces beside their place, too: minutes

Measures every network of tinybeauty_model/pretrained, say evening.pt, on the pairs that a training run on
`<pairs>/evening` holds out. They come from `data/prepare_pairs.py PHOTOS`, with the landmarks beside the
photos: these tell where the bare skin is, whose lightness (CIE L*) sorts the people into thirds, and where
lips, lids and cheeks are. The visible change is the mean CIEDE2000 from bare to made up in each of them.
`--displaced` cuts faces out beside their place, paints them where they are, and gives the loss of gain.
Prints tables in Markdown, each figure the mean over people; asserts nothing.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from makeup import Portrait, load_look, paint_look, to_linear_look
from prepare_pairs import list_photos, read_files, read_photo

import tinybeauty_training as program
from tinybeauty.alignment import align, find_quad
from tinybeauty.cache import PixelCache, decode_pairs
from tinybeauty.landmarks import read_landmarks
from tinybeauty.pairs import Pair, find_pairs, split_pairs
from tinybeauty.phones.checks import find_truth

ROOT = Path(program.__file__).parent
THIRDS = ("darkest", "middle", "lightest")
Scores = dict[str, np.ndarray]  # a metric's name -> (N,), one value a person


# name -> what is wrong with the square: moved by a share of its width, faces larger, turned by degrees
DISPLACED = {
    "shift 3 %": (0.03, 1.0, 0.0),
    "zoom 5 %": (0.0, 1.05, 0.0),
    "tilt 4 degrees": (0.0, 1.0, 4.0),
    "tilt 10 degrees": (0.0, 1.0, 10.0),
    "zoom 1.2": (0.0, 1.2, 0.0),
}
REGIONS = ("lips", "lids", "cheeks")


def read_person(photo: Path) -> tuple[Image.Image, np.ndarray]:
    """Return a photo and the landmarks beside it.

    Raises:
        LeftOut: photo or landmarks cannot be read.
    """
    data, landmarks = read_files(photo)
    return read_photo(data), read_landmarks(landmarks or b"")


@cache
def find_face(photo: Path, size: int, displaced: str = "") -> Portrait:
    """Return the face of a photo with landmarks beside it, cut out at its place or beside it.

    Raises:
        LeftOut: photo or landmarks cannot be read.
    """
    picture, points = read_person(photo)
    square = None
    if displaced:
        shift, zoom, degrees = DISPLACED[displaced]
        quad = find_quad(points)
        middle, cos, sin = quad.mean(0), np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        square = (quad - middle) @ np.array(((cos, sin), (-sin, cos))) / zoom
        square += middle + shift * (quad[3] - quad[0])
    return Portrait(*(np.asarray(part) for part in align(picture, points, size, square)))


@cache
def find_lightness(photo: Path) -> float:
    """Return the CIE L*, 0 to 100, of the bare skin in a photo with landmarks beside it."""
    picture, points = read_person(photo)
    return Portrait(np.asarray(picture), points).lightness


def make_up(model: torch.nn.Module, source: np.ndarray) -> np.ndarray:
    """Return a face (H, W, 3) uint8 made up by a network."""
    return find_truth(model, source, 1.0).round().astype(np.uint8)


def find_changes(model: torch.nn.Module, person: program.MakeupPairs, face: Portrait) -> dict[str, float]:
    """Return the mean CIEDE2000 of `lips`, `lids` and `cheeks` by painter and by network: "lips painter"."""
    pixels = person.cache.read(person.stems)[0]
    source, target = pixels[..., :3], pixels[..., 3:6]
    changes = {}
    for who, after in (("painter", target), ("network", make_up(model, source))):
        difference = deltaE_ciede2000(rgb2lab(source), rgb2lab(after))
        for name in REGIONS:
            changes[f"{name} {who}"] = difference[face.regions[name]].mean()
    return changes


def find_gain(model: torch.nn.Module, face: Portrait, look: dict[str, dict[str, float]]) -> float:
    """Return by how many dB a network is nearer to the painter than the bare face is."""
    target = paint_look(face, look).astype(np.float64)
    errors = [((picture - target) ** 2).mean() for picture in (face.picture, make_up(model, face.picture))]
    return 10 * np.log10(errors[0] / errors[1])


def score(network: Path, people: list[Pair], pixels: PixelCache, faces: list[Portrait]) -> Scores:
    """Return the metrics of a network's file for every person, with `untouched_eyes` and visible changes."""
    cpu, criterion, model = torch.device("cpu"), program.MakeupLoss(1.0, 0.5), program.load_model(network)
    rows = []
    for pair, face in zip(people, faces, strict=True):
        person = program.MakeupPairs([pair], pixels)
        row = program.evaluate(model, person, criterion, cpu)
        row["untouched_eyes"] = program.evaluate(torch.zeros_like, person, criterion, cpu)["val/psnr_eyes"]
        rows.append(row | find_changes(model, person, face))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def describe(scores: Scores, chosen: np.ndarray) -> str:
    """Return the cells that both tables have: doing nothing, network, gain; the same in the eyes; SSIM."""
    nothing, psnr, gain, eyes_nothing, eyes, ssim = (
        np.nanmean(scores[name][chosen])
        for name in (
            "val/psnr_source", "val/psnr", "val/psnr_gain", "untouched_eyes", "val/psnr_eyes", "val/ssim",
        )
    )  # fmt: skip
    return f"{nothing:.2f} | {psnr:.2f} | {gain:+.2f} | {eyes_nothing:.2f} | {eyes:.2f} | {ssim:.4f} |"


def describe_changes(look: str, scores: Scores, thirds: list[np.ndarray]) -> list[str]:
    """Return the lines of the table of visible changes: painter -> network for each third, and two ratios."""
    lines = []
    for name in REGIONS:
        painter, network = (
            np.array([np.nanmean(scores[f"{name} {who}"][third]) for third in thirds])
            for who in ("painter", "network")
        )
        cells = [f"{before:.1f} -> {after:.1f}" for before, after in zip(painter, network, strict=True)]
        cells += [f"{network[0] / network[-1]:.2f}", f"{100 * (network / painter).min():.0f} % or more"]
        lines.append(f"| {look} | {name} | {' | '.join(cells)} |")
    return lines


def describe_displaced(network: Path, photos: list[Path], size: int) -> str:
    """Return the line of a table: the gain on faces at their place, and the change of it beside it."""
    model = program.load_model(network)
    look = to_linear_look(load_look(ROOT / "data" / "looks.yaml", network.stem))
    gains = {
        name: np.mean([find_gain(model, find_face(photo, size, name), look) for photo in photos])
        for name in ("", *DISPLACED)
    }
    cells = [f"{gains[name] - gains['']:+.2f}" for name in DISPLACED]
    return f"| {network.stem} | {gains['']:+.2f} | {' | '.join(cells)} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("photos", type=Path, help="what the pairs were made from, with NAME.json beside them")
    parser.add_argument("--pairs", type=Path, default=ROOT / "data", help="folder of the looks' pairs")
    parser.add_argument("--networks", type=Path, default=ROOT / "tinybeauty_model" / "pretrained")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--displaced", action="store_true", help="measure faces beside their place, too")
    options = parser.parse_args()
    photos = {path.stem: path for path in list_photos(options.photos)}
    columns = "doing nothing | PSNR | gain | eyes, doing nothing | eyes | SSIM |"
    whole, parts = [f"| look | bytes | {columns}"], [f"| look | third | people | skin L* | {columns}"]
    changes = [
        f"| look | visible change | {' | '.join(THIRDS)} | darkest / lightest | least of the painter's |"
    ]
    displaced = [f"| look | gain | {' | '.join(DISPLACED)} |"]
    spreads, defaults = [], program.Config()
    for network in sorted(options.networks.glob("*.pt")):
        look = network.stem
        pairs = find_pairs(options.pairs / look)
        _, people = split_pairs(pairs, defaults.val_fraction, defaults.person_pattern)
        pixels = decode_pairs(people, options.image_size, folder=None, skip_bad=False)
        lightness = np.array([find_lightness(photos[pair.stem]) for pair in people])
        faces = [find_face(photos[pair.stem], options.image_size) for pair in people]
        scores = score(network, people, pixels, faces)
        whole.append(f"| {look} | {network.stat().st_size:,} | {describe(scores, np.arange(len(people)))}")
        thirds = np.array_split(np.argsort(lightness, kind="stable"), 3)
        for name, third in zip(THIRDS, thirds, strict=True):
            span = f"{lightness[third].min():.0f}-{lightness[third].max():.0f}"
            parts.append(f"| {look} | {name} | {len(third)} | {span} | {describe(scores, third)}")
        gains = [scores["val/psnr_gain"][third] for third in thirds]
        means = [gain.mean() for gain in gains]
        error = np.hypot(*(gains[i].std(ddof=1) / np.sqrt(len(gains[i])) for i in (0, -1)))
        spreads.append(
            f"{look}: the lightest third gains {means[-1] - means[0]:+.2f} dB more than the darkest "
            f"(standard error {error:.2f})"
        )
        changes += describe_changes(look, scores, thirds)
        if options.displaced:
            some = [photos[pair.stem] for pair in people[::2]]
            displaced.append(describe_displaced(network, some, options.image_size))
    for table in (whole, parts, changes, *([displaced] if options.displaced else [])):
        print(f"\n{table[0]}\n|" + " --- |" * (table[0].count("|") - 1), *table[1:], sep="\n")
    print("", *spreads, sep="\n")


if __name__ == "__main__":
    main()
