"""A run that begins from a look: its last layer fitted, settings chosen, what is refused, a resume."""

from __future__ import annotations

import math
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import read_rows
from stress_resume import read_result
from test_resume import signal_at  # noqa: F401  a fixture

from tinybeauty import starting
from tinybeauty.looks import LOOKS
from tinybeauty.runs import STATE_FILE as STATE
from tinybeauty.shipping import RUN_FORMAT, load_content, pack, to_bytes
from tinybeauty_training import TinyBeauty, load_model

SMALL = ["--image_size", "64", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def handful(demo, tmp_path_factory) -> Path:
    """Six pairs."""
    folder = tmp_path_factory.mktemp("handful") / "pairs"
    for kind in ("source", "target", "eye_mask"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((demo / kind).iterdir())[:6]:
            shutil.copy(path, folder / kind)
    return folder


@pytest.fixture
def start(handful, tmp_path, call_main):
    """Return a function that trains on the handful: (stdout, the settings it wrote)."""

    def run(*flags: object, out: str = "out") -> tuple[str, dict]:
        argv = ["--data_dir", handful, "--output_dir", tmp_path / out, *SMALL, *flags]
        code, stdout, stderr = call_main(*argv)
        assert code == 0, stderr
        return stdout, yaml.safe_load((tmp_path / out / "config.yaml").read_text())

    return run


def make_batches(network: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return batches whose targets a network has made."""
    torch.manual_seed(0)
    sources = [torch.rand(2, 3, 64, 64) for _ in range(2)]
    with torch.no_grad():
        return [(source, source + network(source), torch.ones(2, 1, 64, 64)) for source in sources]


def test_the_last_layer_is_found_again():
    truth, other = (load_model(LOOKS / "evening.pt") for _ in range(2))
    batches = make_batches(truth)
    with torch.no_grad():
        other.out.weight.mul_(-0.5).add_(0.1)
        other.out.bias.add_(0.2)
    assert starting.refit_(other, batches).min() > 30
    for source, target, _ in batches:
        torch.testing.assert_close(source + other(source), target, atol=1e-2, rtol=0)


def test_the_gain_of_a_fit_is_that_of_the_network():
    network = load_model(LOOKS / "natural.pt")
    batches = make_batches(load_model(LOOKS / "bold.pt"))
    told = starting.refit_(network, batches)
    source, target, _ = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        errors = (source + network(source) - target).square().mean((1, 2, 3))
    gains = 10 * ((source - target).square().mean((1, 2, 3)) / errors).log10()
    assert told.tolist() == pytest.approx(gains.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("gains", "expected"), [([9.0, 1.0, 5.0, 5.0], -3.0), ([*range(20, 0, -1)], -7.5), ([4.0], 4.0)]
)
def test_a_start_is_judged_by_those_whom_it_serves_worse_than_the_worst(gains, expected):
    assert starting.judge(torch.tensor(gains, dtype=torch.float64)) == expected


def test_a_pair_without_makeup_is_no_trouble():
    source = torch.rand(1, 3, 64, 64)
    gains = starting.refit_(load_model(LOOKS / "natural.pt"), [(source, source, torch.ones(1, 1, 64, 64))])
    assert gains.isfinite().all()


def test_a_run_begins_with_the_look_fitted(start, handful):
    """At a rate at which nothing is learned the first network is the look with its last layer fitted."""
    frozen = ["--learning_rate", 1e-12, "--epochs", 1, "--repeats", 1, "--val_fraction", 0]
    fitted = start("--start_from", "evening", *frozen)[0]
    told = float(fitted.split("evening.pt; ")[1].split("evening ")[1].split(" dB")[0])
    gain = float(fitted.split("psnr ")[-1].split("(")[1].split(")")[0])
    assert told > 0
    assert gain == pytest.approx(told, abs=0.05)  # the file's weights are int8


def test_settings_are_chosen_said_and_written(start, tmp_path):
    stdout, used = start("--start_from", "auto", "--repeats", 2, "--epochs", 2)
    assert "6 people; where nothing else is set: val_fraction 0.0, batch_size 8, learning_" in stdout
    assert "nobody is held out" in stdout
    assert "no measure of other faces" in stdout
    chosen = starting.choose_settings(6, 6)
    assert {key: used[key] for key in chosen} == chosen | {"repeats": 2, "epochs": 2}
    tries = {
        look: float(stdout.split(f"{look} +")[1].split("(")[1].split(")")[0])
        for look in ("natural", "bold", "evening")
    }
    assert used["start_from"] == max(tries, key=tries.get)
    assert len(read_rows(tmp_path / "out")) == 2


def test_what_a_person_sets_stays(start, tmp_path):
    own = tmp_path / "my.yaml"
    own.write_text("batch_size: 3\nseed: 5\n")
    flags = ["--config", own, "--start_from", "bold", "--learning_rate", "2e-4", "--val_fraction", "0.3"]
    stdout, used = start(*flags, "--epochs", 1, "--repeats", 1)
    assert (used["batch_size"], used["learning_rate"], used["val_fraction"], used["seed"]) == (
        3,
        2e-4,
        0.3,
        5,
    )
    assert "people held out" in stdout


def test_a_value_of_the_file_that_a_flag_sets_right(start, tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 0\nbatch_size: 3\n")
    flags = ["--config", tmp_path / "my.yaml", "--epochs", 1, "--repeats", 1]
    assert start("--start_from", "bold", *flags)[1]["batch_size"] == 3


def test_a_run_begins_with_the_state_of_another_and_goes_on(start, tmp_path):
    """At another size, with its BatchNorms."""
    start("--epochs", 1, "--learning_rate", "2e-3", out="first")
    before = load_content(tmp_path / "first" / STATE, RUN_FORMAT)["average"]
    again = ["--start_from", tmp_path / "first" / STATE, "--image_size", 32, "--repeats", 1]
    start(*again, "--epochs", 1, "--learning_rate", 1e-12)
    after = load_content(tmp_path / "out" / STATE, RUN_FORMAT)["average"]
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith("weight") and name != "out.weight":  # which is fitted to the pairs
            torch.testing.assert_close(after[name], before[name])
    assert "epoch   2/2" in start(*again, "--epochs", 2, "--learning_rate", 1e-12, "--resume")[0]


def test_the_state_of_a_run_without_batchnorms_begins_another_and_that_one_a_third(start, tmp_path):
    """None of them has any, when it goes on neither."""
    begun, out = "evening", "first"
    for following in ("second", "third"):
        start("--start_from", begun, "--epochs", 1, "--repeats", 1, out=out)
        begun, out = tmp_path / out / STATE, following
    start("--start_from", begun, "--epochs", 1, "--repeats", 1, out=out)
    stdout, _ = start("--start_from", begun, "--epochs", 2, "--repeats", 1, "--resume", out=out)
    assert "epoch   2/2" in stdout
    assert not any("norm" in name for name in load_content(tmp_path / out / STATE, RUN_FORMAT)["model"])


def test_the_state_of_an_older_version_begins_a_run(start, tmp_path):
    """It says neither what its network is like nor that it began from nothing."""
    network = TinyBeauty(4).state_dict()
    torch.save({"format": RUN_FORMAT, "version": 2, "config": {}, "average": network}, tmp_path / "old.ckpt")
    start("--start_from", tmp_path / "old.ckpt", "--epochs", 1, "--repeats", 1)
    assert load_model(tmp_path / "out" / "tinybeauty_final.pt").architecture["up_groups"] == 4


def test_people_are_counted_by_their_pattern(start):
    """One person on six pairs: nobody can be held out, and 120 steps are enough."""
    flags = ["--epochs", 1, "--repeats", 1, "--person_pattern", r"(face)_\d+"]
    assert "start     1 people;" in start("--start_from", "bold", *flags)[0]


@pytest.mark.parametrize(("people", "variants"), [(5, 1), (29, 1), (29, 20), (30, 1), (200, 1), (290, 4)])
def test_a_short_run_is_short_with_variants_too(people, variants):
    """It has 120 steps under 30 people, 300 from there on, but for rounding and the tenth held out."""
    chosen = starting.choose_settings(people, people * variants)
    pairs = people * variants * (1 - chosen["val_fraction"]) * chosen["repeats"]
    steps = chosen["epochs"] * math.ceil(pairs / chosen["batch_size"])
    assert steps == pytest.approx(120 if people < 30 else 300, rel=0.25)


def test_without_looks_auto_says_so(handful, tmp_path, one_error, monkeypatch):
    monkeypatch.setattr(starting, "LOOKS", tmp_path / "none")
    argv = ["--data_dir", handful, "--output_dir", tmp_path / "out", *SMALL, "--start_from", "auto"]
    assert f"finds no look in {tmp_path / 'none'}; give the path of a .pt" in one_error(*argv)


def test_without_a_start_nothing_is_chosen(start):
    stdout, used = start("--epochs", 1)
    assert (used["start_from"], used["batch_size"], used["val_fraction"]) == ("", 32, 0.1)
    assert "start  " not in stdout


def test_the_same_settings_from_the_written_file_give_the_same_bytes(start, tmp_path):
    flags = ["--start_from", "auto", "--vary", 1, "--epochs", 2, "--repeats", 2]
    start(*flags)
    shutil.copy(tmp_path / "out" / "config.yaml", tmp_path / "again.yaml")
    assert "where nothing else is set" not in start("--config", tmp_path / "again.yaml", out="again")[0]
    networks = [(tmp_path / name / "tinybeauty_final.pt").read_bytes() for name in ("out", "again")]
    assert networks[0] == networks[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to oneself there")
@pytest.mark.parametrize(("step", "forget"), [(1, 0), (3, 2)])
def test_a_stopped_run_ends_the_same(start, handful, tmp_path, call_main, signal_at, step, forget):  # noqa: F811
    """Two steps an epoch; with the same words, and without those that say how it began."""
    flags = ["--start_from", "auto", "--vary", 1, "--epochs", 3, "--repeats", 2]
    start(*flags, out="alone")
    signal_at(signal.SIGTERM, step)
    argv = ["--data_dir", handful, "--output_dir", tmp_path / "out", *SMALL, *flags]
    code, _, stderr = call_main(*argv)
    assert code == 128 + signal.SIGTERM, stderr
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["progress"]["global_step"] == step
    code, stdout, stderr = call_main(*argv[: len(SMALL) + 4], *flags[forget:], "--resume")
    assert code == 0, stderr
    assert "changed" not in stdout
    assert read_result(tmp_path / "out") == read_result(tmp_path / "alone")


@pytest.mark.parametrize("begun", [["--start_from", "bold"], []])
def test_a_run_that_has_begun_takes_no_other_start(start, handful, tmp_path, one_error, begun):
    argv = ["--epochs", 1, "--repeats", 1]
    start(*begun, *argv)
    argv += ["--data_dir", handful, "--output_dir", tmp_path / "out", *SMALL]
    for other in ("evening", *(() if begun else ("auto",))):
        message = one_error(*argv, "--start_from", other, "--resume")
        assert f"start_from: {begun[-1] if begun else ''!r} then, {other!r} now" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_named(handful, tmp_path, one_error, value):
    network = TinyBeauty(4).state_dict()
    network["enc1.branches.0.0.weight"][0] = network["out.weight"][:] = value
    torch.save({"format": RUN_FORMAT, "version": 2, "config": {}, "average": network}, tmp_path / "a.ckpt")
    argv = ["--data_dir", handful, "--output_dir", tmp_path / "out", *SMALL]
    message = one_error(*argv, "--start_from", tmp_path / "a.ckpt")
    assert f"{tmp_path / 'a.ckpt'} makes no pictures of your pairs" in message


@pytest.mark.parametrize(
    ("look", "said"),
    [
        ("evning", "did you mean evening"),
        ("zzz", "bold, evening, natural"),
        ("no.pt", "cannot read no.pt"),
        ("x/last.ckpt", "cannot read x/last.ckpt"),
    ],
)
def test_a_look_that_is_not_there(handful, tmp_path, one_error, look, said):
    message = one_error("--data_dir", handful, "--output_dir", tmp_path, *SMALL, "--start_from", look)
    assert said in message
    assert not list(tmp_path.glob("tinybeauty*"))


@pytest.mark.parametrize("up_groups", [4, [64, 32, 16]])
def test_a_start_keeps_the_architecture_of_its_file(start, tmp_path, up_groups):
    """Also when the run goes on."""
    (tmp_path / "own.pt").write_bytes(to_bytes(pack(TinyBeauty(up_groups))))
    start("--start_from", tmp_path / "own.pt", "--epochs", 1, "--repeats", 1)
    start("--epochs", 2, "--repeats", 1, "--resume")
    network = load_model(tmp_path / "out" / "tinybeauty_final.pt")
    assert network.architecture["up_groups"] == up_groups
    assert len(read_rows(tmp_path / "out")) == 2


def test_a_pt_of_others(handful, tmp_path, one_error):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    message = one_error(
        "--data_dir", handful, "--output_dir", tmp_path / "out", *SMALL, "--start_from", tmp_path / "other.pt"
    )
    assert "other.pt is a PyTorch file, but not one of TinyBeauty's" in message
    assert not (tmp_path / "out").exists()
