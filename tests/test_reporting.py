"""What a person reads: metrics.csv, the line of an epoch, the table at the end."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import read_rows

from tinybeauty.progress import BEST_LOSS, BEST_PSNR, Progress
from tinybeauty.reporting import describe_data, describe_drop, describe_epoch, print_summary, to_csv
from tinybeauty.shipping import pack
from tinybeauty_training import TinyBeauty

ROW = {"epoch": 7, "train/loss": 0.25, "val/loss": 0.125, "val/psnr": 38.5, "val/psnr_gain": 7.25}


def test_metrics_csv_reads_back_to_the_last_digit(tmp_path):
    history = [{"epoch": 1, "lr": 1e-3 / 3}, {"epoch": 2, "lr": math.pi * 1e-9}]
    (tmp_path / "metrics.csv").write_bytes(to_csv(history))
    assert read_rows(tmp_path) == history


def test_a_column_that_a_run_is_older_than_has_its_place(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(to_csv([{"epoch": 1}, {"epoch": 2, "lr": 0.5}]))
    assert (tmp_path / "metrics.csv").read_text() == "epoch,lr\n1,\n2,0.5\n"


def test_the_line_of_an_epoch():
    line = describe_epoch(ROW | {"val/psnr_eyes": 27.0}, 50, 75.0, [BEST_LOSS, BEST_PSNR])
    assert line == (
        "epoch   7/50  loss 0.2500  val 0.1250  psnr 38.50 dB (+7.25)  eyes 27.00 dB  01:15 left"
        "  best loss, psnr"
    )
    line = describe_epoch(ROW | {"val/psnr_eyes": math.nan}, 50, 75.0, [])
    assert line == "epoch   7/50  loss 0.2500  val 0.1250  psnr 38.50 dB (+7.25)  01:15 left"


def test_only_a_drop_of_the_learning_rate_is_said():
    assert describe_drop(1e-3, 1e-3) == describe_drop(1e-4, 1e-3) == ""
    assert "learning rate 0.001 -> 0.0005" in describe_drop(1e-3, 5e-4)


@pytest.mark.parametrize(("masks", "told"), [(4000, False), (3999, True), (0, True)])
def test_pairs_without_masks_are_counted(masks, told):
    has_mask = torch.arange(4000) < masks
    text = describe_data("faces", has_mask[:3600], has_mask[3600:])
    assert "4,000 pairs in faces: 3,600 for training, 400 held out" in text
    assert f"{masks:,} eye masks" in text
    assert ("have none" in text) == told
    assert (f"{4000 - masks:,} have none" in text) == told


@pytest.mark.parametrize("gain", [7.0, 0.0, -0.5])
def test_a_network_that_is_no_better_than_nothing_is_said_aloud(tmp_path, capsys, gain):
    scores = {"val/psnr": 31.0 + gain, "val/psnr_source": 31.0, "val/psnr_gain": gain}
    torch.save(pack(TinyBeauty()) | {"epoch": 3, "metrics": scores}, tmp_path / BEST_LOSS)
    assert print_summary(tmp_path, 100_000, Progress(epoch=3, seconds=5.2)) == [tmp_path / BEST_LOSS]
    out = capsys.readouterr().out
    assert f"{31.0 + gain:6.2f} dB       31.00 dB {gain:+6.2f} dB" in out
    assert ("no better than the untouched face" in out) == (gain <= 0)
    assert "3 epochs in 5 s" in out
