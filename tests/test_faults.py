"""Full disks, broken numbers, hostile files: nothing is lost, nothing runs."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import NETWORKS, ROOT, SCRIPT, SMALL, read_rows
from test_resume import snapshot

from tinybeauty.errors import UserError
from tinybeauty_training import load_model


def test_disk_full_then_mended_then_resumed(demo, tmp_path, call_main, one_error, monkeypatch):
    """The second file of the second epoch cannot be written; after mending, the run goes on.

    tests/test_files.py has the disks that are full from the start.
    """
    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", "--cache_dir", "", "--epochs", 3, *SMALL]
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 7:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in one_error(*argv)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert torch.load(tmp_path / "out" / "tinybeauty_last.ckpt", weights_only=True)["progress"]["epoch"] == 1
    assert call_main(*argv, "--resume")[0] == 0
    assert [row["epoch"] for row in read_rows(tmp_path / "out")] == [1, 2, 3]
    for name in NETWORKS:
        load_model(tmp_path / "out" / name)


def test_a_second_ctrl_c_ends_at_once(demo, tmp_path):
    """In a step that takes a second or more; the state of the epoch before stays."""
    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", "--cache_dir", "", "--epochs", 50]
    argv += [*SMALL, "--image_size", 512, "--batch_size", 32]
    with subprocess.Popen(
        [str(word) for word in [sys.executable, "-u", SCRIPT, *argv]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        for line in run.stdout:
            if line.startswith("epoch   1"):
                break
        state = (tmp_path / "out" / "tinybeauty_last.ckpt").read_bytes()
        time.sleep(0.3)
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "stopped at once" in stderr
    assert (tmp_path / "out" / "tinybeauty_last.ckpt").read_bytes() == state


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(demo, tmp_path, call_main, one_error):
    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", *SMALL]
    assert call_main(*argv, "--epochs", 1)[0] == 0
    before = snapshot(tmp_path / "out")
    message = one_error(*argv, "--epochs", 2, "--resume", "--l1_weight", "1e39")
    assert "loss is" in message
    after = snapshot(tmp_path / "out")
    assert {name: after[name] for name in before if name != "config.yaml"} == {
        name: content for name, content in before.items() if name != "config.yaml"
    }


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("layout", ["torch", "pickle", "zip"])
def test_no_code_runs_from_a_checkpoint(tmp_path, layout):
    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    if layout == "torch":
        torch.save({"format": "tinybeauty", "version": 1, "weights": Evil(trap)}, path)
    elif layout == "pickle":
        path.write_bytes(pickle.dumps(Evil(trap)))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Evil(trap)))
            archive.writestr("archive/version", "3")
    with pytest.raises(UserError):
        load_model(path)
    assert not trap.exists()


def test_no_code_runs_from_a_yaml_file(tmp_path, one_error):
    trap = tmp_path / "trap"
    (tmp_path / "evil.yaml").write_text(f"epochs: !!python/object/apply:os.mkdir ['{trap}']\n")
    assert "not valid YAML" in one_error("--config", tmp_path / "evil.yaml")
    assert not trap.exists()


def test_a_packed_member_cannot_blow_up_memory(tmp_path, trained):
    """torch.save stores; a deflated member could be a bomb and is refused unread."""
    with (
        zipfile.ZipFile(trained.output_dir / NETWORKS[0]) as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "bomb.pt")


def test_fuzzed_inputs_give_an_error_or_a_valid_result():
    """The small size of tests/fuzz_inputs.py, in a process of its own because it bounds its memory."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz_inputs.py"), "--count", "150", "--seed", "7"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "150 checkpoints" in run.stdout
