"""Why the network is as it is: candidates trained alike, with their bytes, speed and picture quality.

    pip install onnxscript   # for the latency
    python tests/bench_architecture.py --data_dir PAIRS --epochs 10 --learning_rate 2e-3 --warmup_steps 50
    python tests/bench_architecture.py --data_dir PAIRS --only "this one,plain U-Net in float32"

Same pairs, order, steps and loss for all; every figure of quality is that of the int8 file (for the plain
U-Net of the float32 one), on people held out. Latency: ONNX Runtime, one thread, one image of 256 x 256,
the smallest mean over rounds in which all candidates take turns. Any key of config.yaml is a flag. Prints
a line as each candidate is done and the whole table in Markdown at the end; asserts nothing.
"""

from __future__ import annotations

import copy
import io
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tinybeauty_training as program
from tinybeauty import devices, settings, shipping
from tinybeauty.devices import ALONE
from tinybeauty.errors import Parser, UserError, run_command
from tinybeauty.layers import ConvNormReLU, count_multiply_adds, count_parameters, separable
from tinybeauty.runs import StopRequest
from tinybeauty_training import TinyBeauty

# ======================================================================================================
# Candidates: the network with one thing changed
# ======================================================================================================


class Concatenated(nn.Module):
    """A separable convolution of the concatenation, as U-Nets usually do it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = ConvNormReLU(separable(in_channels, out_channels))

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Return (B, C_out, H, W)."""
        return self.block(torch.cat([features, skip], 1))


def set_bottleneck(model: TinyBeauty, *kernel_sizes: int) -> TinyBeauty:
    """Give the bottleneck layers of these kernel sizes."""
    channels = [64] + [128] * len(kernel_sizes)
    model.bottleneck = nn.Sequential(
        *(
            ConvNormReLU(separable(channels[index], 128, kernel_size))
            for index, kernel_size in enumerate(kernel_sizes)
        )
    )
    return model


def make_first_trial() -> TinyBeauty:
    """Return the network of the first trial: 3x3 everywhere, full ConvTranspose2d, concatenated skips."""
    model = set_bottleneck(TinyBeauty(1), 3, 3)
    model.dec3, model.dec2, model.dec1 = Concatenated(128, 64), Concatenated(64, 32), Concatenated(32, 16)
    return model


class Then(nn.Module):
    """A second separable convolution after a block."""

    def __init__(self, block: ConvNormReLU) -> None:
        super().__init__()
        channels = block.norm.num_features
        self.block, self.second = block, ConvNormReLU(separable(channels, channels))

    def forward(self, *features: Tensor) -> Tensor:
        """Return (B, C_out, H, W)."""
        return self.second(self.block(*features))


def use_two_a_level(model: TinyBeauty) -> TinyBeauty:
    """Put a second separable convolution into the levels at half and quarter size."""
    for name in ("enc2", "enc3", "dec3", "dec2"):
        setattr(model, name, Then(getattr(model, name)))
    return model


def replace_activation(model: TinyBeauty, activation: type[nn.Module]) -> TinyBeauty:
    """Give every block another activation."""
    for module in model.modules():
        if isinstance(module, ConvNormReLU):
            module.activation = activation()
    return model


class Bias(nn.BatchNorm2d):
    """Stands in the place of a BatchNorm and only adds its bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=0.0)  # mean 0 and variance 1 stay as they are: folds like any other
        self.weight = None

    def forward(self, features: Tensor) -> Tensor:
        """Return the shape that came in."""
        return features + self.bias[:, None, None]


def drop_norm(model: TinyBeauty) -> TinyBeauty:
    """Take every BatchNorm out; the weights then start as PyTorch starts them, because it matters."""
    for module in model.modules():
        if isinstance(module, ConvNormReLU):
            module.norm = Bias(module.norm.num_features)
            for conv in (conv for branch in module.branches for conv in branch):
                conv.reset_parameters()
    return model


def start_out(model: TinyBeauty, share: float) -> TinyBeauty:
    """Start `out` at a share of PyTorch's default instead of zero."""
    model.out.reset_parameters()
    with torch.no_grad():
        model.out.weight *= share
        model.out.bias.zero_()
    return model


def use_1x1_in_dec1(model: TinyBeauty) -> TinyBeauty:
    """Leave the depthwise convolutions at full size out."""
    model.dec1 = ConvNormReLU(*(nn.Sequential(nn.Conv2d(16, 16, 1, bias=False)) for _ in range(2)))
    return model


class WiderSkip(TinyBeauty):
    """The decoder at full size sees the source itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.dec1 = ConvNormReLU(separable(16, 16), separable(19, 16))

    def forward(self, source: Tensor) -> Tensor:
        """Return the residual."""
        skip1 = self.enc1(source)
        skip2 = self.enc2(self.pool1(skip1))
        skip3 = self.enc3(self.pool2(skip2))
        features = self.dec3(self.up3(self.bottleneck(self.pool3(skip3))), skip3)
        features = self.dec2(self.up2(features), skip2)
        return self.out(self.dec1(self.up1(features), torch.cat([skip1, source], 1)))


# ======================================================================================================
# Yardsticks
# ======================================================================================================


def convolve(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return a plain 3x3 convolution, BatchNorm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class PlainUNet(nn.Module):
    """The plan with two plain 3x3 convolutions a level: 482 thousand parameters with BatchNorm folded."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16), (16, 32), (32, 64), (64, 128))
        self.down = nn.ModuleList([nn.Sequential(convolve(a, b), convolve(b, b)) for a, b in widths])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in (64, 32, 16)])
        self.up = nn.ModuleList([nn.Sequential(convolve(2 * c, c), convolve(c, c)) for c in (64, 32, 16)])
        self.out = nn.Conv2d(16, 3, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return the residual."""
        features, skips = self.down[0](source), []
        for block in self.down[1:]:
            skips.append(features)
            features = block(F.max_pool2d(features, 2))
        for upsample, block in zip(self.ups, self.up, strict=True):
            features = block(torch.cat([upsample(features), skips.pop()], 1))
        return self.out(features)

    def fold_(self) -> PlainUNet:
        """Fold the BatchNorms."""
        for module in list(self.modules()):
            if isinstance(module, nn.Sequential) and isinstance(module[0], nn.Conv2d):
                module[0] = fuse_conv_bn_eval(module[0].eval(), module[1].eval())
                module[1] = nn.Identity()
        return self.eval().requires_grad_(False)


class Residual(nn.Module):
    """Two 3x3 convolutions with InstanceNorm around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.InstanceNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Return the shape that came in."""
        return features + self.convs(features)


class PaperNet(nn.Module):
    """The network of arXiv 2403.15033, written anew from its description: 85,227 parameters.

    That number comes out if only the InstanceNorms after the two strided convolutions have weights.
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.architecture = TinyBeauty().architecture  # as many bytes of description as all the others have

        def block(conv: nn.Conv2d, affine: bool = False) -> nn.Sequential:
            return nn.Sequential(conv, nn.InstanceNorm2d(channels, affine=affine), nn.ReLU(inplace=True))

        self.stem = block(nn.Conv2d(3, channels, 7, padding=3))
        self.down1 = block(nn.Conv2d(channels, channels, 4, stride=2, padding=1), affine=True)
        self.down2 = block(nn.Conv2d(channels, channels, 4, stride=2, padding=1), affine=True)
        self.middle = nn.Sequential(*(Residual(channels) for _ in range(4)))
        self.up1 = block(nn.Conv2d(2 * channels, channels, 3, padding=1))
        self.up2 = block(nn.Conv2d(2 * channels, channels, 3, padding=1))
        self.out = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return the residual."""
        skip1 = self.stem(source)
        skip2 = self.down1(skip1)
        features = self.middle(self.down2(skip2))
        features = self.up1(torch.cat([F.interpolate(features, scale_factor=2.0), skip2], 1))
        features = self.up2(torch.cat([F.interpolate(features, scale_factor=2.0), skip1], 1))
        return torch.tanh(self.out(features))

    def fold_(self) -> PaperNet:
        """There is nothing to fold: InstanceNorm depends on the image."""
        return self.eval().requires_grad_(False)


FIRST_TRIAL, PLAIN = "first trial (86,627)", "plain U-Net in float32"
CANDIDATES: dict[str, Callable[[], nn.Module]] = {
    "this one": TinyBeauty,
    FIRST_TRIAL: make_first_trial,
    "bottleneck 3x3, three layers": lambda: set_bottleneck(TinyBeauty(), 3, 3, 3),
    "bottleneck 5x5, three layers": lambda: set_bottleneck(TinyBeauty(), 5, 5, 5),
    "bottleneck 7x7, two layers": lambda: set_bottleneck(TinyBeauty(), 7, 7),
    "full ConvTranspose2d, 7x7, two layers": lambda: set_bottleneck(TinyBeauty(1), 7, 7),
    "ConvTranspose2d in four groups": lambda: TinyBeauty(4),
    "two convolutions a level": lambda: use_two_a_level(TinyBeauty()),
    "no BatchNorm": lambda: drop_norm(TinyBeauty()),
    "ReLU6": lambda: replace_activation(TinyBeauty(), nn.ReLU6),
    "hard-swish": lambda: replace_activation(TinyBeauty(), nn.Hardswish),
    "out starts small": lambda: start_out(TinyBeauty(), 0.1),
    "out starts as in PyTorch": lambda: start_out(TinyBeauty(), 1.0),
    "dec1 only 1x1": lambda: use_1x1_in_dec1(TinyBeauty()),
    "dec1 sees the source": WiderSkip,
    "the paper's network": PaperNet,
    PLAIN: PlainUNet,
}

# ======================================================================================================
# Measuring
# ======================================================================================================


def train_candidate(
    name: str,
    config: program.Config,
    train_set: program.MakeupPairs,
    val_set: program.MakeupPairs,
    quiet: bool = False,
) -> dict[str, float]:
    """Train one candidate; return its metrics, and `raw`: the PSNR of the weights without averaging."""
    with redirect_stdout(io.StringIO()) if quiet else nullcontext():
        device, dtype = devices.choose_device(config.device, config.precision, ALONE)
    torch.manual_seed(config.seed)
    run = program.Run(config, CANDIDATES[name](), device, dtype, ALONE)
    bar = tqdm(total=config.epochs, desc=name, unit="epoch", disable=None, leave=False)
    with StopRequest() as stop, tqdm(disable=True) as steps, bar:
        for epoch in range(1, config.epochs + 1):
            program.train_one_epoch(run, train_set, epoch, stop, steps)
            run.progress.pairs_done = 0  # as at the end of an epoch
            if stop.asked(ALONE):
                sys.exit(f"stopped in {name}")
            shipped = ship(run.average, name).to(device, memory_format=torch.channels_last)
            scores = program.evaluate(shipped, val_set, run.criterion, device)
            run.watch_plateau(scores["val/loss"])
            bar.update()
    raw = ship(run.model, name).to(device, memory_format=torch.channels_last)
    return scores | {"raw": program.evaluate(raw, val_set, run.criterion, device)["val/psnr"]}


def ship(model: nn.Module, name: str) -> nn.Module:
    """Return the folded network with its weights as they ship."""
    plain = copy.deepcopy(model).cpu().float()
    return plain.fold_() if name == PLAIN else shipping.unpack(shipping.pack(model), plain)


def count_bytes(model: nn.Module, name: str) -> int:
    """Return the size of the file that would ship."""
    folded = copy.deepcopy(model).fold_()
    return len(shipping.to_bytes(folded.state_dict() if name == PLAIN else shipping.pack(model)))


def find_latencies(names: list[str], rounds: int = 12) -> dict[str, float]:
    """Return milliseconds an image in ONNX Runtime, or nothing where a package is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx.export writes with
    except ImportError as error:
        print(f"no latency, {error.name} is missing: pip install {error.name}")
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = torch.rand(1, 3, 256, 256)
    sessions = {}
    for name in names:
        buffer = io.BytesIO()
        torch.onnx.export(
            CANDIDATES[name]().fold_(), (source,), buffer, input_names=["source"], dynamo=True, verbose=False
        )
        sessions[name] = onnxruntime.InferenceSession(buffer.getvalue(), options)
    best = dict.fromkeys(names, math.inf)
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            for _ in range(4):
                session.run(None, {"source": source.numpy()})
            best[name] = min(best[name], (time.perf_counter() - started) / 4 * 1000)
    return best


def describe(name: str, latencies: dict[str, float], scores: dict[str, float] | None) -> str:
    """Return one line of the table, in Markdown."""
    model = CANDIDATES[name]()
    parameters, work = count_parameters(model), count_multiply_adds(model, 256)
    latency = (
        f"{latencies[name]:.1f} ms ({latencies[name] / latencies[FIRST_TRIAL]:.2f})" if latencies else "-"
    )
    cells = [name, f"{parameters:,}", f"{count_bytes(model, name):,}", f"{work / 1e6:,.0f}", latency]
    if scores:
        cells += [f"{scores['val/psnr']:.2f}", f"{scores['val/psnr_gain']:+.2f}"]
        cells += [f"{scores['val/psnr_eyes']:.2f}", f"{scores['val/ssim']:.4f}", f"{scores['raw']:.2f}"]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| candidate | parameters | bytes | million multiply-adds | latency (ratio) | PSNR | gain | eyes | SSIM "
    "| PSNR without averaging |\n|" + " --- |" * 10
)


def run_benchmark(argv: list[str]) -> None:
    """Run the benchmark.

    Raises:
        UserError: the command line or the pairs are not usable.
    """
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", help="names of candidates, separated by commas")
    parser.add_argument("--no-training", action="store_true", help="sizes and latencies alone, in a minute")
    config, options = settings.read_settings(parser, program.Config, argv, program.HERE / "config.yaml")
    names = [name.strip() for name in options.only.split(",")] if options.only else list(CANDIDATES)
    if unknown := [name for name in names if name not in CANDIDATES]:
        raise UserError(f"unknown candidates {unknown}; there are: {', '.join(CANDIDATES)}")
    names = list(dict.fromkeys([*names, FIRST_TRIAL]))
    devices.keep_freed_memory()
    latencies = find_latencies(names)
    scores: dict[str, dict[str, float]] = {}
    if not options.no_training:
        train_set, val_set = program.load_data(config)
        for name in names:
            scores[name] = train_candidate(name, config, train_set, val_set)
            print(describe(name, latencies, scores[name]), flush=True)
    print(
        f"\n{config.epochs} epochs at {config.image_size} px, seed {config.seed}, torch {torch.__version__}"
    )
    print(HEADER)
    for name in names:
        print(describe(name, latencies, scores.get(name)))


if __name__ == "__main__":
    sys.exit(run_command(run_benchmark, None, interrupted="stopped"))
