"""A look as a Core ML package: an ML Program of iOS 16, int8 weights, float16 arithmetic, RGB images.

The program is built by hand, its constants are shared, and the package holds nothing that differs from one
machine to the next. No Mac is needed to write one.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import struct
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinybeauty.blending import SIDE
from tinybeauty.files import save_bytes
from tinybeauty.phones.networks import SOURCE, Network, Step, Weights

PACKAGES = ("coremltools",)  # to write
RUNTIME = "coremltools"  # to check
SMALL = 512  # bytes
AUTHOR = "com.apple.CoreML"
Array = np.ndarray


def import_coremltools() -> Any:
    """Return the package; what it says about versions of PyTorch does not matter here."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools

        return coremltools


def dequantize(mb: Any, values: Array, scales: Array) -> Any:
    """Return int8 values (C_out, ...) times their scales (C_out,), in float16."""
    return mb.constexpr_affine_dequantize(
        quantized_data=np.ascontiguousarray(values),
        zero_point=np.int8(0),
        scale=scales.astype(np.float16),
        axis=np.int32(0),
    )


def add_convolution(mb: Any, step: Step, weights: Weights, source: Any) -> Any:
    """Return a convolution of `source`, plain or transposed."""
    values, scales, bias = weights.values, weights.scales, weights.bias
    options: dict[str, Any] = {"strides": [1, 1], "pad_type": "custom", "pad": [values.shape[2] // 2] * 4}
    alone = step.kind == "up" and weights.groups == step.channels
    if alone:  # each input goes to one output, so a scale for each input is enough
        values, scales = values.reshape(-1, 1, 2, 2), scales.repeat(values.shape[1])
        options = {"strides": [2, 2], "pad_type": "valid"}
    elif step.kind == "up":  # 1x1 to four times the channels: the scales number no axis of a transposed one
        values = values.transpose(0, 2, 3, 1).reshape(4 * len(values), -1, 1, 1)
        scales, bias = scales.repeat(4), None if bias is None else bias.repeat(4)
        options["pad"] = [0] * 4
    if bias is not None:
        options["bias"] = bias.astype(np.float16)
    convolve = mb.conv_transpose if alone else mb.conv
    weight = dequantize(mb, values, scales)
    made = convolve(x=source, weight=weight, dilations=[1, 1], groups=weights.groups, **options)
    return mb.pixel_shuffle(x=made, upscale_factor=2) if step.kind == "up" and not alone else made


def add_steps(mb: Any, network: Network, picture: Any) -> Any:
    """Return the residual of a picture (1, 3, H, W) in [0, 1]."""
    values = {SOURCE: picture}
    for step in network.steps:
        inputs = [values[name] for name in step.inputs]
        if step.kind == "add":
            made = mb.add(x=inputs[0], y=inputs[1])
        elif step.kind == "relu":
            made = mb.relu(x=inputs[0])
        elif step.kind == "pool":
            made = mb.max_pool(
                x=inputs[0], kernel_sizes=[2, 2], strides=[2, 2], pad_type="custom", pad=[0] * 4,
                ceil_mode=False,
            )  # fmt: skip
        else:
            assert step.weights is not None
            made = add_convolution(mb, step, step.weights, inputs[0])
        values[step.output] = made
    return values[network.steps[-1].output]


def make_program(network: Network, use_float: bool) -> Any:
    """Return the program in coremltools' own form."""
    coremltools = import_coremltools()
    from coremltools.converters.mil import Builder as mb  # noqa: N813  the name of its own documents
    from coremltools.converters.mil.mil import types

    specs = [mb.TensorSpec((1, 3, SIDE, SIDE), types.fp32), mb.TensorSpec((1,), types.fp32)]

    @mb.program(input_specs=specs, opset_version=coremltools.target.iOS16)
    def program(source: Any, strength: Any) -> Any:
        picture = mb.cast(x=source, dtype="fp16")
        # The levels themselves are exact in float16, levels / 255 are not: so they are what the residual is
        # added to, and strength 0 gives the picture back.
        inside = picture if use_float else mb.mul(x=picture, y=np.float16(1 / 255))
        residual = add_steps(mb, network, inside)
        if not use_float:
            residual = mb.mul(x=residual, y=np.float16(255))
        scaled = mb.mul(x=residual, y=mb.cast(x=strength, dtype="fp16"))
        most = np.float16(1 if use_float else 255)
        made_up = mb.clip(x=mb.add(x=picture, y=scaled), alpha=np.float16(0), beta=most)
        made_up = made_up if use_float else mb.round(x=made_up)  # whatever an image does with halves
        return mb.cast(x=made_up, dtype="fp32", name="made_up")

    return program


def share_constants(block: Any) -> None:
    """Store equal constants of a block once, and give what no app sees short names: a third of the bytes."""
    kept: dict[bytes, str] = {}
    names = {name: name for name in ("source", "strength", "made_up")}
    operations = list(block.operations)
    del block.operations[:]
    for operation in operations:
        (output,) = operation.outputs
        if operation.type == "const":
            key = operation.attributes["val"].SerializeToString(deterministic=True)
            if key in kept:
                names[output.name] = kept[key]
                continue
            kept[key] = f"c{len(kept)}"
            names[output.name] = kept[key]
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                binding.name = names[binding.name]
        output.name = names.setdefault(output.name, f"n{len(names)}")
        operation.attributes["name"].immediateValue.tensor.strings.values[0] = output.name
        block.operations.append(operation)


def pack_weights(block: Any, stored: bytes) -> bytes:
    """Put a block's float16 vectors and few weights into the program; return the weight file of the others.

    There each takes about 130 bytes more. Source: MILBlob's StorageFormat.hpp, in coremltools.
    """
    kept = bytearray(64)
    count = 0
    for operation in block.operations:
        for _, value in sorted(operation.attributes.items()):
            if not value.HasField("blobFileValue"):
                continue
            _, kind, size, start = struct.unpack_from("<IIQQ", stored, value.blobFileValue.offset)
            data = stored[start : start + size]
            if kind == 1 or size <= SMALL:  # 1: float16
                value.immediateValue.tensor.bytes.values = data
                value.ClearField("blobFileValue")
                continue
            value.blobFileValue.offset = len(kept)
            kept += struct.pack("<IIQQ40x", 0xDEADBEEF, kind, size, len(kept) + 64)
            kept += data + bytes(-len(data) % 64)
            count += 1
    struct.pack_into("<II", kept, 0, count, 2)
    return bytes(kept)


def describe_spec(spec: Any, network: Network, use_float: bool) -> None:
    """Say what an app gives and gets, and drop what differs from one day to the next."""
    spec.description.ClearField("metadata")
    spec.mlProgram.ClearField("attributes")  # coremltools' version
    metadata = spec.description.metadata
    metadata.shortDescription = f"TinyBeauty: the look {network.name}"
    metadata.license = network.facts["license"]
    metadata.userDefined.update(network.facts)
    strength = spec.description.input[1].type
    strength.isOptional = True
    strength.multiArrayType.floatDefaultValue = 1.0
    if not use_float:
        made_up = spec.description.output[0].type
        made_up.imageType.CopyFrom(spec.description.input[0].type.imageType)


def make_files(network: Network, use_float: bool) -> dict[str, bytes]:
    """Return {path inside the package: bytes}."""
    coremltools = import_coremltools()
    kind = coremltools.TensorType if use_float else coremltools.ImageType
    extra = {} if use_float else {"color_layout": coremltools.colorlayout.RGB}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        model = coremltools.convert(
            make_program(network, use_float),
            inputs=[
                kind(name="source", shape=(1, 3, SIDE, SIDE), **extra),
                coremltools.TensorType(name="strength", shape=(1,)),
            ],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            pass_pipeline=coremltools.PassPipeline.EMPTY,  # they unpack the weights, or name things anew
            skip_model_load=True,
        )
    spec = model.get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    weights = pack_weights(block, Path(model.weights_dir, "weight.bin").read_bytes())
    share_constants(block)
    describe_spec(spec, network, use_float)
    parts = {
        "model.mlmodel": ("CoreML Model Specification", spec.SerializeToString(deterministic=True)),
        "weights": ("CoreML Model Weights", b""),
    }
    # A package's parts are numbered at random otherwise; these are the same for the same name.
    numbers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{AUTHOR}/{name}")).upper() for name in parts}
    entries = {
        numbers[name]: {"author": AUTHOR, "description": says, "name": name, "path": f"{AUTHOR}/{name}"}
        for name, (says, _) in parts.items()
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": numbers["model.mlmodel"],
    }
    return {
        "Manifest.json": json.dumps(manifest, indent=1).encode(),
        f"Data/{AUTHOR}/model.mlmodel": parts["model.mlmodel"][1],
        f"Data/{AUTHOR}/weights/weight.bin": weights,
    }


def write_coreml(network: Network, path: Path, use_float: bool) -> None:
    """Write the package `path`, a folder that is not there yet; raises UserError."""
    for name, data in make_files(network, use_float).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        save_bytes(path / name, data)


def run_operation(kind: str, given: dict[str, Any]) -> Any:
    """Return what an operation makes of PyTorch's tensors, not rounded yet."""
    from torch.nn import functional

    if kind == "conv":
        groups, pad = int(given["groups"]), int(given["pad"][0])
        bias = given.get("bias")
        return functional.conv2d(given["x"], given["weight"], bias, 1, pad, 1, groups)
    if kind == "conv_transpose":
        return functional.conv_transpose2d(
            given["x"], given["weight"], given.get("bias"), 2, groups=int(given["groups"])
        )
    simple = {
        "cast": lambda: given["x"],
        "add": lambda: given["x"] + given["y"],
        "mul": lambda: given["x"] * given["y"],
        "relu": lambda: given["x"].relu(),
        "max_pool": lambda: functional.max_pool2d(given["x"], 2),
        "pixel_shuffle": lambda: functional.pixel_shuffle(given["x"], 2),
        "clip": lambda: given["x"].clamp(given["alpha"].item(), given["beta"].item()),
        "round": lambda: given["x"],  # the levels before they are rounded tell more
        "constexpr_affine_dequantize": lambda: (
            (given["quantized_data"] - given["zero_point"]) * given["scale"].view(-1, 1, 1, 1)
        ),
    }
    if kind not in simple:
        raise ValueError(f"Core ML: an operation {kind}")
    return simple[kind]()


def open_coreml(path: Path, use_float: bool) -> Callable[[Array, float], Array]:
    """Return a function of a face (H, W, 3) uint8 and a strength: what the package makes, levels of 255.

    On a Mac by Core ML itself. Elsewhere the package is read back from the disk and its program run in
    PyTorch, every value rounded to float16.
    """
    with tempfile.TemporaryDirectory() as folder:  # coremltools writes a package that it reads anew
        copy = Path(shutil.copytree(path, Path(folder, path.name)))
        return run_natively(copy, use_float) if sys.platform == "darwin" else emulate(copy, use_float)


def run_natively(path: Path, use_float: bool) -> Callable[[Array, float], Array]:
    """Return the function on a Mac."""
    from PIL import Image

    model = import_coremltools().models.MLModel(str(path))

    def run(face: Array, strength: float) -> Array:
        picture: Any = Image.fromarray(face)
        if use_float:
            picture = face.transpose(2, 0, 1)[None] / np.float32(255)
        made_up = model.predict({"source": picture, "strength": np.float32([strength])})["made_up"]
        if use_float:
            return np.asarray(made_up)[0].transpose(1, 2, 0) * 255.0
        return np.asarray(made_up.convert("RGB"), np.float32)

    return run


def emulate(path: Path, use_float: bool) -> Callable[[Array, float], Array]:
    """Return the function in PyTorch, the levels not rounded to bytes yet."""
    import torch

    coremltools = import_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(path))
    weights = str(path / "Data" / AUTHOR / "weights")
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=weights)
    function = program.functions["main"]

    def find(values: dict[str, Any], variable: Any) -> Any:
        if variable.name in values:
            return values[variable.name]
        value = np.asarray(variable.val)
        return (
            value if value.dtype.kind in "USb" else torch.from_numpy(np.atleast_1d(value).astype(np.float32))
        )

    def run(face: Array, strength: float) -> Array:
        source = torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float()
        values = {"source": source / 255 if use_float else source, "strength": torch.tensor([strength])}
        for operation in function.operations:
            if operation.op_type == "const":
                continue
            given = {
                name: find(values, variable)
                for name, variable in operation.inputs.items()
                if not isinstance(variable, list | tuple)
            }
            made = run_operation(operation.op_type, given)
            values[operation.outputs[0].name] = made.half().float()
        made_up = values[function.outputs[0].name][0].permute(1, 2, 0).numpy()
        return made_up * 255.0 if use_float else made_up

    return run
