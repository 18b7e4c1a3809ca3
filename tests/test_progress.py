"""How far a run is: its epochs, its best values, what an older state did not note."""

from __future__ import annotations

import math

import pytest

from tinybeauty.errors import UserError
from tinybeauty.progress import BEST_LOSS, BEST_PSNR, Progress


def make_row(epoch: int, loss: float, psnr: float) -> dict[str, float]:
    return {"epoch": epoch, "val/loss": loss, "val/psnr": psnr, "time/epoch_s": 1.5}


def test_a_finished_epoch_says_what_it_is_the_best_for():
    progress = Progress(pairs_done=7, sums={"loss": 1.0}, summed=5)
    rows = [
        (make_row(1, 0.5, 30.0), [BEST_LOSS, BEST_PSNR]),
        (make_row(2, 0.4, 29.0), [BEST_LOSS]),
        (make_row(3, 0.45, 31.0), [BEST_PSNR]),
        (make_row(4, 0.4, 31.0), []),  # as good is not better: the earlier file stays
    ]
    for row, beaten in rows:
        assert progress.finish_epoch(row) == beaten
        assert (progress.epoch, progress.pairs_done) == (row["epoch"], 0)
        assert (progress.sums, progress.summed) == ({}, 0)
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


def test_another_loss_begins_its_best_anew():
    progress = Progress(pairs_done=7, sums={"loss": 1.0}, summed=7, best_loss=0.5, best_psnr=30.0)
    progress.forget_losses()
    assert (progress.best_loss, progress.sums, progress.summed) == (math.inf, {}, 0)
    assert (progress.best_psnr, progress.pairs_done) == (30.0, 7)


SETTINGS = {"seed": 9, "warmup_steps": 10, "learning_rate": 1e-3, "lr_factor": 0.5}


def make_state(rate: float, **progress: object) -> dict[str, object]:
    return {"progress": progress, "optimizer": {"param_groups": [{"lr": rate}]}}


@pytest.mark.parametrize(("rate", "step", "drops"), [(1e-3, 50, 0), (2.5e-4, 50, 2), (5e-4, 5, 0)])
def test_what_an_older_state_did_not_note_follows_from_its_settings(rate, step, drops):
    """In its warm-up, of ten steps, a lower rate is no drop."""
    state = make_state(rate, epoch=3, pairs_done=4, global_step=step)
    progress = Progress.restore(state, SETTINGS, epochs=5)
    assert (progress.epoch, progress.drops) == (3, drops)
    assert (progress.summed, progress.order_seed) == (4, 9)
    noted = make_state(rate, epoch=3, pairs_done=4, global_step=step, drops=1, summed=2, order_seed=8)
    progress = Progress.restore(noted, SETTINGS, epochs=5)
    assert (progress.drops, progress.summed, progress.order_seed) == (1, 2, 8)


def test_fewer_epochs_than_done_or_begun_are_refused():
    done, begun = make_state(1e-3, epoch=3), make_state(1e-3, epoch=3, pairs_done=1)
    assert Progress.restore(done, SETTINGS, epochs=3).describe(3) == "all 3 epochs are done"
    with pytest.raises(UserError, match="has done 3 epochs, more than epochs: 2"):
        Progress.restore(done, SETTINGS, epochs=2)
    with pytest.raises(UserError, match="has done 3 epochs and has begun the next, more than epochs: 3"):
        Progress.restore(begun, SETTINGS, epochs=3)
    told = Progress.restore(begun, SETTINGS, epochs=4).describe(4)
    assert told == "epoch 4 of 4, 1 of its pairs are done"
