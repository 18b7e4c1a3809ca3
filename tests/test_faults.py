"""Full disks, broken numbers, hostile files and a WandB that fails: nothing is lost, nothing runs."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import NETWORKS, ROOT, SCRIPT, SMALL
from test_resume import snapshot


def test_disk_full_then_mended_then_resumed(demo, tmp_path, call_main, one_error, monkeypatch):
    """The third file of an epoch cannot be written; after mending, the run goes on."""
    import tinybeauty_training as program

    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", "--epochs", 3, *SMALL]
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 9:  # within the second epoch
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(program.os, "fsync", full)
        assert "No space left on device" in one_error(*argv)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert torch.load(tmp_path / "out" / "tinybeauty_last.ckpt", weights_only=True)["progress"]["epoch"] >= 1
    assert call_main(*argv, "--resume")[0] == 0
    for name in NETWORKS:
        program.load_model(tmp_path / "out" / name)


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
    from tinybeauty_training import UserError, load_model

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
    from tinybeauty_training import UserError, load_model

    with (
        zipfile.ZipFile(trained.output_dir / NETWORKS[0]) as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "bomb.pt")


def test_wandb_that_fails_midway_does_not_stop_training(demo, tmp_path, call_main, monkeypatch):
    import wandb

    def broken(*args, **kwargs):
        raise ConnectionResetError("the service has gone")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SERVICE", "")  # put back at the end: no other test shall use this one's
    monkeypatch.setattr(wandb.Run, "log", broken)
    monkeypatch.setattr(wandb.Run, "log_artifact", broken)
    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", "--epochs", 2, *SMALL]
    code, stdout, stderr = call_main(*argv, "--wandb_mode", "offline")
    assert code == 0, stderr
    wandb.teardown()
    assert "training goes on" in stdout + stderr
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 3


def test_no_secret_lands_in_a_file_and_files_are_ordinary(demo, tmp_path):
    secret = "0123456789abcdef" * 5
    environment = os.environ | {"WANDB_API_KEY": secret[:40], "SOME_PASSWORD": secret}
    flags = [
        "--data_dir",
        str(demo),
        "--output_dir",
        "out",
        "--epochs",
        "1",
        "--wandb_mode",
        "offline",
        *SMALL,
    ]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        cwd=tmp_path, env=environment, umask=0o022, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert secret[:40] not in run.stdout + run.stderr
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert secret[:40].encode() not in path.read_bytes(), path
    for name in (*NETWORKS, "tinybeauty_last.ckpt", "metrics.csv", "config.yaml", "samples_epoch_001.png"):
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o644, name


def test_fuzzed_inputs_give_an_error_or_a_valid_result():
    """The small size of tests/fuzz_inputs.py, in a process of its own because it bounds its memory."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz_inputs.py"), "--count", "150", "--seed", "7"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "150 checkpoints" in run.stdout
