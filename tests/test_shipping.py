"""What ships: small, safe to load, measured as read back; and what a broken file says."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import NETWORKS, SMALL
from torch import nn

from tinybeauty.cache import decode_pairs
from tinybeauty.errors import UserError
from tinybeauty.pairs import find_pairs, split_pairs
from tinybeauty.shipping import pack, to_bytes, unpack
from tinybeauty_training import Config, MakeupLoss, MakeupPairs, TinyBeauty, evaluate, load_model


def find_layers(model):
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    }


@pytest.fixture(scope="module")
def held_out(trained):
    config = Config(**trained.settings)
    pairs = split_pairs(find_pairs(trained.data_dir), config.val_fraction, config.person_pattern)[1]
    return MakeupPairs(pairs, decode_pairs(pairs, config.image_size, folder=None, skip_bad=False))


# --- the files of a real run ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_small_and_says_what_it_is(trained, name):
    path = trained.output_dir / name
    assert path.stat().st_size <= 100_000
    content = torch.load(path, weights_only=True)
    assert content["format"] == "tinybeauty"
    assert content["version"] == 2
    assert content["architecture"]
    assert 1 <= content["epoch"] <= 5
    assert len([value for value in content.values() if isinstance(value, torch.Tensor)]) <= 4


@pytest.mark.parametrize("name", NETWORKS)
def test_reported_metrics_are_those_of_the_file(trained, held_out, name):
    path = trained.output_dir / name
    content = torch.load(path, weights_only=True)
    row = trained.rows[content["epoch"] - 1]
    assert row["epoch"] == content["epoch"]
    names = {key for key in row if key.startswith("val/")}
    assert set(content["metrics"]) == names
    assert content["metrics"] == {key: row[key] for key in names}
    assert row["model/bytes"] == path.stat().st_size
    criterion = MakeupLoss(trained.settings["l1_weight"], trained.settings["eyeliner_weight"])
    scores = evaluate(load_model(path), held_out, criterion, torch.device("cpu"))
    assert scores == pytest.approx(content["metrics"], rel=1e-5, abs=1e-5)


def test_the_best_ones_are_the_best_and_the_final_one_is_the_last(trained):
    losses = [row["val/loss"] for row in trained.rows]
    scores = [row["val/psnr"] for row in trained.rows]
    epochs = [torch.load(trained.output_dir / name, weights_only=True)["epoch"] for name in NETWORKS]
    assert epochs == [1 + losses.index(min(losses)), 1 + scores.index(max(scores)), 5]


def test_load_model_gives_a_network_ready_for_use(trained):
    model = load_model(str(trained.output_dir / "tinybeauty_final.pt"))
    assert isinstance(model, TinyBeauty)
    assert not model.training
    tensors = list(model.state_dict().values())
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    source = torch.rand(1, 3, 40, 64)
    assert torch.equal(model(source), model(source))


def test_the_run_file_holds_all_that_a_resume_needs(trained):
    state = torch.load(trained.output_dir / "tinybeauty_last.ckpt", weights_only=True)
    assert state["config"] == Config(**trained.settings).model_dump()
    model = TinyBeauty()
    model.load_state_dict(state["model"])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(state["optimizer"])
    moments = optimizer.state_dict()["state"]
    steps = math.ceil(trained_pairs(trained) / trained.settings["batch_size"]) * 5
    assert len(moments) == len(list(model.parameters()))
    assert {int(moment["step"]) for moment in moments.values()} == {steps}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scheduler.load_state_dict(state["scheduler"])
    assert scheduler.last_epoch == 5
    progress = state["progress"]
    assert (progress["epoch"], progress["global_step"]) == (5, steps)
    assert progress["best_loss"] == min(row["val/loss"] for row in trained.rows)
    assert progress["best_psnr"] == max(row["val/psnr"] for row in trained.rows)
    assert len(progress["history"]) == 5
    assert list(trained.output_dir.glob(f"wandb/offline-run-*-{progress['wandb_id']}"))


def trained_pairs(trained) -> int:
    config = Config(**trained.settings)
    return len(split_pairs(find_pairs(trained.data_dir), config.val_fraction, config.person_pattern)[0])


def test_the_final_network_is_the_one_of_the_run_file(trained):
    state = torch.load(trained.output_dir / "tinybeauty_last.ckpt", weights_only=True)
    model = TinyBeauty()
    model.load_state_dict(state["average"])
    shipped = torch.load(trained.output_dir / "tinybeauty_final.pt", weights_only=True)
    for name, value in pack(model.eval()).items():
        assert (
            torch.equal(value, shipped[name]) if isinstance(value, torch.Tensor) else value == shipped[name]
        )


# --- eight bits -------------------------------------------------------------------------------------


def test_a_weight_is_off_by_at_most_half_a_step():
    torch.manual_seed(0)
    model = TinyBeauty()
    with torch.no_grad():
        for parameter in model.parameters():  # channels of very different size, one of them all zero
            parameter += torch.randn_like(parameter) * 10 ** torch.empty(len(parameter)).uniform_(-4, 1).view(
                -1, *[1] * (parameter.dim() - 1)
            )
        model.out.weight[0] = 0
    model.eval()
    folded = find_layers(copy.deepcopy(model).fold_())
    shipped = find_layers(unpack(pack(model), TinyBeauty()))
    assert list(folded) == list(shipped)
    for name, layer in folded.items():
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        exact, rounded = (part.weight.transpose(0, axis).flatten(1) for part in (layer, shipped[name]))
        step = exact.abs().amax(1, keepdim=True) / 125  # 127 steps, and room to store the step itself
        assert ((exact - rounded).abs() <= step / 2).all(), name
        assert (layer.bias is None) == (shipped[name].bias is None)
        if layer.bias is not None:
            torch.testing.assert_close(shipped[name].bias, layer.bias, rtol=1e-3, atol=1e-6)


def test_packing_leaves_the_network_as_it_was():
    model = TinyBeauty().train()
    before = copy.deepcopy(model.state_dict())
    pack(model)
    assert model.training
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_same_network_gives_the_same_bytes():
    torch.manual_seed(0)
    model = TinyBeauty().eval()
    assert to_bytes(pack(model)) == to_bytes(pack(copy.deepcopy(model)))


# --- files that are no network ----------------------------------------------------------------------


def find_message(path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("length", [0, 1, 100, 5_000, 45_000, -1000, -1])
def test_truncated_files(trained, tmp_path, length):
    whole = (trained.output_dir / "tinybeauty_final.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:length])
    assert "damaged" in find_message(tmp_path / "cut.pt")


def test_missing_files(tmp_path):
    assert "No such file" in find_message(tmp_path / "nothing.pt")
    find_message(tmp_path)  # a folder


def test_foreign_files(trained, tmp_path):
    path = tmp_path / "foreign.pt"
    path.write_text("I am a text.\n" * 1000)
    find_message(path)
    for content in ({"a": 1}, torch.zeros(3), [1, 2], TinyBeauty().state_dict(), {"format": torch.zeros(2)}):
        torch.save(content, path)
        assert "TinyBeauty" in find_message(path)
    torch.save(TinyBeauty(), path)  # code, which weights_only refuses
    find_message(path)
    assert "tinybeauty_*.pt" in find_message(trained.output_dir / "tinybeauty_last.ckpt")


@pytest.fixture
def packed():
    return pack(TinyBeauty().eval())


@pytest.mark.parametrize("version", [0, 1, 3, None, "2"])
def test_another_version_is_named(packed, tmp_path, version):
    torch.save(packed | {"version": version}, tmp_path / "a.pt")
    message = find_message(tmp_path / "a.pt")
    assert "version" in message
    assert str(version) in message


DAMAGES = {
    "missing": lambda packed, name: {key: value for key, value in packed.items() if key != name},
    "short": lambda packed, name: packed | {name: packed[name][:-1]},
    "long": lambda packed, name: packed | {name: packed[name].repeat(2)},
    "none": lambda packed, name: packed | {name: None},
    "two dimensions": lambda packed, name: packed | {name: packed[name][None]},
    "not finite": lambda packed, name: packed | {name: packed[name] / 0.0},
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "scales", "biases"])
def test_content_that_does_not_fit(packed, tmp_path, name, damage):
    torch.save(DAMAGES[damage](packed, name), tmp_path / "a.pt")
    find_message(tmp_path / "a.pt")


@pytest.mark.parametrize("up_groups", [4, 1, (64, 32, 16)])
def test_a_file_tells_which_network_to_build(tmp_path, up_groups):
    """Networks of earlier versions, in four groups, go on loading."""
    model = TinyBeauty(up_groups)
    nn.init.normal_(model.out.weight, std=0.1)
    (tmp_path / "a.pt").write_bytes(to_bytes(pack(model)))
    loaded, source = load_model(tmp_path / "a.pt"), torch.rand(1, 3, 32, 32)
    assert loaded.architecture == model.architecture
    torch.testing.assert_close(loaded(source), model.eval()(source), rtol=0.05, atol=0.05)
    assert len(loaded(source).unique()) > 100


@pytest.mark.parametrize(
    "change",
    [{"up_groups": 3}, {"up_groups": [64, 32]}, {"up_groups": "4"}, {"up_groups": -4}, {"channels": [8] * 4}],
    ids=str,
)
def test_a_network_of_another_kind_is_refused(packed, tmp_path, change):
    torch.save(packed | {"architecture": packed["architecture"] | change}, tmp_path / "a.pt")
    find_message(tmp_path / "a.pt")


@pytest.mark.parametrize("architecture", [None, {}, [], 4], ids=str)
def test_a_network_that_does_not_say_how_it_is_built(packed, tmp_path, architecture):
    torch.save(packed | {"architecture": architecture}, tmp_path / "a.pt")
    find_message(tmp_path / "a.pt")


# --- files that are too large -----------------------------------------------------------------------


def test_a_network_that_is_too_large_is_kept_and_said_aloud(demo, tmp_path, call_main):
    flags = ["--max_model_bytes", 1000, "--epochs", 1, "--data_dir", demo, "--output_dir", tmp_path]
    code, stdout, stderr = call_main(*SMALL, *flags)
    assert code == 0
    for name in NETWORKS:
        size = (tmp_path / name).stat().st_size
        warning = next(line for line in (stdout + stderr).splitlines() if "WARNING" in line and name in line)
        assert f"{size:,}" in warning
        assert "1,000" in warning
        assert isinstance(load_model(tmp_path / name), TinyBeauty)


def test_no_warning_about_a_network_that_fits(trained):
    assert "max_model_bytes" not in trained.stdout + trained.stderr
