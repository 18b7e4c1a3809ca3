"""TinyBeauty: the plan, the shapes, folding and the counts that are printed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from conftest import make_bold_model, make_busy_model
from torch import nn

from tinybeauty.layers import count_multiply_adds, count_parameters
from tinybeauty.shipping import pack, unpack
from tinybeauty_training import TinyBeauty

# Channels and the share of the input's side, from the plan.
PLAN = {
    "enc1": (16, 1), "pool1": (16, 2), "enc2": (32, 2), "pool2": (32, 4), "enc3": (64, 4), "pool3": (64, 8),
    "bottleneck": (128, 8), "up3": (64, 4), "dec3": (64, 4), "up2": (32, 2), "dec2": (32, 2),
    "up1": (16, 1), "dec1": (16, 1), "out": (3, 1),
}  # fmt: skip


def test_plan():
    model, shapes = TinyBeauty(), {}
    assert [name for name, _ in model.named_children()] == list(PLAN)
    for name, block in model.named_children():
        block.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    model(torch.rand(2, 3, 64, 32))
    assert shapes == {
        name: (2, channels, 64 // part, 32 // part) for name, (channels, part) in PLAN.items()
    }  # fmt: skip
    assert (model.out.in_channels, model.out.out_channels, model.out.kernel_size) == (16, 3, (1, 1))
    for name, width in (("up3", 128), ("up2", 64), ("up1", 32)):
        assert isinstance(getattr(model, name), nn.ConvTranspose2d)
        assert getattr(model, name).in_channels == width


def test_each_decoder_sees_what_comes_up_and_the_skip():
    model, inputs = make_busy_model(), {}
    for name in ("dec3", "dec2", "dec1"):
        block = getattr(model, name)
        block.register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: [part.clone() for part in args]})
        )
    outputs = {}
    for name in ("enc1", "enc2", "enc3", "up1", "up2", "up3"):
        block = getattr(model, name)
        block.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output.clone()}))
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    for level in (1, 2, 3):
        for part, name in zip(inputs[f"dec{level}"], (f"up{level}", f"enc{level}"), strict=True):
            assert torch.equal(part, outputs[name])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 32), (8, 128)])
def test_the_residual_has_the_shape_of_the_image(height, width):
    assert TinyBeauty()(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)


@pytest.mark.parametrize(("height", "width"), [(60, 64), (64, 60), (4, 8)])
def test_sizes_that_are_no_multiple_of_8_are_refused(height, width):
    with pytest.raises(ValueError, match="multiples of 8"):
        TinyBeauty()(torch.rand(1, 3, height, width))


def test_the_residual_is_not_clamped_and_moves_both_ways():
    source = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        residual = make_bold_model(source, 10.0)(source)
    assert residual.min() < -2
    assert residual.max() > 2


def test_gradients_reach_every_weight():
    """After one step at the latest: `out` may start at zero, and then nothing passes it at first."""
    torch.manual_seed(0)
    model = TinyBeauty()
    source, target = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (source + model(source) - target).square().mean().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_parameters_fit_one_byte_each_in_the_file(trained):
    total = sum(parameter.numel() for parameter in TinyBeauty().parameters())
    assert 55_000 <= total <= 100_000
    assert count_parameters(TinyBeauty()) == total
    assert f"{total:,} parameters" in trained.stdout
    assert {row["model/parameters"] for row in trained.rows} == {total}


def test_multiply_adds_of_the_network(trained):
    model, products = TinyBeauty().eval(), []

    def count(layer, inputs, output):
        passes = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        products.append(passes[0, 0].numel() * layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    before = copy.deepcopy(model.state_dict())
    model(torch.rand(1, 3, 64, 64))
    total = sum(products)
    assert count_multiply_adds(model, 64) == total
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    printed = re.search(r"([\d,]+) million multiply-adds", trained.stdout)
    assert int(printed[1].replace(",", "")) == round(total / 1e6)


def test_the_folded_network_computes_the_same():
    model = make_busy_model().double()
    source = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = model(source)
        folded = copy.deepcopy(model).fold_()
        torch.testing.assert_close(folded(source), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.01
    assert not [layer for layer in folded.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def test_int8_changes_the_picture_by_little():
    model = make_busy_model()
    source = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected, shipped = model(source), unpack(pack(model), TinyBeauty())(source)
    assert 0 < (shipped - expected).std() < 0.05 * expected.std()
