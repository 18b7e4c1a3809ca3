"""Variation of pairs while training, source and target alike: other light and crop, half another face."""

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
OFF_CENTRE = 0.4  # of half a width: how far from the centre a cut may go
SOFT = 0.04  # of half a width: of 256 pixels it takes 11 to go from a quarter to three quarters


class Wanted(Protocol):
    """The settings that say what is done to pairs."""

    repeats: int
    flip: bool
    vary: float
    cutmix: float


class Plan(NamedTuple):
    """What an epoch of N images sees."""

    order: Tensor  # (N,) numbers; n stands for pair n % count
    flipped: Tensor  # (N,) bool, by number: which are mirrored
    ways: Tensor | None  # (N, 6), by number: for `vary_batch`; None for not at all
    cuts: Tensor | None  # (N, 2), by number: for `cut_and_mix`; None for not at all

    def change(
        self, indices: Tensor, source: Tensor, target: Tensor, eye_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch, that of these numbers, as it is to be seen; mirrored it is already."""
        if self.ways is not None:
            ways = self.ways[indices].to(source.device)
            source, target, eye_mask = vary_batch(source, target, eye_mask, ways)
        if self.cuts is not None:
            cuts = self.cuts[indices].to(source.device)
            source, target, eye_mask = cut_and_mix(source, target, eye_mask, cuts)
        return source, target, eye_mask


def plan_epoch(count: int, wanted: Wanted, seed: int, epoch: int) -> Plan:
    """Return in which order an epoch sees the pairs, which are mirrored, and how each is varied.

    It depends on (seed, epoch) alone: a run that is continued sees what it would have seen.

    Args:
        count: of the pairs.
        wanted: how often each comes, whether half of them are mirrored, how strongly they are varied, which
            share of them is cut.
        seed: of the run.
        epoch: 1 for the first.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.cat([torch.randperm(count, generator=generator) + count * n for n in range(wanted.repeats)])
    flipped = torch.rand(len(order), generator=generator) < (0.5 if wanted.flip else 0.0)
    ways = cuts = None
    if wanted.vary:
        ways = wanted.vary * (2 * torch.rand((len(order), len(WAYS)), generator=generator) - 1)
    if wanted.cutmix:
        angle, place, chance = torch.rand((3, len(order)), generator=generator)
        place = OFF_CENTRE * (2 * place - 1)
        cuts = torch.stack([2 * math.pi * angle, place.masked_fill(chance >= wanted.cutmix, -math.inf)], 1)
    return Plan(order, flipped, ways, cuts)


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


def cut_and_mix(
    source: Tensor, target: Tensor, eye_mask: Tensor, cuts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three with the part of each face beyond a line taken from the one before it in the batch.

    Aligned faces fit together well enough, and a network that has seen the eyes of one with the mouth of
    another learns less of single faces by heart.

    Args:
        source: (B, 3, H, H).
        target: (B, 3, H, H).
        eye_mask: (B, 1, H, H).
        cuts: (B, 2): in which direction the kept part lies, in radians, and how far from the centre that way
            the line is, in half widths; -inf for no cut.

    Source: CutMix, Yun et al., arXiv 1905.04899, with a soft line for their rectangle.
    """
    places = torch.linspace(-1, 1, source.shape[-1], device=source.device)
    angle, place = cuts[:, :, None, None].unbind(1)  # (B, 1, 1) each
    inside = places * angle.cos() + places[:, None] * angle.sin() - place  # (B, H, H)
    kept = (inside / SOFT).sigmoid()[:, None]
    return tuple(torch.lerp(image.roll(1, 0), image, kept) for image in (source, target, eye_mask))
