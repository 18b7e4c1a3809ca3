"""Files of ours: the int8 network that ships, and the state of a run. No changed bit goes unnoticed."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tinybeauty.errors import UserError, one_line

MODEL_FORMAT = "tinybeauty"
RUN_FORMAT = "tinybeauty-run"
FORMAT_VERSION = 2


def to_bytes(content: dict[str, Any]) -> bytes:
    """Return what `torch.save` would write, the same bytes for the same content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def pack_state(state: dict[str, Any]) -> bytes:
    """Return the bytes of a run's state."""
    return to_bytes({"format": RUN_FORMAT, "version": FORMAT_VERSION} | state)


def list_weights(folded: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (weight, bias or an empty tensor) of each convolution, views in a fixed order.

    The weight is (groups, C_out / groups, C_in / groups, H, W): the first two number the output channels.
    """
    for layer in folded.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = layer.weight.unflatten(0, (layer.groups, -1))
            weight = weight.transpose(1, 2) if isinstance(layer, nn.ConvTranspose2d) else weight
            yield weight, layer.weight.new_empty(0) if layer.bias is None else layer.bias


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight of `list_weights` as int8, (C_out, -1), and its scales, (C_out,) bfloat16."""
    rows = weight.flatten(0, 1).flatten(1)
    # Round the scale first and the weights to that scale: then bfloat16 costs no accuracy. 126
    # leaves room for a scale that was rounded down.
    scale = (rows.abs().amax(1) / 126).clamp_min(1e-20).bfloat16()
    return (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


class Shippable(Protocol):
    """A network that can be folded, and says how it is built, in plain numbers, lists and dictionaries."""

    architecture: Mapping[str, Any]

    def fold_(self) -> nn.Module:
        """Fold every BatchNorm into its convolution."""


def pack(model: Shippable) -> dict[str, Any]:
    """Return a network as it ships: BatchNorm folded, int8 weights with one scale an output channel.

    Weights are packed into one flat tensor each of int8 (weights), bfloat16 (scales) and float16
    (biases), because the container costs about 300 bytes a tensor.
    """
    folded = copy.deepcopy(model).cpu().float().fold_()
    weights, scales, biases = [], [], []
    for weight, bias in list_weights(folded):
        rows, scale = round_weight(weight)
        weights.append(rows.flatten())
        scales.append(scale)
        biases.append(bias.half())
    return {
        "format": MODEL_FORMAT,
        "version": FORMAT_VERSION,
        "architecture": dict(model.architecture),
        "weights": torch.cat(weights),
        "scales": torch.cat(scales),
        "biases": torch.cat(biases),
    }


def unpack(packed: dict[str, Any], model: Shippable) -> nn.Module:
    """Return the model, folded and filled with packed weights, in float32 and eval mode.

    Raises:
        ValueError: they do not fit.
    """
    if packed["architecture"] != model.architecture:
        raise ValueError(f"it is another network: {packed['architecture']}")
    folded = model.fold_()
    needed = {"weights": 0, "scales": 0, "biases": 0}
    for weight, bias in list_weights(folded):
        needed["weights"] += weight.numel()
        needed["scales"] += weight.shape[0] * weight.shape[1]
        needed["biases"] += len(bias)
    if any(tuple(packed[name].shape) != (count,) for name, count in needed.items()):
        raise ValueError("the weights do not fit this network")
    parts = {name: packed[name].float().cpu() for name in needed}
    for weight, bias in list_weights(folded):
        channels = weight.shape[0] * weight.shape[1]
        rows, parts["weights"] = parts["weights"].tensor_split([weight.numel()])
        scale, parts["scales"] = parts["scales"].tensor_split([channels])
        values, parts["biases"] = parts["biases"].tensor_split([len(bias)])
        weight.copy_((rows.view(channels, -1) * scale[:, None]).view(weight.shape))
        bias.copy_(values)
    return folded


def load_content(path: str | Path, content_format: str) -> dict[str, Any]:
    """Return the dictionary of a file of ours; runs no code from it.

    Raises:
        UserError: the file is missing, truncated, of another format or another version, or any bit of
            it has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load neither checks the sums nor bounds the size
            members = archive.infolist()
            if any(member.compress_type for member in members) or archive.testzip() is not None:
                raise ValueError("a member's checksum is wrong")
        content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # torch.load raises a dozen kinds for files that are not its own
        raise UserError(f"{path} is damaged or no file of TinyBeauty's ({type(error).__name__})") from None
    if not isinstance(content, dict) or content.get("format") != content_format:
        wanted = {MODEL_FORMAT: "tinybeauty_*.pt", RUN_FORMAT: "tinybeauty_last.ckpt"}[content_format]
        raise UserError(f"{path} is a PyTorch file, but not one of TinyBeauty's {wanted}")
    if content.get("version") != FORMAT_VERSION:
        found = content.get("version")
        raise UserError(f"{path} has format version {found}, this program reads {FORMAT_VERSION}")
    return content


@contextmanager
def name_damaged(path: str | Path) -> Iterator[None]:
    """Turn what a content that does not fit makes Python and PyTorch raise into a UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from None


def load_network(path: str | Path, build: Callable[[Mapping[str, Any]], Shippable]) -> nn.Module:
    """Return the network of a `.pt` file, folded, in float32 and eval mode.

    Args:
        path: the file.
        build: returns the network of an `architecture`, with any weights.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    packed = load_content(path, MODEL_FORMAT)
    with name_damaged(path):
        network = unpack(packed, build(packed["architecture"]))
        if not all(weight.isfinite().all() for weight in network.parameters()):
            raise ValueError("some of its weights are no finite numbers")
        return network
