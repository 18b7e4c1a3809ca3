"""The blocks of the network: what they do faster is what PyTorch does; what they cost is counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinybeauty.layers import (
    ConvNormReLU,
    Depthwise,
    Upsample,
    count_multiply_adds,
    count_parameters,
    separable,
)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_a_depthwise_convolution_is_pytorchs_and_takes_bfloat16(kernel_size):
    layer, features = Depthwise(8, kernel_size), torch.rand(2, 8, 9, 12)
    expected = F.conv2d(features, layer.weight, padding=kernel_size // 2, groups=8)
    torch.testing.assert_close(layer(features), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(features.bfloat16())
    assert low.dtype == (torch.bfloat16 if kernel_size == 3 else torch.float32)
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)


def test_two_branches_are_the_convolution_of_the_concatenation():
    joined = ConvNormReLU(separable(4, 8), separable(4, 8)).eval()
    with torch.no_grad():
        for parameter in joined.parameters():
            parameter.normal_()
    depthwise, pointwise = zip(*joined.branches, strict=True)
    parts = torch.rand(2, 4, 16, 16), torch.rand(2, 4, 16, 16)
    with torch.no_grad():
        both = F.conv2d(
            torch.cat(parts, 1), torch.cat([conv.weight for conv in depthwise]), padding=1, groups=8
        )
        both = F.conv2d(both, torch.cat([conv.weight for conv in pointwise], 1))
        expected = joined.activation(joined.norm(both))
        torch.testing.assert_close(joined(*parts), expected)
        joined.fold_()
        torch.testing.assert_close(joined(*parts), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("way", [Upsample.forward, Upsample.forward_dense])  # training on a CPU; on a GPU
def test_upsampling_is_a_transposed_convolution_and_so_are_its_gradients(groups, way):
    layer, features = Upsample(16, 8, groups), torch.rand(2, 16, 5, 7, requires_grad=True)
    assert layer.training
    expected, made = nn.ConvTranspose2d.forward(layer, features), way(layer, features)
    assert made.shape == (2, 8, 10, 14)
    torch.testing.assert_close(made, expected)
    variables = [features, *layer.parameters()]
    for gradient, wanted in zip(
        torch.autograd.grad(made.square().sum(), variables),
        torch.autograd.grad(expected.square().sum(), variables),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_multiply_adds_of_one_layer():
    assert count_multiply_adds(nn.Conv2d(3, 16, 3, padding=1), 32) == 32 * 32 * 16 * 3 * 9
    assert count_multiply_adds(nn.Conv2d(3, 3, 3, padding=1, groups=3), 32) == 32 * 32 * 3 * 9
    assert count_multiply_adds(nn.ConvTranspose2d(3, 8, 2, stride=2), 32) == 32 * 32 * 3 * 8 * 4


def test_parameters_are_weights_and_biases_and_no_statistics():
    assert count_parameters(ConvNormReLU(separable(4, 8, 7))) == 4 * 49 + 4 * 8 + 2 * 8
    assert count_parameters(Upsample(16, 8, groups=8)) == 16 * 4 + 8
    assert count_parameters(Upsample(16, 8, groups=2)) == 16 * 8 // 2 * 4 + 8
