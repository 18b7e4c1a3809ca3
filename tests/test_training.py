"""The real command: what it writes, what it logs, that it repeats itself, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import NETWORKS, SCRIPT, SMALL, make_bold_model, read_rows
from PIL import Image

from tinybeauty.cache import decode_pairs
from tinybeauty.devices import ALONE
from tinybeauty.pairs import Pair, find_pairs, split_pairs
from tinybeauty.runs import OutputDir
from tinybeauty_training import Config, EyelinerLoss, MakeupPairs, Run, TinyBeauty, load_model, write_epoch

COLUMNS = {
    "epoch", "lr", "train/loss", "train/l1", "train/eyeliner", "val/loss", "val/l1", "val/eyeliner",
    "val/psnr", "val/psnr_source", "val/psnr_gain", "val/psnr_eyes", "val/ssim",
    "time/epoch_s", "time/images_per_s", "model/parameters", "model/bytes",
}  # fmt: skip


def run_script(folder: Path, *flags: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *(str(flag) for flag in flags)]
    environment = os.environ | environment
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


# --- what a run writes ------------------------------------------------------------------------------


def test_metrics_csv_has_exactly_the_agreed_names(trained):
    header = (trained.output_dir / "metrics.csv").read_text().splitlines()[0].split(",")
    assert len(header) == len(set(header))
    assert set(header) == COLUMNS
    assert [row["epoch"] for row in trained.rows] == [1, 2, 3, 4, 5]


def test_numbers_in_metrics_csv_agree_with_each_other(trained):
    for row in trained.rows:
        for side in ("train", "val"):
            total = 0.8 * row[f"{side}/l1"] + 1.5 * row[f"{side}/eyeliner"]
            assert row[f"{side}/loss"] == pytest.approx(total, rel=1e-5)
        assert row["val/psnr_gain"] == pytest.approx(row["val/psnr"] - row["val/psnr_source"], abs=1e-5)
        assert 0 < row["val/ssim"] <= 1
        assert row["time/epoch_s"] > 0
        assert row["time/images_per_s"] > 0
    assert len({row["val/psnr_source"] for row in trained.rows}) == 1
    assert len({row["train/loss"] for row in trained.rows}) == 5


def test_it_learns(trained):
    assert trained.rows[-1]["train/loss"] < 0.8 * trained.rows[0]["train/loss"]


def test_every_epoch_and_the_closing_table_are_printed(trained):
    for row in trained.rows:
        line = next(
            line for line in trained.stdout.splitlines() if line.startswith(f"epoch {row['epoch']:3.0f}")
        )
        for name in ("val/psnr", "val/psnr_gain", "val/psnr_eyes"):
            assert f"{row[name]:.2f}" in line
    table = trained.stdout[trained.stdout.index("doing nothing", trained.stdout.rindex("epoch   5")) :]
    for name in NETWORKS:
        path = trained.output_dir / name
        row = trained.rows[torch.load(path, weights_only=True)["epoch"] - 1]
        line = next(line for line in table.splitlines() if name in line)
        assert f"{path.stat().st_size:,}" in line
        assert f"{row['val/psnr']:.2f} dB" in line
        assert f"{row['val/psnr_gain']:+.2f} dB" in line


def test_no_half_written_files_are_left(trained):
    assert not list(trained.output_dir.rglob("*.partial"))


def read_tiles(path: Path, size: int = 64) -> torch.Tensor:
    """Return the pictures of a sample sheet, (rows, 4, 3, size, size) in [0, 1]."""
    with Image.open(path) as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGB"))).permute(2, 0, 1) / 255
    assert pixels.shape[2] == 4 * (size + 2) + 2
    rows = pixels.shape[1] // (size + 2)
    header = pixels.shape[1] - rows * (size + 2) - 2
    grid = pixels[:, header + 2 :, 2:].unfold(1, size, size + 2).unfold(2, size, size + 2)
    return grid.permute(1, 2, 0, 3, 4)


def make_run(**settings) -> Run:
    return Run(Config(**settings), TinyBeauty(), torch.device("cpu"), torch.float32, ALONE)


def test_samples_show_source_made_up_target_and_the_change_four_times(demo, tmp_path):
    pairs = find_training_pairs(demo)
    model = make_bold_model(torch.stack([source for source, _, _ in pairs]), 0.1)
    run = make_run(epochs=9)
    run.progress.epoch, run.progress.history = 1, [{"epoch": 1}]
    path = write_epoch(run, model, b"", [], pairs, OutputDir(tmp_path))
    assert path == tmp_path / "samples_epoch_001.png"
    tiles = read_tiles(path)
    assert len(tiles) == 6
    shown = [identify(row[0], pairs, 0.01)[0] for row in tiles]
    assert len(set(shown)) == 6
    for row, index in zip(tiles, shown, strict=True):
        source, target, _ = pairs[index]
        with torch.no_grad():
            made_up = (source + model(source[None])[0]).clamp(0, 1)
        change = (4 * (made_up - source).abs()).clamp(0, 1)
        for tile, expected in zip(row, (source, made_up, target, change), strict=True):
            assert (tile - expected).abs().max() < 0.01


def test_samples_always_show_the_same_held_out_faces(trained):
    first, *others = (
        read_tiles(trained.output_dir / f"samples_epoch_{epoch:03d}.png") for epoch in (1, 2, 4, 5)
    )
    for tiles in others:
        assert torch.equal(tiles[:, 0], first[:, 0])
        assert torch.equal(tiles[:, 2], first[:, 2])
        assert not torch.equal(tiles[:, 1], first[:, 1])
    config = Config(**trained.settings)
    held_out = split_pairs(find_pairs(trained.data_dir), config.val_fraction, config.person_pattern)[1]
    pairs = decode(held_out)
    assert len({identify(source, pairs, 0.01)[0] for source in first[:, 0]}) == min(6, len(pairs))


# --- the same again ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def again(trained, tmp_path_factory) -> Path:
    """The same settings in another folder and without WandB."""
    folder = tmp_path_factory.mktemp("again")
    config = trained.output_dir / "config.yaml"
    run = run_script(folder, "--config", config, "--wandb_mode", "disabled", WANDB_MODE="online")
    assert run.returncode == 0, run.stderr
    return folder / "out"


def test_one_seed_gives_the_same_bytes(trained, again):
    for name in NETWORKS:
        assert (again / name).read_bytes() == (trained.output_dir / name).read_bytes()


def test_all_files_are_there_and_no_others(again):
    """Also: grids at the first epoch, every second and the last; no wandb folder when it is disabled."""
    grids = {f"samples_epoch_{epoch:03d}.png" for epoch in (1, 2, 4, 5)}
    expected = {*NETWORKS, *grids, "tinybeauty_last.ckpt", "metrics.csv", "config.yaml"}
    assert {path.name for path in again.glob("[!.]*")} == expected
    assert [path.name for path in again.parent.iterdir()] == ["out"]


def train_small(call_main, demo, folder, *flags) -> str:
    code, stdout, stderr = call_main(*SMALL, "--data_dir", demo, "--output_dir", folder, *flags)
    assert code == 0, stderr
    return stdout


def test_another_seed_gives_other_bytes(call_main, demo, tmp_path):
    for seed in (1, 2):
        train_small(call_main, demo, tmp_path / str(seed), "--epochs", 1, "--seed", seed)
    for name in NETWORKS:
        assert (tmp_path / "1" / name).read_bytes() != (tmp_path / "2" / name).read_bytes()


# --- what the network sees --------------------------------------------------------------------------


def record_training(call_main, demo, folder, *flags) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (source, residual) of every image that a training step saw, in order."""
    seen = []

    def watch(module, inputs, output):
        if isinstance(module, TinyBeauty) and module.training:
            seen.extend(zip(inputs[0].clone(), output.detach().float().clone(), strict=True))

    hook = torch.nn.modules.module.register_module_forward_hook(watch)
    try:
        train_small(call_main, demo, folder, *flags)
    finally:
        hook.remove()
    return seen


def decode(pairs: list[Pair]) -> MakeupPairs:
    return MakeupPairs(pairs, decode_pairs(pairs, 64, folder=None, skip_bad=False))


def find_training_pairs(demo) -> MakeupPairs:
    return decode(split_pairs(find_pairs(demo), 0.25, Config().person_pattern)[0])


def identify(source, pairs, tolerance=0.0) -> tuple[int, bool]:
    """Return (number of the pair, mirrored or not) of an image."""
    for index in range(len(pairs)):
        for mirrored in (False, True):
            face = pairs[index][0].flip(-1) if mirrored else pairs[index][0]
            if (source - face).abs().max() <= tolerance:
                return index, mirrored
    raise AssertionError("a picture that is none of the pairs")


def test_an_epoch_sees_every_pair_once_and_mirrors_half_of_them(call_main, demo, tmp_path):
    seen = record_training(call_main, demo, tmp_path, "--epochs", 4)
    pairs = find_training_pairs(demo)
    count = len(pairs)
    assert len(seen) == 4 * count
    found = [identify(source, pairs) for source, _ in seen]
    epochs = [found[start : start + count] for start in range(0, 4 * count, count)]
    orders = [[index for index, _ in epoch] for epoch in epochs]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    flips = [frozenset(index for index, mirrored in epoch if mirrored) for epoch in epochs]
    assert len(set(flips)) == 4
    assert 0.25 < sum(map(len, flips)) / (4 * count) < 0.75


def test_flip_false_mirrors_nothing(call_main, demo, tmp_path):
    seen = record_training(call_main, demo, tmp_path, "--epochs", 1, "--flip", "false")
    pairs = find_training_pairs(demo)
    assert not any(identify(source, pairs)[1] for source, _ in seen)


def test_train_metrics_are_means_over_images(call_main, demo, tmp_path):
    """With a last batch that is smaller than the others."""
    flags = ["--epochs", 1, "--l1_weight", 0.8, "--eyeliner_weight", 1.5, "--batch_size", 7]
    seen = record_training(call_main, demo, tmp_path, *flags)
    pairs, sums = find_training_pairs(demo), {"l1": 0.0, "eyeliner": 0.0}
    assert len(pairs) % 7
    for source, residual in seen:
        index, mirrored = identify(source, pairs)
        _, target, eye_mask = (image.flip(-1) if mirrored else image for image in pairs[index])
        output = source + residual
        sums["l1"] += (output - target).abs().mean().item()
        sums["eyeliner"] += EyelinerLoss()(output[None], target[None], eye_mask[None]).item()
    (row,) = read_rows(tmp_path)
    assert row["train/l1"] == pytest.approx(sums["l1"] / len(pairs), rel=1e-5)
    assert row["train/eyeliner"] == pytest.approx(sums["eyeliner"] / len(pairs), rel=1e-5)
    assert row["train/loss"] == pytest.approx(0.8 * row["train/l1"] + 1.5 * row["train/eyeliner"], rel=1e-5)


def test_a_learning_rate_drop_is_said_aloud(call_main, demo, tmp_path):
    """A loss of weight 0 never improves, so with no patience the second epoch halves it."""
    flags = ["--epochs", 3, "--lr_patience", 0, "--l1_weight", 0, "--eyeliner_weight", 0]
    stdout = train_small(call_main, demo, tmp_path, *flags)
    assert "0.0002 -> 0.0001" in stdout
    assert [row["lr"] for row in read_rows(tmp_path)] == [2e-4, 2e-4, 1e-4]


def test_the_learning_rate_rises_in_the_first_steps(call_main, demo, tmp_path):
    """Two steps an epoch: after the first epoch half of the rate, after the second all of it."""
    stdout = train_small(call_main, demo, tmp_path, "--epochs", 3, "--warmup_steps", 4)
    assert [row["lr"] for row in read_rows(tmp_path)] == pytest.approx([1e-4, 2e-4, 2e-4])
    assert "learning rate" not in stdout  # that it rises is no drop


def take_steps(run: Run, count: int) -> list[float]:
    """Take steps on noise; return the learning rate that Adam had in each."""
    rates = []
    run.model.train()
    for _ in range(count):
        source, target = torch.rand(2, 2, 3, 16, 16)
        run.step(source, target, torch.ones(2, 1, 16, 16), weight=1.0)
        rates.append(run.optimizer.param_groups[0]["lr"])
    return rates


def test_the_learning_rate_follows_from_the_settings_the_drops_and_the_step():
    """Adam has what `learning_rate` says for the step; a plateau counts from the end of the warm-up on."""
    run = make_run(learning_rate=1e-3, warmup_steps=4, lr_factor=0.5, lr_patience=0)
    assert take_steps(run, 2) == [0.25e-3, 0.5e-3]
    for _ in range(3):
        run.watch_plateau(1.0)  # no better three times, but the rate is still rising
    assert run.progress.drops == 0
    assert take_steps(run, 3) == [0.75e-3, 1e-3, 1e-3]
    for _ in range(3):
        run.watch_plateau(1.0)
    assert run.progress.drops == 2  # the first value seen is the best
    assert take_steps(run, 2) == [0.25e-3, 0.25e-3]
    assert [run.learning_rate(step) for step in (1, 2, 4, 99)] == [0.0625e-3, 0.125e-3, 0.25e-3, 0.25e-3]


@pytest.mark.parametrize("start_from", ["", "evening"])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_a_moving_mean_of_the_weights(decay, start_from):
    """Of the past it keeps a share that grows at first, so that nothing of a start from scratch lingers."""
    torch.manual_seed(0)
    run = make_run(ema_decay=decay, learning_rate=0.01, start_from=start_from)
    expected = {name: value.clone() for name, value in run.model.state_dict().items()}
    for step in range(40):
        take_steps(run, 1)
        share = decay if start_from else min(decay, (1 + step) / (10 + step))
        for name, value in run.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = share * expected[name] + (1 - share) * value
    average = run.average.state_dict()
    assert run.model.out.weight.abs().max() > 0.01  # the weights have moved
    for name, value in run.model.state_dict().items():
        if value.is_floating_point():  # BatchNorm's counter is none
            torch.testing.assert_close(average[name], expected[name])
            assert decay or torch.equal(average[name], value)


def test_pairs_without_masks_train_too(call_main, demo, tmp_path):
    for kind in ("source", "target"):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        for path in sorted((demo / kind).iterdir())[:12]:
            (tmp_path / "pairs" / kind / path.name).write_bytes(path.read_bytes())
    stdout = train_small(call_main, tmp_path / "pairs", tmp_path / "out", "--epochs", 1)
    assert "have none: there the eyeliner loss" in stdout
    assert isinstance(load_model(tmp_path / "out" / "tinybeauty_best_psnr.pt"), TinyBeauty)


# --- errors -----------------------------------------------------------------------------------------


@pytest.fixture
def old_output(tmp_path) -> Path:
    """An output folder with the files of an older run."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name in (*NETWORKS, "tinybeauty_last.ckpt", "metrics.csv", "config.yaml", "samples_epoch_001.png"):
        (folder / name).write_bytes(b"older")
    return folder


def is_untouched(folder: Path) -> bool:
    files = [path for path in folder.iterdir() if path.name != ".lock"]
    return len(files) == 7 and all(path.read_bytes() == b"older" for path in files)


def test_a_missing_data_dir_is_an_error_and_never_the_demo(tmp_path, old_output):
    run = run_script(tmp_path, "--data_dir", "data/mine", "--output_dir", old_output, "--overwrite")
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert "data/mine" in run.stderr
    assert not (tmp_path / "data").exists()
    assert is_untouched(old_output)


def test_an_error_before_the_first_file_leaves_no_folder(tmp_path, demo, one_error):
    """Of the folders that the run has made; one that was there stays."""
    (tmp_path / "runs").mkdir()
    flags = ["--output_dir", tmp_path / "runs" / "mine" / "first", *SMALL]
    one_error(*flags, "--data_dir", tmp_path / "nowhere")
    assert list((tmp_path / "runs").iterdir()) == []
    one_error(*flags, "--data_dir", demo, "--l1_weight", "1e39")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("kind", ["source", "target"])
def test_bad_data_stops_the_run_before_anything_is_written(demo, tmp_path, one_error, old_output, kind):
    pairs = tmp_path / "pairs"
    for name in ("source", "target"):
        (pairs / name).mkdir(parents=True)
        for path in sorted((demo / name).iterdir())[:6]:
            (pairs / name / path.name).write_bytes(path.read_bytes())
    flags = [*SMALL, "--data_dir", pairs, "--output_dir", old_output, "--overwrite"]
    victim = sorted((pairs / kind).iterdir())[2]
    victim.write_bytes(b"no image")
    assert str(victim) in one_error(*flags)
    victim.unlink()
    assert victim.stem in one_error(*flags)
    assert is_untouched(old_output)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here cuda is no error")
def test_a_device_that_is_not_there(demo, one_error, old_output):
    flags = ["--data_dir", demo, "--output_dir", old_output, "--device", "cuda"]
    message = one_error(*flags)
    assert "cuda" in message
    assert "device" in message
    assert is_untouched(old_output)


def test_a_bad_configuration_touches_nothing(demo, one_error, old_output):
    flags = ["--data_dir", demo, "--output_dir", old_output]
    assert "multiple of 8" in one_error(*flags, "--image_size", 100)
    assert is_untouched(old_output)


def test_a_file_in_the_place_of_the_output_folder(demo, tmp_path, one_error):
    (tmp_path / "taken").write_bytes(b"mine")
    for output_dir in (tmp_path / "taken", tmp_path / "taken" / "deeper", tmp_path / ("x" * 300)):
        message = one_error(*SMALL, "--data_dir", demo, "--output_dir", output_dir)
        assert str(output_dir) in message
        assert "output" in message
    assert (tmp_path / "taken").read_bytes() == b"mine"


def test_a_diverging_run_stops_with_the_reason(demo, one_error, tmp_path):
    """A loss beyond float32 is infinite in the first step."""
    message = one_error(*SMALL, "--data_dir", demo, "--output_dir", tmp_path, "--l1_weight", "1e39")
    assert "epoch 1" in message
    assert "learning_rate (now 0.0002)" in message
    assert not list(tmp_path.glob("*.pt"))


def test_overwrite_costs_nothing_until_an_epoch_is_done(demo, one_error, old_output):
    """The earlier run's files go when the first new one is there to write."""
    one_error(*SMALL, "--data_dir", demo, "--output_dir", old_output, "--overwrite", "--l1_weight", "1e39")
    assert is_untouched(old_output)


# --- a fresh checkout -------------------------------------------------------------------------------


def test_a_fresh_checkout_draws_its_own_demo(copy_checkout):
    checkout = copy_checkout()
    assert not (checkout / "data" / "demo").exists()
    command = [sys.executable, "tinybeauty_training.py"]
    run = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(find_pairs(checkout / "data" / "demo")) == 12
    assert "--data_dir" in run.stdout  # how to train on one's own pairs
    output_dir = checkout / yaml.safe_load((checkout / "config.yaml").read_text())["output_dir"]
    assert {*NETWORKS, "metrics.csv"} <= {path.name for path in output_dir.iterdir()}


def test_importing_the_script_does_nothing(tmp_path):
    code = (
        "import sys, os, torch; sys.argv = ['x', '--nonsense']; state = torch.get_rng_state();"
        "import tinybeauty_training;"
        "assert 'wandb' not in sys.modules and not os.listdir();"
        "assert torch.equal(state, torch.get_rng_state())"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
