"""Variation of pairs: what is drawn, that source and target stay a pair, that nothing changes unasked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tinybeauty.variation import WAYS, plan_epoch, vary_batch


def wanted(repeats: int = 1, flip: bool = True, strength: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(repeats=repeats, flip=flip, vary=strength)


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


def test_a_plan_depends_on_seed_and_epoch_alone():
    plans = [plan_epoch(20, wanted(2, strength=1.0), *key) for key in ((1, 1), (1, 1), (1, 2), (2, 1))]
    for part in range(3):
        assert torch.equal(plans[0][part], plans[1][part])
        assert not torch.equal(plans[0][part], plans[2][part])
        assert not torch.equal(plans[0][part], plans[3][part])


def test_variation_changes_neither_order_nor_flips():
    with_it, without = plan_epoch(20, wanted(strength=0.5), 1, 1), plan_epoch(20, wanted(), 1, 1)
    assert torch.equal(with_it.order, without.order)
    assert torch.equal(with_it.flipped, without.flipped)
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
