"""What a person looks at: sample grids, metrics.csv, the line of an epoch, the table at the end."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

from tinybeauty.layers import count_multiply_adds, count_parameters
from tinybeauty.progress import NETWORKS, Progress
from tinybeauty.runs import STATE_FILE
from tinybeauty.shipping import MODEL_FORMAT, load_content

DIFFERENCE_GAIN = 4  # the fourth column of a grid shows |made-up - source| times this


@torch.no_grad()
def draw_samples(model: nn.Module, source: Tensor, target: Tensor) -> bytes:
    """Return a PNG with a row a face: source, made-up, target, difference (amplified).

    Args:
        model: maps a source to a residual.
        source: (B, 3, H, W) in [0, 1].
        target: what the network should make of it, (B, 3, H, W) in [0, 1].
    """
    from torchvision.transforms.v2 import functional as TF  # seconds, for a few pictures a run
    from torchvision.utils import make_grid

    made_up = (source + model(source)).clamp(0, 1)
    difference = ((made_up - source).abs() * DIFFERENCE_GAIN).clamp(0, 1)
    rows = torch.stack([source, made_up, target, difference], 1).flatten(0, 1).cpu()
    grid = TF.to_pil_image(make_grid(rows, nrow=4, padding=2, pad_value=1.0))
    header = 16
    sheet = Image.new("RGB", (grid.width, grid.height + header), "white")
    sheet.paste(grid, (0, header))
    for column, title in enumerate(("source", "made-up", "target", f"difference x {DIFFERENCE_GAIN}")):
        ImageDraw.Draw(sheet).text((column * (grid.width // 4) + 6, 2), title, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def to_csv(history: list[dict[str, float]]) -> bytes:
    """Return metrics.csv: a header, then one row an epoch."""
    text = io.StringIO(newline="")
    names = {name: None for row in history for name in row}  # a run may be older than a column
    writer = csv.DictWriter(text, fieldnames=list(names))
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def describe_epoch(row: dict[str, float], epochs: int, seconds_left: float, beaten: list[str]) -> str:
    """Return the line printed after an epoch.

    Args:
        row: its metrics.
        epochs: of the whole run.
        seconds_left: to its end.
        beaten: the networks that it is the best for.
    """
    eyes = row["val/psnr_eyes"]
    best = [name.removeprefix("tinybeauty_best_").removesuffix(".pt") for name in beaten]
    return (
        f"epoch {row['epoch']:3d}/{epochs}  loss {row['train/loss']:.4f}  val {row['val/loss']:.4f}  "
        f"psnr {row['val/psnr']:.2f} dB ({row['val/psnr_gain']:+.2f})  "
        + ("" if math.isnan(eyes) else f"eyes {eyes:.2f} dB  ")
        + f"{tqdm.format_interval(seconds_left)} left"
        + (f"  best {', '.join(best)}" if best else "")
    )


def describe_drop(before: float, now: float) -> str:
    """Return a further line where the learning rate has dropped at a plateau."""
    if now >= before:
        return ""
    return f"\n          val/loss has not improved for too long: learning rate {before:g} -> {now:g}"


def describe_model(model: nn.Module, image_size: int) -> str:
    """Return what is printed of the network before it is trained."""
    multiply_adds = count_multiply_adds(model, image_size) / 1e6
    parameters = count_parameters(model)
    return f"model     {parameters:,} parameters, {multiply_adds:,.0f} million multiply-adds an image"


def describe_psnr(val_fraction: float) -> str:
    """Return what the figures of a run mean; where nobody is held out they are no measure of other faces."""
    whose = "people held out" if val_fraction else "what is trained on (no measure of other faces)"
    return f"psnr is on {whose}, in brackets the gain over leaving faces as they are"


def describe_data(data_dir: str | Path, train: Tensor, held_out: Tensor, variants: int = 0) -> str:
    """Return what is printed of the pairs: which have an eye mask, (N,) bool each, how many are variants."""
    count, masks = len(train) + len(held_out), int(train.sum() + held_out.sum())
    of_them = f" ({variants:,} of them variants; validation is on originals)" if variants else ""
    text = f"data      {count:,} pairs in {data_dir}: {len(train):,} for training{of_them}, "
    text += f"{len(held_out):,} held out, {masks:,} eye masks"
    if masks < count:
        text += f"\n          {count - masks:,} have none: there the eyeliner loss looks at the whole image"
    return text


def print_summary(output_dir: Path, max_model_bytes: int, progress: Progress) -> list[Path]:
    """Print what was written where, read from the files themselves; return the networks that ship.

    Args:
        output_dir: where they are.
        max_model_bytes: a larger one gets a warning.
        progress: of the run.
    """
    paths = [output_dir / name for name in NETWORKS if (output_dir / name).exists()]
    width = max((len(str(path)) for path in paths), default=4)
    print(f"\n{'file':{width}s}   bytes  epoch      PSNR  doing nothing      gain")
    for path in paths:
        shipped, size = load_content(path, MODEL_FORMAT), path.stat().st_size
        scores = shipped["metrics"]
        print(
            f"{path!s:{width}s} {size:7,d} {shipped['epoch']:6d} {scores['val/psnr']:6.2f} dB "
            f"{scores['val/psnr_source']:11.2f} dB {scores['val/psnr_gain']:+6.2f} dB"
        )
        if size > max_model_bytes:
            print(f"WARNING: {path} has {size:,} bytes, more than max_model_bytes: {max_model_bytes:,}")
        if scores["val/psnr_gain"] <= 0:
            print(f"WARNING: {path} is no better than the untouched face; it needs more epochs or pairs")
    print(f"{progress.epoch} epochs in {progress.seconds:.0f} s; ", end="")
    print(f"beside the networks: samples_epoch_*.png, metrics.csv, config.yaml, {STATE_FILE}", flush=True)
    return paths
