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
ECCV 2024, arXiv 2403.15033. The U-Net, the small files and the start are our own; tests/README.md has what it
reaches. What is not about makeup (files, cache, devices, WandB, signals) lies in the package tinybeauty/.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import tinybeauty  # noqa: F401  before torch: it says how threads wait

# isort: split
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset
from tqdm import tqdm

from tinybeauty import devices, reporting, runs, settings, shipping, starting
from tinybeauty.cache import PixelCache, read_pairs
from tinybeauty.devices import Replay, Team
from tinybeauty.errors import Parser, UserError, run_command
from tinybeauty.layers import ConvNormReLU, Upsample, count_parameters, separable
from tinybeauty.pairs import Pair, PersonPattern, count_variants, draw_demo_pairs, lacks_demo
from tinybeauty.progress import FINAL, Progress
from tinybeauty.runs import OutputDir, StopRequest, check_finite
from tinybeauty.settings import Folder, FolderOrNothing
from tinybeauty.tracking import Tracker, WandbMode, find_trial
from tinybeauty.variation import Plan, plan_epoch, vary_batch
from tinybeauty.workers import read_ahead

HERE = Path(__file__).resolve().parent
DEMO_DIR = "data/demo"
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what "grey" means in Pillow and OpenCV too
EVAL_BATCH = 32  # images; only speed and memory depend on it
SAMPLE_FACES = 6  # in a sample grid


# --- Configuration: flag over YAML over default -------------------------------------------------------
class Config(settings.Settings):
    """Every hyperparameter once, checked. `config.yaml` lists the same keys with the same defaults."""

    # data
    data_dir: Folder = Field(DEMO_DIR, description="folder with source/, target/, eye_mask/")
    image_size: int = Field(256, ge=16, le=1024, multiple_of=8, description="pixels a side")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of the people held out; 0: nobody")
    person_pattern: PersonPattern = Field("(.+)", description="regex on the stem; group 1 is the person")
    skip_bad_pairs: bool = Field(False, description="leave out pairs that cannot be read, do not stop")
    cache_dir: FolderOrNothing = Field("auto", description="of decoded pairs; auto: beside them; '': memory")
    flip: bool = Field(True, description="mirror half of the training pairs, another half each epoch")
    vary: float = Field(0.0, ge=0, le=3, description="other light and crop each time: 1 a little, 0 none")
    repeats: int = Field(1, ge=1, le=10**6, description="times an epoch goes through pairs; more if few")
    # training
    start_from: starting.StartFrom = Field("", description="a look, .pt, .ckpt, or auto; '': from scratch")
    epochs: int = Field(50, ge=1, le=10**6, description="passes over the training pairs")
    batch_size: int = Field(32, ge=1, le=2**16, description="pairs per optimizer step")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Adam's at the start")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises to that")
    lr_schedule: Literal["plateau", "linear"] = Field("plateau", description="how it falls; linear: to 0")
    lr_factor: float = Field(0.5, gt=0, lt=1, description="learning rate *= this when val/loss stalls")
    lr_patience: int = Field(3, ge=0, description="epochs without a better val/loss before that")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the weights' moving average, which ships")
    l1_weight: float = Field(1.0, ge=0, description="weight of the mean absolute error")
    eyeliner_weight: float = Field(0.5, ge=0, description="weight of the eyeliner loss")
    psnr_weight: float = Field(0.0, ge=0, description="weight of the missing decibels of PSNR")
    seed: int = Field(42, ge=0, lt=2**32, description="same seed, same machine, same bytes (CPU)")
    # output
    output_dir: Folder = Field("tinybeauty_model", description="folder for all a run writes")
    sample_every: int = Field(5, ge=1, description="epochs between sample grids")
    max_model_bytes: int = Field(100_000, ge=1, description="a warning says so when a .pt is larger")
    # device
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="auto, cuda, mps or cpu")
    precision: Literal["auto", "bfloat16", "float32"] = Field("auto", description="of the convolutions")
    compile: bool = Field(False, description="torch.compile the network: slow to start")
    # tracking
    wandb_mode: WandbMode = Field("auto", description="auto, online, offline or disabled")
    wandb_project: str = Field("tinybeauty", min_length=1, description="the dashboard's project")


# --- Network ------------------------------------------------------------------------------------------
class TinyBeauty(nn.Module):
    """U-Net with three poolings, 3 -> 16 -> 32 -> 64 -> 128 channels and back, that returns a residual.

    75,107 parameters. Convolutions are depthwise-separable, but for the first, which has only three
    channels to separate. Kernels of 7 x 7 at an eighth of the size let the bottleneck see the whole face, and
    cost next to nothing there; transposed convolutions in groups pay for them. tests/README.md has the study.

    Args:
        up_groups: the groups of up3, up2 and up1; one number for all, 4, is what earlier versions had.

    Source: the plan follows Ronneberger et al., arXiv 1505.04597; the separable convolution is Chollet's,
    arXiv 1610.02357.
    """

    def __init__(self, up_groups: int | Sequence[int] = (64, 32, 16)) -> None:
        super().__init__()
        kernels, ups = [7, 7, 7], up_groups if isinstance(up_groups, int) else list(up_groups)
        self.architecture = {"channels": [16, 32, 64, 128], "bottleneck_kernels": kernels, "up_groups": ups}
        up3, up2, up1 = [ups] * 3 if isinstance(ups, int) else ups
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
        self.up3 = Upsample(128, 64, up3)
        self.dec3 = ConvNormReLU(separable(64, 64), separable(64, 64))
        self.up2 = Upsample(64, 32, up2)
        self.dec2 = ConvNormReLU(separable(32, 32), separable(32, 32))
        self.up1 = Upsample(32, 16, up1)
        self.dec1 = ConvNormReLU(separable(16, 16), separable(16, 16))
        self.out = nn.Conv2d(16, 3, kernel_size=1)
        nn.init.zeros_(self.out.weight)  # the first output is the source itself: no makeup is a good start
        nn.init.zeros_(self.out.bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return the makeup residual, (B, 3, H, W), not clamped; add it to the source and clamp to show it.

        Args:
            source: (B, 3, H, W) in [0, 1].

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


# --- Losses -------------------------------------------------------------------------------------------
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
        """Return a scalar in float32: a mean over the mask's area of each image, then over images.

        Args:
            pred: (B, 3, H, W), the made-up image, not necessarily clamped.
            target: (B, 3, H, W) in [0, 1].
            eye_mask: (B, 1, H, W) in [0, 1]; None means the whole image; an empty mask gives 0.
        """
        with torch.autocast(pred.device.type, enabled=False):
            # Sobel is linear: the difference of the gradients is the gradient of the difference.
            gradient_x, gradient_y = sobel(F.conv2d(pred.float() - target.float(), self.luma))
            edges = (gradient_x.abs() + gradient_y.abs()) / 2  # (B, 1, H, W)
            if eye_mask is None:
                return edges.mean()
            eye_mask = eye_mask.float()
            area = eye_mask.sum((1, 2, 3)).clamp_min(1e-6)
            return ((edges * eye_mask).sum((1, 2, 3)) / area).mean()


def missing_decibels(pred: Tensor, target: Tensor) -> Tensor:
    """Return the decibels of PSNR that are missing to 60, the mean over images; 0 for equal ones.

    Half the error is worth the same in every image, so one with a small error gets a large gradient; within
    an image the gradient is as large as the error.

    Args:
        pred: (B, 3, H, W), not necessarily clamped.
        target: (B, 3, H, W) in [0, 1].

    Source: Chen et al., "HINet", 2021, arXiv 2105.06086, without the bound: theirs has no end.
    """
    mean_squared_error = (pred.float() - target.float()).square().mean((1, 2, 3))
    # The 1 makes 60 dB a soft end: the loss does not fall below 0, and its gradient stays finite.
    return 10 * (1 + 1e6 * mean_squared_error).log10().mean()


LOSSES = ("loss", "l1", "eyeliner")
LOSS_WEIGHTS = {"l1_weight", "eyeliner_weight", "psnr_weight"}


class MakeupLoss(nn.Module):
    """l1_weight * L1 + eyeliner_weight * eyeliner + psnr_weight * missing decibels, in float32."""

    def __init__(self, l1_weight: float, eyeliner_weight: float, psnr_weight: float = 0.0) -> None:
        super().__init__()
        self.l1_weight, self.eyeliner_weight, self.psnr_weight = l1_weight, eyeliner_weight, psnr_weight
        self.eyeliner = EyelinerLoss()

    def forward(self, output: Tensor, target: Tensor, eye_mask: Tensor) -> dict[str, Tensor]:
        """Return the scalars `loss` (to minimise), `l1` and `eyeliner`; arguments as in EyelinerLoss."""
        l1 = (output.float() - target).abs().mean()
        eyeliner = self.eyeliner(output, target, eye_mask)
        loss = self.l1_weight * l1 + self.eyeliner_weight * eyeliner
        if self.psnr_weight:
            loss = loss + self.psnr_weight * missing_decibels(output, target)
        return {"loss": loss, "l1": l1, "eyeliner": eyeliner}


# --- Pairs as tensors ---------------------------------------------------------------------------------
class MakeupPairs(Dataset):
    """Aligned pairs, decoded once into 8-bit pixels.

    Attributes:
        stems: their names.
        has_mask: (N,) bool; a pair without a mask counts as white everywhere in the eyeliner loss and
            is left out of `val/psnr_eyes`.
        checksums: {stem: CRC-32 of the pixels}.
    """

    def __init__(self, pairs: list[Pair], cache: PixelCache) -> None:
        """Take those of the pairs that the cache holds; pairs that cannot be read are not in it."""
        pairs = [pair for pair in pairs if pair.stem in cache.pairs]
        self.stems = [pair.stem for pair in pairs]
        self.has_mask = torch.tensor([pair.eye_mask is not None for pair in pairs])
        self.checksums = {stem: cache.pairs[stem].checksum for stem in self.stems}
        self.cache = cache
        self.on_device: Tensor | None = None

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (source, target, eye_mask) in [0, 1]: (3, H, W), (3, H, W), (1, H, W)."""
        return to_images(self.read(torch.arange(len(self))[[index]])[0])  # IndexError: a loop ends there

    def read(self, indices: Tensor) -> Tensor:
        """Return the pixels of some pairs, (B, H, W, 7) uint8; raise UserError where they are damaged."""
        if self.on_device is not None:
            return self.on_device[indices.to(self.on_device.device)]
        return torch.from_numpy(self.cache.read([self.stems[index] for index in indices.tolist()]))

    def move_to(self, device: torch.device) -> None:
        """Keep the pixels on a CUDA device from now on, if they fit into half of its free memory."""
        size = len(self) * math.prod(self.cache.shape)
        if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
            parts = torch.arange(len(self)).split(256)
            self.on_device = torch.cat([self.read(part).to(device) for part in parts])


def to_images(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (source, target, eye_mask) in [0, 1] from (..., H, W, 7) uint8, on the same device."""
    images = pixels.movedim(-1, -3).float().div(255)
    return images[..., 0:3, :, :], images[..., 3:6, :, :], images[..., 6:7, :, :]


def load_batches(
    pairs: MakeupPairs, batches: Sequence[Tensor], device: torch.device, plan: Plan | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (source, target, eye_mask) on the device, in [0, 1] and channels_last.

    Args:
        pairs: where they are.
        batches: numbers of pairs, (B,) each; with repeats they go on behind the last pair at the first.
        device: where they go.
        plan: which are mirrored and how they are varied, source, target and mask alike; None for none.
    """

    def read(indices: Tensor) -> Tensor:
        pixels = pairs.read(indices % len(pairs))
        return pixels.pin_memory() if device.type == "cuda" and not pixels.is_cuda else pixels

    for indices, pixels in zip(batches, read_ahead(read, batches), strict=True):
        pixels = pixels.to(device, non_blocking=True)
        if plan is not None:
            mirrored = plan.flipped[indices].to(device, non_blocking=True)[:, None, None, None]
            pixels = torch.where(mirrored, pixels.flip(2), pixels)
        source, target, eye_mask = to_images(pixels)
        if plan is not None and plan.ways is not None:
            source, target, eye_mask = vary_batch(source, target, eye_mask, plan.ways[indices].to(device))
        layout = torch.channels_last  # the convolutions' own on a CPU: a step takes half the time
        yield source.contiguous(memory_format=layout), target.contiguous(memory_format=layout), eye_mask


# --- Evaluation ---------------------------------------------------------------------------------------
def psnr(mean_squared_error: Tensor) -> Tensor:
    """Return the PSNR in dB of images in [0, 1]; equal images score 100 dB instead of infinity."""
    return -10 * mean_squared_error.clamp_min(1e-10).log10()


@torch.no_grad()
def evaluate(
    model: nn.Module, pairs: MakeupPairs, criterion: MakeupLoss, device: torch.device
) -> dict[str, float]:
    """Return `val/...` of tinybeauty_model/README.md: per image in float32, then the mean over images.

    `val/psnr_eyes` is over the pairs that have an eye mask, NaN where none has.

    Args:
        model: maps a source to a residual; on the device, in eval mode.
        pairs: what to measure on.
        criterion: gives `val/loss`, `val/l1` and `val/eyeliner`.
        device: where the model is.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim  # takes a second

    columns: dict[str, list[Tensor]] = {}
    batches = torch.arange(len(pairs)).split(EVAL_BATCH)
    loaded = load_batches(pairs, batches, device)
    for indices, (source, target, eye_mask) in zip(batches, loaded, strict=True):
        output = source + model(source)
        losses = criterion(output, target, eye_mask)  # as in training: not clamped
        scores = {f"val/{name}": value.expand(len(indices)) for name, value in losses.items()}
        output = output.clamp(0, 1)
        error = (output - target).square()
        scores["val/psnr"] = psnr(error.mean((1, 2, 3)))
        scores["val/psnr_source"] = psnr((source - target).square().mean((1, 2, 3)))
        scores["val/psnr_gain"] = scores["val/psnr"] - scores["val/psnr_source"]
        area = eye_mask.sum((1, 2, 3))
        error_in_eyes = (error * eye_mask).sum((1, 2, 3)) / (3 * area.clamp_min(1e-6))
        scores["val/psnr_eyes"] = psnr(error_in_eyes)[pairs.has_mask[indices].to(device) & (area > 0)]
        scores["val/ssim"] = ssim(output, target, data_range=1.0, reduction="none")
        for name, values in scores.items():
            columns.setdefault(name, []).append(values)
    return {name: torch.cat(values).double().mean().item() for name, values in columns.items()}


def load_model(path: str | Path) -> TinyBeauty:
    """Return the network of a `.pt` file, on the CPU, in float32 and eval mode.

    Raises:
        UserError: the file is missing, damaged, or no TinyBeauty network of this version.
    """
    return shipping.load_network(path, lambda architecture: TinyBeauty(architecture["up_groups"]))


# --- A run's state ------------------------------------------------------------------------------------
class Run:
    """All that changes while training; what `tinybeauty_last.ckpt` holds.

    Attributes:
        model: the network that is trained.
        average: the moving average of its weights, which is measured and ships.
        network: the model, to call while training: it shares gradients with the other processes.
    """

    PARTS = ("model", "average", "optimizer", "scheduler")  # that keep a state, by PyTorch's rules

    def __init__(
        self, config: Config, model: nn.Module, device: torch.device, dtype: torch.dtype, team: Team
    ) -> None:
        self.config, self.device, self.dtype, self.team = config, device, dtype, team
        self.model = self.network = model.to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(model)
        tensors = zip(self.average.state_dict().values(), model.state_dict().values(), strict=True)
        floats = [pair for pair in tensors if pair[0].is_floating_point()]  # BatchNorm's counter is none
        self.means, self.values = map(list, zip(*floats, strict=True))
        if config.compile and devices.can_compile(device):
            self.model.compile()
        if team.size > 1:
            self.network = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        replays = device.type == "cuda" and team.size == 1 and not config.compile  # the weight is 1 there
        self.replay = Replay(self.backward, list(model.parameters())) if replays else None
        self.norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        self.average_norms = [part for part in self.average.modules() if isinstance(part, nn.BatchNorm2d)]
        self.criterion = MakeupLoss(**config.model_dump(include=LOSS_WEIGHTS)).to(device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        self.scheduler = ReduceLROnPlateau(self.optimizer, "min", config.lr_factor, config.lr_patience)
        self.progress = Progress()
        self.steps, self.last_step = 1, 1  # of all epochs, and which ends them; `train` knows

    def learning_rate(self, step: int) -> float:
        """Return Adam's learning rate in a step, 1 for the first: warm-up, then drops or a line."""
        left = 1.0
        if self.config.lr_schedule == "linear":
            left = min(left, max(0, self.last_step + 1 - step) / self.steps)
        rate = self.config.learning_rate * left * self.config.lr_factor**self.progress.drops
        return rate * step / self.config.warmup_steps if step < self.config.warmup_steps else rate

    def step(self, *batch: Tensor, weight: float) -> dict[str, Tensor]:
        """Take one step of Adam on (source, target, eye_mask); `weight` multiplies the gradient."""
        step = self.progress.global_step
        for norm in self.norms:  # plain means at first: PyTorch's start of 1 would stay in them for 150 steps
            norm.momentum = max(0.1, 1 / (step + 1))
        self.optimizer.param_groups[0]["lr"] = self.learning_rate(step + 1)
        losses = self.replay(*batch) if self.replay else self.backward(*batch, weight=weight)
        self.optimizer.step()
        # A start from nothing must not linger in the average; a look may.
        kept = 1.0 if self.config.start_from else (1 + step) / (10 + step)
        get_ema_multi_avg_fn(min(self.config.ema_decay, kept))(self.means, self.values, 0)
        self.progress.global_step += 1
        return losses

    def backward(self, *batch: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """Leave the gradients of the loss, times `weight`, in the model; return the losses."""
        source, target, eye_mask = batch
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            residual = self.network(source)
        losses = self.criterion(source + residual.float(), target, eye_mask)
        (losses["loss"] * weight).backward()
        return {name: value.detach() for name, value in losses.items()}

    def watch_plateau(self, val_loss: float) -> None:
        """Drop the learning rate from the next step on where `val_loss` has stalled; not in a warm-up."""
        group = self.optimizer.param_groups[0]  # where the scheduler lowers its rate, a drop is due
        before = group["lr"]
        if self.progress.global_step >= self.config.warmup_steps and self.config.lr_schedule == "plateau":
            self.scheduler.step(val_loss)
        self.progress.drops += group["lr"] < before

    def state(self) -> dict[str, Any]:
        """Return all that a resume needs, but for the settings and the pairs."""
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return {"architecture": self.model.architecture, "progress": asdict(self.progress)} | parts

    def restore(self, state: dict[str, Any], before: dict[str, Any]) -> None:
        """Go back to a state; where settings differ from those before, the new ones take effect.

        Raises:
            UserError: more epochs are done or begun than the settings ask for.
        """
        config, self.progress = self.config, Progress.restore(state, before, self.config.epochs)
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.scheduler.factor, self.scheduler.patience = config.lr_factor, config.lr_patience
        if config.learning_rate != before["learning_rate"]:
            self.progress.drops = 0
        if any(getattr(config, key) != before[key] for key in LOSS_WEIGHTS):
            self.scheduler.best = math.inf
            self.progress.forget_losses()


# --- Training -----------------------------------------------------------------------------------------
def train_one_epoch(
    run: Run, pairs: MakeupPairs, epoch: int, stop: StopRequest, bar: tqdm
) -> dict[str, float]:
    """Train on the pairs of an epoch that are not done yet; return its `train/...` and images a second.

    A request to stop ends it after the step. Of a batch every process of a team takes its share.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    config, progress, team = run.config, run.progress, run.team
    run.model.train()
    progress.order_seed = progress.order_seed if progress.pairs_done else config.seed
    plan = plan_epoch(len(pairs), config, progress.order_seed, epoch)
    so_far = progress.sums if team.leads else {}  # they are the team's
    sums = {name: torch.tensor(so_far.get(name, 0.0), device=run.device) for name in LOSSES}
    first, start = progress.pairs_done, time.perf_counter()
    shown = start
    batches = plan.order[first:].split(config.batch_size) if first < len(plan.order) else ()
    shares = [batch[team.rank :: team.size] for batch in batches]
    # Where a batch has fewer pairs than there are processes, some look at its first one, for nothing.
    seen = [share if len(share) else batch[:1] for share, batch in zip(shares, batches, strict=True)]
    loaded = load_batches(pairs, seen, run.device, plan)
    for batch, share, (source, target, eye_mask) in zip(batches, shares, loaded, strict=True):
        # The team's mean of these is the mean over the batch, however it is divided.
        losses = run.step(source, target, eye_mask, weight=len(share) * team.size / len(batch))
        for name in LOSSES:
            sums[name] += losses[name] * len(share)
        progress.pairs_done += len(batch)
        progress.summed += len(batch)
        bar.update()
        if time.perf_counter() - shown > 0.5:  # reading the loss waits for the device: not in every step
            shown = time.perf_counter()
            check_finite(losses["loss"].item(), epoch, config.learning_rate)
            bar.set_postfix(loss=f"{losses['loss'].item():.4f}", refresh=False)
        if stop.asked(team):
            break
    for norm in run.norms + run.average_norms:  # each process has seen no more than its share of the pairs
        team.average(norm.running_mean)
        team.average(norm.running_var)
    progress.sums = {name: team.all_reduce(total).item() for name, total in sums.items()}
    weights = sum(weight.detach().abs().sum().item() for weight in run.model.parameters())
    check_finite(progress.sums["loss"] + weights, epoch, config.learning_rate)  # bad gradients show there
    speed = (progress.pairs_done - first) / (time.perf_counter() - start)
    means = {f"train/{name}": total / (progress.summed or math.nan) for name, total in progress.sums.items()}
    return means | {"time/images_per_s": speed}


def measure(run: Run, val_set: MakeupPairs, epoch: int) -> tuple[TinyBeauty, dict[str, float], bytes]:
    """Return the averaged network as read back from int8, its `val/...` scores and the bytes that ship."""
    packed = shipping.pack(run.average)
    network = shipping.unpack(packed, TinyBeauty(run.model.architecture["up_groups"]))
    network = network.to(run.device, memory_format=torch.channels_last)
    scores = evaluate(network, val_set, run.criterion, run.device) if run.team.leads else {}
    scores = run.team.broadcast(scores)
    return network, scores, shipping.to_bytes(packed | {"epoch": epoch, "metrics": scores})


def write_epoch(
    run: Run, network: TinyBeauty, shipped: bytes, beaten: list[str], val_set: MakeupPairs, output: OutputDir
) -> Path | None:
    """Write what a finished epoch leaves behind, but for the state; return its sample grid, if one is due."""
    config, epoch = run.config, run.progress.epoch
    for name in beaten:
        output.save(name, shipped)
    if epoch == config.epochs:
        output.save(FINAL, shipped)
    output.save("metrics.csv", reporting.to_csv(run.progress.history))
    if epoch not in (1, config.epochs) and epoch % config.sample_every:
        return None
    name = f"samples_epoch_{epoch:03d}.png"
    faces = torch.linspace(0, len(val_set) - 1, min(SAMPLE_FACES, len(val_set))).round().long()
    source, target, _ = next(load_batches(val_set, [faces], run.device))
    output.save(name, reporting.draw_samples(network, source, target))
    return output.path / name


def save_state(run: Run, checksums: dict[str, int], output: OutputDir) -> None:
    """Write what `--resume` reads, and the settings; `checksums` of the pairs show when others are given."""
    used = run.config.model_dump()
    output.save_settings(used)
    output.save(runs.STATE_FILE, shipping.pack_state({"config": used, "checksums": checksums} | run.state()))


def resume_run(run: Run, checksums: dict[str, int], output: OutputDir, pairs: int) -> None:
    """Go on with the run in the output folder, of so many pairs an epoch; say which settings differ.

    Raises:
        UserError: its state is damaged, or a setting or the pairs do not allow to go on.
    """
    state, before = runs.read_state(output.path, run.config, runs.FIXED, checksums)
    with shipping.name_damaged(output.path / runs.STATE_FILE):
        run.restore(state, before)
    run.progress.forget_missing(output.path)
    run.last_step = run.progress.find_last_step(run.config.epochs, run.config.batch_size, pairs)
    rate = run.learning_rate(run.progress.global_step + 1)
    print(f"resume    {run.progress.describe(run.config.epochs)}; the learning rate is {rate:g}")


def train_epochs(
    run: Run, train_set: MakeupPairs, val_set: MakeupPairs, output: OutputDir, tracker: Tracker
) -> None:
    """Train until the last epoch is done.

    Raises:
        Stopped: a request to stop came, and the state is saved.
        UserError: the loss is not finite, or a file cannot be written.
    """
    config, progress, team = run.config, run.progress, run.team
    checksums = train_set.checksums | val_set.checksums
    if progress.epoch == config.epochs:  # an edit may have made the last epoch the one that was done
        network, _, shipped = measure(run, val_set, progress.epoch)
        if team.leads and runs.read_epoch(output.path / FINAL) != progress.epoch:
            write_epoch(run, network, shipped, [], val_set, output)
    first, started = progress.epoch + 1, time.perf_counter()
    total = run.last_step - progress.global_step
    hidden = None if team.leads else True  # None: only where nobody would see it
    with StopRequest() as stop, tqdm(total=total, unit="step", disable=hidden, leave=False) as bar:
        for epoch in range(first, config.epochs + 1):
            epoch_started = time.perf_counter()
            bar.set_description(f"epoch {epoch}/{config.epochs}", refresh=False)
            losses = train_one_epoch(run, train_set, epoch, stop, bar)
            if stop.asked(team):
                if team.leads:
                    save_state(run, checksums, output)
                raise stop.stopped()
            row = {"epoch": epoch, "lr": run.learning_rate(progress.global_step)} | losses
            network, scores, shipped = measure(run, val_set, epoch)
            run.watch_plateau(scores["val/loss"])
            row |= scores | {"model/parameters": count_parameters(run.model), "model/bytes": len(shipped)}
            row |= {"time/epoch_s": time.perf_counter() - epoch_started}
            beaten = progress.finish_epoch(row)
            if not team.leads:
                continue
            sample = write_epoch(run, network, shipped, beaten, val_set, output)
            # Last of all: until this file is there the epoch does not count, and a resume does it again.
            save_state(run, checksums, output)
            tracker.log(row, sample)
            seconds_left = (time.perf_counter() - started) / (epoch + 1 - first) * (config.epochs - epoch)
            line = reporting.describe_epoch(row, config.epochs, seconds_left, beaten)
            tqdm.write(line + reporting.describe_drop(row["lr"], run.learning_rate(progress.global_step)))


def load_data(config: Config) -> tuple[MakeupPairs, MakeupPairs]:
    """Return the training and the validation pairs; draw the demo pairs where they are wanted and missing.

    Raises:
        UserError: names the files that are missing or cannot be read; the cache cannot be written.
    """
    data_dir = Path(config.data_dir)
    if lacks_demo(data_dir, (Path(DEMO_DIR), HERE / DEMO_DIR)):
        print(f"{data_dir} does not exist yet: drawing demo pairs (your own: --data_dir FOLDER)", flush=True)
        draw_demo_pairs(HERE / "data" / "make_demo.py", data_dir)
    how = (config.skip_bad_pairs, config.val_fraction, config.person_pattern)
    train_pairs, val_pairs, cache = read_pairs(data_dir, config.image_size, config.cache_dir, *how)
    train_set, val_set = MakeupPairs(train_pairs, cache), MakeupPairs(val_pairs, cache)
    held_out = val_set.has_mask if config.val_fraction else val_set.has_mask[:0]
    print(reporting.describe_data(data_dir, train_set.has_mask, held_out, count_variants(train_set.stems)))
    print(f"          decoded into {cache.folder or 'memory'}, {cache.pixels.nbytes / 1e6:,.0f} MB")
    return train_set, val_set


def train(config: Config, resume: bool, overwrite: bool, team: Team, tracker: Tracker) -> None:
    """Train as configured, writing into `output_dir`; there `resume` goes on, `overwrite` deletes a run.

    Raises:
        UserError: the data, the device or the output folder are not usable, or the loss is not finite.
        Stopped: a request to stop came, and the state is saved.
    """
    devices.keep_freed_memory()
    device, dtype = devices.choose_device(config.device, config.precision, team)
    with runs.open_output_dir(config, resume, overwrite, HERE, team.leads) as output:
        with team.local_first():  # it draws and decodes for all
            train_set, val_set = load_data(config)
        train_set.move_to(device)
        torch.manual_seed(config.seed)
        model = starting.load_state(output.path / runs.STATE_FILE, TinyBeauty) if resume else TinyBeauty()
        if config.start_from and not resume:  # then the state has the weights
            seen = load_batches(train_set, starting.choose_batches(len(train_set)), torch.device("cpu"))
            model, config = starting.begin(config, load_model, TinyBeauty, list(seen))
        run = Run(config, model, device, dtype, team)
        pairs = len(train_set) * config.repeats
        run.steps = run.last_step = config.epochs * math.ceil(pairs / config.batch_size)
        if resume:
            resume_run(run, train_set.checksums | val_set.checksums, output, pairs)
        print(reporting.describe_model(run.model, config.image_size))
        facts = config.model_dump() | {"model/parameters": count_parameters(run.model)}
        run.progress.wandb_id = tracker.start(facts, run.progress.wandb_id, team.leads)
        print(f"tracking  {tracker.describe()}\n{reporting.describe_psnr(config.val_fraction)}", flush=True)
        train_epochs(run, train_set, val_set, output, tracker)
        if team.leads:
            tracker.log_files(reporting.print_summary(output.path, config.max_model_bytes, run.progress))


# --- Command line -------------------------------------------------------------------------------------
def run_training(argv: list[str], tracker: Tracker) -> None:
    """Train as the command line says; raises what `train` does, and says how to go on after a stop."""
    parser = Parser(__doc__, epilog="README.md says more.")
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in output_dir, start anew")
    trial = find_trial()
    config, flags = settings.read_settings(parser, Config, argv, HERE / "config.yaml", trial.values)
    if flags.resume and flags.overwrite:
        raise UserError("--resume goes on with a run, --overwrite deletes it: give one of them")
    config, flags.resume, argv = runs.settle_trial(trial.folder, config, flags.resume, argv)
    with runs.say_how_to_go_on(argv), devices.join_team() as team, tracker:
        config = starting.settle(config, flags, trial.values)
        train(config, flags.resume, flags.overwrite, team, tracker)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    tracker = Tracker()
    code = run_command(lambda words: run_training(words, tracker), argv, runs.INTERRUPTED)
    return tracker.finish(code)  # after all that a person needs is printed: it may wait


if __name__ == "__main__":
    sys.exit(main())
