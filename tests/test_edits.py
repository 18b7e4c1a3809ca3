"""Edits between a stop and a resume: each takes effect fully and says what it does, or is refused."""

from __future__ import annotations

import signal

import pytest
import torch
from conftest import SMALL

from tinybeauty_training import TinyBeauty

STATE = "tinybeauty_last.ckpt"


def read_state(folder) -> dict:
    return torch.load(folder / STATE, weights_only=True)


@pytest.fixture
def stop_after(call_main, demo, tmp_path):
    """Return a function that trains into tmp_path / "out", a number of steps or to the end.

    It gives (exit code, stdout, stderr, the learning rate of each step).
    """
    from tinybeauty_training import Run

    def train(steps: int | None, *flags: object) -> tuple[int, str, str, list[float]]:
        rates = []

        def watch(module, inputs):
            if isinstance(module, TinyBeauty) and module.training:
                rates.append(None)
                if len(rates) == steps:
                    signal.raise_signal(signal.SIGINT)

        step = Run.step

        def note(run, *args, **kwargs):
            losses = step(run, *args, **kwargs)
            rates[-1] = run.optimizer.param_groups[0]["lr"]
            return losses

        hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
        Run.step = note
        try:
            argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", *SMALL, *flags]
            return *call_main(*argv), rates
        finally:
            Run.step = step
            hook.remove()

    return train


def test_no_warm_up_any_more_gives_the_whole_rate(stop_after):
    code, _, _, rates = stop_after(2, "--epochs", 2, "--warmup_steps", 20)
    assert code == 130
    assert rates == pytest.approx([1e-5, 2e-5])
    code, stdout, _, rates = stop_after(None, "--epochs", 2, "--warmup_steps", 0, "--resume")
    assert code == 0
    assert rates == pytest.approx([2e-4] * len(rates))
    assert "warmup_steps: 20 then, 0 now" in stdout
    assert "the learning rate is 0.0002" in stdout


def test_a_longer_warm_up_keeps_the_drops(stop_after, tmp_path):
    flags = ["--lr_patience", 0, "--l1_weight", 0, "--eyeliner_weight", 0]  # nothing gets better
    stop_after(None, "--epochs", 3, *flags)
    assert read_state(tmp_path / "out")["progress"]["drops"] == 2
    done = read_state(tmp_path / "out")["progress"]["global_step"]
    _, _, _, rates = stop_after(2, "--epochs", 5, *flags, "--warmup_steps", 100, "--resume")
    assert rates == pytest.approx([2e-4 / 4 * (done + 1) / 100, 2e-4 / 4 * (done + 2) / 100])


def test_another_lr_factor_counts_for_the_drops_so_far(stop_after):
    flags = ["--lr_patience", 0, "--l1_weight", 0, "--eyeliner_weight", 0]
    stop_after(None, "--epochs", 2, *flags)  # the first epoch is the best, the second a drop
    _, stdout, _, rates = stop_after(1, "--epochs", 3, *flags, "--lr_factor", 0.1, "--resume")
    assert rates == pytest.approx([2e-5])
    assert "drops at plateaus so far count" in stdout


def test_another_learning_rate_is_the_rate(stop_after):
    flags = ["--lr_patience", 0, "--l1_weight", 0, "--eyeliner_weight", 0]
    stop_after(None, "--epochs", 2, *flags)
    _, stdout, _, rates = stop_after(1, "--epochs", 3, *flags, "--learning_rate", 3e-4, "--resume")
    assert rates == pytest.approx([3e-4])
    assert "without the drops" in stdout


def test_another_batch_size_leaves_a_linear_rate_on_its_line(stop_after):
    """It ends at 0 with the last of the epochs; 15 pairs, stopped in the third and at its end."""
    flags = ["--lr_schedule", "linear", "--epochs", 4]
    _, _, _, before = stop_after(7, *flags, "--batch_size", 5)
    assert before == pytest.approx([2e-4 * (12 - step) / 12 for step in range(7)])
    _, _, _, after = stop_after(1, *flags, "--batch_size", 10, "--resume")
    assert after == pytest.approx([2e-4 * 3 / 8])
    _, _, _, rest = stop_after(None, *flags, "--batch_size", 4, "--resume")
    assert rest == pytest.approx([2e-4 * (4 - step) / 16 for step in range(4)])


def test_another_seed_leaves_the_order_of_the_running_epoch(stop_after, tmp_path):
    """Otherwise some pairs would be seen twice in it and others not at all; stopped twice, too."""
    seen = []

    def watch(module, inputs):
        if isinstance(module, TinyBeauty) and module.training:
            seen.extend(image.clone() for image in inputs[0])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        flags = ["--epochs", 1, "--flip", "false", "--batch_size", 4]
        stop_after(2, *flags)
        _, stdout, _, _ = stop_after(1, *flags, "--seed", 7, "--resume")
        assert "running one keeps its own" in stdout
        assert stop_after(None, *flags, "--seed", 7, "--resume")[0] == 0
    finally:
        hook.remove()
    assert len(seen) == len({image.numpy().tobytes() for image in seen})


def test_another_batch_size_in_an_epoch_sees_each_pair_once(stop_after, tmp_path):
    seen = []

    def watch(module, inputs):
        if isinstance(module, TinyBeauty) and module.training:
            seen.extend(image.clone() for image in inputs[0])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        flags = ["--epochs", 1, "--flip", "false"]
        stop_after(1, *flags)
        assert read_state(tmp_path / "out")["progress"]["pairs_done"] == 8
        code, stdout, _, _ = stop_after(None, *flags, "--batch_size", 3, "--resume")
    finally:
        hook.remove()
    assert code == 0
    assert len(seen) == len({image.numpy().tobytes() for image in seen})
    assert f": {len(seen)} for training" in stdout


@pytest.mark.parametrize("edit", [("l1_weight", 2.0), ("psnr_weight", 0.01)])
def test_another_loss_in_an_epoch_is_not_mixed_with_the_old_one(stop_after, tmp_path, edit):
    key, value = edit
    stop_after(1, "--epochs", 1)
    stop_after(None, "--epochs", 1, f"--{key}", value, "--resume")
    row = read_state(tmp_path / "out")["progress"]["history"][-1]
    weighted = (2.0 if key == "l1_weight" else 1.0) * row["train/l1"] + 0.5 * row["train/eyeliner"]
    if key == "l1_weight":
        assert row["train/loss"] == pytest.approx(weighted, rel=1e-5)
    else:
        assert row["train/loss"] > weighted + 0.01 * 15  # decibels are missing from the first pair on


def test_fewer_epochs_than_begun_are_refused(stop_after):
    stop_after(4, "--epochs", 4)  # in the second epoch
    code, _, stderr, _ = stop_after(None, "--epochs", 1, "--resume")
    assert code == 1
    assert "has done 1 epochs and has begun the next, more than epochs: 1" in stderr


def test_fewer_epochs_make_the_last_one_done_the_final_one(stop_after, tmp_path, monkeypatch):
    """A run stopped right after an epoch, with an end that is that epoch, has its final network."""
    stop_after(None, "--epochs", 2)
    (tmp_path / "out" / "tinybeauty_final.pt").replace(tmp_path / "final.pt")
    code, stdout, _, rates = stop_after(None, "--epochs", 2, "--resume")
    assert (code, rates) == (0, [])
    assert "all 2 epochs are done" in stdout
    assert (tmp_path / "out" / "tinybeauty_final.pt").read_bytes() == (tmp_path / "final.pt").read_bytes()


def test_more_epochs_say_what_the_final_network_is(stop_after, tmp_path):
    stop_after(None, "--epochs", 1)
    before = (tmp_path / "out" / "tinybeauty_final.pt").read_bytes()
    _, stdout, _, _ = stop_after(4, "--epochs", 3, "--resume")
    assert "tinybeauty_final.pt stays what it is" in stdout
    assert (tmp_path / "out" / "tinybeauty_final.pt").read_bytes() == before


def test_no_flip_any_more_mirrors_nothing_from_the_next_step(stop_after, demo):
    stop_after(1, "--epochs", 1)
    seen = []

    def watch(module, inputs):
        if isinstance(module, TinyBeauty) and module.training:
            seen.extend(image.clone() for image in inputs[0])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        stop_after(None, "--epochs", 1, "--flip", "false", "--resume")
    finally:
        hook.remove()
    from tinybeauty.images import list_images, read_image

    faces = {
        torch.from_numpy(read_image(path, "RGB", 64)).permute(2, 0, 1).float().div(255).numpy().tobytes()
        for path in list_images(demo / "source").values()
    }
    assert seen
    assert all(image.contiguous().numpy().tobytes() in faces for image in seen)


def test_no_average_any_more_ships_the_network_itself(stop_after, tmp_path):
    stop_after(None, "--epochs", 1)
    stop_after(None, "--epochs", 2, "--ema_decay", 0, "--resume")
    state = read_state(tmp_path / "out")
    for name, value in state["model"].items():
        if value.is_floating_point() and "running" not in name:
            assert torch.equal(value, state["average"][name]), name
