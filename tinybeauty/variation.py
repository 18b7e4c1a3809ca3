"""Variation of pairs while training: other light, another crop, source and target alike."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

WAYS = ("exposure", "warmth", "shift x", "shift y", "zoom", "tilt")
STOPS = 0.5  # of exposure, either way
WARMTH = 0.2  # stops that red gains and blue loses: some 500 K about daylight
SHIFT = 0.03  # of the width; this and the next two are twice what landmarks err by
ZOOM = 0.05
TILT = math.radians(4)
GAMMA = 2.2  # of sRGB, within a grey level or two


class Wanted(Protocol):
    """The settings that say what is done to pairs."""

    repeats: int
    flip: bool
    vary: float


class Plan(NamedTuple):
    """What an epoch of N images sees."""

    order: Tensor  # (N,) numbers; n stands for pair n % count
    flipped: Tensor  # (N,) bool, by number: which are mirrored
    ways: Tensor | None  # (N, 6), by number: for `vary_batch`; None for not at all


def plan_epoch(count: int, wanted: Wanted, seed: int, epoch: int) -> Plan:
    """Return in which order an epoch sees the pairs, which are mirrored, and how each is varied.

    It depends on (seed, epoch) alone: a run that is continued sees what it would have seen.

    Args:
        count: of the pairs.
        wanted: how often each comes, whether half of them are mirrored, how strongly they are varied.
        seed: of the run.
        epoch: 1 for the first.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.cat([torch.randperm(count, generator=generator) + count * n for n in range(wanted.repeats)])
    flipped = torch.rand(len(order), generator=generator) < (0.5 if wanted.flip else 0.0)
    if not wanted.vary:
        return Plan(order, flipped, None)
    return Plan(
        order, flipped, wanted.vary * (2 * torch.rand((len(order), len(WAYS)), generator=generator) - 1)
    )


def find_grid(ways: Tensor, size: int) -> Tensor:
    """Return where each pixel of a moved crop is seen, (B, size, size, 2), as `grid_sample` wants it."""
    shift_x, shift_y = ways[:, 2] * SHIFT * 2, ways[:, 3] * SHIFT * 2  # a grid is 2 wide
    scale, angle = (1 + ZOOM) ** ways[:, 4], ways[:, 5] * TILT
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    return F.affine_grid(torch.stack(rows, 1), [len(ways), 1, size, size], align_corners=False)


def vary_batch(
    source: Tensor, target: Tensor, eye_mask: Tensor, ways: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three in another light and another crop, all alike.

    A gain in linear light is a factor of the encoded values too where the encoding is a power, which sRGB
    nearly is. Pigment multiplies what it covers, so a made-up face in another light is that face in that
    light, made up; but for what is white then.

    Args:
        source: (B, 3, H, H) in [0, 1].
        target: (B, 3, H, H) in [0, 1].
        eye_mask: (B, 1, H, H) in [0, 1].
        ways: (B, 6), how far to go each of WAYS: in [-1, 1] for the ranges above.
    """
    images = torch.cat([source, target, eye_mask], 1)
    grid = find_grid(ways, images.shape[-1])
    # Bicubic: what bilinear blurs, a network would learn to blur.
    images = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    source, target, eye_mask = images.split((3, 3, 1), 1)
    warmth = ways[:, 1] * WARMTH
    stops = ways[:, :1] * STOPS + torch.stack([warmth, torch.zeros_like(warmth), -warmth], 1)  # (B, 3)
    gains = torch.exp2(stops / GAMMA)[:, :, None, None]
    return (source * gains).clamp(0, 1), (target * gains).clamp(0, 1), eye_mask.clamp(0, 1)
