"""What surrounds a run: its output folder, its best values, what a resume refuses, requests to stop."""

from __future__ import annotations

import math
import os
import signal

import pytest

from tinybeauty.devices import ALONE
from tinybeauty.errors import UserError
from tinybeauty.runs import (
    BEST_LOSS,
    BEST_PSNR,
    STATE_FILE,
    OutputDir,
    Progress,
    StopRequest,
    check_edits,
    check_finite,
    check_pairs,
    describe_resume,
    open_output_dir,
)

# --- how far a run is -------------------------------------------------------------------------------


def make_row(epoch: int, loss: float, psnr: float) -> dict[str, float]:
    return {"epoch": epoch, "val/loss": loss, "val/psnr": psnr, "time/epoch_s": 1.5}


def test_a_finished_epoch_says_what_it_is_the_best_for():
    progress = Progress(pairs_done=7, sums={"loss": 1.0})
    rows = [
        (make_row(1, 0.5, 30.0), [BEST_LOSS, BEST_PSNR]),
        (make_row(2, 0.4, 29.0), [BEST_LOSS]),
        (make_row(3, 0.45, 31.0), [BEST_PSNR]),
        (make_row(4, 0.4, 31.0), []),  # as good is not better: the earlier file stays
    ]
    for row, beaten in rows:
        assert progress.finish_epoch(row) == beaten
        assert (progress.epoch, progress.pairs_done, progress.sums) == (row["epoch"], 0, {})
    assert (progress.best_loss, progress.best_psnr) == (0.4, 31.0)
    assert progress.seconds == 6.0
    assert progress.history == [row for row, _ in rows]


def test_a_score_that_is_no_number_beats_nothing():
    progress = Progress()
    assert progress.finish_epoch(make_row(1, math.nan, math.nan)) == []
    assert progress.finish_epoch(make_row(2, 0.5, 30.0)) == [BEST_LOSS, BEST_PSNR]
    assert progress.finish_epoch(make_row(3, math.nan, math.nan)) == []
    assert (progress.best_loss, progress.best_psnr) == (0.5, 30.0)


@pytest.mark.parametrize("there", [[], [BEST_LOSS], [BEST_PSNR], [BEST_LOSS, BEST_PSNR]])
def test_the_best_value_of_a_network_that_is_gone_is_forgotten(tmp_path, there):
    for name in there:
        (tmp_path / name).touch()
    progress = Progress(best_loss=0.5, best_psnr=30.0)
    progress.forget_missing(tmp_path)
    assert progress.best_loss == (0.5 if BEST_LOSS in there else math.inf)
    assert progress.best_psnr == (30.0 if BEST_PSNR in there else -math.inf)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(loss):
    with pytest.raises(UserError, match=f"loss is {loss} in epoch 3.*learning_rate .now 0.001."):
        check_finite(loss, 3, 1e-3)
    check_finite(0.0, 3, 1e-3)


# --- the output folder ------------------------------------------------------------------------------


@pytest.fixture
def earlier(tmp_path):
    """The folder of an earlier run, with two files of somebody else's."""
    for name in (STATE_FILE, BEST_LOSS, "samples_epoch_005.png", "metrics.csv", "mine.png", "README.md"):
        (tmp_path / name).write_bytes(b"earlier")
    return tmp_path


def open_folder(path, resume=False, overwrite=False, leads=True):
    return open_output_dir(path, resume, overwrite, path / "program", leads)


def list_names(path):
    return {file.name for file in path.iterdir()} - {".lock"}


def test_overwriting_deletes_nothing_before_something_new_is_there_to_write(earlier):
    before = list_names(earlier)
    with open_folder(earlier, overwrite=True):
        assert list_names(earlier) == before
    assert list_names(earlier) == before  # it has failed before its first file
    with open_folder(earlier, overwrite=True) as output:
        output.save(BEST_PSNR, b"new")
        assert list_names(earlier) == {BEST_PSNR, "mine.png", "README.md"}
        output.save(BEST_LOSS, b"new")
        output.save(BEST_PSNR, b"newer")
    assert list_names(earlier) == {BEST_LOSS, BEST_PSNR, "mine.png", "README.md"}
    assert (earlier / BEST_PSNR).read_bytes() == b"newer"


def test_resuming_deletes_nothing(earlier):
    before = list_names(earlier)
    with open_folder(earlier, resume=True) as output:
        output.save(BEST_LOSS, b"new")
    assert list_names(earlier) == before
    assert (earlier / BEST_LOSS).read_bytes() == b"new"


def test_a_folder_with_a_run_is_refused_with_the_ways_out(earlier):
    with pytest.raises(UserError, match="--resume goes on with it, --overwrite"), open_folder(earlier):
        pass
    (earlier / STATE_FILE).unlink()  # then there is nothing to go on with
    with pytest.raises(UserError) as caught, open_folder(earlier):
        pass
    assert "--overwrite" in str(caught.value)
    assert "--resume" not in str(caught.value)


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"), open_folder(tmp_path / "out", resume=True):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", [".", "out/.."])
def test_the_programs_own_folder_is_refused(tmp_path, way):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(UserError, match="folder of the program"),
        open_output_dir(tmp_path / way, resume=False, overwrite=True, program=tmp_path, leads=True),
    ):
        pass


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with (
        open_folder(tmp_path / "out"),
        pytest.raises(UserError, match="another run"),
        open_folder(tmp_path / "out"),
    ):
        pass
    with open_folder(tmp_path / "out"):  # as soon as the first one has left
        pass


def test_a_process_that_does_not_lead_touches_nothing(earlier):
    before = list_names(earlier)
    with open_folder(earlier, overwrite=True, leads=False) as output:
        assert output.outdated == []
    with open_folder(earlier / "nowhere", leads=False):
        pass
    assert list_names(earlier) == before


def test_a_file_that_cannot_be_written_names_both_ways_on(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*--resume, or with --overwrite"):
        OutputDir(tmp_path / "file").save("a.pt", b"")


# --- what may change before a resume ----------------------------------------------------------------


def test_edits_are_listed_or_refused(capsys):
    before = {"epochs": 3, "image_size": 64, "seed": 1}
    check_edits(before, before, fixed=("image_size",))
    assert capsys.readouterr().out == ""
    check_edits(before, before | {"epochs": 9, "seed": 2}, fixed=("image_size",))
    assert capsys.readouterr().out == "changed   epochs: 3 then, 9 now\nchanged   seed: 1 then, 2 now\n"
    with pytest.raises(UserError, match="image_size: 64 then, 32 now"):
        check_edits(before, before | {"epochs": 9, "image_size": 32}, fixed=("image_size",))
    assert capsys.readouterr().out == ""


def test_other_pairs_are_counted_and_named():
    before = {"a": 1, "b": 2, "c": 3}
    check_pairs(before, dict(reversed(before.items())), "faces")
    with pytest.raises(UserError, match=r"3 pairs were added, removed or changed since \(a, b, d; data_dir"):
        check_pairs(before, {"b": 9, "c": 3, "d": 4}, "faces")


def test_the_command_that_goes_on(monkeypatch):
    monkeypatch.setattr("sys.argv", ["a script.py"])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    again = describe_resume(["--overwrite", "--data_dir", "my faces"])
    assert again == "python 'a script.py' --data_dir 'my faces' --resume"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert describe_resume(["--resume"]) == "torchrun ... 'a script.py' --resume"


# --- requests to stop -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_a_second_one_ends_at_once(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked(ALONE)
        os.kill(os.getpid(), number)
        assert stop.asked(ALONE)
        assert stop.stopped().signal_number == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
