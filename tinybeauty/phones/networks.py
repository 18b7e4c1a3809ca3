"""A network as a short list of steps with the int8 values of its file: what every writer starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinybeauty import shipping
from tinybeauty.errors import UserError

Array = np.ndarray
SOURCE = "source"  # the value that the first steps read


KINDS = {
    "conv2d": "conv",
    "conv_transpose2d": "up",
    "add": "add",
    "relu": "relu",
    "relu_": "relu",
    "max_pool2d": "pool",
    "boolean_dispatch": "pool",  # the name that PyTorch gives its function for max_pool2d
}
ASKS = {"__get__", "size", "dim"}  # what looks at a value and changes nothing


@dataclass(frozen=True)
class Weights:
    """A convolution's numbers as they ship: `weight = values * scales`.

    Attributes:
        values: (C_out, C_in / groups, H, W) int8, of a transposed convolution too.
        scales: (C_out,) float32, exactly the file's bfloat16.
        bias: (C_out,) float32; None is none.
        groups: the inputs and outputs are cut into so many.
        dilation: pixels from one row, and one column, of the kernel to the next.
    """

    values: Array
    scales: Array
    bias: Array | None
    groups: int
    dilation: tuple[int, int] = (1, 1)

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros at each side that keep the size."""
        height, width = self.values.shape[2:]
        return (height - 1) * self.dilation[0] // 2, (width - 1) * self.dilation[1] // 2


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: "conv" (stride 1, as many zeros around as keep the size), "up" (a transposed convolution, 2x2
            with stride 2; of several inputs, see `split_ups`), "add", "relu" or "pool" (the largest of 2x2).
        inputs: names of the values it reads.
        output: name of the value it makes; its channels are `channels`.
        channels: of the output.
        weights: of a convolution.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    channels: int
    weights: Weights | None = None

    def reading(self, new_names: dict[str, str]) -> Step:
        """Return the step with inputs of other names."""
        return replace(self, inputs=tuple(new_names.get(name, name) for name in self.inputs))


@dataclass
class Network:
    """A look's network.

    Attributes:
        name: the look's.
        steps: in order; the last one's output is the residual, 3 channels.
        facts: {name: text} for the metadata of a file.
        model: the network itself, in PyTorch, to compare with.
    """

    name: str
    steps: list[Step]
    facts: dict[str, str]
    model: nn.Module = field(repr=False)


def find_stored(packed: dict[str, Any], model: nn.Module) -> dict[int, Weights]:
    """Return {id of a layer's weight: what the file holds for it}."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    values, scales = packed["weights"].numpy(), packed["scales"].float().numpy()
    biases, found = packed["biases"].float().numpy(), {}
    for layer, (weight, bias) in zip(layers, shipping.list_weights(model), strict=True):
        taken, channels = weight.numel(), weight.shape[0] * weight.shape[1]
        found[id(layer.weight)] = Weights(
            values[:taken].reshape(channels, *weight.shape[2:]),
            scales[:channels],
            biases[: len(bias)] if len(bias) else None,
            layer.groups,
        )
        values, scales, biases = values[taken:], scales[channels:], biases[len(bias) :]
    return found


class Recorder(TorchFunctionMode):
    """Writes down what a network does to a picture, as steps."""

    def __init__(self, source: Tensor, weights: dict[int, Weights]) -> None:
        super().__init__()
        self.weights = weights
        self.steps: list[Step] = []
        self.names = {id(source): SOURCE}
        self.kept = [source]  # so that no id is given twice

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Do what was asked, and note it where it makes a value."""
        name = function.__name__
        inputs = tuple(self.names[id(value)] for value in args if id(value) in self.names)
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs or {})
        if name in ASKS or not inputs:
            return result
        kind = KINDS.get(name)
        weights = self.weights.get(id(args[1])) if kind in ("conv", "up") else None
        if kind is None or (kind in ("conv", "up")) == (weights is None):
            raise ValueError(f"the network does {name}, which cannot be exported")
        if name == "relu_":  # in place: the same tensor under a new name
            result = args[0]
        output = f"v{len(self.steps)}"
        self.steps.append(Step(kind, inputs, output, result.shape[1], weights))
        self.names[id(result)] = output
        self.kept.append(result)
        return result


def drop_unread(steps: list[Step]) -> list[Step]:
    """Return the steps without those whose output nothing reads, the last one's apart."""
    read = {name for step in steps for name in step.inputs} | {steps[-1].output}
    return [step for step in steps if step.output in read]


def read_network(path: Path, model: nn.Module, look: str) -> Network:
    """Return the network of a `.pt` file as steps.

    Args:
        path: the file.
        model: the network that `load_model` makes of it.
        look: its name.

    Raises:
        UserError: the file is damaged, or the network does what no step can say.
    """
    packed = shipping.load_content(path, shipping.MODEL_FORMAT)
    source = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with shipping.name_damaged(path), torch.no_grad():
        with Recorder(source, find_stored(packed, model)) as recorder:
            residual = model(source)
        steps = drop_unread(recorder.steps)
        if recorder.names[id(residual)] != steps[-1].output:
            raise ValueError("the last step does not make the residual")
    difference = (run_steps(steps, source) - residual).abs().max().item()
    if not difference < 1e-4:
        raise UserError(f"{path}: the exported steps differ from the network by {difference:.2g}")
    return Network(look, steps, describe(packed, look), model)


def describe(packed: dict[str, Any], look: str) -> dict[str, str]:
    """Return what an app's author wants to know about a file, as text."""
    facts = {
        "look": look,
        "alignment": "FFHQ, 256 x 256 px",
        "range": "source and made_up: RGB, 0 to 255 as bytes, 0 to 1 as floats; strength: 0 to 1.5",
        "license": "that of whoever trained the network",
    }
    metrics = packed.get("metrics")
    for key in ("val/psnr", "val/psnr_gain"):
        value = metrics.get(key) if isinstance(metrics, dict) else None
        if isinstance(value, float):
            facts[key.removeprefix("val/") + "_db"] = f"{value:.2f}"
    return facts


def run_steps(steps: list[Step], source: Tensor, halve: bool = False) -> Tensor:
    """Return what the steps make of (B, 3, H, W) in PyTorch; `halve`: every value rounded to float16."""
    shorten = (lambda value: value.half().float()) if halve else (lambda value: value)
    values = {SOURCE: shorten(source)}
    for step in steps:
        inputs = [values[name] for name in step.inputs]
        values[step.output] = shorten(run_step(step, inputs, shorten))
    return values[steps[-1].output]


def run_step(step: Step, inputs: list[Tensor], shorten: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the output of one step."""
    if step.kind == "add":
        return inputs[0] + inputs[1]
    if step.kind == "relu":
        return inputs[0].relu()
    if step.kind == "pool":
        return nn.functional.max_pool2d(inputs[0], 2)
    weights = step.weights
    assert weights is not None
    values = torch.from_numpy(weights.values).float()
    weight = shorten(values * shorten(torch.from_numpy(weights.scales))[:, None, None, None])
    bias = None if weights.bias is None else torch.from_numpy(weights.bias)
    if step.kind == "conv":
        return nn.functional.conv2d(
            inputs[0], weight, bias, 1, weights.padding, weights.dilation, weights.groups
        )
    if len(inputs) > 1:  # of split_ups: the channels back into their places
        inputs = [torch.stack(inputs, 2).flatten(1, 2)]
    # (C_out, C_in / groups, 2, 2) to PyTorch's own order, (C_in, C_out / groups, 2, 2)
    weight = weight.unflatten(0, (weights.groups, -1)).transpose(1, 2).flatten(0, 1)
    return nn.functional.conv_transpose2d(inputs[0], weight, bias, 2, 0, 0, weights.groups)


def split_value(steps: dict[str, Step], name: str, parts: int) -> list[Step] | None:
    """Return the steps that make every `parts`-th channel of a value, for each start; None: they cannot.

    A value that several steps read cannot be split, nor one that mixes its inputs' places.
    """
    step = steps.get(name)
    if step is None or sum(other.inputs.count(name) for other in steps.values()) > 1:
        return None
    made = []
    if step.kind in ("add", "relu"):
        for before in step.inputs:
            split = split_value(steps, before, parts)
            if split is None:
                return None
            made += split
    elif step.kind != "conv" or step.weights is None or step.weights.groups > 1:
        return None
    for part in range(parts):
        weights = step.weights
        inputs = tuple(f"{before}/{part}" for before in step.inputs) if weights is None else step.inputs
        if weights is not None:
            bias = None if weights.bias is None else weights.bias[part::parts]
            weights = Weights(weights.values[part::parts], weights.scales[part::parts], bias, 1)
        made.append(Step(step.kind, inputs, f"{name}/{part}", step.channels // parts, weights))
    return made


def split_ups(steps: list[Step], widest: int = 1 << 16) -> list[Step]:
    """Return the same function with transposed convolutions of several inputs of one channel to one.

    One in as many groups as it has outputs reads neighbouring channels, which no phone does fast. Where
    what makes them can make every second channel by itself, all the first ones become one input, all the
    second ones another, and each is a depthwise convolution.

    Args:
        steps: of a graph.
        widest: leave those with more outputs as they are.
    """
    done = list(steps)
    for step in steps:
        weights = step.weights
        if step.kind != "up" or weights is None or weights.groups != step.channels or step.channels > widest:
            continue
        parts = weights.values.shape[1]
        split = split_value({other.output: other for other in done}, step.inputs[0], parts)
        if parts > 1 and split is not None:
            replaced = {made.output.rpartition("/")[0] for made in split}
            kept = [other for other in done if other.output not in replaced]
            names = tuple(f"{step.inputs[0]}/{part}" for part in range(parts))
            place = kept.index(step)
            kept[place : place + 1] = [*split, replace(step, inputs=names)]
            done = kept
    return done


# Of a kernel of 7, counted from its centre.
EVEN, ODD, ALL = slice(1, None, 2), slice(0, None, 2), slice(None)
PIECES = ((EVEN, ALL, (2, 1)), (ODD, ODD, (2, 2)), (ODD, EVEN, (2, 2)))  # 21, 16 and 12 of 49


def split_kernels(steps: list[Step]) -> list[Step]:
    """Return the same function with depthwise kernels of 7 x 7 as the sum of three smaller, dilated ones.

    XNNPACK is fast for up to 25 weights a channel; for 49 it takes 6 times as long as for the three of them,
    and 20 times in integers.
    """
    done = []
    for step in steps:
        weights = step.weights
        if step.kind != "conv" or weights is None or weights.values.shape[1:] != (1, 7, 7):
            done.append(step)
            continue
        names = []
        for number, (rows, columns, dilation) in enumerate(PIECES):
            values = np.ascontiguousarray(weights.values[:, :, rows, columns])
            bias = weights.bias if number == 0 else None
            piece = Weights(values, weights.scales, bias, weights.groups, dilation)
            names.append(f"{step.output}.{number}")
            done.append(Step("conv", step.inputs, names[-1], step.channels, piece))
        done.append(Step("add", (names[1], names[2]), f"{step.output}.3", step.channels))
        done.append(Step("add", (names[0], f"{step.output}.3"), step.output, step.channels))
    return done
