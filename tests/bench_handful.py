"""What a start from a look brings with few pairs, on people held out.

    python tests/bench_handful.py my_style my_other_style --test 60

Each folder holds the pairs of a style that no look resembles, painted on photos, with variants or without.
Of the people that a run with the default split holds out, whom the looks have not seen, 60 are for
measuring; the others are the first to be trained on. Prints a table in Markdown, each figure the gain over
doing nothing on the 60; asserts nothing. Its columns: the last layer of the best look fitted, nothing
trained; the run with `--start_from auto`, its int8 file; as many steps from scratch, with the settings of
recipe.yaml.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tinybeauty_training as program
from tinybeauty import devices, starting
from tinybeauty.cache import decode_pairs
from tinybeauty.errors import UserError
from tinybeauty.files import make_folder
from tinybeauty.looks import LOOKS
from tinybeauty.pairs import Pair, find_pairs, split_pairs, strip_variant

CPU = torch.device("cpu")


def divide(data_dir: Path, test: int) -> tuple[list[list[Pair]], list[Pair]]:
    """Return the pairs of each person to train on, in the order to take them in, and those to measure on."""
    people: dict[str, list[Pair]] = {}
    pairs = find_pairs(data_dir)
    for pair in pairs:  # sorted: a person's original, then the variants
        people.setdefault(strip_variant(pair.stem), []).append(pair)
    seen, unseen = split_pairs([pairs[0] for pairs in people.values()], 0.1, "(.+)")
    for originals in (seen, unseen):
        originals.sort(key=lambda pair: hashlib.sha256(f"order {pair.stem}".encode()).hexdigest())
    return [people[strip_variant(pair.stem)] for pair in unseen[test:] + seen], unseen[:test]


def link_pairs(people: list[list[Pair]], folder: Path) -> None:
    """Make a data set of links to the pairs of some people.

    They are numbered: by their own names all whom the looks have not seen would be held out here too.
    """
    for number, pairs in enumerate(people):
        for pair in pairs:
            for kind in ("source", "target", "eye_mask"):
                if path := getattr(pair, kind):
                    make_folder(folder / kind)
                    variant = pair.stem.removeprefix(strip_variant(pair.stem))
                    name = f"{number:04d}{variant}{path.suffix}"
                    (folder / kind / name).symlink_to(path.resolve())


def train(data_dir: Path, output_dir: Path, *flags: object) -> tuple[Path, float]:
    """Return the last network of a run by the real command line, and its seconds.

    Raises:
        UserError: the run has failed, and said why.
    """
    started = time.perf_counter()
    argv = ["--data_dir", data_dir, "--output_dir", output_dir, "--wandb_mode", "disabled", "--device", "cpu"]
    if program.main([str(word) for word in (*argv, *flags)]):
        raise UserError("the run has failed, see above")
    return output_dir / "tinybeauty_final.pt", time.perf_counter() - started


def measure(network: torch.nn.Module, test_set: program.MakeupPairs) -> float:
    """Return the gain over doing nothing in dB, the mean over people."""
    return program.evaluate(network, test_set, program.MakeupLoss(1.0, 0.5), CPU)["val/psnr_gain"]


def compare(
    people: list[list[Pair]], test_set: program.MakeupPairs, size: int, scratch: bool
) -> tuple[list[str], str]:
    """Return the cells of a table for the pairs of some people, and what is to be said of the runs."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        link_pairs(people, folder / "pairs")
        flags = ["--image_size", size]
        started, seconds = train(folder / "pairs", folder / "auto", "--start_from", "auto", *flags)
        used = program.settings.read_yaml(folder / "auto" / "config.yaml")
        pairs = find_pairs(folder / "pairs")
        some = program.MakeupPairs(pairs, decode_pairs(pairs, size, None, skip_bad=False))
        batches = list(program.load_batches(some, starting.choose_batches(len(some)), CPU))
        fitted = program.load_model(LOOKS / f"{used['start_from']}.pt")
        starting.refit_(fitted, batches)
        cells = [f"{measure(net, test_set):+.2f}" for net in (fitted, program.load_model(started))]
        if scratch:
            same = {key: used[key] for key in ("epochs", "repeats", "batch_size", "val_fraction")}
            flags += [word for key, value in same.items() for word in (f"--{key}", value)]
            recipe = LOOKS / "recipe.yaml"
            network, _ = train(folder / "pairs", folder / "scratch", "--config", recipe, *flags)
            cells.append(f"{measure(program.load_model(network), test_set):+.2f}")
        else:
            cells.append("")
    return [str(len(people)), str(len(pairs)), *cells], f"{used['start_from']}, {seconds:.0f} s"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("styles", type=Path, nargs="+", help="folders of pairs")
    parser.add_argument("--counts", type=int, nargs="+", default=[5, 8, 20, 50, 200], help="of people")
    parser.add_argument("--test", type=int, default=60, help="people to measure on")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--no-scratch", action="store_true", help="leave out the runs from scratch")
    options = parser.parse_args()
    devices.keep_freed_memory()
    rows = ["| style | people | pairs | last layer fitted | from a look | from scratch | start, time |"]
    rows.append("|" + " --- |" * 7)
    for style in options.styles:
        pool, test = divide(style, options.test)
        cache = decode_pairs(test, options.image_size, None, skip_bad=False)
        test_set = program.MakeupPairs(test, cache)
        for count in options.counts:
            cells, told = compare(pool[:count], test_set, options.image_size, not options.no_scratch)
            rows.append(f"| {style.name} | {' | '.join(cells)} | {told} |")
            print(f"\n{rows[-1]}", flush=True)
    print("", *rows, sep="\n")


if __name__ == "__main__":
    main()
