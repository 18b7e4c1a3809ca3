"""The command that turns photos into pairs: files, what goes on where it was stopped, errors.

Some look for the face in a real photo, with the models that are fetched once.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, read_files
from drawn_faces import MEAN, SKINS, draw_face, place, save_photo
from PIL import Image, ImageFilter

sys.path.insert(0, str(ROOT / "data"))

from prepare_pairs import find_taken

from tinybeauty.files import lock_folder
from tinybeauty.landmarks import UPPER_LID
from tinybeauty.pairs import find_pairs

TOOL = ROOT / "data" / "prepare_pairs.py"
LOOKS = ROOT / "data" / "looks.yaml"
KINDS = ("source", "target", "eye_mask")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Five photos: two aligned already, three whole ones of several sizes, tilts and skins."""
    folder = tmp_path_factory.mktemp("photos")
    save_photo(folder, "aligned.png", draw_face(MEAN, (256, 256)), MEAN)
    save_photo(folder, "dark.jpg", draw_face(MEAN, (256, 256), SKINS["dark"]), MEAN)
    for name, size, side, centre, degrees in (
        ("tilted.jpg", (700, 600), 380, (330, 300), 20),
        ("corner.png", (500, 420), 400, (280, 170), -8),
        ("large.jpg", (1500, 1300), 1100, (760, 640), 3),
    ):
        points = place(MEAN, side, centre, degrees)
        save_photo(folder, name, draw_face(points, size, SKINS["brown"], seed=side), points)
    (folder / "notes.txt").write_text("not a photo")
    return folder


def run_tool(*flags: object, python: str = sys.executable, **more) -> subprocess.CompletedProcess:
    command = [python, str(TOOL), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, **more)


def make(photos: Path, out: Path, *flags: object) -> str:
    """Run the real command; return its last line."""
    run = run_tool(photos, "--out", out, "--size", 128, "--workers", 2, *flags)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def one_error(*flags: object) -> str:
    """Run a command that must fail in a friendly way; return its message."""
    run = run_tool(*flags)
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("error: ")
    return run.stderr.removeprefix("error: ").strip()


def read_skipped(out: Path) -> dict[str, str]:
    with (out / "skipped.csv").open(newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def made(photos, tmp_path_factory) -> Path:
    """The pairs of the five photos."""
    out = tmp_path_factory.mktemp("made") / "pairs"
    assert re.fullmatch(
        rf"5 pairs of 128 px \(evening\) in {re.escape(str(out))}, with preview.png and skipped.csv "
        r"\(\d+ s, [\d.]+ photos/s\)",
        make(photos, out, "--look", "evening"),
    )
    return out


# ======================================================================================================
# Files
# ======================================================================================================


def test_the_layout_is_what_the_training_reads(made):
    names = ["aligned", "corner", "dark", "large", "tilted"]
    assert [pair.stem for pair in find_pairs(made)] == names
    assert all(pair.eye_mask for pair in find_pairs(made))
    for kind, mode in zip(KINDS, ("RGB", "RGB", "L"), strict=True):
        for name in names:
            with Image.open(made / kind / f"{name}.png") as image:
                assert (image.size, image.mode) == ((128, 128), mode)
    assert (made / "skipped.csv").read_text() == "file,reason\n"
    with Image.open(made / "preview.png") as sheet:
        assert sheet.size == (3 * 448 + 16, 2 * 224 + 8)
    assert {path.name for path in made.glob("[!.]*")} == {*KINDS, "skipped.csv", "preview.png"}


def test_the_same_command_makes_the_same_bytes_with_any_number_of_workers(photos, made, tmp_path):
    make(photos, tmp_path / "again", "--workers", 1)
    assert read_files(tmp_path / "again") == read_files(made)


def test_a_second_call_makes_only_what_changed(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    make(mine, out)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*/*.png")}
    assert "5 of them were there" in make(mine, out)

    def find_changed() -> set[str]:
        changed = {path.stem for path in out.rglob("*/*.png") if path.stat().st_mtime_ns != first.get(path)}
        first.update({path: path.stat().st_mtime_ns for path in out.rglob("*/*.png")})
        return changed

    assert not find_changed()
    save_photo(mine, "dark.jpg", draw_face(MEAN, (256, 256), SKINS["brown"]), MEAN)
    make(mine, out)
    assert find_changed() == {"dark"}
    save_photo(mine, "aligned.png", draw_face(MEAN, (256, 256)), MEAN + 1.0)  # other landmarks
    make(mine, out)
    assert find_changed() == {"aligned"}
    (out / "eye_mask" / "large.png").unlink()
    make(mine, out)
    assert find_changed() == {"large"}
    make(mine, tmp_path / "other", "--size", 64)  # as if stopped at another size, before the target
    shutil.copy(tmp_path / "other" / "source" / "dark.png", out / "source" / "dark.png")
    find_changed()
    make(mine, out)
    assert find_changed() == {"dark"}
    for flags in (["--look", "bold"], ["--size", 64]):
        make(mine, out, *flags)
        assert find_changed() == {"aligned", "corner", "dark", "large", "tilted"}


def test_pairs_of_photos_that_are_gone_are_named(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    make(mine, out)
    (mine / "dark.jpg").unlink()
    run = run_tool(mine, "--out", out, "--size", 128)
    assert run.returncode == 0
    assert "note: 1 pairs" in run.stderr
    assert "dark" in run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_stops_it_and_the_same_command_goes_on(tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    for number in range(100):
        save_photo(mine, f"face_{number:03d}.png", draw_face(MEAN, (256, 256), seed=number), MEAN)
    command = [sys.executable, str(TOOL), str(mine), "--out", str(out), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("target/*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "stopped; what is finished stays, the same command goes on"
    assert "Traceback" not in stderr
    assert len(list(out.glob("target/*.png"))) < 100
    assert "of them were there" in make(mine, out, "--size", 512)


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_kill_leaves_nothing_half_written(tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    for number in range(24):
        save_photo(mine, f"face_{number:02d}.png", draw_face(MEAN, (256, 256), seed=number), MEAN)
    command = [sys.executable, str(TOOL), str(mine), "--out", str(out), "--size", "512", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while len(list(out.glob("target/*.png"))) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    killed = {path.stem for path in (out / "target").glob("[!.]*.png")}
    assert 3 <= len(killed) < 24
    for path in out.rglob("[!.]*.png"):
        Image.open(path).load()  # whole
    for name in killed:
        assert all((out / kind / f"{name}.png").is_file() for kind in KINDS)
    (out / "source" / ".face_23.png.partial").write_bytes(b"half")
    told = make(mine, out, "--size", 512)
    assert f"{len(killed)} of them were there" in told
    assert len(find_pairs(out)) == 24
    assert not list(out.rglob("*.partial"))


def test_a_pair_that_a_power_failure_left_empty_is_made_anew(photos, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    (out / "source" / "dark.png").write_bytes(b"")
    (out / "preview.png").write_bytes(b"")
    make(photos, out)
    (out / "target" / "Thumbs.db").write_bytes(b"Windows', after a look at the pairs")
    assert "5 of them were there" in make(photos, out)
    (out / "target" / "Thumbs.db").unlink()
    assert read_files(out) == read_files(made)


def test_two_runs_at_once(photos, tmp_path):
    (tmp_path / "out").mkdir()
    partial = tmp_path / "out" / "source" / ".dark.png.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"what the other run is writing")
    with lock_folder(tmp_path / "out"):
        told = one_error(photos, "--out", tmp_path / "out")
    assert told == f"another run is writing into {tmp_path / 'out'}; wait, or choose another folder"
    assert partial.is_file()


def test_odd_exif_is_no_news(tmp_path):
    save_photo(tmp_path / "photos", "a.png", draw_face(MEAN, (256, 256)), MEAN)
    with Image.open(tmp_path / "photos" / "a.png") as image:
        image.save(tmp_path / "photos" / "a.jpg", exif=b"Exif\0\0MM\0*garbage", quality=95)
    (tmp_path / "photos" / "a.png").unlink()
    run = run_tool(tmp_path / "photos", "--out", tmp_path / "out", "--size", 64)
    assert (run.returncode, run.stdout[:7], run.stderr) == (0, "1 pairs", "")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_names_that_are_no_text_or_too_long(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    for name in (os.fsdecode(b"caf\xe9"), "n" * 250):
        for suffix in (".png", ".json"):
            shutil.copy(mine / f"aligned{suffix}", mine / f"{name}{suffix}")
    (mine / os.fsdecode(b"broken\xe9.png")).write_bytes(b"broken")
    shutil.copy(mine / "aligned.json", mine / os.fsdecode(b"broken\xe9.json"))
    assert make(mine, out, "--variants", 2).startswith("12 pairs")
    (out / "source" / "._dark.png").write_bytes(b"a Mac's, on a USB stick")
    run = run_tool(mine, "--out", out, "--size", 128, "--variants", 2)
    assert (run.returncode, "note" in run.stderr) == (0, False)
    reasons = read_skipped(out)
    assert reasons.pop("broken\\xe9.png").startswith("cannot be read: ")
    assert reasons.pop("n" * 250 + ".png").startswith("its name is too long for those of its pairs")
    assert not reasons
    assert len(find_pairs(out)) == 12


def test_many_photos_are_listed_in_no_time():
    stems = [f"IMG_{number:05d}" for number in range(20_000)]
    started = time.process_time()
    taken = find_taken([*stems, "IMG_00007_2", "IMG_00007_12", "IMG_00007_b", "anna_\u0662"])
    assert taken["IMG_00007"] == {"IMG_00007_2", "IMG_00007_12"}
    assert taken["anna"] == {"anna_\u0662"}
    assert taken["IMG"] == set(stems)
    assert time.process_time() - started < 1


def test_an_aligned_picture_is_taken_as_it_is(photos, made, tmp_path):
    make(photos, tmp_path / "out", "--size", 256)
    with (
        Image.open(tmp_path / "out/source/aligned.png") as source,
        Image.open(photos / "aligned.png") as photo,
    ):
        assert source.tobytes() == photo.tobytes()


def test_it_starts_without_what_only_the_training_needs():
    code = (
        "import sys; sys.path.insert(0, 'data'); import prepare_pairs;"
        "print(*{'torch', 'torchvision', 'pydantic', 'wandb', 'mediapipe', 'yaml'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "", "")
    run = run_tool("--help")
    assert run.returncode == 0
    assert run.stdout.startswith("usage: prepare_pairs.py")


# ======================================================================================================
# Masks only
# ======================================================================================================


def test_masks_are_added_where_there_are_none(tmp_path):
    data = tmp_path / "pairs"
    for name, side in (("a", 256), ("b", 200)):
        points = place(MEAN, side, (140, 130))
        photo = draw_face(points, (280, 260))
        save_photo(data / "source", f"{name}.png", photo, points)
        save_photo(data / "target", f"{name}.png", photo)
    (data / "source" / "c.png").write_bytes(b"broken")
    (data / "source" / "c.json").write_text("{}")
    save_photo(data / "source", "d.png", photo, place(MEAN, 14, (140, 130)))
    save_photo(data / "eye_mask", "a.png", Image.new("L", (9, 9), 7))
    before = read_files(data)
    run = run_tool("--masks-only", data)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"1 eye masks added to {data / 'eye_mask'}; left out: ")
    assert read_skipped(data)["d.png"].startswith("cut off or too small")
    after = read_files(data)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) - {".lock"} == {"eye_mask/b.png", "skipped.csv"}
    with Image.open(data / "eye_mask" / "b.png") as mask:
        assert (mask.size, mask.mode) == ((280, 260), "L")
        left, right = (place(MEAN, 200, (140, 130))[list(lid)].mean(0) for lid in UPPER_LID)
        assert mask.getpixel(tuple(left.astype(int).tolist())) == 255
        assert mask.getpixel(tuple(right.astype(int).tolist())) == 255
    for name in ("c.png", "d.png"):
        (data / "source" / name).unlink()
    save_photo(data / "source", "e\u0301.png", photo)  # as a Mac writes it
    save_photo(data / "eye_mask", "\u00e9.png", Image.new("L", (9, 9), 7))
    run = run_tool("--masks-only", data)
    assert run.stdout == f"all 3 pairs in {data} have their eye masks already\n"


# ======================================================================================================
# What goes wrong
# ======================================================================================================


def test_photos_that_give_no_pair_are_listed_with_the_reason(photos, tmp_path):
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    sharp = draw_face(MEAN, (256, 256))
    save_photo(mine, "blurred.png", sharp.filter(ImageFilter.GaussianBlur(6)), MEAN)
    small = place(MEAN, 80, (100, 100))
    save_photo(mine, "small.png", draw_face(small, (200, 200)), small)
    outside = place(MEAN, 300, (60, 150))
    save_photo(mine, "cut.png", draw_face(outside, (300, 300)), outside)
    turned = MEAN.copy()
    turned[1] += (60, 0)
    save_photo(mine, "turned.png", sharp, turned)
    (mine / "broken.jpg").write_bytes((mine / "dark.jpg").read_bytes()[:700])
    (mine / "broken.json").write_text((mine / "dark.json").read_text())
    (mine / "empty.png").write_bytes(b"")
    (mine / "empty.json").write_text("{}")
    save_photo(mine, "few.png", sharp, MEAN[:400])
    save_photo(mine, "swapped.png", sharp, MEAN[:, ::-1])
    save_photo(mine, "mirrored.png", sharp, MEAN * (-1, 1) + (256, 0))
    save_photo(mine, "fractions.png", sharp, MEAN / 256)
    for name, text in (("deep", "[" * 100_000), ("bare", "[[1, 2]]")):
        save_photo(mine, f"{name}.png", sharp)
        (mine / f"{name}.json").write_text(text)
    save_photo(mine, "words.png", sharp)
    (mine / "words.json").write_text("no json")
    told = make(mine, out)
    reasons = read_skipped(out)
    for name, start in {
        "blurred.png": "blurred: sharpness 0.0",
        "small.png": "too small: the face's square has 8",
        "cut.png": "cut off: ",
        "turned.png": "turned away: ",
        "broken.jpg": "cannot be read: ",
        "empty.png": "cannot be read: ",
        "few.png": "the landmarks beside it must be 478 points [x, y], found shape (400, 2)",
        "words.png": "the landmarks beside it cannot be read: ",
        "swapped.png": "the landmarks beside it are those of a mirrored face",
        "mirrored.png": "the landmarks beside it are those of a mirrored face",
        "fractions.png": "the landmarks beside it are fractions",
        "deep.png": "the landmarks beside it cannot be read: ",
        "bare.png": 'the landmarks beside it cannot be read: there must be {"landmarks"',
    }.items():
        assert reasons.pop(name).startswith(start), name
    assert not reasons
    assert told.startswith("5 pairs of 128 px")
    assert "left out: " in told
    assert "2 cannot be read" in told
    assert len(find_pairs(out)) == 5


def test_all_photos_left_out_is_an_error(tmp_path):
    save_photo(tmp_path / "photos", "a.png", Image.new("RGB", (300, 300)), MEAN * 300 / 256)
    told = one_error(tmp_path / "photos", "--out", tmp_path / "out")
    assert told == f"none of the 1 photos gave a pair: 1 blurred; see {tmp_path / 'out' / 'skipped.csv'}"


def test_photos_without_landmarks_need_the_face_models(photos, tmp_path):
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    (mine / "dark.json").unlink()
    (tmp_path / "models").mkdir()
    told = one_error(mine, "--out", tmp_path / "out", "--face_models", tmp_path / "models")
    assert told.startswith(f"--face_models {tmp_path / 'models'} lacks, or holds damaged: ")
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_pictures_of_kinds_that_are_not_read_are_named(photos, tmp_path):
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    for name in ("b.heic", "a.TIFF", ".hidden.heic", "notes.txt"):
        (mine / name).write_bytes(b"II*\0")
    run = run_tool(mine, "--look", "evening", "--out", tmp_path / "out", "--size", 64)
    assert run.returncode == 0, run.stderr
    reasons = read_skipped(tmp_path / "out")
    assert reasons["b.heic"] == "not read: .heic pictures are not supported, save it as PNG or JPEG"
    assert set(reasons) >= {"a.TIFF", "b.heic"}
    assert not {".hidden.heic", "notes.txt"} & set(reasons)
    assert "2 not read" in run.stdout
    only = tmp_path / "only"
    only.mkdir()
    (only / "b.heic").write_bytes(b"x")
    assert "b.heic: save them as PNG or JPEG" in one_error(only, "--out", tmp_path / "none")


def test_folders_that_hold_no_photos(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.txt", "b.csv", ".hidden.png"):
        (texts / name).write_text("words")
    told = one_error(texts, "--out", tmp_path / "out")
    assert told == f"{texts} holds no images (.bmp .jpeg .jpg .png .webp)"
    assert one_error(tmp_path / "none") == f"cannot list {tmp_path / 'none'}: No such file or directory"
    assert "cannot list" in one_error(texts / "a.txt")
    assert "source" in one_error("--masks-only", texts)


def test_two_photos_of_one_name(tmp_path):
    for name in ("anna.png", "anna.jpg"):
        save_photo(tmp_path, name, Image.new("RGB", (9, 9)))
    told = one_error(tmp_path, "--out", tmp_path / "out")
    assert told == f"{tmp_path} has two images of one name: anna.jpg and anna.png; rename one"


def test_pictures_of_somebody_else_are_never_overwritten(photos, tmp_path):
    for kind in KINDS:
        out = tmp_path / kind
        save_photo(out / kind, "dark.png", Image.new("RGB", (9, 9)))
        before = read_files(out)
        told = one_error(photos, "--out", out)
        assert told.startswith(f"{out / kind} holds files that this tool did not make: dark.png")
        assert read_files(out) == before


@pytest.mark.parametrize("name", ["preview.png", "skipped.csv"])
def test_what_lies_beside_the_pairs_is_never_overwritten_either(photos, tmp_path, name):
    (tmp_path / name).write_text("mine")
    told = one_error(photos, "--out", tmp_path)
    assert told.startswith(f"{tmp_path} holds files that this tool did not make: {name}")
    assert {path.name for path in tmp_path.iterdir()} == {name}
    if name == "skipped.csv":
        save_photo(tmp_path / "source", "a.png", draw_face(MEAN, (256, 256)), MEAN)
        assert "this tool did not make it: move it away" in one_error("--masks-only", tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_the_pairs_go_to_another_folder_than_the_photos(photos, made):
    assert "holds the photos" in one_error(made / "source", "--out", made, "--size", 64)
    before = read_files(photos)
    told = one_error(photos, "--out", photos / ".." / photos.name)
    assert told.endswith("holds the photos; choose another folder for the pairs with --out")
    assert read_files(photos) == before


def test_an_output_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        told = one_error(photos, "--out", out)
        assert told.startswith("cannot write ")
        assert str(tmp_path / "file") in told
    # A folder where a picture should go: found by a worker, told by the command.
    (tmp_path / "out" / "target" / "dark.png" / "x").mkdir(parents=True)
    assert "dark.png" in one_error(photos, "--out", tmp_path / "out")


def test_a_look_that_does_not_exist(photos, tmp_path):
    told = one_error(photos, "--look", "evning", "--out", tmp_path / "out")
    expected = f"there is no look 'evning' in {LOOKS}, did you mean evening? it has: natural, evening, bold"
    assert told == expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--size", 100], "--size must be a multiple of 8 from 64 to 1024, got 100"),
        (["--workers", 0], "--workers must be from 1 to 256, got 0"),
        (["--masks-only", "x"], "give either a folder of photos or --masks-only DATA_DIR; see --help"),
        (["--sise", 64], "unrecognized arguments: --sise 64; see --help"),
    ],
)
def test_wrong_flags(photos, flags, told):
    assert one_error(photos, *flags) == told


def test_masks_alone_take_no_settings_of_pairs(tmp_path):
    told = one_error("--masks-only", tmp_path, "--out", tmp_path / "out", "--variants", 3)
    assert told == "--masks-only adds masks to the pairs in its folder: leave out --out, --variants"


# ======================================================================================================
# The real detector on a real photo
# ======================================================================================================


def open_hopper() -> Image.Image:
    """Grace Hopper, 512 x 600, an official photo (public domain) that matplotlib carries."""
    from matplotlib import cbook

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        return photo.convert("RGB")


def test_a_real_photo_with_the_real_detector(face_models, tmp_path):
    """The same woman alone, twice, absent, tiny, upside down, grey and squeezed."""
    hopper = open_hopper()
    mine, out = tmp_path / "photos", tmp_path / "out"
    save_photo(mine, "hopper.jpg", hopper)
    both = Image.new("RGB", (1000, 600), (70, 80, 90))
    both.paste(hopper, (0, 0))
    both.paste(hopper.resize((410, 480)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (550, 60))
    save_photo(mine, "both.jpg", both)
    save_photo(mine, "twins.jpg", both)
    save_photo(mine, "twins_2.jpg", hopper)
    save_photo(mine, "wall.png", Image.new("RGB", (400, 300), (120, 130, 140)))
    save_photo(mine, "tiny.png", hopper.resize((100, 117)))
    save_photo(mine, "turned.png", hopper.rotate(180))
    save_photo(mine, "grey.png", hopper.convert("L"))
    save_photo(mine, "squeezed.png", hopper.resize((512, 380)))
    flags = [mine, "--look", "evening", "--out", out, "--size", 256]
    run = run_tool(*flags, timeout=300)
    assert run.returncode == 0, run.stderr
    pairs = ["both", "both_2", "hopper", "turned", "twins", "twins_2"]
    assert [pair.stem for pair in find_pairs(out)] == pairs
    reasons = read_skipped(out)
    assert reasons["wall.png"] == "no face found"
    assert reasons["tiny.png"].startswith(("too small", "no face found"))
    assert reasons["twins.jpg"] == "face 2: its pair would be named twins_2, and so is another photo"
    assert reasons["grey.png"].startswith("grey: ")
    assert reasons["squeezed.png"].startswith("squeezed: ")
    assert set(reasons) == {"wall.png", "tiny.png", "twins.jpg", "grey.png", "squeezed.png"}
    # Where FFHQ has them: the eyes at 0.48 of the height, the mouth below; she wears no lipstick yet.
    source, target, mask = (np.asarray(Image.open(out / kind / "hopper.png")).astype(int) for kind in KINDS)
    rows, columns = np.nonzero(mask > 127)
    assert abs(rows.mean() - 0.45 * 256) < 0.04 * 256
    assert abs(columns.mean() - 128) < 0.04 * 256
    change = target - source
    lips = change[176:208, 108:148]
    assert lips[..., 1].min() < -30  # less green: redder
    assert not change[:20].any()
    # The same face found again, among others and upside down: the same place, to 2 % of the width.
    for name in ("both", "turned"):
        other = np.asarray(Image.open(out / "eye_mask" / f"{name}.png")).astype(int)
        assert abs(np.argwhere(other > 127).mean(0) - np.argwhere(mask > 127).mean(0)).max() < 0.02 * 256
    assert "6 of them were there" in run_tool(*flags, timeout=300).stdout


def test_names_of_further_faces_follow_the_photos_that_are_there(face_models, tmp_path):
    hopper = open_hopper()
    mine, out = tmp_path / "photos", tmp_path / "out"
    both = Image.new("RGB", (1000, 600), (70, 80, 90))
    both.paste(hopper, (0, 0))
    both.paste(hopper.resize((410, 480)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (550, 60))
    save_photo(mine, "both.png", both)
    flags = [mine, "--out", out, "--size", 64, "--workers", 1]
    assert run_tool(*flags, timeout=300).stdout.startswith("2 pairs")
    second = (out / "target" / "both_2.png").read_bytes()
    save_photo(mine, "both_2.png", draw_face(MEAN, (256, 256)), MEAN)
    assert run_tool(*flags, timeout=300).stdout.startswith("2 pairs")
    assert set(read_skipped(out)) == {"both.png"}
    (mine / "both_2.png").unlink()
    assert run_tool(*flags, timeout=300).stdout.startswith("2 pairs")
    assert not read_skipped(out)
    assert (out / "target" / "both_2.png").read_bytes() == second


def test_masks_alone_say_what_cannot_be_used_too(face_models, tmp_path):
    hopper = open_hopper()
    save_photo(tmp_path / "source", "good.png", hopper)
    save_photo(tmp_path / "source", "turned.png", hopper.rotate(180))
    save_photo(tmp_path / "source", "grey.png", hopper.convert("L"))
    save_photo(tmp_path / "source", "wall.png", Image.new("RGB", (400, 300), (120, 130, 140)))
    run = run_tool("--masks-only", tmp_path, timeout=300)
    assert run.returncode == 0, run.stderr
    masks = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "eye_mask").glob("*.png")}
    assert set(masks) == {"good", "turned"}
    upright = np.argwhere(np.asarray(Image.fromarray(masks["turned"]).rotate(180)) > 127).mean(0)
    assert abs(upright - np.argwhere(masks["good"] > 127).mean(0)).max() < 0.02 * 512
    reasons = read_skipped(tmp_path)
    assert set(reasons) == {"grey.png", "wall.png"}
    assert reasons["wall.png"] == "no face found"
