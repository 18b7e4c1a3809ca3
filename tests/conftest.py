"""Fixtures: a clean environment, drawn faces, and one real training run that many tests look at.

Every path is inside pytest's own temporary folder; no account, network or GPU is used.
"""

from __future__ import annotations

import csv
import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from PIL import Image

from tinybeauty.errors import UserError
from tinybeauty.face_models import fetch_face_models, find_bad_files, find_cache

if TYPE_CHECKING:
    from torch import Tensor

    from tinybeauty_training import TinyBeauty

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tinybeauty_training.py"

# Before torch is loaded: threads that wait must sleep, or two of them on a busy core take seconds a step.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["PYTHONUSERBASE"] = site.getuserbase()  # stays where it is when HOME moves
for name in [name for name in os.environ if name.startswith(("WANDB_", "TINYBEAUTY_"))]:
    del os.environ[name]
os.environ["WANDB_SILENT"] = "true"
os.environ["WANDB_MODE"] = "disabled"  # a test that wants WandB says so with --wandb_mode


USERS_MODELS = find_cache()  # before HOME moves away


@pytest.fixture(scope="session", autouse=True)
def no_account(tmp_path_factory):
    """Move HOME away, so that no login of this machine is seen, here or in a subprocess."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "USERPROFILE"):
            patch.setenv(name, str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.delenv(name, raising=False)
        if not find_bad_files(USERS_MODELS):  # what was fetched once need not be fetched again
            shutil.copytree(USERS_MODELS, find_cache())
        yield


@pytest.fixture(scope="session")
def face_models(no_account) -> Path:
    """The folder of the face models, as every command finds them; without them a test is skipped."""
    try:
        return fetch_face_models()
    except UserError as error:
        pytest.skip(f"the face models cannot be had: {error}")


def draw_demo(out: Path, count: int, size: int, *flags: str) -> Path:
    """Draw demo pairs with the real tool."""
    tool = [sys.executable, str(ROOT / "data" / "make_demo.py")]
    command = [*tool, "--out", str(out), "--count", str(count), "--size", str(size), *flags]
    subprocess.run(command, check=True, capture_output=True)
    return out


def draw_couple() -> Image.Image:
    """Two drawn people cheek to cheek: each of their squares holds an eye of the other."""
    from make_demo import draw_pair

    left, right = (Image.fromarray(draw_pair(number, 320, 42)[0]) for number in (3, 7))
    couple = Image.new("RGB", (500, 320))
    couple.paste(left, (0, 0))
    couple.paste(right.crop((70, 0, 320, 320)), (250, 0))
    return couple


def read_files(folder: Path) -> dict[str, bytes]:
    """Return {path in the folder: bytes} of all its files but the training's cache."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".cache"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv in a run's folder."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """24 pairs of 64 px with eye masks: 21 for training and 3 held out by val_fraction 0.2, or so."""
    return draw_demo(tmp_path_factory.mktemp("demo") / "faces", 24, 64)


def make_busy_model(up_groups: int | tuple[int, ...] = (64, 32, 16)) -> TinyBeauty:
    """Return a network in eval mode of which every weight and every statistic has left its start."""
    import torch

    from tinybeauty_training import TinyBeauty

    torch.manual_seed(0)
    model = TinyBeauty(up_groups)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.train()
        for _ in range(5):
            model(torch.rand(4, 3, 32, 32))
    return model.eval()


def make_bold_model(
    source: Tensor, strength: float, up_groups: int | tuple[int, ...] = (64, 32, 16)
) -> TinyBeauty:
    """Return a busy network whose residuals of `source` have mean 0 and standard deviation `strength`."""
    model = make_busy_model(up_groups)
    residual = model(source).detach()
    gain = strength / residual.std((0, 2, 3))
    model.out.weight.data *= gain.view(3, 1, 1, 1)
    model.out.bias.data = (model.out.bias.data - residual.mean((0, 2, 3))) * gain
    return model


@dataclass
class Run:
    """A finished training run."""

    output_dir: Path
    data_dir: Path
    settings: dict
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv."""
        return read_rows(self.output_dir)


SMALL = ["--image_size", "64", "--batch_size", "8", "--val_fraction", "0.25", "--device", "cpu"]
NETWORKS = ("tinybeauty_best_loss.pt", "tinybeauty_best_psnr.pt", "tinybeauty_final.pt")


@pytest.fixture(scope="session")
def trained(demo, tmp_path_factory) -> Run:
    """The real command with a YAML, flags over it and WandB offline, into the folder of an older run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "out").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "out" / "samples_epoch_003.png")  # epoch 3 draws none
    settings = {"data_dir": str(demo), "output_dir": "out", "image_size": 64, "batch_size": 2, "epochs": 5}
    settings |= {"val_fraction": 0.25, "sample_every": 2, "learning_rate": 0.001, "device": "cpu", "seed": 3}
    settings |= {"l1_weight": 0.8, "eyeliner_weight": 1.5}
    (folder / "my.yaml").write_text(yaml.safe_dump(settings | {"epochs": 400}), encoding="utf-8")
    flags = ["--config", "my.yaml", "--epochs", "5", "--wandb_mode", "offline", "--overwrite"]
    run = subprocess.run([sys.executable, str(SCRIPT), *flags], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    settings["wandb_mode"] = "offline"
    return Run(folder / "out", demo, settings, run.stdout, run.stderr)


@pytest.fixture
def call_main(capsys):
    """Return a function that runs the command line in this process: (exit code, stdout, stderr)."""
    from tinybeauty_training import main

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(part) for part in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def one_error(call_main):
    """Return a function that runs a command line that must fail in a friendly way, and gives its message."""

    def call(*argv: object) -> str:
        code, _, stderr = call_main(*argv)
        assert code == 1
        assert "Traceback" not in stderr
        assert stderr.startswith("error: ")
        assert stderr.count("error: ") == 1
        return stderr.removeprefix("error: ").strip()

    return call


# Stands in for the tool in a copy of the project: the same tool, asked for a few small faces.
FEW_FACES = """\
import sys

from draw_many import *
from draw_many import main

if __name__ == "__main__":
    sys.exit(main(["--count", "12", "--size", "64", *sys.argv[1:]]))
"""


@pytest.fixture(scope="session")
def copy_checkout(tmp_path_factory):
    """Return a function that copies the project, with a config.yaml and demo of a few small faces."""

    def copy() -> Path:
        checkout = tmp_path_factory.mktemp("checkout")
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        names = files.stdout.split("\0")[:-1]
        if files.returncode:  # no git here: an unpacked archive
            names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
        for name in names:
            if (ROOT / name).is_file():
                (checkout / name).parent.mkdir(parents=True, exist_ok=True)
                (checkout / name).write_bytes((ROOT / name).read_bytes())
        tool = checkout / "data" / "make_demo.py"
        tool.rename(tool.with_name("draw_many.py"))
        tool.write_text(FEW_FACES, encoding="utf-8")
        settings = yaml.safe_load((checkout / "config.yaml").read_text(encoding="utf-8"))
        settings |= {"epochs": 1, "image_size": 64, "batch_size": 4, "val_fraction": 0.3, "device": "cpu"}
        (checkout / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return checkout

    return copy
