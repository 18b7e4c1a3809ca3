"""WandB gets everything and may break down: it never asks, waits for long or stops a training run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import NETWORKS, SCRIPT, SMALL, read_rows

from tinybeauty.tracking import Tracker
from tinybeauty_training import Config

# --- what an offline run holds ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(trained) -> list[dict]:
    """The offline run, read back with WandB's own command."""
    folder = next(trained.output_dir.glob("wandb/offline-run-*"))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def select(records, kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def test_the_offline_run_holds_every_metric_of_every_epoch(trained, records):
    history = [record["item"] for record in select(records, "history")]
    assert len(history) == 5
    for item, row in zip(history, trained.rows, strict=True):
        assert {name: item[name] for name in row} == pytest.approx(row)


def test_the_offline_run_holds_the_settings(trained, records):
    saved = {}
    for record in [select(records, "run")[0], *select(records, "config")]:
        saved |= record.get("config", record)["update"]
    expected = Config(**trained.settings).model_dump()
    assert {name: saved[name] for name in expected} == expected


def test_the_offline_run_holds_the_sample_grids(trained, records):
    history = [record["item"] for record in select(records, "history")]
    sums = {item["epoch"]: item.get("samples.sha256") for item in history}
    grids = {
        epoch: hashlib.sha256(
            (trained.output_dir / f"samples_epoch_{epoch:03d}.png").read_bytes()
        ).hexdigest()
        for epoch in (1, 2, 4, 5)
    }
    assert sums == {**grids, 3: None}  # the picture of an older run is not this run's


def test_the_offline_run_holds_the_three_files_as_an_artifact(trained, records):
    contents = {}
    for artifact in select(records, "artifact"):
        for entry in artifact["manifest"]["contents"]:
            contents[entry["path"]] = int(entry["size"])
    assert contents == {name: (trained.output_dir / name).stat().st_size for name in NETWORKS}


def test_the_offline_run_ends_well(records):
    assert select(records, "exit")[0].get("exit_code", 0) == 0


def test_the_printed_commands_name_the_run(trained):
    folder = re.search(r"wandb leet (\S+)\n", trained.stdout)[1]
    assert (trained.output_dir.parent / folder).is_dir()


# --- where it runs, or not --------------------------------------------------------------------------


class FakeRun:
    """Stands for WandB's run, which online would need an account."""

    def __init__(self, mode: str) -> None:
        self.id, self.offline, self.url, self.ended = f"{mode}-id", mode == "offline", "https://board", None

    def define_metric(self, *names: str, **options: str) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a tracker where there is an account or none: (tracker, modes tried)."""
    import wandb

    def start(
        mode: str, environment: str | None, account: bool, broken: str = ""
    ) -> tuple[Tracker, list[str]]:
        modes = []

        def init(mode: str, **options: object) -> FakeRun:
            modes.append(mode)
            if mode == broken:
                raise ConnectionError("nobody answers")
            return FakeRun(mode)

        monkeypatch.setattr(wandb, "login", lambda prompt, verify: account and not prompt)
        monkeypatch.setattr(wandb, "init", init)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if environment:
            monkeypatch.setenv("WANDB_MODE", environment)
        session = SimpleNamespace(settings=SimpleNamespace(mode="online"))
        monkeypatch.setattr(wandb, "setup", lambda: session)
        monkeypatch.setattr(wandb, "teardown", lambda exit_code: None)
        tracker = Tracker()
        facts = {"seed": 1, "wandb_mode": mode, "wandb_project": "faces", "output_dir": str(tmp_path)}
        assert tracker.start(facts, "earlier", leads=True) == tracker.run_id
        return tracker, modes

    return start


@pytest.mark.parametrize(
    ("mode", "environment", "account", "tried"),
    [
        ("auto", None, True, ["online"]),
        ("auto", None, False, ["offline"]),
        ("auto", "offline", True, ["offline"]),
        ("auto", "disabled", True, []),
        ("online", None, True, ["online"]),
        ("online", None, False, ["offline"]),  # it never asks for an account
        ("online", "disabled", True, ["online"]),  # what the settings say goes before the environment
        ("offline", None, True, ["offline"]),
        ("disabled", "online", True, []),
    ],
)
def test_it_is_online_where_it_may_and_can(start, mode, environment, account, tried):
    tracker, modes = start(mode, environment, account)
    assert modes == tried
    assert tracker.run_id == (f"{tried[0]}-id" if tried else "earlier")
    if not tried:
        assert tracker.describe() == "WandB is off"


def test_where_online_fails_it_goes_on_offline(start, capsys):
    tracker, modes = start("auto", None, True, broken="online")
    assert modes == ["online", "offline"]
    assert "WandB: nobody answers; training goes on" in capsys.readouterr().out
    assert tracker.run_id == "offline-id"


def test_where_nothing_works_it_is_off(start, capsys):
    tracker, _ = start("offline", None, False, broken="offline")
    assert tracker.describe() == "WandB is off"
    assert tracker.run_id == "earlier"  # so that a later resume can go on with it
    tracker.log({"epoch": 1}, None)
    tracker.log_files([])
    assert tracker.finish(0) == 0
    assert capsys.readouterr().out.count("training goes on") == 1


@pytest.mark.parametrize("exit_code", [0, 1, 143])
def test_the_end_says_how_it_ended(start, exit_code):
    tracker, _ = start("offline", None, False)
    run = tracker.run
    assert tracker.finish(exit_code) == exit_code
    assert run.ended == exit_code


def test_those_that_do_not_lead_have_none(tmp_path):
    tracker = Tracker()
    facts = {"wandb_mode": "offline", "wandb_project": "faces", "output_dir": str(tmp_path)}
    assert tracker.start(facts, "earlier", leads=False) == "earlier"
    assert tracker.describe() == "WandB is off"


def test_without_wandb_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    tracker = Tracker()
    facts = {"wandb_mode": "offline", "wandb_project": "faces", "output_dir": str(tmp_path)}
    assert tracker.start(facts, None, leads=True) is None
    assert tracker.describe() == "WandB is off"
    assert "training goes on" in capsys.readouterr().out


# --- what goes wrong on the way ---------------------------------------------------------------------


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
    assert [row["epoch"] for row in read_rows(tmp_path / "out")] == [1, 2]


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
