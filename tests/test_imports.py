"""Quick to start: nothing heavy is imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT

# Each takes a tenth of PyTorch's own time to import, or more; one thing of a run needs it, if any.
HEAVY = {
    "IPython", "cv2", "matplotlib", "mediapipe", "mpmath", "onnx", "pandas", "scipy", "sympy", "torchmetrics",
    "torchvision", "transformers", "wandb",
    "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.onnx",
    "torch.utils.flop_counter", "torch.utils.tensorboard",
}  # fmt: skip
LIGHT = ("errors", "files", "images", "faces", "workers")  # workers of prepare_pairs start with them


@cache
def list_modules(name: str) -> frozenset[str]:
    """Return what is loaded after an import, in a process of its own."""
    code = f"import sys; import {name}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    return frozenset(run.stdout.split())


def test_the_script_starts_about_as_fast_as_pytorch():
    extra = list_modules("tinybeauty_training") - list_modules("torch")
    assert "tinybeauty.cache" in extra
    assert not extra & HEAVY
    assert not [name for name in extra if name.startswith("torch.")]


@pytest.mark.parametrize("room", LIGHT)
def test_a_light_room_loads_neither_pytorch_nor_pydantic(room):
    loaded = list_modules(f"tinybeauty.{room}")
    assert f"tinybeauty.{room}" in loaded
    assert not loaded & (HEAVY | {"torch", "pydantic", "yaml"})
