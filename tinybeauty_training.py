"""Train TinyBeauty, a makeup network of under 100 KB, from pairs of aligned faces (bare, made up).

    python tinybeauty_training.py                                     # demo pairs, config.yaml
    python tinybeauty_training.py --data_dir my_pairs --epochs 100    # any key of config.yaml is a flag
    python tinybeauty_training.py --config my.yaml --output_dir runs/plum
    python tinybeauty_training.py --resume                            # go on where a run has stopped

The network looks at a bare face and returns a residual; `(source + residual).clamp(0, 1)` is the same
face made up. Into `output_dir` go three networks that ship (int8, under 100,000 bytes each:
tinybeauty_best_loss.pt, tinybeauty_best_psnr.pt, tinybeauty_final.pt), the state of the run
(tinybeauty_last.ckpt), metrics.csv, samples_epoch_XXX.png and the settings used (config.yaml).

Method: stage 4 of Jin et al., "Toward Tiny and High-quality Facial Makeup with Data Amplify Learning",
ECCV 2024, arXiv 2403.15033. The U-Net, the small files and the start are our own.
"""

from __future__ import annotations

import argparse
import copy
import csv
import ctypes
import difflib
import functools
import hashlib
import importlib
import io
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from filelock import FileLock, Timeout
from PIL import Image, ImageDraw, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.v2 import functional as TF
from torchvision.utils import make_grid
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
DEMO_DIR = "data/demo"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MAX_PIXELS = 2**26  # of a file; a phone's 48 million pass, a decompression bomb does not
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what "grey" means in Pillow and OpenCV too
MODEL_FORMAT = "tinybeauty"
RUN_FORMAT = "tinybeauty-run"
STATE_FILE = "tinybeauty_last.ckpt"
FORMAT_VERSION = 2


class UserError(Exception):
    """Something a person can mend; `main` prints it after `error: ` and exits with code 1."""


def one_line(error: Exception) -> str:
    """Return the message of an error of somebody else's, without line breaks."""
    return " ".join(str(error).split())


def list_some(names: Iterable[object], most: int = 5) -> str:
    """Return up to `most` names for a message, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ======================================================================================================
# Configuration: flag over YAML over default
# ======================================================================================================


class Config(BaseModel):
    """Every hyperparameter once, checked. `config.yaml` lists the same keys with the same defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # data
    data_dir: str = Field(
        DEMO_DIR, min_length=1, description="folder with source/, target/ and, if there, eye_mask/"
    )
    image_size: int = Field(256, ge=16, le=1024, multiple_of=8, description="pixels a side")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the people held out for validation")
    person_pattern: str = Field("(.+)", description="regex on the file stem; group 1 is the person")
    skip_bad_pairs: bool = Field(
        False, description="leave pairs out that cannot be read, instead of stopping"
    )
    cache_dir: str = Field(
        "auto", description="folder for decoded pairs; auto: in data_dir if possible; '': memory, no cache"
    )
    flip: bool = Field(True, description="mirror half of the training pairs, another half each epoch")
    # training
    epochs: int = Field(50, ge=1, description="passes over the training pairs")
    batch_size: int = Field(32, ge=1, description="pairs an optimizer step")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Adam's at the start")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises to that")
    lr_factor: float = Field(0.5, gt=0, lt=1, description="learning rate *= this when val/loss stalls")
    lr_patience: int = Field(3, ge=0, description="epochs without a better val/loss before that")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the weights' moving average, which ships")
    l1_weight: float = Field(1.0, ge=0, description="weight of the mean absolute error")
    eyeliner_weight: float = Field(0.5, ge=0, description="weight of the eyeliner loss")
    psnr_weight: float = Field(0.0, ge=0, description="weight of the decibels of PSNR missing to 60")
    seed: int = Field(42, ge=0, lt=2**32, description="same seed, same machine, same bytes (CPU)")
    # output
    output_dir: str = Field(
        "tinybeauty_model", min_length=1, description="folder for everything a run writes"
    )
    sample_every: int = Field(5, ge=1, description="epochs between sample grids")
    max_model_bytes: int = Field(100_000, ge=1, description="a warning says so when a .pt is larger")
    # device
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="auto, cuda, mps or cpu")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto, bfloat16 or float32 for the convolutions while training"
    )
    compile: bool = Field(False, description="torch.compile the network: slow to start")
    # tracking
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto (online with an account, else offline), online, offline or disabled"
    )
    wandb_project: str = Field("tinybeauty", min_length=1, description="the dashboard's project")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError(f"must be a number, got {value}")
        return value

    @field_validator("person_pattern")
    @classmethod
    def _check_person_pattern(cls, value: str) -> str:
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise ValueError(f"must be a regular expression, got {value!r} ({error})") from None
        if not pattern.groups:
            raise ValueError(f"must have a group that catches the person, such as '(.+)_look', got {value!r}")
        return value


def explain_problem(problem: dict[str, Any]) -> str:
    """Return one line for one of pydantic's errors: key, what is wrong, what was found."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, Config.model_fields, n=1)
        return f"{key}: unknown key" + (f", did you mean {close[0]}?" if close else "")
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    text = problem["msg"].replace("Input should", "must")
    text = text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{key}: {text}, got {problem['input']!r}"


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands in a file twice; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping.

        Raises:
            yaml.YAMLError: a key stands there twice.
        """
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]} stands there twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Raises:
        UserError: the file is missing, no YAML, or no list of `key: value`.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the configuration {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of `key: value`, found a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def load_config(flags: dict[str, Any], path: Path) -> Config:
    """Return the checked configuration: flag over YAML over default.

    Raises:
        UserError: lists every unknown key, wrong type and value out of range at once.
    """
    try:
        return Config(**{**read_yaml(path), **flags})
    except ValidationError as error:
        lines = [explain_problem(problem) for problem in error.errors()]
        raise UserError("bad configuration:\n  " + "\n  ".join(lines)) from None


# ======================================================================================================
# Model
# ======================================================================================================


class Depthwise(nn.Conv2d):
    """A convolution of each channel with a kernel of its own; the size stays."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the shape of `features`, (B, C, H, W)."""
        if self.kernel_size == (3, 3) or not torch.is_autocast_enabled("cpu"):
            return super().forward(features)
        # PyTorch's gradient in bfloat16 takes 2.5 times as long for kernels larger than 3 x 3.
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float())


class Upsample(nn.ConvTranspose2d):
    """A 2x2 transposed convolution in groups, that doubles the size."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 4) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, groups=groups)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C_out, 2H, 2W)."""
        if not self.training:
            return super().forward(features)
        # The same as a 1x1 convolution to four times the channels; its gradient takes a fifth of the time.
        grouped = self.weight.reshape(self.groups, -1, self.out_channels // self.groups * 4)
        weight = grouped.transpose(1, 2).reshape(4 * self.out_channels, -1, 1, 1)
        quarters = F.conv2d(features, weight, self.bias.repeat_interleave(4), groups=self.groups)
        return F.pixel_shuffle(quarters, 2)


def separable(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Return a depthwise convolution and a 1x1 one: an eighth of the weights of a plain 3x3."""
    return nn.Sequential(
        Depthwise(in_channels, kernel_size), nn.Conv2d(in_channels, out_channels, 1, bias=False)
    )


class ConvNormReLU(nn.Module):
    """Convolutions of one or several inputs, added up, then BatchNorm and ReLU.

    To add up 1x1 convolutions of several inputs is to convolve their concatenation, but nothing is copied:
    with the copy ONNX Runtime takes a third longer, and `dec1` twice as long to train on a CPU.

    BatchNorm divides the size of a weight out again, so these weights may start as small as we like
    without changing what the network computes. They start at 4 to 14 % of PyTorch's default:
    a step of Adam moves a weight by about `learning_rate` whatever its size, so the default 2e-4 turns
    them by 3 % a step at first, and by less and less as they grow.

    Args:
        branches: the convolutions of each input; they end in the same number of channels.
    """

    START_STD = 0.007  # 0.005 and 0.01 train alike; README says what PyTorch's own start costs

    def __init__(self, *branches: nn.Sequential) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.norm = nn.BatchNorm2d(branches[0][-1].out_channels, eps=1e-8)  # inputs are small: see above
        self.activation = nn.ReLU(inplace=True)
        with torch.no_grad():
            for conv in (conv for branch in branches for conv in branch):
                conv.weight.normal_(std=self.START_STD)

    def forward(self, *features: Tensor) -> Tensor:
        """Return (B, C_out, H, W), at least 0."""
        parts = [branch(part) for branch, part in zip(self.branches, features, strict=True)]
        return self.activation(self.norm(functools.reduce(torch.add, parts)))

    def fold_(self) -> None:
        """Put the BatchNorm into the last convolutions: the same function, one layer less on a phone."""
        for branch in self.branches:
            branch[-1] = fuse_conv_bn_eval(branch[-1].eval(), self.norm.eval())
        for branch in self.branches[1:]:
            branch[-1].bias = None  # the first one has it
        self.norm = nn.Identity()


class TinyBeauty(nn.Module):
    """U-Net with three poolings, 3 -> 16 -> 32 -> 64 -> 128 channels and back, that returns a residual.

    84,963 parameters. Convolutions are depthwise-separable, but for the first, which has only three
    channels to separate. Kernels of 7 x 7 at an eighth of the size let the bottleneck see the whole face, and
    cost next to nothing there; transposed convolutions in groups pay for them. README has the study.

    Source: the plan follows Ronneberger et al., arXiv 1505.04597; the separable convolution is Chollet's,
    arXiv 1610.02357.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enc1 = ConvNormReLU(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False)))
        self.pool1 = nn.MaxPool2d(2)
        self.enc2 = ConvNormReLU(separable(16, 32))
        self.pool2 = nn.MaxPool2d(2)
        self.enc3 = ConvNormReLU(separable(32, 64))
        self.pool3 = nn.MaxPool2d(2)
        self.bottleneck = nn.Sequential(
            ConvNormReLU(separable(64, 128, 7)),
            ConvNormReLU(separable(128, 128, 7)),
            ConvNormReLU(separable(128, 128, 7)),
        )
        self.up3 = Upsample(128, 64)
        self.dec3 = ConvNormReLU(separable(64, 64), separable(64, 64))
        self.up2 = Upsample(64, 32)
        self.dec2 = ConvNormReLU(separable(32, 32), separable(32, 32))
        self.up1 = Upsample(32, 16)
        self.dec1 = ConvNormReLU(separable(16, 16), separable(16, 16))
        self.out = nn.Conv2d(16, 3, kernel_size=1)
        nn.init.zeros_(self.out.weight)  # the first output is the source itself: no makeup is a good start
        nn.init.zeros_(self.out.bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return the makeup residual; add it to the source and clamp to show it.

        Args:
            source: (B, 3, H, W) in [0, 1]; H and W multiples of 8.

        Returns:
            (B, 3, H, W), not clamped, so that gradients reach every pixel.

        Raises:
            ValueError: H or W is not a multiple of 8.
        """
        if source.shape[-2] % 8 or source.shape[-1] % 8:
            raise ValueError(f"height and width must be multiples of 8, got {tuple(source.shape)}")
        skip1 = self.enc1(source)  # (B, 16, H, W)
        skip2 = self.enc2(self.pool1(skip1))  # (B, 32, H/2, W/2)
        skip3 = self.enc3(self.pool2(skip2))  # (B, 64, H/4, W/4)
        features = self.bottleneck(self.pool3(skip3))  # (B, 128, H/8, W/8)
        features = self.dec3(self.up3(features), skip3)  # (B, 64, H/4, W/4)
        features = self.dec2(self.up2(features), skip2)  # (B, 32, H/2, W/2)
        features = self.dec1(self.up1(features), skip1)  # (B, 16, H, W)
        return self.out(features)  # (B, 3, H, W)

    def fold_(self) -> TinyBeauty:
        """Fold every BatchNorm into its convolution, in place; return self, in eval mode, for looking on."""
        for module in list(self.modules()):
            if isinstance(module, ConvNormReLU):
                module.fold_()
        return self.eval().requires_grad_(False)


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights and biases."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, image_size: int) -> int:
    """Return the multiply-adds for one image of `image_size` x `image_size`."""
    device = next(model.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() // 2


# ======================================================================================================
# Losses
# ======================================================================================================


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients in x and y of (B, 1, H, W), per pixel: a ramp of 1 a pixel has gradient 1.

    The kernel is [1, 2, 1] x [-1, 0, 1] / 8, an eighth of SciPy's. The border is replicated: with zeros
    there it would draw a frame. Sums of slices take a quarter of conv2d's time for one channel on a CPU.
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return (rows[..., 2:] - rows[..., :-2]) / 8, (columns[..., 2:, :] - columns[..., :-2, :]) / 8


class EyelinerLoss(nn.Module):
    """Mean absolute difference of the Sobel gradients of luma, where the eye mask is white.

    A thin dark line is a small share of an image's L1, but nearly all of its gradient near the eye.
    With gradients per pixel this loss has the size of L1, and a weight of 0.5 means what it says.

    Source: the eyeliner loss of arXiv 2403.15033, section 3.3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, pred: Tensor, target: Tensor, eye_mask: Tensor | None = None) -> Tensor:
        """Return the loss: a mean over the mask's area of each image, then over images.

        Args:
            pred: (B, 3, H, W), the made-up image, not necessarily clamped.
            target: (B, 3, H, W) in [0, 1].
            eye_mask: (B, 1, H, W) in [0, 1]; None means the whole image; an empty mask gives 0.

        Returns:
            Scalar in float32, whatever autocast does.
        """
        with torch.autocast(pred.device.type, enabled=False):
            # Sobel is linear: the difference of the gradients is the gradient of the difference.
            gradient_x, gradient_y = sobel(F.conv2d(pred.float() - target.float(), self.luma))
            edges = (gradient_x.abs() + gradient_y.abs()) / 2  # (B, 1, H, W)
            if eye_mask is None:
                return edges.mean()
            eye_mask = eye_mask.float()
            area = eye_mask.sum((1, 2, 3))
            return ((edges * eye_mask).sum((1, 2, 3)) / area.clamp_min(1e-6)).mean()


class PSNRLoss(nn.Module):
    """The decibels of PSNR that are missing to 60, the mean over images; 0 for equal ones.

    Half the error is worth the same in every image, so one with a small error gets a large gradient; within
    an image the gradient is as large as the error. The 60 dB are soft: they keep the loss from falling
    below 0 and its gradient finite.

    Source: Chen et al., "HINet", 2021, arXiv 2105.06086, without that bound.
    """

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return a scalar in float32; pred is (B, 3, H, W), not necessarily clamped, target alike."""
        mean_squared_error = (pred.float() - target.float()).square().mean((1, 2, 3))
        return 10 * (1 + 1e6 * mean_squared_error).log10().mean()


LOSSES = ("loss", "l1", "eyeliner")
LOSS_WEIGHTS = {"l1_weight", "eyeliner_weight", "psnr_weight"}


class MakeupLoss(nn.Module):
    """l1_weight * L1 + eyeliner_weight * eyeliner + psnr_weight * PSNRLoss, in float32, unclamped."""

    def __init__(self, l1_weight: float, eyeliner_weight: float, psnr_weight: float = 0.0) -> None:
        super().__init__()
        self.l1_weight, self.eyeliner_weight, self.psnr_weight = l1_weight, eyeliner_weight, psnr_weight
        self.eyeliner, self.psnr = EyelinerLoss(), PSNRLoss()

    def forward(self, output: Tensor, target: Tensor, eye_mask: Tensor) -> dict[str, Tensor]:
        """Return the scalars `loss` (to minimise), `l1` and `eyeliner`; arguments as in EyelinerLoss."""
        l1 = (output.float() - target).abs().mean()
        eyeliner = self.eyeliner(output, target, eye_mask)
        loss = self.l1_weight * l1 + self.eyeliner_weight * eyeliner
        if self.psnr_weight:
            loss = loss + self.psnr_weight * self.psnr(output, target)
        return {"loss": loss, "l1": l1, "eyeliner": eyeliner}


# ======================================================================================================
# Data
# ======================================================================================================


class Pair(NamedTuple):
    """The files of one pair; `eye_mask` is None where there is none."""

    stem: str
    source: Path
    target: Path
    eye_mask: Path | None


def list_images(folder: Path) -> dict[str, Path]:
    """Return {stem: path} of the images in a folder, sorted by stem; other and hidden files are passed over.

    Raises:
        UserError: the folder cannot be listed, or two images share a stem.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from None
    images: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.stem in images:
            raise UserError(
                f"{folder} has two images for one pair: {images[path.stem].name} and {path.name}; remove one"
            )
        images[path.stem] = path
    return images


def find_pairs(data_dir: Path) -> list[Pair]:
    """Return the pairs of `data_dir`, matched by whole stems, sorted.

    Raises:
        UserError: a folder or a partner is missing, or there are no pairs.
    """
    for folder in (data_dir, data_dir / "source", data_dir / "target"):
        if not folder.is_dir():
            raise UserError(
                f"there is no folder {folder}; a data set holds source/NAME.png and target/NAME.png"
            )
    source, target = list_images(data_dir / "source"), list_images(data_dir / "target")
    lacking = []
    for name, here, other_name, other in (
        ("target", target, "source", source),
        ("source", source, "target", target),
    ):
        if missing := sorted(other.keys() - here.keys()):
            count = f"{len(missing):,} of the {len(other):,} images in {other_name}"
            lacking.append(f"{data_dir / name} lacks {count}: {list_some(missing)}")
    if lacking:
        raise UserError("\n  ".join([*lacking, "add the missing files or remove their partners"]))
    if not source:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{data_dir / 'source'} and {data_dir / 'target'} hold no images ({kinds})")
    masks = list_images(data_dir / "eye_mask") if (data_dir / "eye_mask").is_dir() else {}
    if strays := sorted(masks.keys() - source.keys()):
        print(f"          {len(strays):,} eye masks belong to no pair: {list_some(strays)}")
    return [Pair(stem, source[stem], target[stem], masks.get(stem)) for stem in source]


def find_person(stem: str, person_pattern: str) -> str:
    """Return the person a file stem belongs to.

    Raises:
        UserError: the pattern does not match the stem.
    """
    match = re.match(person_pattern, stem)
    if not match or match.group(1) is None:
        raise UserError(f"person_pattern {person_pattern!r} does not match the file stem {stem!r}")
    return match.group(1)


def split_pairs(pairs: list[Pair], val_fraction: float, person_pattern: str) -> tuple[list[Pair], list[Pair]]:
    """Return (training, validation) pairs, split by a hash of the person.

    No person is on both sides, and adding or removing a pair moves no other pair: who is held out
    depends on the name alone. So the share is `val_fraction` on the average, not to the pair. Where the
    hash leaves a side empty (a handful of people), the person nearest to it goes there.

    Raises:
        UserError: there are fewer than two people.
    """
    people = {pair.stem: find_person(pair.stem, person_pattern) for pair in pairs}
    ranks = {
        person: int(hashlib.sha256(person.encode()).hexdigest()[:15], 16) / 16**15
        for person in people.values()
    }
    if len(ranks) < 2:
        raise UserError(
            f"all {len(pairs)} pairs are of one person ({list_some(ranks)}); training needs at least two, "
            "one to learn from and one to validate with: add pairs or change person_pattern"
        )
    by_rank = sorted(ranks, key=ranks.get)
    held_out = {person for person in ranks if ranks[person] < val_fraction} | {by_rank[0]}
    held_out -= {by_rank[-1]}
    train = [pair for pair in pairs if people[pair.stem] not in held_out]
    return train, [pair for pair in pairs if people[pair.stem] in held_out]


def read_image(path: Path, mode: Literal["RGB", "L"], image_size: int) -> np.ndarray:
    """Return an image upright (EXIF), in one mode and one size: the one reader for training and applying.

    Transparent pixels are laid over white, 16-bit grey is scaled to 8 bits, of an animation the first
    picture is taken.

    Returns:
        uint8, (image_size, image_size, 3) for RGB, (image_size, image_size, 1) for L.

    Raises:
        UserError: the file is missing, broken, no image, or has more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
                image = Image.fromarray(grey)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            image = image.convert(mode)
            if image.size != (image_size, image_size):
                image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
            return np.array(image).reshape(image_size, image_size, -1)
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        raise UserError(f"{path} ({one_line(error) or type(error).__name__})") from None


def decode_pair(pair: Pair, image_size: int) -> tuple[np.ndarray, list[str]]:
    """Return (H, W, 7) uint8 (source RGB, target RGB, eye mask; white without one) and what is wrong."""
    pixels, problems = np.full((image_size, image_size, 7), 255, np.uint8), []
    for path, mode, channels in (
        (pair.source, "RGB", slice(0, 3)),
        (pair.target, "RGB", slice(3, 6)),
        (pair.eye_mask, "L", slice(6, 7)),
    ):
        try:
            if path is not None:
                pixels[:, :, channels] = read_image(path, mode, image_size)
        except UserError as error:
            problems.append(str(error))
    return pixels, problems


Files = list[tuple[str, int, int]]  # name, bytes and time of the last change in ns


class CachedPair(NamedTuple):
    """One entry of a cache's index."""

    row: int
    checksum: int  # CRC-32 of the pixels
    files: Files  # that it was decoded from


class CacheIndex(BaseModel):
    """What `pairs_256.json` holds; checked like settings, for data sets come from anywhere."""

    pixels: str = Field(pattern=r"^pixels_\d+_[0-9a-f]+\.bin$")  # a name: no way out of the folder
    rows: int = Field(ge=0)
    pairs: dict[str, CachedPair]

    @field_validator("pairs")
    @classmethod
    def _check_rows(cls, pairs: dict[str, CachedPair], info: Any) -> dict[str, CachedPair]:
        if not all(0 <= pair.row < info.data.get("rows", 0) for pair in pairs.values()):
            raise ValueError("rows that do not exist")
        return pairs


def describe_files(pair: Pair) -> Files:
    """Return what would show that a file of a pair has changed."""
    described = []
    for path in (pair.source, pair.target, pair.eye_mask):
        if path is not None:
            with suppress(OSError):
                stat = path.stat()
                described.append((path.name, stat.st_size, stat.st_mtime_ns))
    return described


class PixelCache:
    """Decoded pairs, one (H, W, 7) uint8 row each, in a file or, without a folder, in memory.

    `pixels_256_*.bin` holds the rows, `pairs_256.json` says whose they are. Rows are only ever appended
    and the index is replaced last: a kill leaves the old index and its rows as they were, and a run that
    is reading is not disturbed by one that adds pairs. Where most rows belong to nobody any more, a new
    file is begun.

    Attributes:
        pixels: (rows, H, W, 7) uint8, memory-mapped and read-only where there is a folder.
        pairs: {stem: its entry}.
    """

    DECODED_AT_ONCE = 64  # pairs; bounds the memory while decoding

    def __init__(self, folder: Path | None, image_size: int) -> None:
        self.folder, self.shape = folder, (image_size, image_size, 7)
        self.pairs: dict[str, CachedPair] = {}
        self.row_count = 0
        self.pixels = np.empty((0, *self.shape), np.uint8)
        if folder is not None:
            self.index_path = folder / f"pairs_{image_size}.json"
            self.pixels_path = folder / f"pixels_{image_size}_{time.time_ns():x}.bin"
            if self.index_path.exists():
                self._read_index()

    def _read_index(self) -> None:
        try:
            checksum, body = self.index_path.read_bytes().split(b"\n", 1)
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError("its check sum is wrong")
            index = CacheIndex.model_validate_json(body)
            path = self.folder / index.pixels
            if path.is_symlink() or path.stat().st_size < index.rows * math.prod(self.shape):
                raise ValueError(f"{path.name} is cut off or a link")
        except (OSError, ValueError) as error:
            reason = textwrap.shorten(one_line(error), 100)
            print(f"          the cache {self.index_path} is damaged ({reason}): decoding anew")
            return
        if index.rows <= 2 * len(index.pairs):
            self.pixels_path, self.row_count, self.pairs = path, index.rows, index.pairs

    def _write_index(self) -> None:
        index = CacheIndex(pixels=self.pixels_path.name, rows=self.row_count, pairs=self.pairs)
        body = index.model_dump_json().encode()
        save_bytes(self.index_path, b"%08x\n%s" % (zlib.crc32(body), body))
        for path in self.folder.glob(f"pixels_{self.shape[0]}_*.bin"):
            if path != self.pixels_path:
                with suppress(OSError):  # Windows keeps what another run has open
                    path.unlink()

    def hold(self, pairs: list[Pair]) -> dict[str, list[str]]:
        """Decode those of the pairs that are new or have changed; forget all others.

        Returns:
            {stem: what is wrong} of the pairs that cannot be read.

        Raises:
            UserError: the cache cannot be written; what it held before is intact.
        """
        files = {pair.stem: describe_files(pair) for pair in pairs}
        kept = {
            stem: self.pairs[stem]
            for stem in files
            if stem in self.pairs and self.pairs[stem].files == files[stem]
        }
        missing = [pair for pair in pairs if pair.stem not in kept]
        changed, self.pairs = kept.keys() != self.pairs.keys(), kept
        if self.folder is None:
            self.pixels = np.empty((len(missing), *self.shape), np.uint8)
            return self._decode(missing, files, self.pixels.__setitem__)
        broken = self._append(missing, files)
        if changed or len(broken) < len(missing):
            self._write_index()
        if self.row_count:
            self.pixels = np.memmap(self.pixels_path, np.uint8, "r", shape=(self.row_count, *self.shape))
        return broken

    def _append(self, pairs: list[Pair], files: dict[str, Files]) -> dict[str, list[str]]:
        row_bytes = math.prod(self.shape)
        size = (self.row_count + len(pairs)) * row_bytes
        held = self.row_count
        try:
            with self.pixels_path.open("r+b" if self.row_count else "wb") as file:

                def write(row: int, pixels: np.ndarray) -> None:
                    file.seek(row * row_bytes)
                    file.write(pixels)

                broken = self._decode(pairs, files, write)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not held:
                self.pixels_path.unlink(missing_ok=True)
            raise UserError(
                f"cannot write the cache {self.pixels_path}: {error.strerror}; it takes "
                f"{size / 1e6:,.0f} MB. Make room, or set cache_dir to another folder, or to '' (in memory)"
            ) from None
        return broken

    def _decode(
        self,
        pairs: list[Pair],
        files: dict[str, Files],
        write: Callable[[int, np.ndarray], None],
    ) -> dict[str, list[str]]:
        broken = {}
        with (
            ThreadPoolExecutor() as executor,  # Pillow decodes and resizes outside of Python's lock
            tqdm(desc="reading pairs", total=len(pairs), unit="pair", disable=None, leave=False) as bar,
        ):
            for first in range(0, len(pairs), self.DECODED_AT_ONCE):
                some = pairs[first : first + self.DECODED_AT_ONCE]
                decoded = executor.map(decode_pair, some, repeat(self.shape[0]))
                for pair, (pixels, problems) in zip(some, decoded, strict=True):
                    bar.update()
                    if problems:
                        broken[pair.stem] = problems
                        continue
                    write(self.row_count, pixels)
                    self.pairs[pair.stem] = CachedPair(self.row_count, zlib.crc32(pixels), files[pair.stem])
                    self.row_count += 1
        return broken


class MakeupPairs(Dataset):
    """Aligned pairs, decoded once into 8-bit pixels. `pairs[index]` takes a number, a slice or a tensor.

    Attributes:
        stems: their names.
        checksums: {stem: CRC-32 of the pixels}.
        has_mask: (N,) bool; a pair without a mask counts as white everywhere in the eyeliner loss and
            is left out of `val/psnr_eyes`.
    """

    def __init__(
        self, pairs: list[Pair], image_size: int, skip_bad: bool = False, cache_dir: Path | None = None
    ) -> None:
        """Read what the cache does not hold yet, in parallel, with a progress bar.

        Args:
            pairs: the files.
            image_size: pixels a side; images of other sizes are resized.
            skip_bad: leave out the pairs that cannot be read, and say how many.
            cache_dir: where decoded pairs are kept; None keeps them in memory.

        Raises:
            UserError: without `skip_bad`, names the files that cannot be read, after all have been tried;
                the cache cannot be written.
        """
        self.cache = PixelCache(cache_dir, image_size)
        broken = self.cache.hold(pairs)
        problems = [problem for of_pair in broken.values() for problem in of_pair]
        if broken and not skip_bad:
            raise UserError(
                f"cannot read {len(problems):,} images; replace or remove them, or set skip_bad_pairs: true"
                + "".join(f"\n  {problem}" for problem in problems[:5])
                + (f"\n  and {len(problems) - 5:,} more" if len(problems) > 5 else "")
            )
        if broken:
            print(f"          left out {len(broken):,} pairs that cannot be read: {list_some(problems)}")
        good = [pair for pair in pairs if pair.stem not in broken]
        self.stems = [pair.stem for pair in good]
        self.has_mask = torch.tensor([pair.eye_mask is not None for pair in good])
        self.on_device: Tensor | None = None
        entries = [self.cache.pairs[stem] for stem in self.stems]
        self.rows = np.array([entry.row for entry in entries], np.int64)
        self.checksums = {stem: entry.checksum for stem, entry in zip(self.stems, entries, strict=True)}
        self.unchecked = np.full(len(entries), self.cache.folder is not None)

    def take(self, numbers: Sequence[int]) -> MakeupPairs:
        """Return some of the pairs, by number, from the same cache."""
        chosen = list(numbers)
        taken = copy.copy(self)
        taken.stems = [self.stems[number] for number in chosen]
        taken.checksums = {stem: self.checksums[stem] for stem in taken.stems}
        taken.has_mask, taken.rows = self.has_mask[chosen], self.rows[chosen]
        taken.unchecked = self.unchecked[chosen]
        if self.on_device is not None:
            taken.on_device = self.on_device[chosen]
        return taken

    def __len__(self) -> int:
        return len(self.stems)

    def read(self, indices: Tensor) -> Tensor:
        """Return the pixels of some pairs, (B, H, W, 7) uint8; a pair's first time, check them.

        Raises:
            UserError: the cache is damaged; it is thrown away, so that the next run makes a new one.
        """
        if self.on_device is not None:
            return self.on_device[indices.to(self.on_device.device)]
        numbers = indices.numpy()  # NumPy would take a tensor of one element for a number
        pixels = self.cache.pixels[self.rows[numbers]]
        for index, row in zip(numbers, pixels, strict=True):
            if self.unchecked[index] and zlib.crc32(row) != self.checksums[self.stems[index]]:
                self.cache.index_path.unlink(missing_ok=True)
                raise UserError(
                    f"the cache {self.cache.pixels_path} is damaged (pair {self.stems[index]}) and has been "
                    "given up; start again, the pairs are then decoded anew"
                )
        self.unchecked[numbers] = False
        return torch.from_numpy(pixels)

    def move_to(self, device: torch.device) -> None:
        """Keep the pixels on a CUDA device from now on, if they fit into half of its free memory."""
        size = len(self) * math.prod(self.cache.shape)
        if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
            parts = torch.arange(len(self)).split(256)
            self.on_device = torch.cat([self.read(part).to(device) for part in parts])

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (source, target, eye_mask) in [0, 1]: (..., 3, H, W), (..., 3, H, W), (..., 1, H, W)."""
        indices = torch.arange(len(self))[index]
        pixels = self.read(indices.reshape(-1))
        return self.to_images(pixels.view(*indices.shape, *pixels.shape[1:]))

    @staticmethod
    def to_images(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (source, target, eye_mask) in [0, 1] from (..., H, W, 7) uint8, on the same device."""
        images = pixels.movedim(-1, -3).float().div(255)
        return images[..., 0:3, :, :], images[..., 3:6, :, :], images[..., 6:7, :, :]


def load_batches(
    pairs: MakeupPairs, batches: Iterable[Tensor], device: torch.device, flipped: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (source, target, eye_mask) on the device, in [0, 1] and channels_last.

    While the device works on one batch, a thread reads the next.

    Args:
        pairs: where they are.
        batches: numbers of pairs, (B,) each.
        device: where they go.
        flipped: (N,) bool, which pairs are mirrored, source, target and mask alike; None for none.
    """

    def read(indices: Tensor) -> Tensor:
        pixels = pairs.read(indices)
        return pixels.pin_memory() if device.type == "cuda" and not pixels.is_cuda else pixels

    batches = list(batches)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, batches[0])
        for indices, following in zip(batches, [*batches[1:], None], strict=True):
            pixels = coming.result()
            if following is not None:
                coming = reader.submit(read, following)
            pixels = pixels.to(device, non_blocking=True)
            if flipped is not None:
                mirrored = flipped[indices].to(device, non_blocking=True)[:, None, None, None]
                pixels = torch.where(mirrored, pixels.flip(2), pixels)
            source, target, eye_mask = pairs.to_images(pixels)
            yield (
                source.contiguous(memory_format=torch.channels_last),
                target.contiguous(memory_format=torch.channels_last),
                eye_mask,
            )


# ======================================================================================================
# Metrics and evaluation
# ======================================================================================================

EVAL_BATCH = 32  # images; only speed and memory depend on it


def find_psnr(mean_squared_error: Tensor) -> Tensor:
    """Return the PSNR in dB of images in [0, 1]; equal images score 100 dB instead of infinity."""
    return -10 * mean_squared_error.clamp_min(1e-10).log10()


@torch.no_grad()
def evaluate(
    model: nn.Module, pairs: MakeupPairs, criterion: MakeupLoss, device: torch.device
) -> dict[str, float]:
    """Return the metrics `val/...` of README's glossary: per image in float32, then the mean over images.

    `val/psnr_eyes` is over the pairs that have an eye mask, NaN where none has.

    Args:
        model: maps a source to a residual; in eval mode.
        pairs: what to measure on.
        criterion: gives `val/loss`, `val/l1` and `val/eyeliner`.
        device: where the model is.
    """
    columns: dict[str, list[Tensor]] = {}
    batches = torch.arange(len(pairs)).split(EVAL_BATCH)
    for indices, batch in zip(batches, load_batches(pairs, batches, device), strict=True):
        source, target, eye_mask = batch
        output = source + model(source)
        scores = {
            f"val/{name}": value.expand(len(indices))
            for name, value in criterion(output, target, eye_mask).items()
        }
        shown = output.clamp(0, 1)
        error = (shown - target).square()
        scores["val/psnr"] = find_psnr(error.mean((1, 2, 3)))
        scores["val/psnr_source"] = find_psnr((source - target).square().mean((1, 2, 3)))
        scores["val/psnr_gain"] = scores["val/psnr"] - scores["val/psnr_source"]
        area = eye_mask.sum((1, 2, 3))
        in_eyes = pairs.has_mask[indices].to(device) & (area > 0)
        scores["val/psnr_eyes"] = find_psnr((error * eye_mask).sum((1, 2, 3)) / (3 * area.clamp_min(1e-6)))[
            in_eyes
        ]
        scores["val/ssim"] = structural_similarity_index_measure(
            shown, target, data_range=1.0, reduction="none"
        )
        for name, values in scores.items():
            columns.setdefault(name, []).append(values)
    return {name: torch.cat(values).double().mean().item() for name, values in columns.items()}


# ======================================================================================================
# Checkpoints: what ships (int8, under 100 KB) and what a resume needs
# ======================================================================================================


def save_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside it, flushed to disk, then renamed.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}; what was saved before is intact: once this is mended, "
            "go on with --resume, or with --overwrite where nothing was saved yet"
        ) from None


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return what `torch.save` would write, the same bytes for the same content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def list_weights(folded: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (weight, bias or an empty tensor) of each convolution, views in a fixed order.

    The weight is (groups, C_out / groups, C_in / groups, H, W): the first two number the output channels.
    """
    for layer in folded.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = layer.weight.unflatten(0, (layer.groups, -1))
            weight = weight.transpose(1, 2) if isinstance(layer, nn.ConvTranspose2d) else weight
            yield weight, layer.weight.new_empty(0) if layer.bias is None else layer.bias


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight of `list_weights` as int8, (C_out, -1), and its scales, (C_out,) bfloat16."""
    rows = weight.flatten(0, 1).flatten(1)
    # Round the scale first and the weights to that scale: then bfloat16 costs no accuracy. 126
    # leaves room for a scale that was rounded down.
    scale = (rows.abs().amax(1) / 126).clamp_min(1e-20).bfloat16()
    return (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def pack_model(model: nn.Module) -> dict[str, Any]:
    """Return the network as it ships: BatchNorm folded, int8 weights with one scale an output channel.

    Weights are packed into one flat tensor each of int8 (weights), bfloat16 (scales) and float16
    (biases), because the container costs about 300 bytes a tensor.
    """
    folded = copy.deepcopy(model).cpu().float().fold_()
    weights, scales, biases = [], [], []
    for weight, bias in list_weights(folded):
        rows, scale = round_weight(weight)
        weights.append(rows.flatten())
        scales.append(scale)
        biases.append(bias.half())
    return {
        "format": MODEL_FORMAT,
        "version": FORMAT_VERSION,
        "architecture": {"channels": [16, 32, 64, 128], "bottleneck_kernels": [7, 7, 7], "up_groups": 4},
        "weights": torch.cat(weights),
        "scales": torch.cat(scales),
        "biases": torch.cat(biases),
    }


def unpack_into(folded: nn.Module, packed: dict[str, Any]) -> nn.Module:
    """Fill a folded network with packed weights and return it.

    Raises:
        ValueError: they do not fit.
    """
    needed = {"weights": 0, "scales": 0, "biases": 0}
    for weight, bias in list_weights(folded):
        needed["weights"] += weight.numel()
        needed["scales"] += weight.shape[0] * weight.shape[1]
        needed["biases"] += len(bias)
    if {name: (count,) for name, count in needed.items()} != {
        name: tuple(packed[name].shape) for name in needed
    }:
        raise ValueError("the weights do not fit this network")
    parts = {name: packed[name].float().cpu() for name in needed}
    for weight, bias in list_weights(folded):
        channels = weight.shape[0] * weight.shape[1]
        rows, parts["weights"] = parts["weights"].tensor_split([weight.numel()])
        scale, parts["scales"] = parts["scales"].tensor_split([channels])
        values, parts["biases"] = parts["biases"].tensor_split([len(bias)])
        weight.copy_((rows.view(channels, -1) * scale[:, None]).view(weight.shape))
        bias.copy_(values)
    return folded


def unpack_model(packed: dict[str, Any]) -> TinyBeauty:
    """Return the network of `pack_model`, in float32 and eval mode.

    Raises:
        ValueError: the content does not fit this network.
    """
    return unpack_into(TinyBeauty().fold_(), packed)


def load_content(path: str | Path, content_format: str) -> dict[str, Any]:
    """Return the dictionary of a file of ours; runs no code from it.

    Raises:
        UserError: the file is missing, truncated, of another format or another version, or any bit of
            it has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load neither checks the sums nor bounds the size
            members = archive.infolist()
            if any(member.compress_type for member in members) or archive.testzip() is not None:
                raise ValueError("a member's checksum is wrong")
        content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # torch.load raises a dozen kinds for files that are not its own
        raise UserError(f"{path} is damaged or no file of TinyBeauty's ({type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("format") != content_format:
        wanted = {MODEL_FORMAT: "tinybeauty_*.pt", RUN_FORMAT: STATE_FILE}[content_format]
        raise UserError(f"{path} is a PyTorch file, but not one of TinyBeauty's {wanted}")
    if content.get("version") != FORMAT_VERSION:
        found = content.get("version")
        raise UserError(f"{path} has format version {found}, this program reads {FORMAT_VERSION}")
    return content


@contextmanager
def name_damaged(path: str | Path) -> Iterator[None]:
    """Turn what a content that does not fit makes Python and PyTorch raise into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from None


def load_model(path: str | Path) -> TinyBeauty:
    """Return the network of a `.pt` file, on the CPU, in float32 and eval mode.

    Raises:
        UserError: the file is missing, truncated, or no TinyBeauty network of this version.
    """
    packed = load_content(path, MODEL_FORMAT)
    with name_damaged(path):
        return unpack_model(packed)


# ======================================================================================================
# Logging and samples
# ======================================================================================================

SAMPLE_FACES = 6
DIFFERENCE_GAIN = 4  # the fourth column shows |made-up - source| times this


class Tracker:
    """Weights & Biases, which must never ask, wait for long or stop a training run.

    Online with an account, offline without one. Whatever goes wrong is said once; metrics.csv has it all.
    """

    def __init__(
        self, config: Config, facts: dict[str, Any], run_id: str | None = None, watch: bool = True
    ) -> None:
        self.run: Any = None
        mode = os.environ.get("WANDB_MODE", "auto") if config.wandb_mode == "auto" else config.wandb_mode
        if mode == "disabled" or not watch:
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        # Imported here, because it costs seconds that a run without it should not pay.
        self.wandb = wandb = self._attempt(lambda: importlib.import_module("wandb"))
        if wandb is None:
            return
        settings = wandb.Settings(console="off", quiet=True, silent=True, init_timeout=30)
        options = {
            "project": config.wandb_project,
            "dir": str(Path(config.output_dir).absolute()),
            "config": config.model_dump() | facts,
            "id": run_id,
            "resume": "allow" if run_id else None,
            "settings": settings,
        }
        if mode in ("auto", "online"):
            mode = "online" if self._attempt(lambda: wandb.login(prompt=False, verify=False)) else "offline"
            if mode == "online":
                self.run = self._attempt(lambda: wandb.init(mode="online", **options))
        if self.run is None:
            self.run = self._attempt(lambda: wandb.init(mode="offline", **options))
        if self.run is not None:
            self._attempt(lambda: self.run.define_metric("*", step_metric="epoch"))

    def _attempt(self, action: Any) -> Any:
        try:
            return action()
        except Exception as error:  # whatever WandB throws: training goes on
            reason = textwrap.shorten(str(error), 100)
            tqdm.write(f"WandB: {reason}; training goes on, metrics.csv has every number")
            return None

    def describe(self) -> str:
        """Return one line: where the dashboard is, or how to look at an offline run."""
        if self.run is None:
            return "WandB is off"
        if not self.run.offline:
            return f"WandB {self.run.url}"
        folder = shlex.quote(os.path.relpath(Path(self.run.dir).parents[1] / "latest-run"))
        return f"WandB offline; look with: wandb leet {folder}"

    def log(self, metrics: dict[str, float], sample: Path | None) -> None:
        """Log one epoch's metrics and, if drawn, its sample grid."""
        if self.run is not None:
            self._attempt(
                lambda: self.run.log(metrics | ({"samples": self.wandb.Image(str(sample))} if sample else {}))
            )

    def _log_artifact(self, files: list[Path]) -> None:
        artifact = self.wandb.Artifact("tinybeauty", type="model")
        for path in files:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def finish(self, files: list[Path]) -> None:
        """Log the files, if any, as one artifact and close the run."""
        if self.run is None:
            return
        if files:
            self._attempt(lambda: self._log_artifact(files))
        self._attempt(self.run.finish)


@torch.no_grad()
def save_samples(model: TinyBeauty, pairs: MakeupPairs, path: Path, device: torch.device) -> None:
    """Draw the same validation faces each time: source, made-up, target, difference (amplified)."""
    count = min(SAMPLE_FACES, len(pairs))
    indices = torch.linspace(0, len(pairs) - 1, count).round().long()
    source, target, _ = next(load_batches(pairs, [indices], device))
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
    save_bytes(path, buffer.getvalue())


def save_metrics(history: list[dict[str, float]], path: Path) -> None:
    """Write metrics.csv anew, one row an epoch, the names of README's glossary."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    save_bytes(path, text.getvalue().encode())


# ======================================================================================================
# Training
# ======================================================================================================


@dataclass(frozen=True)
class Team:
    """The processes of one `torchrun` that train together; without torchrun, one alone.

    Attributes:
        rank: number of this process; only rank 0 writes, logs and draws.
        size: how many there are.
        local_rank: number on this machine; the one with 0 draws demo pairs and decodes for the others.
        local_size: how many are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """Let the first process of this machine go ahead; the others follow when it is done."""
        if self.local_rank and self.size > 1:
            dist.barrier()
        yield
        if not self.local_rank and self.size > 1:
            dist.barrier()

    def share(self, value: Any) -> Any:
        """Return rank 0's value."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def add(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


ALONE = Team()


@contextmanager
def join_team() -> Iterator[Team]:
    """Give the team that `torchrun` has started this process in."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    team = Team(*(int(os.environ[name]) for name in names))
    if team.size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # torchrun allows a process one thread, too few where there are more cores than processes
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // team.local_size))
    with redirect_stdout(io.StringIO()) if team.rank else nullcontext():  # rank 0 speaks for all
        yield team
    if team.size > 1:  # not after an error: torchrun ends the others, and leaving would wait for them
        dist.destroy_process_group()


def choose_device(config: Config, team: Team = ALONE) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision of the convolutions, and print the reason for both.

    Raises:
        UserError: the configuration asks for a device that is not there, or torchrun has started more
            processes than there are GPUs.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = config.device if config.device != "auto" else next(name for name in there if there[name])
    if not there[name]:
        found = ", ".join(name for name in there if there[name])
        raise UserError(f"device is {name}, which is not there (found: {found}); set device: auto")
    fast = {  # where bfloat16 has instructions of its own; elsewhere it is emulated, and slower
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": lambda: False,
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }[name]()
    precision = config.precision if config.precision != "auto" else ("bfloat16" if fast else "float32")
    what = torch.cuda.get_device_name() if name == "cuda" else f"{name}, {torch.get_num_threads()} threads"
    why = (
        "as configured"
        if config.precision != "auto"
        else "the fastest here"
        if fast
        else "no fast bfloat16 here"
    )
    chosen = "as configured" if config.device != "auto" else "the best found"
    print(f"device    {what} ({chosen}); {precision} ({why})")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, where a validation says so
    if name != "cuda":
        return torch.device(name), getattr(torch, precision)
    if team.local_size > torch.cuda.device_count():
        raise UserError(
            f"torchrun has started {team.local_size} processes here for {torch.cuda.device_count()} GPUs; "
            "give it as many as there are, or set device: cpu"
        )
    torch.cuda.set_device(team.local_rank)
    return torch.device(name, team.local_rank), getattr(torch, precision)


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks: it gives large ones back and faults them in again in every step."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block by mmap, which would be unmapped when freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give the top of the heap back
    except (OSError, TypeError, AttributeError):
        pass  # not glibc


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # finished ones
    pairs_done: int = 0  # of the epoch after that
    sums: dict[str, float] = field(default_factory=dict)  # of its losses over these pairs
    global_step: int = 0
    seconds: float = 0.0  # of the finished epochs
    best_loss: float = math.inf
    best_psnr: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv
    wandb_id: str | None = None


class Run:
    """All that changes while training; what `tinybeauty_last.ckpt` holds.

    Attributes:
        model: the network that is trained.
        average: the moving average of its weights, which is measured and ships.
        network: the model, to call while training: it shares gradients with the other processes.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        team: Team = ALONE,
        make_model: Callable[[], nn.Module] = TinyBeauty,
    ) -> None:
        self.config, self.device, self.dtype, self.team = config, device, dtype, team
        torch.manual_seed(config.seed)
        self.model = make_model().to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model)
        if config.compile:
            self.model.compile()
        self.network: nn.Module = self.model
        if self.team.size > 1:
            self.network = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.criterion = MakeupLoss(**config.model_dump(include=LOSS_WEIGHTS)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        self.scheduler = ReduceLROnPlateau(
            self.optimizer, factor=config.lr_factor, patience=config.lr_patience
        )
        self.progress = Progress()

    def warm_up(self) -> None:
        """Set the learning rate of the next step, as long as it is still rising."""
        step = self.progress.global_step + 1
        if step <= self.config.warmup_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * step / self.config.warmup_steps

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the model, by more at first: its start must not linger."""
        step = self.progress.global_step
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        tensors = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
        for mean, value in tensors:
            if mean.is_floating_point():  # BatchNorm's counter is none
                mean.lerp_(value, 1 - decay)

    def pool_statistics(self) -> None:
        """Average BatchNorm's statistics over the team: each process has seen its own share of the pairs."""
        for module in [*self.model.modules(), *self.average.modules()] if self.team.size > 1 else ():
            if isinstance(module, nn.BatchNorm2d):
                self.team.add(module.running_mean).div_(self.team.size)
                self.team.add(module.running_var).div_(self.team.size)

    @property
    def learning_rate(self) -> float:
        """Adam's at the moment."""
        return self.optimizer.param_groups[0]["lr"]

    def save(self, path: Path, checksums: dict[str, int]) -> None:
        """Write all a resume needs, whole or not at all, and config.yaml beside it.

        Args:
            path: tinybeauty_last.ckpt.
            checksums: of the pairs, so that a resume notices others.
        """
        state = {
            "format": RUN_FORMAT,
            "version": FORMAT_VERSION,
            "config": self.config.model_dump(),
            "checksums": checksums,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": asdict(self.progress),
        }
        settings = yaml.safe_dump(self.config.model_dump(), sort_keys=False)
        save_bytes(path.with_name("config.yaml"), settings.encode())
        save_bytes(path, to_bytes(state))

    def restore(self, path: Path, checksums: dict[str, int]) -> None:
        """Go back to where the run has stopped, and say which settings differ from then.

        Raises:
            UserError: the file is damaged, or a setting or the pairs do not allow to go on.
        """
        state = load_content(path, RUN_FORMAT)
        with name_damaged(path):
            before = Config().model_dump() | state["config"]  # it may be older than a setting
            check_edits(before, self.config, state["checksums"], checksums)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.progress = Progress(**state["progress"])
        if self.progress.epoch > self.config.epochs:
            raise UserError(
                f"this run has done {self.progress.epoch} epochs, more than epochs: {self.config.epochs}"
            )
        if not (path.parent / "tinybeauty_best_loss.pt").exists():
            self.progress.best_loss = math.inf
        if not (path.parent / "tinybeauty_best_psnr.pt").exists():
            self.progress.best_psnr = -math.inf
        # What load_state_dict has just undone:
        self.scheduler.factor, self.scheduler.patience = self.config.lr_factor, self.config.lr_patience
        if self.config.learning_rate != before["learning_rate"]:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate
        if any(getattr(self.config, key) != before[key] for key in LOSS_WEIGHTS):
            self.progress.best_loss = self.scheduler.best = math.inf  # the old ones are of another loss
        epoch, done = self.progress.epoch + 1, self.progress.pairs_done
        print(f"resume    epoch {epoch} of {self.config.epochs}, {done:,} of its pairs are done")


def check_edits(
    before: dict[str, Any], config: Config, checksums_before: dict[str, int], checksums: dict[str, int]
) -> None:
    """Print the settings that differ from the run's and take effect from now on.

    Raises:
        UserError: a setting that cannot change within a run has, or the pairs are others.
    """
    edits = {
        key: f"{key}: {before[key]!r} then, {value!r} now"
        for key, value in config.model_dump().items()
        if before[key] != value
    }
    if refused := [edits[key] for key in ("image_size", "val_fraction", "person_pattern") if key in edits]:
        raise UserError("cannot resume with another split or size:\n  " + "\n  ".join(refused))
    stems = sorted(checksums.keys() | checksums_before.keys())
    if others := [stem for stem in stems if checksums.get(stem) != checksums_before.get(stem)]:
        where = edits.get("data_dir", f"data_dir: {config.data_dir!r}")
        raise UserError(
            f"cannot resume: {len(others):,} pairs were added, removed or changed since "
            f"({list_some(others)}; {where}); bring them back, or start anew in another output_dir"
        )
    for edit in edits.values():
        print(f"changed   {edit}")


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop after the step; a second one ends at once.

    Attributes:
        signal_number: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            self.previous = {
                number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        os.write(2, b"\nstopping after this step; once more ends at once\n")  # print may be under way


class Stopped(Exception):
    """The run was asked to stop and has saved its state; `exit_code` is the shell's for that signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


def check_finite(loss: float, epoch: int, config: Config) -> None:
    """Raise UserError where the loss is no longer a finite number; what was saved before stays intact."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} in epoch {epoch}: training has diverged and stops; what was saved before is "
            f"intact in {config.output_dir}. Lower learning_rate (now {config.learning_rate:g}) "
            "or set precision: float32"
        )


def train_one_epoch(
    run: Run, pairs: MakeupPairs, epoch: int, stop: StopRequest, bar: tqdm
) -> dict[str, float]:
    """Train on the pairs of an epoch that are not done yet; return its `train/...` and images a second.

    Order and flips depend on (seed, epoch) alone, so a run that is continued sees what it would have seen.
    A request to stop ends it after the step; then `run.progress.pairs_done` is less than all. Of a
    batch every process of a team takes its share.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    config, progress, team = run.config, run.progress, run.team
    run.model.train()
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(pairs), generator=generator)
    flipped = torch.rand(len(pairs), generator=generator) < (0.5 if config.flip else 0.0)
    so_far = {} if team.rank else progress.sums  # added up over the team below
    sums = {name: torch.tensor(so_far.get(name, 0.0), device=run.device) for name in LOSSES}
    norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)]
    started_at = progress.pairs_done
    start = shown = time.perf_counter()
    batches = order[started_at:].split(config.batch_size)
    shares = [indices[team.rank :: team.size] for indices in batches]
    # Where a batch has fewer pairs than there are processes, some look at its first one, for nothing.
    seen = [share if len(share) else indices[:1] for share, indices in zip(shares, batches, strict=True)]
    loaded = load_batches(pairs, seen, run.device, flipped)
    for indices, share, (source, target, eye_mask) in zip(batches, shares, loaded, strict=True):
        for norm in norms:  # plain means at first: PyTorch's start of 1 would stay in them for 150 steps
            norm.momentum = max(0.1, 1 / (progress.global_step + 1))
        with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
            residual = run.network(source)
        losses = run.criterion(source + residual.float(), target, eye_mask)
        run.warm_up()
        run.optimizer.zero_grad()
        # The team's mean of these is the mean over the batch, however it is divided.
        (losses["loss"] * (len(share) * team.size / len(indices))).backward()
        run.optimizer.step()
        run.update_average()
        for name in LOSSES:
            sums[name] += losses[name].detach() * len(share)
        progress.pairs_done += len(indices)
        progress.global_step += 1
        bar.update()
        if time.perf_counter() - shown > 0.5:  # reading the loss waits for the device: not in every step
            shown = time.perf_counter()
            check_finite(losses["loss"].item(), epoch, config)
            bar.set_postfix(loss=f"{losses['loss'].item():.4f}", refresh=False)
        if team.add(torch.tensor(stop.signal_number or 0)):
            stop.signal_number = stop.signal_number or signal.SIGTERM
            break
    run.pool_statistics()
    progress.sums = {name: team.add(total).item() for name, total in sums.items()}
    weights = sum(weight.detach().abs().sum().item() for weight in run.model.parameters())
    check_finite(progress.sums["loss"] + weights, epoch, config)  # a bad gradient shows in the weights
    seconds = time.perf_counter() - start
    means = {f"train/{name}": total / len(pairs) for name, total in progress.sums.items()}
    return means | {"time/images_per_s": (progress.pairs_done - started_at) / seconds}


def find_data(config: Config) -> tuple[list[Pair], list[Pair]]:
    """Return the training and the validation pairs; draw the demo pairs where they are wanted and missing.

    Raises:
        UserError: as find_pairs and split_pairs.
    """
    data_dir = Path(config.data_dir)
    if config.data_dir == DEMO_DIR and not data_dir.exists():
        print(f"{DEMO_DIR} does not exist yet: drawing demo pairs (your own: --data_dir FOLDER)", flush=True)
        command = [sys.executable, str(HERE / "data" / "make_demo.py"), "--out", str(data_dir)]
        with subprocess.Popen(command) as drawing:  # which waits, also after Ctrl-C, until it has cleaned up
            failed = drawing.wait()
        if failed:
            raise UserError("the demo pairs could not be drawn, see above")
    return split_pairs(find_pairs(data_dir), config.val_fraction, config.person_pattern)


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing, and try out whether files can be written to it.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def make_output_dir(config: Config) -> Path:
    """Return the output folder, made where it is missing and tried out before an hour of training.

    Raises:
        UserError: it cannot be written to, or is the program's own folder.
    """
    output_dir = Path(config.output_dir)
    if output_dir.resolve() == HERE:
        raise UserError(f"output_dir {output_dir} is the folder of the program; choose another output_dir")
    try:
        make_folder(output_dir)
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {output_dir}: {error.strerror}; choose another output_dir"
        ) from None
    return output_dir


def check_outputs(output_dir: Path, resume: bool, overwrite: bool) -> None:
    """Raise UserError where a run is there that nobody said what to do with, or none to resume."""
    state_exists = (output_dir / STATE_FILE).exists()
    if resume and not state_exists:
        raise UserError(f"there is nothing to resume: {output_dir} holds no {STATE_FILE}")
    if not (resume or overwrite) and find_outputs(output_dir):
        go_on = "--resume goes on with it, " if state_exists else ""
        raise UserError(
            f"{output_dir} holds a run already: {go_on}--overwrite deletes it and starts anew, "
            "another --output_dir keeps both"
        )


def find_outputs(output_dir: Path) -> list[Path]:
    """Return the files of an earlier run."""
    patterns = ("tinybeauty_*.pt", STATE_FILE, "samples_epoch_*.png", "metrics.csv", "config.yaml")
    return [path for pattern in patterns for path in output_dir.glob(pattern)]


@contextmanager
def lock_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of the folder; the system lets go of it however this one ends.

    Args:
        folder: which.
        wait: until another run is out of it.

    Raises:
        UserError: another run is in there and we do not wait.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(
                f"another run is writing into {folder}; wait, or choose another output_dir"
            ) from None
        print(f"          waiting for another run that writes into {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_cache_dir(config: Config) -> Path | None:
    """Return the folder for the decoded pairs, made where it is missing; None for in memory.

    `auto` is `.cache` in `data_dir` or, where that is read-only, a folder in the user's cache. Any other
    folder can serve several data sets: each gets its own inside.

    Raises:
        UserError: the configured folder cannot be written to.
    """
    if not config.cache_dir:
        return None
    data_dir, place = Path(config.data_dir).resolve(), Path(config.cache_dir)
    if config.cache_dir == "auto":
        with suppress(OSError):
            make_folder(data_dir / ".cache")
            return data_dir / ".cache"
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "tinybeauty"
    place /= f"{data_dir.name}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]}"
    try:
        make_folder(place)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {place}: {error.strerror}; set cache_dir to another folder, "
            "or to '' to keep the pairs in memory"
        ) from None
    return place


def read_data(parts: tuple[list[Pair], list[Pair]], config: Config) -> tuple[MakeupPairs, MakeupPairs]:
    """Return the training and the validation pairs, decoded.

    Raises:
        UserError: names the files that cannot be read; the cache cannot be written.
    """
    train_pairs, val_pairs = parts
    cache_dir = make_cache_dir(config)
    with lock_folder(cache_dir, wait=True) if cache_dir else nullcontext():
        pairs = MakeupPairs([*train_pairs, *val_pairs], config.image_size, config.skip_bad_pairs, cache_dir)
    held_out = {pair.stem for pair in val_pairs}
    first = sum(stem not in held_out for stem in pairs.stems)
    train_set, val_set, count = pairs.take(range(first)), pairs.take(range(first, len(pairs))), len(pairs)
    if not (len(train_set) and len(val_set)):
        raise UserError(
            "without the pairs that cannot be read there is nothing left to train on or validate with"
        )
    masks = int(pairs.has_mask.sum())
    print(
        f"data      {count:,} pairs in {config.data_dir}: {len(train_set):,} for training, "
        f"{len(val_set):,} held out, {masks:,} eye masks"
    )
    if masks < count:
        print(f"          {count - masks:,} have none: there the eyeliner loss looks at the whole image")
    size = pairs.cache.pixels.nbytes
    print(f"          decoded into {cache_dir or 'memory'}, {size / 1e6:,.0f} MB")
    return train_set, val_set


def describe_epoch(metrics: dict[str, float], config: Config, seconds_left: float, best: list[str]) -> str:
    """Return the line printed after an epoch."""
    eyes = metrics["val/psnr_eyes"]
    return (
        f"epoch {metrics['epoch']:3d}/{config.epochs}  "
        f"loss {metrics['train/loss']:.4f}  val {metrics['val/loss']:.4f}  "
        f"psnr {metrics['val/psnr']:.2f} dB ({metrics['val/psnr_gain']:+.2f})  "
        + ("" if math.isnan(eyes) else f"eyes {eyes:.2f} dB  ")
        + f"{tqdm.format_interval(seconds_left)} left"
        + (f"  best {', '.join(best)}" if best else "")
    )


def save_networks(run: Run, output_dir: Path, metrics: dict[str, float], shipped: bytes) -> list[str]:
    """Write the networks that ship, where this epoch's is one of them; return which bests were beaten."""
    progress, best = run.progress, []
    if metrics["val/loss"] < progress.best_loss:
        progress.best_loss = metrics["val/loss"]
        best.append("loss")
    if metrics["val/psnr"] > progress.best_psnr:
        progress.best_psnr = metrics["val/psnr"]
        best.append("psnr")
    last = ["final"] if metrics["epoch"] == run.config.epochs else []
    for name in [f"best_{name}" for name in best] + last:
        save_bytes(output_dir / f"tinybeauty_{name}.pt", shipped)
    return best


def measure_epoch(run: Run, metrics: dict[str, float], val_set: MakeupPairs) -> tuple[TinyBeauty, bytes]:
    """Measure the network as it ships, add that to `metrics`, let the scheduler see it.

    Returns:
        The network as read back, and the bytes of its file.
    """
    packed = pack_model(run.average)
    network = unpack_model(packed).to(run.device, memory_format=torch.channels_last)
    scores = {} if run.team.rank else evaluate(network, val_set, run.criterion, run.device)
    scores = run.team.share(scores)
    if run.progress.global_step >= run.config.warmup_steps:
        run.scheduler.step(scores["val/loss"])
    shipped = to_bytes(packed | {"epoch": int(metrics["epoch"]), "metrics": scores})
    metrics |= scores | {"model/parameters": count_parameters(run.model), "model/bytes": len(shipped)}
    return network, shipped


def write_epoch(
    run: Run, network: TinyBeauty, shipped: bytes, val_set: MakeupPairs, output_dir: Path
) -> tuple[list[str], Path | None]:
    """Write what the epoch that is last in `run.progress.history` leaves behind, but for the state.

    Returns:
        Which bests were beaten, and the sample grid if one was due.
    """
    config, metrics, sample = run.config, run.progress.history[-1], None
    epoch = int(metrics["epoch"])
    best = save_networks(run, output_dir, metrics, shipped)
    if epoch in (1, config.epochs) or epoch % config.sample_every == 0:
        sample = output_dir / f"samples_epoch_{epoch:03d}.png"
        save_samples(network, val_set, sample, run.device)
    save_metrics(run.progress.history, output_dir / "metrics.csv")
    return best, sample


def print_summary(output_dir: Path, config: Config, seconds: float) -> list[Path]:
    """Print what was written where, from the files themselves; return the networks' paths."""
    paths = [output_dir / f"tinybeauty_{name}.pt" for name in ("best_loss", "best_psnr", "final")]
    paths = [path for path in paths if path.exists()]  # one that was moved away is no error
    width = max((len(str(path)) for path in paths), default=4)
    print(f"\n{'file':{width}s}   bytes  epoch      PSNR  doing nothing      gain")
    for path in paths:
        shipped, size = load_content(path, MODEL_FORMAT), path.stat().st_size
        scores = shipped["metrics"]
        print(
            f"{path!s:{width}s} {size:7,d} {shipped['epoch']:6d} {scores['val/psnr']:6.2f} dB "
            f"{scores['val/psnr_source']:11.2f} dB {scores['val/psnr_gain']:+6.2f} dB"
        )
        if size > config.max_model_bytes:
            print(
                f"WARNING: {path} has {size:,} bytes, more than max_model_bytes: {config.max_model_bytes:,}"
            )
        if scores["val/psnr_gain"] <= 0:
            print(f"WARNING: {path} is no better than the untouched face; it needs more epochs or pairs")
    print(
        f"{config.epochs} epochs in {seconds:.0f} s; beside the networks in {output_dir}: "
        f"samples_epoch_*.png, metrics.csv, config.yaml, {STATE_FILE}"
    )
    return paths


def train_epochs(
    run: Run, train_set: MakeupPairs, val_set: MakeupPairs, output_dir: Path, tracker: Tracker
) -> None:
    """Train until the last epoch is done.

    Raises:
        Stopped: Ctrl-C or SIGTERM came, and the state is saved.
        UserError: the loss is not finite, or a file cannot be written.
    """
    config, progress, state_path = run.config, run.progress, output_dir / STATE_FILE
    checksums = train_set.checksums | val_set.checksums
    steps = math.ceil(len(train_set) / config.batch_size)
    first, started = progress.epoch + 1, time.perf_counter()
    with (
        StopRequest() as stop,
        tqdm(
            desc=f"epoch {first}/{config.epochs}",
            total=(config.epochs - progress.epoch) * steps - progress.pairs_done // config.batch_size,
            unit="step",
            disable=True if run.team.rank else None,
            leave=False,
        ) as bar,
    ):
        for epoch in range(first, config.epochs + 1):
            epoch_started = time.perf_counter()
            bar.set_description(f"epoch {epoch}/{config.epochs}", refresh=False)
            losses = train_one_epoch(run, train_set, epoch, stop, bar)
            metrics: dict[str, float] = {"epoch": epoch, "lr": run.learning_rate} | losses
            if progress.pairs_done < len(train_set):
                if run.team.rank == 0:
                    run.save(state_path, checksums)
                raise Stopped(stop.signal_number)

            network, shipped = measure_epoch(run, metrics, val_set)
            metrics["time/epoch_s"] = time.perf_counter() - epoch_started
            progress.epoch, progress.pairs_done, progress.sums = epoch, 0, {}
            progress.seconds += metrics["time/epoch_s"]
            progress.history.append(metrics)
            if run.team.rank:
                continue
            best, sample = write_epoch(run, network, shipped, val_set, output_dir)
            # Last of all: until this file is there the epoch does not count, and a resume does it again.
            run.save(state_path, checksums)
            tracker.log(metrics, sample)
            seconds_left = (time.perf_counter() - started) / (epoch + 1 - first) * (config.epochs - epoch)
            tqdm.write(describe_epoch(metrics, config, seconds_left, best))
            if run.learning_rate < metrics["lr"]:
                tqdm.write(
                    f"          val/loss has not improved for {config.lr_patience + 1} epochs: "
                    f"learning rate {metrics['lr']:g} -> {run.learning_rate:g}"
                )


def train(config: Config, resume: bool = False, overwrite: bool = False, team: Team = ALONE) -> None:
    """Train as configured and write everything into `output_dir`.

    Args:
        config: the settings.
        resume: go on with the run in `output_dir`.
        overwrite: delete the run in `output_dir` and start anew.
        team: the processes that train together.

    Raises:
        UserError: the data, the device or the output folder are not usable, or the loss is not finite.
        Stopped: Ctrl-C or SIGTERM came, and the state is saved.
    """
    keep_freed_memory()
    device, dtype = choose_device(config, team)
    output_dir, leads = Path(config.output_dir), team.rank == 0
    with team.first_here():
        parts = find_data(config)
    if leads:
        if resume:
            check_outputs(output_dir, resume, overwrite)  # before a folder is made
        make_output_dir(config)
    with lock_folder(output_dir) if leads else nullcontext():
        if leads:
            check_outputs(output_dir, resume, overwrite)
        with team.first_here():
            train_set, val_set = read_data(parts, config)
        train_set.move_to(device)
        run = Run(config, device, dtype, team)
        if resume:
            run.restore(output_dir / STATE_FILE, train_set.checksums | val_set.checksums)
        for path in find_outputs(output_dir) if overwrite and leads else ():
            path.unlink()

        facts = {"model/parameters": count_parameters(run.model)}
        print(
            f"model     {facts['model/parameters']:,} parameters, "
            f"{count_multiply_adds(run.model, config.image_size) / 1e6:,.0f} million multiply-adds an image, "
            f"about {len(to_bytes(pack_model(run.model))):,} bytes as shipped"
        )
        tracker = Tracker(config, facts, run.progress.wandb_id, watch=leads)
        run.progress.wandb_id = tracker.run.id if tracker.run else run.progress.wandb_id
        print(f"tracking  {tracker.describe()}")
        print(
            "psnr is on people held out, in brackets the gain over leaving their faces as they are",
            flush=True,
        )
        files: list[Path] = []
        try:
            train_epochs(run, train_set, val_set, output_dir, tracker)
            if leads:
                files = print_summary(output_dir, config, run.progress.seconds)
        finally:
            tracker.finish(files)


# ======================================================================================================
# Command line
# ======================================================================================================


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with a command line like every other error of the program."""

    def error(self, message: str) -> None:
        """Raise UserError instead of printing the usage and exiting with code 2."""
        raise UserError(f"{message}; see --help")


def parse_flags(argv: list[str]) -> tuple[dict[str, str], argparse.Namespace]:
    """Return the flags given, by configuration key, and the others: `config`, `resume`, `overwrite`.

    Raises:
        UserError: an unknown flag or a flag without its value.
    """
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False, epilog="README.md says more.")
    parser.add_argument(
        "--config",
        type=Path,
        default=HERE / "config.yaml",
        help="YAML file (default: config.yaml beside the script)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in output_dir, start anew")
    for key, info in Config.model_fields.items():
        optional = {"nargs": "?", "const": "true"} if info.annotation is bool else {}
        default = str(info.default).replace("%", "%%")
        parser.add_argument(
            f"--{key}",
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=f"{info.description} (default: {default})",
            **optional,
        )
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [*Config.model_fields, "config", "resume", "overwrite"]
        told = []
        for flag in [word.split("=")[0] for word in unknown if word.startswith("--")] or unknown:
            close = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), names, n=1)
            told.append(flag + (f" (did you mean --{close[0]}?)" if close else ""))
        raise UserError(f"unknown arguments, see --help: {', '.join(told)}")
    if known.resume and known.overwrite:
        raise UserError("--resume goes on with a run, --overwrite deletes it: give one of them")
    flags = {key: value for key, value in vars(known).items() if key in Config.model_fields}
    return flags, known


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    rank = int(os.environ.get("RANK", 0))
    try:
        flags, others = parse_flags(argv)
        config = load_config(flags, others.config)
        with join_team() as team:
            train(config, others.resume, others.overwrite, team)
    except UserError as error:
        who = f"process {rank}: " if rank else ""
        print(f"{who}error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        if rank:
            return stopped.exit_code
        again = [word for word in argv if word not in ("--resume", "--overwrite")]
        start = "torchrun ..." if "LOCAL_WORLD_SIZE" in os.environ else "python"
        command = f"{start} {shlex.join([sys.argv[0], *again, '--resume'])}"
        print(f"stopped, the state is saved; go on with: {command}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stopped at once; a state saved before is intact", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
