"""Which settings bring how many dB: the network of the program, one setting changed at a time.

    python tests/bench_recipe.py --data_dir PAIRS --epochs 10 --image_size 128

Same pairs, split, seed and number of steps for all; every figure is that of the int8 file on people held out.
Any key of config.yaml is a flag and holds for all rows. Prints a table in Markdown, asserts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_architecture import train_candidate

import tinybeauty_training as program
from tinybeauty import devices, settings
from tinybeauty.errors import Parser, UserError, run_command

FAST = {"learning_rate": 2e-3, "warmup_steps": 50}
RECIPES: dict[str, dict[str, float | bool]] = {
    "defaults": {},
    "learning_rate 5e-4": {"learning_rate": 5e-4},
    "learning_rate 1e-3, warm-up": {"learning_rate": 1e-3, "warmup_steps": 50},
    "learning_rate 2e-3, warm-up": FAST,
    "learning_rate 2e-3, no warm-up": {"learning_rate": 2e-3},
    "learning_rate 4e-3, warm-up": {"learning_rate": 4e-3, "warmup_steps": 50},
    "2e-3, warm-up, no flips": FAST | {"flip": False},
    "2e-3, warm-up, small affine moves": FAST | {"affine": True},
    "2e-3, warm-up, eyeliner_weight 0": FAST | {"eyeliner_weight": 0.0},
    "2e-3, warm-up, eyeliner_weight 1": FAST | {"eyeliner_weight": 1.0},
    "2e-3, warm-up, psnr_weight 1e-3": FAST | {"psnr_weight": 1e-3},
    "2e-3, warm-up, psnr_weight 5e-3": FAST | {"psnr_weight": 5e-3},
    "2e-3, warm-up, psnr_weight 2e-2": FAST | {"psnr_weight": 2e-2},
}


def move_batches(load_batches) -> object:
    """Return a load_batches that moves source, target and mask of a training batch alike, by a little."""
    move = v2.RandomAffine(5, (0.04, 0.04), (0.95, 1.05), interpolation=v2.InterpolationMode.BILINEAR)

    def load(pairs, batches, device, plan=None) -> Iterator[tuple[Tensor, ...]]:
        for batch in load_batches(pairs, batches, device, plan):
            if plan is not None:  # training
                source, target, eye_mask = move(torch.cat(batch, 1)).split((3, 3, 1), 1)
                layout = torch.channels_last
                batch = (
                    source.contiguous(memory_format=layout),
                    target.contiguous(memory_format=layout),
                    eye_mask,
                )
            yield batch

    return load


def run_benchmark(argv: list[str]) -> None:
    """Run the benchmark.

    Raises:
        UserError: the command line or the pairs are not usable.
    """
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", help="names of rows, separated by semicolons")
    config, options = settings.read_settings(parser, program.Config, argv, program.HERE / "config.yaml")
    names = options.only.split(";") if options.only else list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        raise UserError(f"unknown rows {unknown}; there are: {'; '.join(RECIPES)}")
    devices.keep_freed_memory()
    train_set, val_set = program.load_data(config)
    print(f"\n{config.epochs} epochs, {config.image_size} px, seed {config.seed}, torch {torch.__version__}")
    print("| settings | PSNR | gain | eyes | PSNR without averaging |\n|" + " --- |" * 5, flush=True)
    usual = program.load_batches
    for name in names:
        edits = dict(RECIPES[name])
        program.load_batches = move_batches(usual) if edits.pop("affine", False) else usual
        scores = train_candidate("this one", config.model_copy(update=edits), train_set, val_set, quiet=True)
        print(
            f"| {name} | {scores['val/psnr']:.2f} | {scores['val/psnr_gain']:+.2f} "
            f"| {scores['val/psnr_eyes']:.2f} | {scores['raw']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run_command(run_benchmark, None, interrupted="stopped"))
