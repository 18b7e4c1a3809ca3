"""How well the networks put their looks on people they never saw, and whether all skins are served alike.

    python tests/bench_looks.py PHOTOS --pairs data

Measures every network of tinybeauty_model/pretrained, say evening.pt, on the pairs that a training run on
`<pairs>/evening` holds out. They come from `data/prepare_pairs.py PHOTOS`, with the landmarks beside the
photos: these tell where the bare skin is, whose lightness (CIE L*) sorts the people into thirds. Prints two
tables in Markdown, each figure the mean over people, and how far the thirds lie apart; asserts nothing.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data"))

from makeup import Portrait
from prepare_pairs import list_photos, read_files, read_photo

import tinybeauty_training as program
from tinybeauty.cache import PixelCache, decode_pairs
from tinybeauty.landmarks import read_landmarks
from tinybeauty.pairs import Pair, find_pairs, split_pairs

ROOT = Path(program.__file__).parent
THIRDS = ("darkest", "middle", "lightest")
Scores = dict[str, np.ndarray]  # a metric's name -> (N,), one value a person


@cache
def find_lightness(photo: Path) -> float:
    """Return the CIE L*, 0 to 100, of the bare skin in a photo with landmarks beside it.

    Raises:
        LeftOut: photo or landmarks cannot be read.
    """
    data, landmarks = read_files(photo)
    face = Portrait(np.asarray(read_photo(data)), read_landmarks(landmarks or b""))
    return face.lightness


def score(network: Path, people: list[Pair], pixels: PixelCache) -> Scores:
    """Return the metrics of a network's file for every person, and `untouched_eyes`, of doing nothing."""
    cpu, criterion, model = torch.device("cpu"), program.MakeupLoss(1.0, 0.5), program.load_model(network)
    rows = []
    for pair in people:
        person = program.MakeupPairs([pair], pixels)
        row = program.evaluate(model, person, criterion, cpu)
        row["untouched_eyes"] = program.evaluate(torch.zeros_like, person, criterion, cpu)["val/psnr_eyes"]
        rows.append(row)
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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("photos", type=Path, help="what the pairs were made from, with NAME.json beside them")
    parser.add_argument("--pairs", type=Path, default=ROOT / "data", help="folder of the looks' pairs")
    parser.add_argument("--image_size", type=int, default=256)
    options = parser.parse_args()
    photos = {path.stem: path for path in list_photos(options.photos)}
    columns = "doing nothing | PSNR | gain | eyes, doing nothing | eyes | SSIM |"
    whole, parts = [f"| look | bytes | {columns}"], [f"| look | third | people | skin L* | {columns}"]
    spreads, defaults = [], program.Config()
    for network in sorted((ROOT / "tinybeauty_model" / "pretrained").glob("*.pt")):
        look = network.stem
        pairs = find_pairs(options.pairs / look)
        _, people = split_pairs(pairs, defaults.val_fraction, defaults.person_pattern)
        pixels = decode_pairs(people, options.image_size, folder=None, skip_bad=False)
        lightness = np.array([find_lightness(photos[pair.stem]) for pair in people])
        scores = score(network, people, pixels)
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
    for table in (whole, parts):
        print(f"\n{table[0]}\n|" + " --- |" * (table[0].count("|") - 1), *table[1:], sep="\n")
    print("", *spreads, sep="\n")


if __name__ == "__main__":
    main()
