"""Two processes under the real torchrun train like one: every pair once, one set of files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import NETWORKS, SCRIPT, SMALL, read_rows

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
# Steps of 8, and at the end of an epoch one of fewer pairs than that.
COMMON = [*SMALL, "--precision", "float32", "--learning_rate", "1e-3"]


def run(command: list[object]) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def both(demo, tmp_path_factory) -> dict[str, Path]:
    """The same run of three epochs by one process and by two; the output folders and what was printed."""
    folders = {}
    for name, start in (("one", [sys.executable, SCRIPT]), ("two", TORCHRUN)):
        folders[name] = tmp_path_factory.mktemp(name)
        done = run([*start, "--data_dir", demo, "--output_dir", folders[name], "--epochs", 3, *COMMON])
        assert done.returncode == 0, done.stderr
        (folders[name] / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return folders


def test_the_loss_curve_is_that_of_one_process(both):
    """But for BatchNorm, which sees half of a batch at a time."""
    one, two = read_rows(both["one"]), read_rows(both["two"])
    assert len(one) == len(two) == 3
    for row, other in zip(one, two, strict=True):
        for name in ("train/loss", "train/l1", "train/eyeliner", "val/loss"):
            assert other[name] == pytest.approx(row[name], rel=0.1), name
        assert other["val/psnr"] == pytest.approx(row["val/psnr"], abs=0.5)
        assert other["val/psnr_source"] == row["val/psnr_source"]


def test_the_first_losses_agree_to_the_digit(demo, tmp_path):
    """With everything in one step, nothing learned yet: the mean over two shares is the mean over all."""
    losses = []
    for name, start in (("one", [sys.executable, SCRIPT]), ("two", TORCHRUN)):
        folder = tmp_path / name
        flags = ["--data_dir", demo, "--output_dir", folder, "--epochs", 1, *COMMON, "--batch_size", 99]
        assert run([*start, *flags]).returncode == 0
        losses.append(read_rows(folder)[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_only_one_process_writes_and_speaks(both):
    said = {name: (folder / "stdout.txt").read_text(encoding="utf-8") for name, folder in both.items()}
    assert said["two"].count("epoch   1/3") == 1
    assert said["two"].count("device ") == said["one"].count("device ") == 1
    files = {name: {path.name for path in folder.iterdir()} for name, folder in both.items()}
    assert files["one"] == files["two"]


def test_a_stopped_team_goes_on_where_it_was(demo, tmp_path):
    flags = ["--data_dir", demo, "--output_dir", tmp_path, "--epochs", 60, *COMMON]
    with subprocess.Popen(
        [str(word) for word in [*TORCHRUN, *flags]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as team:
        for line in team.stdout:
            if line.startswith("epoch   2"):
                break
        time.sleep(0.2)
        team.send_signal(signal.SIGTERM)
        _, stderr = team.communicate(timeout=60)
    assert "--resume" in stderr
    state = torch.load(tmp_path / "tinybeauty_last.ckpt", weights_only=True)
    done = state["progress"]["epoch"]
    assert 2 <= done < 60
    again = run([*TORCHRUN, *flags, "--epochs", done + 2, "--resume"])
    assert again.returncode == 0, again.stderr
    assert [row["epoch"] for row in read_rows(tmp_path)] == list(range(1, done + 3))
    assert all((tmp_path / name).exists() for name in NETWORKS)


def test_a_mistake_ends_all_processes(tmp_path):
    started = time.perf_counter()
    done = run([*TORCHRUN, "--data_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "out"])
    assert done.returncode != 0
    assert "error: there is no folder" in done.stderr
    assert time.perf_counter() - started < 60
