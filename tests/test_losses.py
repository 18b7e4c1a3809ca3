"""EyelinerLoss against SciPy's Sobel, missing_decibels against torchmetrics, and the sum of the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.image import peak_signal_noise_ratio

from tinybeauty_training import EyelinerLoss, MakeupLoss, missing_decibels

SCALE = 1 / 8  # of SciPy's filter: a ramp of 1 a pixel has a gradient of 1
LUMA = np.array([0.299, 0.587, 0.114])


def find_reference(pred, target, eye_mask=None) -> float:
    """Return the loss of one image: gradients of both lumas, their difference, weighted by the mask."""
    edges = np.zeros(pred.shape[-2:])
    for axis in (0, 1):
        a, b = (np.tensordot(LUMA, image.double().numpy(), 1) for image in (pred, target))
        gradient_a, gradient_b = (ndimage.sobel(image, axis, mode="nearest") * SCALE for image in (a, b))
        edges += np.abs(gradient_a - gradient_b) / 2
    if eye_mask is None:
        return edges.mean()
    weight = eye_mask[0].double().numpy()
    return (edges * weight).sum() / weight.sum() if weight.any() else 0.0


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    pred, target = torch.rand(2, 4, 3, 24, 16, generator=generator)
    eye_mask = torch.rand(4, 1, 24, 16, generator=generator)
    for index, share in enumerate((0.9, 0.5, 0.1, 0.02)):  # of very different area
        eye_mask[index] = (eye_mask[index] < share) * (1.0 if index % 2 else eye_mask[index])
    return pred, target, eye_mask


def test_without_a_mask_it_looks_at_the_whole_image(images):
    pred, target, _ = images
    expected = np.mean([find_reference(a, b) for a, b in zip(pred, target, strict=True)])
    assert EyelinerLoss()(pred, target).item() == pytest.approx(expected, rel=1e-5)


def test_with_masks_it_is_the_mean_of_the_images_values(images):
    pred, target, eye_mask = images
    values = [find_reference(*image) for image in zip(pred, target, eye_mask, strict=True)]
    assert EyelinerLoss()(pred, target, eye_mask).item() == pytest.approx(np.mean(values), rel=1e-5)
    for index, value in enumerate(values):
        part = slice(index, index + 1)
        loss = EyelinerLoss()(pred[part], target[part], eye_mask[part])
        assert loss.item() == pytest.approx(value, rel=1e-5)


def test_a_white_mask_is_no_mask(images):
    pred, target, eye_mask = images
    loss = EyelinerLoss()
    white = torch.ones_like(eye_mask)
    assert loss(pred, target, white).item() == pytest.approx(loss(pred, target).item(), rel=1e-6)


def test_the_border_is_no_edge():
    """Two flat images of different brightness have no edges, not even at the frame."""
    assert EyelinerLoss()(torch.full((1, 3, 16, 16), 0.9), torch.full((1, 3, 16, 16), 0.1)).item() < 1e-6


def test_only_the_mask_counts(images):
    pred, target, _ = images
    eye_mask = torch.zeros(4, 1, 24, 16)
    eye_mask[:, :, :8] = 1
    changed = pred.clone()
    changed[:, :, 12:] = 0
    loss = EyelinerLoss()
    assert loss(pred, target, eye_mask) == loss(changed, target, eye_mask)
    assert loss(pred, target) != loss(changed, target)


def test_an_empty_mask_gives_exactly_zero_and_finite_gradients(images):
    pred, target, eye_mask = images
    pred.requires_grad_()
    loss = EyelinerLoss()(pred, target, torch.zeros_like(eye_mask))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(pred.grad, torch.zeros_like(pred))


def test_one_empty_mask_leaves_the_other_images_alone(images):
    pred, target, eye_mask = images
    eye_mask[0] = 0
    values = [find_reference(*image) for image in zip(pred, target, eye_mask, strict=True)]
    assert values[0] == 0
    assert EyelinerLoss()(pred, target, eye_mask).item() == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_flat_and_equal_images_have_finite_gradients(value):
    pred = torch.full((2, 3, 16, 16), value, requires_grad=True)
    loss = EyelinerLoss()(pred, torch.full((2, 3, 16, 16), value), torch.ones(2, 1, 16, 16))
    loss.backward()
    assert loss.item() == 0
    assert pred.grad.isfinite().all()


def test_gradients_are_right(images):
    pred, target, eye_mask = (tensor[:1, :, :8, :8].double() for tensor in images)
    loss = EyelinerLoss()
    direction = torch.randn(pred.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    pred = pred.float().requires_grad_()
    loss(pred, target, eye_mask).backward()
    step, middle = 1e-6, pred.detach().double()
    ends = (middle + step * direction, middle - step * direction)
    up, down = (find_reference(end[0], target[0], eye_mask[0]) for end in ends)
    assert (pred.grad * direction).sum().item() == pytest.approx((up - down) / (2 * step), rel=1e-3)


def test_it_is_float32_whatever_autocast_does(images):
    pred, target, eye_mask = images
    expected = EyelinerLoss()(pred, target, eye_mask)
    with torch.autocast("cpu", torch.bfloat16):
        loss = EyelinerLoss()(pred, target, eye_mask)
        low = EyelinerLoss()(pred.bfloat16(), target, eye_mask)
    assert loss.dtype == low.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(low, EyelinerLoss()(pred.bfloat16().float(), target, eye_mask))


def test_makeup_loss_is_the_weighted_sum(images):
    pred, target, eye_mask = images
    output = 2 * pred - 0.5  # beyond [0, 1] on both sides: the loss must see that
    losses = MakeupLoss(0.7, 1.9)(output, target, eye_mask)
    l1 = (output - target).abs().mean().item()
    eyeliner = EyelinerLoss()(output, target, eye_mask).item()
    assert losses["l1"].item() == pytest.approx(l1, rel=1e-6)
    assert losses["eyeliner"].item() == pytest.approx(eyeliner, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(0.7 * l1 + 1.9 * eyeliner, rel=1e-6)


def test_missing_decibels_are_those_to_60(images):
    """Against torchmetrics; the 60 dB are soft, so only images well below them agree."""
    pred, target, _ = images
    each = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(pred, target, strict=True)]
    assert missing_decibels(pred, target).item() == pytest.approx(
        60 - torch.stack(each).mean().item(), abs=1e-3
    )
    assert missing_decibels(target, target).item() == 0


def test_missing_decibels_have_finite_gradients_for_equal_images(images):
    _, target, _ = images
    pred = target.clone().requires_grad_()
    missing_decibels(pred, target).backward()
    assert torch.equal(pred.grad, torch.zeros_like(pred))


def test_missing_decibels_ask_more_of_an_image_with_a_small_error():
    """Errors of 0.01 and 0.1: in L1 both have the same gradient, here the small one's is ten times larger."""
    pred = torch.full((2, 3, 16, 16), 0.5, requires_grad=True)
    target = torch.stack((torch.full((3, 16, 16), 0.51), torch.full((3, 16, 16), 0.6)))
    missing_decibels(pred, target).backward()
    small, large = pred.grad.abs().mean((1, 2, 3)).tolist()
    assert small / large == pytest.approx(10, rel=0.02)


def test_makeup_loss_has_the_psnr_where_it_has_a_weight(images):
    pred, target, eye_mask = images
    without, with_psnr = (MakeupLoss(0.7, 1.9, weight)(pred, target, eye_mask) for weight in (0.0, 0.01))
    missing = missing_decibels(pred, target).item()
    assert with_psnr["loss"].item() == pytest.approx(without["loss"].item() + 0.01 * missing, rel=1e-6)
    assert with_psnr["l1"] == without["l1"]
