"""The device, its precision, and a team of one; tests/test_torchrun.py has the teams of several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tinybeauty import devices
from tinybeauty.devices import ALONE, Replay, Team, choose_device, join_team
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


def make_batch(size: int) -> tuple[Tensor, ...]:
    """Return source, target and eye mask, on the GPU."""
    return tuple(torch.rand(size, channels, 32, 32, device="cuda") for channels in (3, 3, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_has_the_gradients_of_one_that_is_not():
    """For batches of two sizes in turns, as at the end of an epoch, and pixels it was not recorded with."""
    torch.manual_seed(0)
    run = Run(Config(wandb_mode="disabled"), TinyBeauty(), torch.device("cuda"), torch.float32, ALONE)
    torch.nn.init.normal_(run.model.out.weight)  # it starts at 0, and lets no gradient through
    run.model.train()
    for _ in range(Replay.EAGER + 1):
        for size in (4, 3):
            run.replay(*make_batch(size))
    assert len(run.replay.recordings) == 2
    for size in (4, 3, 4):
        batch = make_batch(size)
        before = run.norms[0].running_mean.clone()
        losses = {name: value.item() for name, value in run.replay(*batch).items()}
        assert not torch.equal(run.norms[0].running_mean, before)
        gradients = [parameter.grad.clone() for parameter in run.model.parameters()]
        expected = {name: value.item() for name, value in run.backward(*batch).items()}
        assert losses == pytest.approx(expected, rel=1e-4)
        for gradient, parameter in zip(gradients, run.model.parameters(), strict=True):
            torch.testing.assert_close(
                gradient, parameter.grad, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
            )
