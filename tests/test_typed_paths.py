"""Paths and names as people type them, and the files of theirs that stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import SCRIPT, SMALL

from tinybeauty.errors import list_some, readable
from tinybeauty.files import tidy_path
from tinybeauty.images import list_images
from tinybeauty.pairs import find_pairs, lacks_demo
from tinybeauty.runs import find_outputs
from tinybeauty.settings import read_yaml
from tinybeauty_training import Config, load_data


def copy_pairs(demo, folder, rename=lambda stem: stem, count=4) -> Path:
    """Copy some pairs under other names."""
    for kind in ("source", "target"):
        (folder / kind).mkdir(parents=True)
        for path in sorted((demo / kind).iterdir())[:count]:
            shutil.copy(path, folder / kind / f"{rename(path.stem)}.png")
    return folder


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~/x", "HOME/x"),
        ("~", "HOME"),
        ("$PLACE/x", "/scratch/x"),
        ("${PLACE}x/", "/scratchx"),
        ("data/demo/", "data/demo"),
        ("./data//demo/", "data/demo"),
        (Path("data") / "demo", "data/demo"),
        (b"caf\xe9", "caf\udce9"),
        ("caf\udce9", "caf\udce9"),
        ("Γεια/x", "Γεια/x"),
        ("a$b~c", "a$b~c"),
        ("for$PLACE", "for$PLACE"),
        ("C:\\faces", "C:\\faces"),
    ],
)
def test_every_path_setting_is_what_was_meant(typed, meant, monkeypatch, tmp_path):
    monkeypatch.setenv("PLACE", "/scratch")
    monkeypatch.chdir(tmp_path)
    for name in ("a$b~c", "for$PLACE"):  # folders that are called so
        Path(name).mkdir()
    meant = meant.replace("HOME", os.environ["HOME"])
    config = Config(data_dir=typed, output_dir=typed, cache_dir=typed)
    assert (config.data_dir, config.output_dir, config.cache_dir) == (meant, meant, meant)
    assert isinstance(config.data_dir, str)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("$NOT_SET/x", "environment has no $NOT_SET"),
        ("~nobody_of_this_name/x", "no user's home"),
        ("s3://bucket/faces", "path of this machine"),
        ("file:///home/me/faces", "path of this machine"),
        ("a\0b", "must be a path"),
        (5, "must be a string, got 5"),
        (None, "must be a string"),
    ],
)
def test_what_cannot_be_a_path_is_said(typed, told):
    for key in ("data_dir", "output_dir", "cache_dir"):
        with pytest.raises(ValueError, match=key) as caught:
            Config(**{key: typed})
        assert told in str(caught.value)


def test_no_folder_is_said_where_one_is_needed():
    assert Config(cache_dir="").cache_dir == ""
    for key in ("data_dir", "output_dir"):
        with pytest.raises(ValueError, match="must be a folder"):
            Config(**{key: ""})


def test_a_home_in_the_yaml_file_and_its_flag(demo, tmp_path, monkeypatch, one_error):
    """`--config=~/my.yaml` reaches us with its tilde."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("data_dir: ~/nowhere\noutput_dir: ~/out\n", encoding="utf-8")
    assert f"there is no folder {tmp_path / 'nowhere'}" in one_error("--config=~/my.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"my.yaml"}  # and no folder ~

    message = one_error("--config", "my.yaml", "--output_dir=~/my.yaml")
    assert f"cannot write to the output folder {tmp_path / 'my.yaml'}" in message


def test_a_home_for_the_tools(tmp_path, monkeypatch):
    from make_demo import parse_flags as demo_flags
    from prepare_pairs import parse_flags

    from tinybeauty_apply import find_look
    from tinybeauty_apply import parse_flags as apply_flags

    monkeypatch.setenv("HOME", str(tmp_path))
    flags = parse_flags(["~/photos", "--out=~/pairs", "--looks=~/looks.yaml"])
    assert (flags.photos, flags.out, flags.looks) == tuple(
        tmp_path / name for name in ("photos", "pairs", "looks.yaml")
    )
    assert demo_flags(["--out=~/demo"]).out == tmp_path / "demo"
    flags = apply_flags(["~/a.jpg", "--look=~/my.pt", "--out=~/made_up"])
    assert (flags.inputs, flags.out) == ([tmp_path / "a.jpg"], tmp_path / "made_up")
    assert find_look(flags.look) == tmp_path / "my.pt"


@pytest.mark.parametrize(
    "typed", ["data/demo", "data/demo/", "./data/demo", "data/../data/demo", "{cwd}/data/demo"]
)
def test_the_demo_is_the_demo_however_it_is_typed(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(Config(data_dir=typed.format(cwd=tmp_path)).data_dir)
    assert lacks_demo(folder, (Path("data/demo"),))
    assert not lacks_demo(Path("data/mine"), (Path("data/demo"),))
    folder.mkdir(parents=True)
    assert lacks_demo(folder, (Path("data/demo"),))  # made by hand, and empty
    (folder / "source").mkdir()
    assert not lacks_demo(folder, (Path("data/demo"),))


@pytest.mark.parametrize("kind", ["source", "target/run", ".cache"])
def test_a_run_does_not_write_among_the_pictures(demo, tmp_path, one_error, kind):
    pairs = copy_pairs(demo, tmp_path / "pairs")
    before = sorted(pairs.rglob("*"))
    message = one_error("--data_dir", pairs, "--output_dir", pairs / kind, *SMALL)
    assert "where data_dir has its pictures" in message
    assert sorted(pairs.rglob("*")) == before


# --- files of a person ------------------------------------------------------------------------------


def test_a_persons_own_files_stay_and_are_no_run(demo, tmp_path, call_main):
    out = tmp_path / "out"
    out.mkdir()
    own = {
        "config.yaml": "# my notes\nepochs: 1\n",
        "tinybeauty_evening.pt": "a look",
        "samples_epoch_a.png": "x",
    }
    for name, text in own.items():
        (out / name).write_text(text, encoding="utf-8")
    argv = [
        "--data_dir",
        demo,
        "--output_dir",
        out,
        "--config",
        out / "config.yaml",
        *SMALL,
        "--image_size",
        16,
    ]
    code, stdout, stderr = call_main(*argv)  # no run is there
    assert code == 0, stderr
    assert "config.yaml is your own and stays" in stdout
    assert read_yaml(out / "config_used.yaml")["image_size"] == 16
    assert call_main(*argv)[0] == 1  # now one is
    code, _, stderr = call_main(*argv, "--overwrite", "--seed", 3)
    assert code == 0, stderr
    assert read_yaml(out / "config_used.yaml")["seed"] == 3
    assert {name: (out / name).read_text(encoding="utf-8") for name in own} == own


def test_settings_of_ours_that_a_person_edited_are_theirs(tmp_path):
    from tinybeauty.runs import OutputDir

    OutputDir(tmp_path).save_settings({"epochs": 3, "data_dir": "caf\udce9"})
    assert read_yaml(tmp_path / "config.yaml") == {"epochs": 3, "data_dir": "caf\udce9"}
    assert find_outputs(tmp_path) == [tmp_path / "config.yaml"]
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8") + "# best so far\n"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert find_outputs(tmp_path) == []
    OutputDir(tmp_path).save_settings({"epochs": 4})
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == text
    assert read_yaml(tmp_path / "config_used.yaml") == {"epochs": 4}


# --- names ------------------------------------------------------------------------------------------


def test_composed_and_decomposed_names_pair_up(demo, tmp_path):
    pairs = copy_pairs(demo, tmp_path / "pairs")
    (pairs / "source" / "face_0001.png").rename(
        pairs / "source" / f"{unicodedata.normalize('NFC', 'zoé')}.png"
    )
    (pairs / "target" / "face_0001.png").rename(
        pairs / "target" / f"{unicodedata.normalize('NFD', 'zoé')}.png"
    )
    assert unicodedata.normalize("NFC", "zoé") in [pair.stem for pair in find_pairs(pairs)]


def test_one_name_written_in_two_ways_is_said(demo, tmp_path):
    pairs = copy_pairs(demo, tmp_path / "pairs")
    for form in ("NFC", "NFD"):
        shutil.copy(
            pairs / "source" / "face_0001.png", pairs / "source" / f"{unicodedata.normalize(form, 'é')}.png"
        )
    with pytest.raises(Exception, match="two images of one name"):
        list_images(pairs / "source")


@pytest.mark.skipif(sys.platform == "darwin", reason="names are Unicode there")
@pytest.mark.parametrize("name", ["caf\udce9", "a\nb", "tab\there"])
def test_a_name_that_cannot_be_printed_trains(demo, tmp_path, name, capsys):
    pairs = copy_pairs(demo, tmp_path / "pairs", lambda stem: f"{name}{stem}")
    config = Config(data_dir=pairs, image_size=16, val_fraction=0.3)
    sets = load_data(config)  # found, split, decoded and written into the cache's index
    again = load_data(config)
    assert sets[0].checksums == again[0].checksums
    assert len(sets[0]) + len(sets[1]) == 4
    stems = [*sets[0].stems, *sets[1].stems]
    assert all(stem.isprintable() for stem in stems)
    assert "\n" not in list_some([name])
    assert readable(name).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_folders_that_the_terminal_cannot_show(demo, tmp_path):
    """A Greek output folder and a data folder in Latin-1, both printed, where stdout knows neither."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    shutil.copytree(os.fsencode(demo), folder)
    argv = [b"--data_dir", folder, b"--output_dir", "Γεια".encode(), *map(os.fsencode, SMALL)]
    run = subprocess.run(
        [sys.executable, SCRIPT, *argv, "--image_size", "16", "--epochs", "1"],
        cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr
    assert b"\\u0393" in run.stdout
    assert (tmp_path / "Γεια" / "tinybeauty_final.pt").exists()
    assert read_yaml(tmp_path / "Γεια" / "config.yaml")["data_dir"] == os.fsdecode(folder)


def test_a_path_goes_through_unchanged_where_nothing_is_to_be_done():
    assert tidy_path("runs/plum") == "runs/plum"
    assert tidy_path("auto") == "auto"
