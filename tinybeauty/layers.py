"""The blocks of the network, made so that few bytes and CPU seconds do much; counting what they cost."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
    """A 2x2 transposed convolution that doubles the size.

    Args:
        in_channels: a multiple of `groups`.
        out_channels: a multiple of `groups`.
        groups: each channel is made of those of its group; as many as `out_channels` cost least, 1 mixes all.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2, groups=groups)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C_out, 2H, 2W)."""
        if features.is_cuda:
            return self.forward_dense(features)
        if not self.training:
            return super().forward(features)
        # The same as a 1x1 convolution to four times the channels; its gradient takes a fifth of the time.
        grouped = self.weight.reshape(self.groups, -1, self.out_channels // self.groups * 4)
        weight = grouped.transpose(1, 2).reshape(4 * self.out_channels, -1, 1, 1)
        quarters = F.conv2d(features, weight, self.bias.repeat_interleave(4), groups=self.groups)
        return F.pixel_shuffle(quarters, 2)

    def forward_dense(self, features: Tensor) -> Tensor:
        """Return the same with zeros between the groups: cuDNN launches kernels for one after the other."""
        among = torch.eye(self.groups, device=features.device)[:, None, :, None, None, None]
        weight = self.weight.unflatten(0, (self.groups, -1)).unsqueeze(2) * among
        weight = weight.flatten(0, 1).flatten(1, 2)  # (C_in, C_out, 2, 2)
        weight = weight.permute(2, 3, 1, 0).reshape(4 * self.out_channels, self.in_channels, 1, 1)
        quarters = F.conv2d(features, weight, self.bias.repeat(4))  # above, then below, left and right each
        quarters = quarters.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))  # (B, H, W, 2, 2, C_out)
        return quarters.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # channels_last


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

    START_STD = 0.007  # 0.005 and 0.01 train alike; tests/README.md says what PyTorch's own start costs

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
        if isinstance(self.norm, nn.Identity):  # it is there already
            return
        for branch in self.branches:
            branch[-1] = fuse_conv_bn_eval(branch[-1].eval(), self.norm.eval())
        for branch in self.branches[1:]:
            branch[-1].bias = None  # the first one has it
        self.norm = nn.Identity()


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights and biases."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, image_size: int) -> int:
    """Return the multiply-adds for one image of `image_size` x `image_size`."""
    from torch.utils.flop_counter import FlopCounterMode  # takes a tenth of torch's own time to import

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).cpu().eval()(torch.zeros(1, 3, image_size, image_size))  # as on a phone
    return counter.get_total_flops() // 2
