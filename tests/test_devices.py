"""The device, its precision, and a team of one; tests/test_torchrun.py has the teams of several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinybeauty import devices
from tinybeauty.devices import ALONE, Team, choose_device, join_team
from tinybeauty.errors import UserError
from tinybeauty_training import Config, Run, TinyBeauty


def test_who_is_alone_leads_and_shares_with_nobody():
    value, values = {"val/psnr": 30.0}, torch.tensor([1.0, 2.0])
    assert ALONE.leads
    assert (ALONE.rank, ALONE.size, ALONE.local_rank, ALONE.local_size) == (0, 1, 0, 1)
    assert ALONE.broadcast(value) is value
    assert ALONE.all_reduce(values) is values
    assert ALONE.average(values) is values  # in place: BatchNorm's statistics are pooled this way
    assert values.tolist() == [1.0, 2.0]
    with ALONE.local_first():
        pass
    assert not Team(rank=1, size=2).leads


def test_without_torchrun_the_team_is_one(monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with join_team() as team:
        print("heard")
    assert team is ALONE
    assert capsys.readouterr().out == "heard\n"


def test_torchrun_with_one_process_is_alone_too(monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)):
        monkeypatch.setenv(name, str(value))
    with join_team() as team:
        assert team == ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_is_the_fastest_and_the_reason_is_printed(monkeypatch, capsys, fast):
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda name: fast)
    dtype = torch.bfloat16 if fast else torch.float32
    assert choose_device("cpu", "auto", ALONE) == (torch.device("cpu"), dtype)
    reason = "bfloat16 (the fastest here)" if fast else "float32 (no fast bfloat16 here)"
    assert capsys.readouterr().out.endswith(f"threads (as configured); {reason}\n")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_taken(capsys, precision):
    assert choose_device("cpu", precision, ALONE)[1] == getattr(torch, precision)
    assert f"{precision} (as configured)" in capsys.readouterr().out


def test_auto_takes_the_best_there_is(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto", "float32", ALONE)[0] == torch.device("cpu")
    assert "(the best found)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"cuda, which is not there \(found: cpu\)"):
        choose_device("cuda", "auto", ALONE)


Batch = tuple[Tensor, ...]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def train_on_gpu(replayed: bool, batches: list[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """Train on batches, in float32; return the losses and what the model has become."""
    torch.manual_seed(0)
    config = Config(learning_rate=1e-3, wandb_mode="disabled")
    run = Run(config, TinyBeauty(), torch.device("cuda"), torch.float32, ALONE)
    run.model.train()
    if not replayed:
        run.replay = None
    losses = [run.step(*batch, weight=1.0)["loss"].item() for batch in batches]
    if replayed:
        assert len(run.replay.recordings) == 2
    return losses, {name: value.cpu() for name, value in run.model.state_dict().items()}


@needs_gpu
def test_steps_that_are_replayed_do_what_they_did_when_they_were_taken_one_by_one():
    """Batches of two sizes in turns, as at the end of an epoch; other pixels in each."""
    torch.manual_seed(1)
    sizes = [4, 4, 3] * 14
    batches = [tuple(torch.rand(size, channels, 32, 32).cuda() for channels in (3, 3, 1)) for size in sizes]
    (losses, weights), (expected, expected_weights) = (train_on_gpu(way, batches) for way in (True, False))
    assert losses == pytest.approx(expected, rel=1e-3)
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=0.02, atol=1e-3, msg=name)
