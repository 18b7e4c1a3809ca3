"""Trials of a WandB sweep, with WandB's own building of their commands; no server is asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SCRIPT, read_rows

from tinybeauty.tracking import find_trial
from tinybeauty_training import Config, settings

TRIALS = [
    {"learning_rate": 0.0002, "flip": True, "psnr_weight": 0},
    {"learning_rate": 0.002, "flip": False, "psnr_weight": 0.001},
    {"learning_rate": 1e-05, "flip": False, "psnr_weight": 0.0},
]
SMALL = {
    "image_size": 16,
    "batch_size": 8,
    "val_fraction": 0.25,
    "device": "cpu",
    "epochs": 1,
    "cache_dir": "",
}


@pytest.fixture
def run_trial(tmp_path, monkeypatch):
    """Return a function that starts a trial as the agent does, and gives its exit code."""
    from wandb.wandb_agent import Agent

    monkeypatch.chdir(tmp_path)
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]  # the agent starts `python`
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # put back at the end

    def run(number: int, command: list[str]) -> int:
        agent = Agent.__new__(Agent)  # all of it but its talk with the server
        agent._function, agent._in_jupyter, agent._forward_signals = None, False, False
        agent._run_processes, agent._sweep_command = {}, list(command)
        args = {key: {"value": value} for key, value in TRIALS[number].items()}
        agent._command_run({"run_id": f"run{number}", "program": str(SCRIPT), "args": args})
        return agent._run_processes[f"run{number}"].wait()

    return run


def test_three_trials_of_one_sweep_run_and_lie_side_by_side(run_trial, demo, tmp_path):
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(SMALL | {"data_dir": str(demo), "output_dir": "out"}))
    command = ["${env}", "${interpreter}", "${program}", "${args}", "--config", "my.yaml"]
    for number, trial in enumerate(TRIALS):
        assert run_trial(number, command) == 0
        folder = tmp_path / "out" / "swp1" / f"run{number}"
        assert (folder / "tinybeauty_final.pt").exists()
        used = settings.read_yaml(folder / "config.yaml")
        assert {key: used[key] for key in trial} == trial
        assert used["output_dir"] == f"out/swp1/run{number}"


def test_a_trial_that_is_started_again_goes_on(tmp_path, capsys):
    """The agent does so where the machine was taken away."""
    from tinybeauty.runs import settle_trial

    config = Config(output_dir=tmp_path)
    assert settle_trial("", config, False, ["--seed", "1"]) == (config, False, ["--seed", "1"])
    again = ["--config", str(tmp_path / "swp1" / "run1" / "config.yaml")]
    moved = config.model_copy(update={"output_dir": str(tmp_path / "swp1" / "run1")})
    assert settle_trial("swp1/run1", config, False, ["--seed", "1"]) == (moved, False, again)
    (tmp_path / "swp1" / "run1").mkdir(parents=True)
    (tmp_path / "swp1" / "run1" / "tinybeauty_last.ckpt").touch()
    assert settle_trial("swp1/run1", config, False, []) == (moved, True, again)
    assert f"this trial writes into {tmp_path / 'swp1' / 'run1'}" in capsys.readouterr().out


def test_such_a_trial_keeps_its_best_networks_whatever_its_flags(run_trial, demo, tmp_path):
    """`--overwrite` stands in the sweep's command for the trials that begin."""
    settings_of_all = SMALL | {"data_dir": str(demo), "output_dir": "out", "sample_every": 1}
    command = ["${env}", "${interpreter}", "${program}", "${args}", "--overwrite", "--config", "my.yaml"]
    folder = tmp_path / "out" / "swp1" / "run0"
    for epochs in (1, 2):  # the second has more to do
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings_of_all | {"epochs": epochs}))
        assert run_trial(0, command) == 0
        assert (folder / "samples_epoch_001.png").exists()
        assert len(read_rows(folder)) == epochs


@pytest.mark.parametrize(
    "macro", ["args", "args_no_equals", "args_no_boolean_flags", "args_json"], ids=lambda macro: macro
)
@pytest.mark.parametrize("trial", TRIALS, ids=["flip", "no flip", "tiny"])
def test_every_way_of_building_flags_says_the_same(macro, trial, tmp_path, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
    from wandb.sdk.lib.config_util import save_config_file_from_dict

    args = {key: {"value": value} for key, value in trial.items()}
    save_config_file_from_dict(str(tmp_path / "trial.yaml"), args)
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp1")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "trial.yaml"))
    found = find_trial()
    assert found.folder == "swp1/run1"
    words = create_sweep_command_args({"args": args})[macro] if macro != "args_json" else []
    (tmp_path / "none.yaml").write_text("")
    config, _ = settings.read_settings(
        settings.Parser("x"), Config, words, tmp_path / "none.yaml", found.values
    )
    assert {key: getattr(config, key) for key in trial} == trial


def test_a_flag_of_the_sweeps_command_wins_over_the_trial(tmp_path, monkeypatch):
    (tmp_path / "none.yaml").write_text("epochs: 5\nflip: true\n")
    config, _ = settings.read_settings(
        settings.Parser("x"), Config, ["--seed", "3"], tmp_path / "none.yaml", {"seed": 1, "flip": False}
    )
    assert (config.seed, config.flip, config.epochs) == (3, False, 5)


def test_a_key_of_the_sweep_that_is_no_setting_is_named(tmp_path, monkeypatch, one_error, demo):
    (tmp_path / "trial.yaml").write_text("wandb_version: 1\n\nlearning_rte:\n  value: 0.1\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp1")
    monkeypatch.setenv("WANDB_RUN_ID", "run1")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "trial.yaml"))
    assert "did you mean learning_rate?" in one_error("--data_dir", demo, "--output_dir", tmp_path / "out")


def test_outside_of_a_sweep_nothing_changes(monkeypatch):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert (find_trial().folder, find_trial().values) == ("", {})
    monkeypatch.setenv("WANDB_RUN_ID", "mine")  # a name for the dashboard alone
    assert find_trial().folder == ""
