"""What the speed of the program is worth, as ratios to straightforward code in the same run.

    python tests/bench_training.py                         # everything, on pairs it draws itself
    python tests/bench_training.py --parts speed           # or: goal, start, gpu
    python tests/bench_training.py --parts goal --data_dir PAIRS --goal 34
    python tests/bench_training.py --parts start --pairs 20000 --image_size 64

Straightforward is the usual script for this job: a plain 16-32-64-128 U-Net in float32 and the default memory
layout, a DataLoader that decodes the PNGs again in every epoch, PyTorch's own start of the weights. Both
get the same pairs, split, batches, loss, learning rate and seed. Each measurement has a process of its
own, so that its peak memory is its own, too. Prints tables, asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_architecture import PlainUNet

import tinybeauty_training as program
from tinybeauty import devices, shipping
from tinybeauty.cache import decode_pair, decode_pairs
from tinybeauty.devices import ALONE
from tinybeauty.pairs import Pair, find_pairs, split_pairs
from tinybeauty.runs import StopRequest

# ======================================================================================================
# The two systems
# ======================================================================================================


class DecodedEachTime(Dataset):
    """Pairs that are decoded whenever they are asked for."""

    def __init__(self, pairs: list[Pair], image_size: int) -> None:
        self.pairs, self.image_size = pairs, image_size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (source, target, eye_mask)."""
        pixels = decode_pair(self.pairs[index], self.image_size).pixels
        return program.to_images(torch.from_numpy(pixels))


class Straightforward:
    """The usual training script."""

    def __init__(self, config: program.Config) -> None:
        pairs = find_pairs(Path(config.data_dir))
        train_pairs, val_pairs = split_pairs(pairs, config.val_fraction, config.person_pattern)
        torch.manual_seed(config.seed)
        self.model = PlainUNet()
        for layer in self.model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.reset_parameters()
        self.criterion = program.MakeupLoss(**config.model_dump(include=program.LOSS_WEIGHTS))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        size, batch = config.image_size, config.batch_size
        self.train_loader = DataLoader(DecodedEachTime(train_pairs, size), batch, shuffle=True)
        self.val_set = program.MakeupPairs(val_pairs, decode_pairs(val_pairs, size, None, False))
        self.waited_s = 0.0

    def train_one_epoch(self) -> int:
        """Train; return the number of images."""
        self.model.train()
        asked, count = time.perf_counter(), 0
        for source, target, eye_mask in self.train_loader:
            self.waited_s += time.perf_counter() - asked
            losses = self.criterion(source + self.model(source), target, eye_mask)
            self.optimizer.zero_grad()
            losses["loss"].backward()
            self.optimizer.step()
            count += len(source)
            asked = time.perf_counter()
        return count

    def find_psnr(self) -> float:
        """Return val/psnr."""
        return program.evaluate(self.model.eval(), self.val_set, self.criterion, torch.device("cpu"))[
            "val/psnr"
        ]


class Ours:
    """The program, without its command line and its files."""

    def __init__(self, config: program.Config) -> None:
        devices.keep_freed_memory()
        device, dtype = devices.choose_device(config.device, config.precision, ALONE)
        self.train_set, self.val_set = program.load_data(config)
        self.train_set.move_to(device)
        torch.manual_seed(config.seed)
        self.run = program.Run(config, program.TinyBeauty(), device, dtype, ALONE)
        self.epoch, self.waited_s = 0, 0.0
        self.load_batches = program.load_batches

    def train_one_epoch(self) -> int:
        """Train; return the number of images."""
        self.epoch += 1
        self.run.progress.pairs_done = 0  # as at the end of an epoch
        program.load_batches = self._load_and_time
        with StopRequest() as stop, tqdm(disable=True) as bar:
            program.train_one_epoch(self.run, self.train_set, self.epoch, stop, bar)
        program.load_batches = self.load_batches
        return len(self.train_set)

    def _load_and_time(self, *arguments: object):
        batches = self.load_batches(*arguments)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def find_psnr(self) -> float:
        """Return val/psnr of the network as it ships."""
        network = shipping.unpack(shipping.pack(self.run.average), program.TinyBeauty())
        network = network.to(self.run.device, memory_format=torch.channels_last)
        scores = program.evaluate(network, self.val_set, self.run.criterion, self.run.device)
        return scores["val/psnr"]


class Unrecorded(Ours):
    """The program, but on a GPU the kernels of each step are launched one by one, as on no other device."""

    def __init__(self, config: program.Config) -> None:
        super().__init__(config)
        self.run.replay = None


SYSTEMS = {"straightforward": Straightforward, "ours": Ours, "unrecorded": Unrecorded}
COMPARED = ("straightforward", "ours")

# ======================================================================================================
# What is measured, each in a process of its own
# ======================================================================================================


def measure_speed(system: str, config: program.Config, epochs: int) -> dict[str, float]:
    """Return images/s of the first epoch, reading the pairs included, and of the later ones."""
    started = time.perf_counter()
    trainer = SYSTEMS[system](config)
    count = trainer.train_one_epoch()
    first_s, trainer.waited_s = time.perf_counter() - started, 0.0
    started = time.perf_counter()
    later = sum(trainer.train_one_epoch() for _ in range(epochs - 1))
    later_s = time.perf_counter() - started
    return {
        "first": count / first_s,
        "later": later / later_s,
        "waiting": trainer.waited_s / later_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_goal(system: str, config: program.Config, goal: float, limit_s: float) -> dict[str, float]:
    """Return the seconds until val/psnr is at the goal, reading and validating included."""
    started = time.perf_counter()
    trainer, epoch, psnr, seconds = SYSTEMS[system](config), 0, 0.0, 0.0
    while psnr < goal and seconds < limit_s:
        trainer.train_one_epoch()
        epoch, psnr, seconds = epoch + 1, trainer.find_psnr(), time.perf_counter() - started
    return {"seconds": seconds, "epochs": epoch, "psnr": psnr}


def measure_start(config: program.Config) -> dict[str, float]:
    """Return the seconds from the first line to the first step, and the resident memory after it."""
    started = time.perf_counter()
    train_set, _ = program.load_data(config)
    next(program.load_batches(train_set, [torch.arange(config.batch_size)], torch.device("cpu")))
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": seconds,
        "pairs": len(train_set),
        "cache_mb": train_set.cache.pixels.nbytes / 1e6,
        "anonymous_mb": int(status["RssAnon"].split()[0]) / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def call(function: str, arguments: dict[str, object], config: dict[str, object]) -> dict[str, float]:
    """Run one of the functions above in a process of its own."""
    order = json.dumps([function, arguments, config])
    command = [sys.executable, __file__, "--order", order]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def obey(order: str) -> None:
    """Do what `call` asks for, in the child, and print the result."""
    function, arguments, config = json.loads(order)
    result = globals()[function](**arguments, config=program.Config(**config, wandb_mode="disabled"))
    print(json.dumps(result))


# ======================================================================================================
# Tables
# ======================================================================================================


def draw_pairs(folder: Path, count: int, size: int) -> Path:
    """Draw demo pairs."""
    tool = Path(program.HERE) / "data" / "make_demo.py"
    flags = ["--out", str(folder), "--count", str(count), "--size", str(size)]
    subprocess.run([sys.executable, str(tool), *flags], check=True, stdout=subprocess.DEVNULL)
    return folder


def multiply_pairs(folder: Path, count: int) -> Path:
    """Make a data set of `count` pairs out of a hundred, by hard links."""
    drawn = draw_pairs(folder / "drawn", 100, 128)
    for kind in ("source", "target", "eye_mask"):
        (folder / "many" / kind).mkdir(parents=True)
        for index in range(count):
            name = f"face_{index % 100:04d}.png"
            os.link(drawn / kind / name, folder / "many" / kind / f"{index:06d}.png")
    return folder / "many"


def compare_speed(folder: Path, options: argparse.Namespace) -> None:
    """Print (a) images/s, (c) waiting, (d) memory."""
    data_dir = options.data_dir or str(draw_pairs(folder / "large", 128, 512))
    config = {"data_dir": data_dir, "cache_dir": str(folder / "cache")}
    results = {
        name: call("measure_speed", {"system": name, "epochs": options.epochs}, config) for name in COMPARED
    }
    print("\n| training, end to end | first epoch | later epochs | waits for data | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, result in results.items():
        print(
            f"| {name} | {result['first']:.1f} images/s | {result['later']:.1f} images/s "
            f"| {result['waiting']:.1%} | {result['peak_mb']:,.0f} MB |"
        )
    plain, ours = results.values()
    print(f"| ratio | {ours['first'] / plain['first']:.1f} | {ours['later'] / plain['later']:.1f} | | |")


def compare_goal(folder: Path, options: argparse.Namespace) -> None:
    """Print (b) the seconds to a PSNR."""
    data_dir = options.data_dir or str(draw_pairs(folder / "goal", 400, options.image_size))
    config = {"data_dir": data_dir, "cache_dir": str(folder / "cache"), "image_size": options.image_size}
    arguments = {"goal": options.goal, "limit_s": options.limit_s}
    results = {name: call("measure_goal", {"system": name, **arguments}, config) for name in COMPARED}
    print(f"\n| to {options.goal:g} dB at {options.image_size} px | seconds | epochs | reached |")
    print("| --- | --- | --- | --- |")
    for name, result in results.items():
        print(f"| {name} | {result['seconds']:.0f} | {result['epochs']} | {result['psnr']:.2f} dB |")
    plain, ours = results.values()
    print(f"| ratio | {ours['seconds'] / plain['seconds']:.3f} | | |")


def compare_starts(folder: Path, options: argparse.Namespace) -> None:
    """Print the seconds to the first step of a first and a second start, and the memory."""
    data_dir = multiply_pairs(folder / "start", options.pairs)
    config = {"data_dir": str(data_dir), "image_size": options.image_size}
    what = f"{options.pairs:,} pairs at {options.image_size} px"
    print(f"\n| {what} | to the first step | cache | own memory | peak |")
    print("| --- | --- | --- | --- | --- |")
    for name, cache_dir in (("first start", "cache"), ("second start", "cache"), ("without a cache", "")):
        place = str(folder / cache_dir) if cache_dir else ""
        result = call("measure_start", {}, config | {"cache_dir": place})
        print(
            f"| {name} | {result['seconds']:.1f} s | {result['cache_mb'] if place else 0:,.0f} MB "
            f"| {result['anonymous_mb']:,.0f} MB | {result['peak_mb']:,.0f} MB |",
            flush=True,
        )


def measure_gpu(folder: Path, options: argparse.Namespace) -> None:
    """Print (e) the images/s on a GPU, and the time of a whole run of 4,000 pairs."""
    if not torch.cuda.is_available():
        print("\nno GPU here: nothing measured")
        return
    data_dir = multiply_pairs(folder / "gpu", 4000)
    config = {"data_dir": str(data_dir), "cache_dir": str(folder / "steps")}
    print("\n| a step on a GPU, loading included | images/s |\n| --- | --- |")
    for name, system, vary in (
        ("kernels launched one by one", "unrecorded", 0),
        ("recorded", "ours", 0),
        ("recorded, `--vary 1`", "ours", 1),
    ):
        result = call("measure_speed", {"system": system, "epochs": options.epochs}, config | {"vary": vary})
        print(f"| {name} | {result['later']:,.0f} |", flush=True)
    flags = ["--data_dir", data_dir, "--output_dir", folder / "out", "--wandb_mode", "disabled"]
    command = [sys.executable, program.HERE / "tinybeauty_training.py", *flags]
    started = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True)
    print(f"\n4,000 pairs x 50 epochs, the whole command: {time.perf_counter() - started:.0f} s")


PARTS = {"speed": compare_speed, "goal": compare_goal, "start": compare_starts, "gpu": measure_gpu}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--data_dir", help="pairs for speed and goal, instead of drawn ones")
    parser.add_argument("--epochs", type=int, default=3, help="for speed: the first and the later ones")
    parser.add_argument("--image_size", type=int, default=256, help="for goal and start")
    parser.add_argument("--goal", type=float, default=34.0, help="val/psnr in dB")
    parser.add_argument("--limit_s", type=float, default=3600.0, help="give up on the goal after this")
    parser.add_argument("--pairs", type=int, default=4000, help="for start")
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.order:
        obey(options.order)
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=os.environ.get("TMPDIR")))
    print(f"torch {torch.__version__}, {os.cpu_count()} cores; files in {folder}, deleted at the end")
    try:
        for part in options.parts.split(","):
            PARTS[part](folder, options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
