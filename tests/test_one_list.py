"""All that is wrong is said at once: nobody mends one thing to be told of the next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import SMALL
from PIL import Image

from tinybeauty.errors import UserError
from tinybeauty.pairs import find_pairs, split_pairs


@pytest.fixture
def faces(demo, tmp_path) -> Path:
    """A copy of 24 drawn pairs, to be spoiled."""
    shutil.copytree(demo, tmp_path / "faces", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "faces"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_truncated(faces: Path) -> str:
    cut(faces / "source" / "face_0001.png")
    return "source/face_0001.png ("


def spoil_text(faces: Path) -> str:
    (faces / "target" / "face_0002.png").write_text("I am a text")
    return "target/face_0002.png (cannot identify image file"


def spoil_mask(faces: Path) -> str:
    (faces / "eye_mask" / "face_0003.png").write_bytes(b"")
    return "eye_mask/face_0003.png ("


def spoil_missing_target(faces: Path) -> str:
    (faces / "target" / "face_0004.png").unlink()
    return "images in source: face_0004"


def spoil_missing_source(faces: Path) -> str:
    (faces / "source" / "face_0005.png").unlink()
    return "images in target: face_0005"


def spoil_alone_and_broken(faces: Path) -> str:
    """A file whose partner is missing is tried as well."""
    (faces / "target" / "face_0006.png").unlink()
    cut(faces / "source" / "face_0006.png")
    return "source/face_0006.png ("


def spoil_twin(faces: Path) -> str:
    Image.new("RGB", (64, 64)).save(faces / "source" / "face_0007.jpg")
    return "has two images of one name: face_0007.jpg and face_0007.png"


def spoil_mask_twin(faces: Path) -> str:
    Image.new("L", (64, 64)).save(faces / "eye_mask" / "face_0008.bmp")
    return "eye_mask has two images of one name: face_0008.bmp and face_0008.png"


def spoil_stem(faces: Path) -> str:
    for kind in ("source", "target", "eye_mask"):
        (faces / kind / "face_0009.png").rename(faces / kind / "nobody.png")
    return "person_pattern 'face_(.+)' does not match 1 of the 24 file stems: nobody"


EVERYTHING = [
    spoil_truncated, spoil_text, spoil_mask, spoil_missing_target, spoil_missing_source,
    spoil_alone_and_broken, spoil_twin, spoil_mask_twin, spoil_stem,
]  # fmt: skip
SETS = {
    "the example": [spoil_truncated, spoil_text, spoil_missing_target],
    "both sides": [spoil_missing_source, spoil_missing_target, spoil_mask],
    "twins": [spoil_twin, spoil_mask_twin, spoil_truncated],
    "names": [spoil_stem, spoil_twin, spoil_text],
    "alone": [spoil_alone_and_broken],
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("cache_dir", ["auto", ""])
@pytest.mark.parametrize("name", SETS)
def test_all_that_is_wrong_with_pairs_is_in_one_message(faces, tmp_path, one_error, name, cache_dir):
    told = [spoil(faces) for spoil in SETS[name]]
    if name == "everything":
        told += ["target lacks 2 of the 23 images in source: face_0004, face_0006", "things are wrong"]
    flags = ["--data_dir", faces, "--output_dir", tmp_path / "out", "--cache_dir", cache_dir, *SMALL]
    message = one_error(*flags, "--person_pattern", "face_(.+)")
    for part in told:
        assert part in message
    assert not list((tmp_path / "out").glob("*.pt"))


def test_one_thing_alone_has_its_own_message(faces, tmp_path, one_error):
    spoil_missing_target(faces)
    message = one_error("--data_dir", faces, "--output_dir", tmp_path / "out", *SMALL)
    assert message.startswith(
        f"{faces / 'target'} lacks 1 of the 24 images in source: face_0004\n  add the missing"
    )


def test_what_is_mended_in_one_go_trains(faces, demo, tmp_path, one_error, call_main):
    for spoil in SETS["the example"]:
        spoil(faces)
    flags = ["--data_dir", faces, "--output_dir", tmp_path / "out", "--epochs", 1, *SMALL]
    one_error(*flags)
    for kind, name in (("source", "face_0001.png"), ("target", "face_0002.png"), ("target", "face_0004.png")):
        shutil.copy(demo / kind / name, faces / kind / name)
    code, stdout, stderr = call_main(*flags)
    assert code == 0, stderr
    assert "24 pairs in" in stdout


def test_pictures_that_are_left_out_on_request_do_not_hide_a_missing_partner(faces, tmp_path, one_error):
    spoil_truncated(faces)
    spoil_missing_target(faces)
    flags = ["--data_dir", faces, "--output_dir", tmp_path / "out", *SMALL]
    message = one_error(*flags, "--skip_bad_pairs")
    assert "face_0004" in message
    assert "face_0001" not in message


def test_both_missing_folders_are_named(tmp_path):
    (tmp_path / "faces" / "eye_mask").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        find_pairs(tmp_path / "faces")
    for name in ("source", "target"):
        assert str(tmp_path / "faces" / name) in str(caught.value)


def test_all_stems_that_the_pattern_does_not_match_are_counted(faces):
    with pytest.raises(UserError, match=r"does not match 24 of the 24 file stems: face_0000, .* and 19 more"):
        split_pairs(find_pairs(faces), 0.2, "(anna)")


# --- The command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--learning_rate", "-1e-3", "learning_rate: must be greater than 0, got '-1e-3'"),
        ("--learning_rate", "-1E-3", "learning_rate: must be greater than 0"),
        ("--learning_rate", "-.5e1", "learning_rate: must be greater than 0"),
        ("--l1_weight", "-1", "l1_weight: must be at least 0, got '-1'"),
        ("--l1_weight", "-inf", "l1_weight: must be"),
        ("--psnr_weight", "-nan", "psnr_weight: must be"),
        ("--epochs", "-1e2", "epochs: must be"),
        ("--seed", "-0x1", "seed: must be"),
        ("--flip", "-1", "flip: must be"),
        ("--device", "-cuda", "device: must be"),
    ],
)
def test_a_negative_value_is_a_value_out_of_range(one_error, flag, value, told):
    message = one_error(flag, value)
    assert message.startswith("bad configuration:")
    assert told in message
    assert one_error(f"{flag}={value}") == message


def test_a_folder_may_begin_with_a_dash(one_error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no folder -pairs" in one_error("--data_dir", "-pairs", "--output_dir", "-out")


def test_what_follows_a_setting_with_two_dashes_is_a_flag(one_error):
    assert "--epochs: expected one argument" in one_error("--epochs", "--seed", "3")


def test_unknown_flags_and_bad_values_are_in_one_message(one_error, tmp_path):
    (tmp_path / "my.yaml").write_text("epochs: 0\nbach_size: 3\n")
    message = one_error("--config", tmp_path / "my.yaml", "--learning_rte", "1", "--l1_weight", "-2")
    for told in (
        "--learning_rte (did you mean --learning_rate?)",
        "epochs: must be at least 1",
        "bach_size: unknown key, did you mean batch_size?",
        "l1_weight: must be at least 0, got '-2'",
    ):
        assert told in message
