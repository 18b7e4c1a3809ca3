"""What surrounds a run: its output folder, what a resume refuses, requests to stop."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import yaml

from tinybeauty.devices import ALONE
from tinybeauty.errors import UserError
from tinybeauty.progress import BEST_LOSS, BEST_PSNR
from tinybeauty.runs import (
    EFFECTS,
    STATE_FILE,
    OutputDir,
    StopRequest,
    check_edits,
    check_finite,
    check_pairs,
    describe_resume,
    is_ours,
    open_output_dir,
    to_yaml,
)
from tinybeauty_training import Config


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


def open_folder(path, resume=False, overwrite=False, leads=True, program=Path("program")):
    config = Config(output_dir=str(path), data_dir=str(path.parent / "faces"))
    return open_output_dir(config, resume, overwrite, program, leads)


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
        open_folder(tmp_path / way, overwrite=True, program=tmp_path),
    ):
        pass


@pytest.mark.parametrize("kind", ["source", "target", "eye_mask", "source/mine"])
def test_a_folder_of_pictures_is_refused(tmp_path, kind):
    for name in ("source", "target", "eye_mask"):
        (tmp_path / "faces" / name).mkdir(parents=True)
    with (
        pytest.raises(UserError, match="where data_dir has its pictures"),
        open_output_dir(
            Config(output_dir=str(tmp_path / "faces" / kind), data_dir=str(tmp_path / "faces")),
            resume=False, overwrite=False, program=Path("program"), leads=True,
        ),
    ):  # fmt: skip
        pass


def test_a_person_s_own_files_stay(tmp_path, capsys):
    """Whatever is named like a file of a run, but is none, is neither a run nor overwritten."""
    own = {name: b"my own" for name in ("config.yaml", "tinybeauty_mine.pt", "samples_epoch_one.png")}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    with open_folder(tmp_path) as output:
        assert "config.yaml is your own and stays" in capsys.readouterr().out
        output.save_settings({"epochs": 3})
    with pytest.raises(UserError, match="holds a run already"), open_folder(tmp_path):
        pass
    with open_folder(tmp_path, overwrite=True) as output:
        output.save_settings({"epochs": 4})
    assert yaml.safe_load((tmp_path / "config_used.yaml").read_bytes()) == {"epochs": 4}
    assert {name: (tmp_path / name).read_bytes() for name in own} == own


def test_settings_that_a_run_has_written_are_replaced_until_a_person_edits_them(tmp_path):
    path = tmp_path / "config.yaml"
    output = OutputDir(tmp_path)
    for epochs in (3, 4):
        output.save_settings({"epochs": epochs})
        assert yaml.safe_load(path.read_bytes()) == {"epochs": epochs}
    edited = path.read_bytes().replace(b"4", b"5")
    path.write_bytes(edited)
    output.save_settings({"epochs": 6})
    assert path.read_bytes() == edited
    assert yaml.safe_load((tmp_path / "config_used.yaml").read_bytes()) == {"epochs": 6}


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
    assert capsys.readouterr().out == (
        f"changed   epochs: 3 then, 9 now: {EFFECTS['epochs']}\n"
        f"changed   seed: 1 then, 2 now: {EFFECTS['seed']}\n"
    )
    check_edits({"flip": True}, {"flip": False}, fixed=())
    assert capsys.readouterr().out == "changed   flip: True then, False now\n"
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


def test_settings_that_an_earlier_version_wrote_are_ours_and_edited_ones_are_not(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(to_yaml(Config().model_dump()))  # as commit 63f4540 did
    assert is_ours(path)
    for text in (b"# mine\n" + path.read_bytes(), b"epochs: 3\n", path.read_bytes() + b"\n", b"- 1\n", b"\0"):
        path.write_bytes(text)
        assert not is_ours(path)
