"""Configuration: flag over YAML over default, and messages a person can act on."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from tinybeauty.errors import Parser, UserError
from tinybeauty.settings import Settings, load_settings, read_settings, read_yaml
from tinybeauty_training import Config, main


def write(folder, text):
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def find_problem(tmp_path, text, flags=None):
    with pytest.raises(UserError) as caught:
        load_settings(Config, flags or {}, write(tmp_path, text))
    return str(caught.value)


def test_config_yaml_lists_every_key_with_its_default():
    values = read_yaml(ROOT / "config.yaml")
    assert list(values) == list(Config.model_fields)
    assert load_settings(Config, {}, ROOT / "config.yaml") == Config()


def test_defaults_are_the_missions():
    config = Config()
    assert (config.epochs, config.batch_size, config.image_size, config.seed) == (50, 32, 256, 42)
    assert (config.learning_rate, config.l1_weight, config.eyeliner_weight) == (2e-4, 1.0, 0.5)
    assert (config.val_fraction, config.sample_every, config.max_model_bytes) == (0.1, 5, 100_000)


def test_every_key_has_a_help_text(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, info in Config.model_fields.items():
        assert f"--{key} " in text
        assert info.description
        assert " ".join(info.description.split()) in text


def test_flag_over_yaml_over_default(tmp_path):
    path = write(tmp_path, "epochs: 7\nbatch_size: 5\n")
    config = load_settings(Config, {"epochs": "9"}, path)
    assert (config.epochs, config.batch_size, config.seed) == (9, 5, 42)


def test_config_cannot_be_changed_later():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "'1e-3'", "1E-3"])
def test_a_number_is_a_number_however_it_is_written(tmp_path, text):
    assert load_settings(Config, {}, write(tmp_path, f"learning_rate: {text}")).learning_rate == 1e-3


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_yaml_means_the_defaults(tmp_path, text):
    assert load_settings(Config, {}, write(tmp_path, text)) == Config()


@pytest.mark.parametrize(("flag", "value"), [("true", True), ("false", False), ("0", False), ("no", False)])
def test_bool_flags(tmp_path, flag, value):
    assert load_settings(Config, {"flip": flag}, write(tmp_path, "")).flip is value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("learning_rte: 1", ("learning_rte", "learning_rate")),
        ("zzz: 1", ("zzz", "unknown")),
        ("1: 2", ("1", "unknown")),
        ("epochs: ten", ("epochs", "integer", "'ten'")),
        ("epochs: 2.5", ("epochs", "2.5")),
        ("epochs: [1, 2]", ("epochs", "integer")),
        ("epochs: null", ("epochs", "None")),
        ("epochs: true", ("epochs", "number", "True")),
        ("l1_weight: false", ("l1_weight", "number", "False")),
        ("epochs: 0", ("epochs", "at least 1", "0")),
        ("batch_size: 0", ("batch_size", "at least 1", "0")),
        ("image_size: 260", ("image_size", "multiple of 8", "260")),
        ("image_size: 8", ("image_size", "at least", "8")),
        ("val_fraction: -0.1", ("val_fraction", "-0.1")),
        ("vary: -1", ("vary", "at least 0", "-1")),
        ("repeats: 0", ("repeats", "at least 1", "0")),
        ("lr_schedule: cosine", ("lr_schedule", "'cosine'")),
        ("val_fraction: 1", ("val_fraction", "1")),
        ("learning_rate: 0", ("learning_rate", "0")),
        ("learning_rate: .nan", ("learning_rate", "nan")),
        ("l1_weight: .inf", ("l1_weight", "inf")),
        ("eyeliner_weight: -1", ("eyeliner_weight", "at least 0", "-1")),
        ("lr_factor: 1", ("lr_factor", "1")),
        ("lr_patience: -1", ("lr_patience", "at least 0", "-1")),
        ("sample_every: 0", ("sample_every", "at least 1", "0")),
        ("seed: -1", ("seed", "at least 0", "-1")),
        ("flip: perhaps", ("flip", "'perhaps'")),
        ("device: gpu", ("device", "cuda", "'gpu'")),
        ("precision: half", ("precision", "bfloat16", "'half'")),
        ("wandb_mode: maybe", ("wandb_mode", "offline", "'maybe'")),
        ("data_dir: 5", ("data_dir", "string", "5")),
        ("data_dir:", ("data_dir", "string")),
        ("person_pattern: '(.+'", ("person_pattern", "'(.+'", "regular expression")),
        ("person_pattern: '.+'", ("person_pattern", "'.+'", "group")),
    ],
)
def test_a_wrong_value_is_named_with_what_was_found(tmp_path, text, told):
    message = find_problem(tmp_path, text)
    assert len(message.splitlines()) == 2  # the headline and the one problem
    for word in told:
        assert word in message


def test_all_problems_are_in_one_message(tmp_path):
    text = "learning_rte: 1\nepochs: 0\nbatch_size: many\nimage_size: 250\ndevice: gpu\n"
    message = find_problem(tmp_path, text, {"seed": "x"})
    for key in ("learning_rte", "learning_rate", "epochs", "batch_size", "image_size", "device", "seed"):
        assert key in message
    assert len(message.splitlines()) == 7


@pytest.mark.parametrize("text", ["epochs: [1", "epochs: 1\n  bad: 2", "a: b: c", "\tepochs: 1"])
def test_broken_yaml(tmp_path, text):
    message = find_problem(tmp_path, text)
    assert "my.yaml" in message
    assert "YAML" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "value",
    ["2023-02-30", "0x_", "!!int abc", "!!bool maybe", "!!timestamp foo", "9" * 5000, "[" * 5000],
    ids=lambda value: value[:12],
)
def test_what_pyyaml_itself_trips_over_is_one_line(tmp_path, value):
    message = find_problem(tmp_path, f"seed: {value}")
    assert "my.yaml is not valid YAML" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["- epochs", "epochs", "5"])
def test_yaml_that_holds_no_keys(tmp_path, text):
    message = find_problem(tmp_path, text)
    assert "my.yaml" in message
    assert "key: value" in message


@pytest.mark.parametrize("key", ["batch_size", "repeats", "epochs"])
def test_numbers_that_no_machine_can_do_are_refused(tmp_path, key):
    assert f"{key}: must be at most" in find_problem(tmp_path, f"{key}: 99999999999")


def test_unreadable_yaml(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"data_dir: caf\xe9")
    for path in (tmp_path / "nothing.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(UserError, match="cannot read"):
            load_settings(Config, {}, path)


def test_errors_reach_the_command_line(one_error, tmp_path):
    message = one_error("--config", write(tmp_path, "learning_rte: 1"), "--epochs", "none")
    assert "did you mean learning_rate?" in message
    assert "epochs" in message
    assert "nothing.yaml" in one_error("--config", tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--learning_rte", "1"], ("--learning_rte", "did you mean --learning_rate?")),
        (["--learning-rate", "1"], ("--learning-rate", "did you mean --learning_rate?")),
        (["--epoch=3"], ("--epoch", "did you mean --epochs?")),
        (["--zzz"], ("--zzz", "--help")),
        (["stray"], ("stray",)),
        (["--epochs"], ("--epochs", "--help")),
        (["--epoch=3", "--bach_size", "4"], ("--epochs", "--batch_size")),
    ],
)
def test_unknown_flags(one_error, argv, told):
    message = one_error(*argv)
    for word in told:
        assert word in message


def test_settings_written_by_a_run_are_the_settings_used(trained):
    saved = read_yaml(trained.output_dir / "config.yaml")
    assert saved == Config(**trained.settings).model_dump()
    assert load_settings(Config, {}, trained.output_dir / "config.yaml") == Config(**trained.settings)
    assert yaml.safe_load((trained.output_dir / "config.yaml").read_text())["epochs"] == 5


def test_a_key_that_stands_twice_is_named(tmp_path, one_error):
    (tmp_path / "my.yaml").write_text("epochs: 3\nseed: 1\nepochs: 4\n", encoding="utf-8")
    message = one_error("--config", tmp_path / "my.yaml")
    assert "the key epochs appears twice" in message


class Wall(Settings):
    """Settings of some other command."""

    colour: str = Field("white", description="of the paint")
    coats: int = Field(2, ge=1, description="of it, 100% opaque")
    dry: bool = Field(False, description="wait for it")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Wall(colour="red")),
        (["--coats", "3", "--dry"], Wall(colour="red", coats=3, dry=True)),
        (["--colour=blue", "--dry", "no", "--twice"], Wall(colour="blue")),
        (["--config", "other.yaml"], Wall(coats=5)),
    ],
)
def test_any_commands_settings_are_read_the_same_way(tmp_path, monkeypatch, argv, expected):
    monkeypatch.chdir(tmp_path)
    Path("wall.yaml").write_text("colour: red\n", encoding="utf-8")
    Path("other.yaml").write_text("coats: 5\n", encoding="utf-8")
    parser = Parser()
    parser.add_argument("--twice", action="store_true")
    wall, flags = read_settings(parser, Wall, argv, default=Path("wall.yaml"))
    assert wall == expected
    assert flags.twice == ("--twice" in argv)
    assert "100% opaque (default: 2)" in parser.format_help()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
)
KEYS = st.one_of(
    st.sampled_from(sorted(Config.model_fields)), st.text(string.ascii_letters + "_", min_size=1, max_size=12)
)


@settings(max_examples=300, deadline=None)
@given(values=st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_settings_give_a_config_or_an_error_that_names_each_key(tmp_path_factory, values):
    empty = tmp_path_factory.getbasetemp() / "empty.yaml"
    empty.touch()
    try:
        config = load_settings(Config, values, empty)
    except UserError as error:
        message = str(error)
        assert message.startswith("bad configuration:\n")
        named = {line.strip().partition(":")[0] for line in message.splitlines()[1:]}
        assert named <= set(values)
        return
    for key in values:
        assert key in Config.model_fields
    assert load_settings(Config, config.model_dump(), empty) == config
