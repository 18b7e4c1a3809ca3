"""Variation of pairs: what is drawn, that source and target stay a pair, that nothing changes unasked."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tinybeauty.variation import WAYS, cut_and_mix, plan_epoch, vary_batch


def wanted(
    repeats: int = 1, flip: bool = True, strength: float = 0.0, cutmix: float = 0.0
) -> SimpleNamespace:
    return SimpleNamespace(repeats=repeats, flip=flip, vary=strength, cutmix=cutmix)


def far(name: str, value: float = 1.0) -> torch.Tensor:
    """Return ways, (1, 6), of which one goes so far."""
    ways = torch.zeros(1, len(WAYS))
    ways[0, WAYS.index(name)] = value
    return ways


def blobs(size: int = 64) -> torch.Tensor:
    """Return a smooth picture, (1, 3, size, size), in [0.1, 0.6]."""
    torch.manual_seed(1)
    coarse = torch.rand(1, 3, 6, 6)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 0.5 + 0.1


def test_every_pair_comes_as_often_as_asked():
    plan = plan_epoch(5, wanted(repeats=3), 42, 1)
    assert (plan.order % 5).bincount().tolist() == [3] * 5
    assert plan.order.unique().tolist() == list(range(15))
    assert sorted((plan.order[:5] % 5).tolist()) == list(range(5))  # no pair twice before all were seen
    assert plan.ways is None
    assert plan.cuts is None


def test_a_plan_depends_on_seed_and_epoch_alone():
    way = wanted(2, strength=1.0, cutmix=0.5)
    plans = [plan_epoch(20, way, *key) for key in ((1, 1), (1, 1), (1, 2), (2, 1))]
    for part in range(4):
        assert torch.equal(plans[0][part], plans[1][part])
        assert not torch.equal(plans[0][part], plans[2][part])
        assert not torch.equal(plans[0][part], plans[3][part])


def test_variation_changes_neither_order_nor_flips():
    with_it, without = plan_epoch(20, wanted(strength=0.5), 1, 1), plan_epoch(20, wanted(), 1, 1)
    assert torch.equal(with_it.order, without.order)
    assert torch.equal(with_it.flipped, without.flipped)
    cut = plan_epoch(20, wanted(strength=0.5, cutmix=1.0), 1, 1)
    assert all(torch.equal(one, other) for one, other in zip(cut[:3], with_it[:3], strict=True))
    assert 0.4 < with_it.ways.abs().max() <= 0.5


def test_nothing_is_varied_by_nothing():
    image, mask = blobs(), torch.rand(1, 1, 64, 64)
    for given, got in zip(
        (image, image, mask), vary_batch(image, image, mask, torch.zeros(1, 6)), strict=True
    ):
        torch.testing.assert_close(got, given, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_makeup_that_multiplies_still_does(way):
    """Source and target are changed alike: their quotient, in the middle, is the makeup's."""
    source, mask = blobs(), torch.ones(1, 1, 64, 64)
    makeup = torch.tensor([0.9, 0.6, 0.7]).view(1, 3, 1, 1)
    new_source, new_target, _ = vary_batch(source, source * makeup, mask, far(way))
    assert not torch.allclose(new_source, source, atol=0.01)
    torch.testing.assert_close(new_target, new_source * makeup, atol=1e-4, rtol=0)


def test_a_shift_moves_all_three_by_as_many_pixels():
    image, mask = torch.rand(1, 3, 100, 100), torch.rand(1, 1, 100, 100)
    for given, got in zip((image, image, mask), vary_batch(image, image, mask, far("shift x")), strict=True):
        torch.testing.assert_close(got[..., :-6], given[..., 3:-3], atol=1e-3, rtol=0)


def test_warmth_is_red_up_and_blue_down():
    image = torch.full((1, 3, 16, 16), 0.5)
    red, green, blue = vary_batch(image, image, image[:, :1], far("warmth"))[0][0].mean((1, 2)).tolist()
    assert red > green > blue
    assert green == pytest.approx(0.5, abs=1e-4)


def test_as_many_pairs_are_cut_as_asked():
    cuts = plan_epoch(4000, wanted(cutmix=0.25), 1, 1).cuts
    places = cuts[cuts[:, 1].isfinite(), 1]
    assert len(places) == pytest.approx(1000, abs=100)
    assert places.abs().max() <= 0.4
    assert cuts[:, 1].max() < math.inf


def test_a_cut_face_is_two_faces_and_stays_a_pair():
    """The line is upright, a quarter of the width right of the centre; what lies right of it is kept."""
    source, target, mask = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    cuts = torch.tensor([[0.0, 0.5], [0.0, -math.inf]])
    for given, got in zip((source, target, mask), cut_and_mix(source, target, mask, cuts), strict=True):
        assert torch.equal(got[1], given[1])  # not cut
        torch.testing.assert_close(got[0, ..., 56:], given[0, ..., 56:], atol=0.01, rtol=0)
        torch.testing.assert_close(got[0, ..., :40], given[1, ..., :40], atol=0.01, rtol=0)
        assert got[0, ..., 47:49].sub(given.mean(0)[..., 47:49]).abs().max() < 0.25  # half and half


def test_faces_are_cut_along_lines_of_all_directions():
    image = torch.stack([torch.zeros(1, 64, 64), torch.ones(1, 64, 64)])
    for angle, corner in ((0, [1, 0, 1, 0]), (math.pi / 2, [1, 1, 0, 0]), (math.pi, [0, 1, 0, 1])):
        cuts = torch.tensor([[angle, 0.0], [0.0, -math.inf]])  # the first keeps its black where the line says
        cut = cut_and_mix(image, image, image, cuts)[0][0, 0]
        assert [round(float(cut[y, x])) for y in (8, 55) for x in (8, 55)] == corner


def test_one_face_alone_cannot_be_mixed():
    image = torch.rand(1, 3, 16, 16)
    for got in cut_and_mix(image, image, image, torch.tensor([[1.0, 0.1]])):
        torch.testing.assert_close(got, image)
