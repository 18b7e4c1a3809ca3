"""Full disks, broken numbers, hostile files and a WandB that fails: nothing is lost, nothing runs."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
import time
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


def test_a_file_that_the_system_refuses_in_the_first_epoch(demo, tmp_path):
    """No file may grow beyond 200,000 bytes: the networks fit, the state does not."""
    import resource

    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", "--cache_dir", "", "--epochs", 1, *SMALL]
    command = [sys.executable, SCRIPT, *argv]
    run = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("error: cannot write")
    assert run.stderr.count("\n") == 1
    assert "--overwrite" in run.stderr
    assert not (tmp_path / "out" / "tinybeauty_last.ckpt").exists()
    assert not list((tmp_path / "out").glob("*.partial"))
    again = subprocess.run([str(word) for word in [*command, "--overwrite"]], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


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
