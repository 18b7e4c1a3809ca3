"""What the small start is worth: validation PSNR after each epoch for three initialisations.

    python tests/bench_start.py --data_dir data/demo --epochs 15

The same network, pairs, order and steps (Adam at 2e-4); only the weights at the start differ. Prints a
table, asserts nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tinybeauty_training as program
from tinybeauty import devices, shipping
from tinybeauty.devices import ALONE
from tinybeauty.runs import StopRequest


def start_as_pytorch(model: program.TinyBeauty, zero_out: bool) -> None:
    """Give every layer PyTorch's own initialisation, the last one zeros if asked for."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            layer.reset_parameters()
    if zero_out:
        nn.init.zeros_(model.out.weight)
        nn.init.zeros_(model.out.bias)


def train_from(start: str, config: program.Config, train_set, val_set) -> list[float]:
    """Train from one start; return val/psnr_gain after each epoch, in dB."""
    device, dtype = devices.choose_device(config.device, config.precision, ALONE)
    torch.manual_seed(config.seed)
    model = program.TinyBeauty()
    if start != "small start":
        start_as_pytorch(model, zero_out=start == "PyTorch's, out zero")
    run = program.Run(config, model, device, dtype, ALONE)
    gains = []
    with StopRequest() as stop, tqdm(disable=True) as bar:
        for epoch in range(1, config.epochs + 1):
            program.train_one_epoch(run, train_set, epoch, stop, bar)
            run.progress.pairs_done = 0  # as at the end of an epoch
            if stop.asked(ALONE):
                sys.exit(f"stopped in {start}")
            network = shipping.unpack(shipping.pack(run.model), program.TinyBeauty()).to(device)
            gains.append(program.evaluate(network, val_set, run.criterion, device)["val/psnr_gain"])
    return gains


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", default="data/demo")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    config = program.Config(**vars(options), wandb_mode="disabled")
    devices.keep_freed_memory()
    train_set, val_set = program.load_data(config)
    shown = [epoch for epoch in (1, 2, 5, 10, 15, 20, 50) if epoch <= options.epochs]
    steps = -(-len(train_set) // config.batch_size)
    print(f"gain over doing nothing in dB; {steps} steps an epoch; torch {torch.__version__}")
    print(f"{'start':22s}" + "".join(f"{f'epoch {epoch}':>10s}" for epoch in shown))
    for start in ("PyTorch's", "PyTorch's, out zero", "small start"):
        gains = train_from(start, config, train_set, val_set)
        print(f"{start:22s}" + "".join(f"{gains[epoch - 1]:+10.2f}" for epoch in shown), flush=True)


if __name__ == "__main__":
    main()
