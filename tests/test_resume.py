"""A run that was stopped, killed or edited goes on as it should, and no run is overwritten silently."""

from __future__ import annotations

import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import SMALL, read_rows
from filelock import FileLock
from stress_resume import SETTINGS, read_result, start_run, stress

from tinybeauty.runs import STATE_FILE as STATE
from tinybeauty_training import TinyBeauty, main


@pytest.fixture(scope="module")
def three_epochs(demo, tmp_path_factory) -> Path:
    """The output folder of a finished run of three epochs, not to be changed."""
    folder = tmp_path_factory.mktemp("three") / "out"
    assert main(["--data_dir", str(demo), "--output_dir", str(folder), "--epochs", "3", *SMALL]) == 0
    return folder


@pytest.fixture
def copy_run(three_epochs, tmp_path, demo):
    """Return (a copy of that folder, the command line it was made with, but for --epochs)."""
    shutil.copytree(three_epochs, tmp_path / "out")
    return tmp_path / "out", ["--data_dir", demo, "--output_dir", tmp_path / "out", *SMALL]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_killed_runs_end_in_the_same_bytes(demo, tmp_path):
    runs, in_writing, with_state = stress(kills=4, seed=5, folder=tmp_path, data_dir=demo)
    assert runs >= 1
    assert in_writing >= 1
    assert with_state >= 1


def test_sigterm_saves_the_state_and_the_rest_is_the_same(demo, tmp_path):
    argv = ["--data_dir", str(demo), *SETTINGS]
    alone = start_run([*argv, "--output_dir", str(tmp_path / "alone")], tmp_path / "log")
    alone.join()
    stopped = start_run([*argv, "--output_dir", str(tmp_path / "stopped")], tmp_path / "stopped.log")
    while not (tmp_path / "stopped" / STATE).exists():
        assert stopped.is_alive()
        time.sleep(0.001)
    stopped.terminate()
    stopped.join()
    assert stopped.exitcode == 128 + 15
    log = (tmp_path / "stopped.log").read_text()
    assert "go on with: python" in log
    assert "--resume" in log
    assert torch.load(tmp_path / "stopped" / STATE, weights_only=True)["progress"]["epoch"] < 6
    resumed = start_run(
        [*argv, "--output_dir", str(tmp_path / "stopped"), "--resume"], tmp_path / "stopped.log"
    )
    resumed.join()
    assert resumed.exitcode == 0
    assert read_result(tmp_path / "stopped") == read_result(tmp_path / "alone")


def test_stopped_before_anything_is_saved_there_is_nothing_to_go_on_with(demo, tmp_path):
    argv = ["--data_dir", str(demo), *SETTINGS, "--output_dir", str(tmp_path / "out")]
    argv += ["--cache_dir", str(tmp_path / "cache")]
    run = start_run(argv, tmp_path / "log")
    while "cache" not in {path.name for path in tmp_path.iterdir()}:  # it decodes the pairs
        assert run.is_alive()
        time.sleep(0.001)
    run.terminate()
    run.join()
    assert run.exitcode == 128 + 15
    assert "stopped at once" in (tmp_path / "log").read_text()
    assert "go on with" not in (tmp_path / "log").read_text()


@pytest.fixture
def signal_at():
    """Return a function that sends this process signals when a network is called for the n-th time.

    Counted are the calls while training, one a step, or those while measuring.
    """
    hooks = []

    def arm(number: int, count: int, training: bool = True, times: int = 1) -> None:
        calls = []

        def press(module, inputs):
            if isinstance(module, TinyBeauty) and module.training == training and len(inputs[0]) > 1:
                calls.append(module)
                for _ in range(times if len(calls) == count else 0):
                    signal.raise_signal(number)

        hooks.append(torch.nn.modules.module.register_module_forward_pre_hook(press))

    yield arm
    for hook in hooks:
        hook.remove()


# An epoch has two steps: 15 pairs, eight at a time.
@pytest.mark.skipif(sys.platform == "win32", reason="no signals to oneself there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("step", "epoch", "pairs_done"),
    [(1, 0, 8), (2, 0, 15), (3, 1, 8), (6, 2, 15)],
    ids=["the first", "the last of the first epoch", "the first of the second epoch", "the last of all"],
)
def test_a_request_to_stop_is_met_after_the_step(
    three_epochs, demo, tmp_path, call_main, signal_at, step, epoch, pairs_done, number
):
    """Also after the last step of an epoch, which is then measured when the run goes on."""
    argv = ["--data_dir", demo, "--output_dir", tmp_path, "--epochs", 3, *SMALL]
    signal_at(number, step)
    code, _, stderr = call_main(*argv)
    assert code == 128 + number
    assert "stopped, the state is saved; go on with: python" in stderr
    progress = torch.load(tmp_path / STATE, weights_only=True)["progress"]
    assert (progress["epoch"], progress["pairs_done"], progress["global_step"]) == (epoch, pairs_done, step)
    networks = {"tinybeauty_best_loss.pt", "tinybeauty_best_psnr.pt"} if epoch else set()
    assert {path.name for path in tmp_path.glob("*.pt")} == networks
    assert (tmp_path / "metrics.csv").exists() == (epoch > 0)
    code, stdout, stderr = call_main(*argv, "--resume")
    assert code == 0, stderr
    assert f"epoch {epoch + 1} of 3, {pairs_done} of its pairs are done" in stdout
    assert read_result(tmp_path) == read_result(three_epochs)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to oneself there")
def test_a_second_ctrl_c_ends_at_once(copy_run, call_main, signal_at):
    """In the middle of a step; the state of the epoch before stays."""
    folder, argv = copy_run
    before = snapshot(folder)
    signal_at(signal.SIGINT, 1, times=2)
    code, _, stderr = call_main(*argv, "--epochs", 4, "--resume")
    assert code == 130
    assert "stopped at once" in stderr
    assert snapshot(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to oneself there")
@pytest.mark.parametrize("epochs", [2, 1])
def test_a_request_to_stop_while_measuring(demo, tmp_path, call_main, signal_at, epochs):
    """It is met after the next step; where there is none, the run is done and ends well."""
    signal_at(signal.SIGTERM, 1, training=False)
    argv = ["--data_dir", demo, "--output_dir", tmp_path, "--epochs", epochs, *SMALL]
    code, stdout, _ = call_main(*argv)
    progress = torch.load(tmp_path / STATE, weights_only=True)["progress"]
    assert progress["epoch"] == len(read_rows(tmp_path)) == 1
    assert progress["pairs_done"] == (8 if epochs > 1 else 0)
    assert code == (128 + signal.SIGTERM if epochs > 1 else 0)
    assert ("1 epochs in" in stdout) == (epochs == 1)


def test_more_epochs_train_on_as_if_never_stopped(copy_run, call_main, tmp_path):
    folder, argv = copy_run
    code, stdout, _ = call_main(*argv, "--epochs", 5, "--resume")
    assert code == 0
    assert "epochs: 3 then, 5 now" in stdout
    argv[3] = tmp_path / "alone"
    assert call_main(*argv, "--epochs", 5)[0] == 0
    assert read_result(folder) == read_result(tmp_path / "alone")


def test_resuming_a_finished_run_changes_no_network(copy_run, call_main):
    folder, argv = copy_run
    before = read_result(folder)
    assert call_main(*argv, "--epochs", 3, "--resume")[0] == 0
    assert read_result(folder) == before


def test_edits_that_take_effect_are_listed_and_do(copy_run, call_main):
    folder, argv = copy_run
    edits = ["--learning_rate", "1e-5", "--lr_patience", "7", "--eyeliner_weight", "0.25"]
    code, stdout, _ = call_main(*argv, "--epochs", 4, "--resume", *edits)
    assert code == 0
    assert "learning_rate: 0.0002 then, 1e-05 now" in stdout
    assert "eyeliner_weight: 0.5 then, 0.25 now" in stdout
    row = read_rows(folder)[-1]
    assert row["lr"] == 1e-5
    assert row["val/loss"] == pytest.approx(row["val/l1"] + 0.25 * row["val/eyeliner"])
    assert torch.load(folder / STATE, weights_only=True)["scheduler"]["patience"] == 7


def test_another_loss_starts_its_best_anew(copy_run, call_main):
    """With the missing decibels in it the loss is larger than all before, and yet the first of its kind."""
    folder, argv = copy_run
    assert call_main(*argv, "--epochs", 4, "--resume", "--psnr_weight", "0.01")[0] == 0
    rows = read_rows(folder)
    assert rows[-1]["val/loss"] > max(row["val/loss"] for row in rows[:-1])
    assert torch.load(folder / "tinybeauty_best_loss.pt", weights_only=True)["epoch"] == 4


def test_a_state_from_before_a_setting_existed_goes_on(copy_run, call_main):
    folder, argv = copy_run
    state = torch.load(folder / STATE, weights_only=True)
    del state["config"]["psnr_weight"]
    torch.save(state, folder / STATE)
    code, stdout, _ = call_main(*argv, "--epochs", 4, "--resume")
    assert code == 0
    assert "psnr_weight" not in stdout


@pytest.mark.parametrize("older", [False, True], ids=["this version", "an older version"])
@pytest.mark.parametrize(
    ("then", "now", "rates"),
    [
        ([], [], [0.25, 0.125]),
        (["--lr_factor", 0.3], ["--lr_factor", 0.3], [0.09, 0.027]),
        ([], ["--lr_factor", 0.1], [0.01, 0.001]),  # the drops that there were count with it
        ([], ["--learning_rate", 2e-3], [10.0, 5.0]),
        (["--warmup_steps", 100], ["--warmup_steps", 100], [0.08, 0.1]),
        (["--warmup_steps", 5], ["--warmup_steps", 5], [1.0, 0.5]),
    ],
    ids=["as it was", "another factor", "the factor edited", "the rate edited", "warming up", "warmed up"],
)
def test_the_learning_rate_goes_on(demo, tmp_path, call_main, older, then, now, rates):
    """A loss of weight 0 never improves: with no patience every epoch but the first ends in a drop.

    States of commit 63f4540 and before hold the rate alone, and not what the drops have left of it.
    """
    argv = ["--data_dir", demo, "--output_dir", tmp_path, *SMALL]
    argv += ["--lr_patience", 0, "--l1_weight", 0, "--eyeliner_weight", 0]
    assert call_main(*argv, "--epochs", 3, *then)[0] == 0
    if older:
        state = torch.load(tmp_path / STATE, weights_only=True)
        del state["progress"]["drops"]
        torch.save(state, tmp_path / STATE)
    code, _, stderr = call_main(*argv, "--epochs", 5, "--resume", *now)
    assert code == 0, stderr
    assert [row["lr"] / 2e-4 for row in read_rows(tmp_path)[3:]] == pytest.approx(rates)


def test_edits_that_cannot_are_refused_with_both_values(copy_run, one_error):
    folder, argv = copy_run
    before = snapshot(folder)
    message = one_error(*argv, "--epochs", 4, "--resume", "--image_size", 32, "--val_fraction", 0.5)
    assert "image_size: 64 then, 32 now" in message
    assert "val_fraction: 0.25 then, 0.5 now" in message
    assert snapshot(folder) == before


def test_fewer_epochs_than_done_are_refused(copy_run, one_error):
    folder, argv = copy_run
    before = snapshot(folder)
    assert "3 epochs" in one_error(*argv, "--epochs", 2, "--resume")
    assert snapshot(folder) == before


def test_changed_pairs_are_named(copy_run, one_error, demo, tmp_path):
    folder, argv = copy_run
    shutil.copytree(demo, tmp_path / "faces")
    shutil.copy(demo / "source" / "face_0001.png", tmp_path / "faces" / "source" / "face_0007.png")
    for kind in ("source", "target", "eye_mask"):
        (tmp_path / "faces" / kind / "face_0003.png").unlink()
    argv[1] = tmp_path / "faces"
    before = snapshot(folder)
    message = one_error(*argv, "--epochs", 4, "--resume")
    assert "2 pairs" in message
    assert "face_0003, face_0007" in message
    assert snapshot(folder) == before


def test_moved_pairs_are_fine(copy_run, call_main, demo, tmp_path):
    _, argv = copy_run
    shutil.copytree(demo, tmp_path / "moved")
    argv[1] = tmp_path / "moved"
    code, stdout, _ = call_main(*argv, "--epochs", 4, "--resume")
    assert code == 0
    assert "data_dir: " in stdout


def test_a_second_run_does_not_overwrite_the_first(copy_run, one_error):
    folder, argv = copy_run
    before = snapshot(folder)
    message = one_error(*argv, "--epochs", 1)
    assert "--resume" in message
    assert "--overwrite" in message
    assert snapshot(folder) == before


def test_overwrite_leaves_nothing_of_the_first(copy_run, call_main):
    folder, argv = copy_run
    assert call_main(*argv, "--epochs", 1, "--overwrite")[0] == 0
    assert len(read_rows(folder)) == 1
    assert [path.name for path in folder.glob("samples*")] == ["samples_epoch_001.png"]


def test_overwrite_with_bad_data_deletes_nothing(copy_run, one_error, tmp_path):
    folder, argv = copy_run
    before = snapshot(folder)
    argv[1] = tmp_path / "nowhere"
    one_error(*argv, "--overwrite")
    assert snapshot(folder) == before


def test_nothing_to_resume(demo, tmp_path, one_error):
    message = one_error("--data_dir", demo, "--output_dir", tmp_path / "new", "--resume", *SMALL)
    assert "nothing to resume" in message


def test_resume_and_overwrite_exclude_each_other(one_error):
    assert "one of them" in one_error("--resume", "--overwrite")


def test_two_runs_at_once(demo, tmp_path, one_error):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        message = one_error("--data_dir", demo, "--output_dir", tmp_path / "out", *SMALL)
    assert "another run" in message


@pytest.mark.parametrize("harm", ["cut", "flip", "foreign", "empty"])
def test_a_damaged_state_is_an_error_and_stays(copy_run, one_error, harm):
    folder, argv = copy_run
    content = bytearray((folder / STATE).read_bytes())
    with zipfile.ZipFile(folder / STATE) as archive:  # between its members are bytes that nobody reads
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content[largest.header_offset + largest.file_size // 2 + 200] ^= 4
    harmed = {"cut": bytes(content[:-1024]), "flip": bytes(content), "foreign": b"hello", "empty": b""}[harm]
    (folder / STATE).write_bytes(harmed)
    before = snapshot(folder)
    message = one_error(*argv, "--epochs", 4, "--resume")
    assert STATE in message
    assert "\n" not in message
    assert snapshot(folder) == before
