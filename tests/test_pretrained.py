"""The looks that ship: real files, on faces drawn here, and a model card that says what the files say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from drawn_faces import MEAN, SKINS, draw_face, save_photo
from makeup import Portrait, draw_eye_mask, load_look, paint_look, to_linear_look
from test_prepare_pairs import LOOKS, run_tool

from tinybeauty.pairs import Pair, split_pairs
from tinybeauty.shipping import MODEL_FORMAT, load_content
from tinybeauty_training import load_model, psnr, to_images

FOLDER = ROOT / "tinybeauty_model" / "pretrained"
CARD = (ROOT / "tinybeauty_model" / "README.md").read_text(encoding="utf-8")
NAMES = ("natural", "evening", "bold")


def put_on(look: str, skin: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a drawn face, the network's result, what the tool paints, (1, 3, H, W), and the eye mask."""
    picture = draw_face(MEAN, (256, 256), SKINS[skin], texture=2.0)
    face = Portrait(np.asarray(picture), MEAN)
    target = paint_look(face, to_linear_look(load_look(LOOKS, look)))
    pixels = torch.from_numpy(np.dstack((face.picture, target, draw_eye_mask(face))))
    source, target, eye_mask = to_images(pixels[None])
    with torch.no_grad():
        return source, (source + load_model(FOLDER / f"{look}.pt")(source)).clamp(0, 1), target, eye_mask


def read_card(look: str, second: str) -> list[dict[str, str]]:
    """Return a look's rows in the table of the model card whose first columns are `look` and `second`."""
    table = re.search(rf"^\| look \| {second} \|.*\n\|[ |-]*\n(?:\|.*\n)+", CARD, re.MULTILINE)[0]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows if row[0] == look]


def read_metrics(look: str) -> dict[str, float]:
    """Return the figures in a look's file."""
    return load_content(FOLDER / f"{look}.pt", MODEL_FORMAT)["metrics"]


def test_every_look_of_the_tool_ships_and_is_small():
    others = {"recipe.yaml"}  # what they were trained with
    assert {path.name for path in FOLDER.iterdir()} - others == {f"{name}.pt" for name in NAMES}
    assert set(yaml.safe_load(LOOKS.read_text(encoding="utf-8"))) == set(NAMES)
    assert all((FOLDER / f"{name}.pt").stat().st_size <= 100_000 for name in NAMES)


@pytest.mark.parametrize("look", NAMES)
def test_the_card_says_what_the_file_says(look):
    """The files carry the figures of their own run: on people held out, as read back from these bytes."""
    metrics, (row,) = read_metrics(look), read_card(look, "bytes")
    assert int(row["bytes"].replace(",", "")) == (FOLDER / f"{look}.pt").stat().st_size
    names = {"doing nothing": "psnr_source", "PSNR": "psnr", "gain": "psnr_gain", "eyes": "psnr_eyes"}
    for column, name in names.items():
        assert float(row[column]) == pytest.approx(metrics[f"val/{name}"], abs=0.00501)
    assert float(row["SSIM"]) == pytest.approx(metrics["val/ssim"], abs=0.0000501)


@pytest.mark.parametrize("look", NAMES)
def test_the_thirds_on_the_card_make_up_the_whole(look):
    (whole,), thirds = read_card(look, "bytes"), read_card(look, "third")
    assert [row["third"] for row in thirds] == ["darkest", "middle", "lightest"]
    people = [int(row["people"]) for row in thirds]
    for column in ("doing nothing", "PSNR", "gain", "eyes, doing nothing", "eyes"):
        mean = np.average([float(row[column]) for row in thirds], weights=people)
        assert mean == pytest.approx(float(whole[column]), abs=0.011)


@pytest.mark.parametrize("look", NAMES)
def test_each_look_gains_six_decibels(look):
    assert read_metrics(look)["val/psnr_gain"] >= 6


@pytest.mark.parametrize("look", NAMES)
@pytest.mark.parametrize("skin", SKINS)
def test_a_drawn_face_gets_the_look(look, skin):
    """Nearer to what the tool paints than the bare face is, at the eyes as well; the wall stays."""
    source, made_up, target, eye_mask = put_on(look, skin)

    def find_gain(where: torch.Tensor) -> float:
        near, far = (((image - target).square() * where).sum() / where.sum() for image in (made_up, source))
        return float(psnr(near) - psnr(far))

    least = {"dark": 0.3, "brown": 2.5, "light": 4.5}[skin]
    assert find_gain(torch.ones_like(eye_mask)) > least
    assert find_gain(eye_mask) > least
    wall = (made_up - source)[..., :40, :].abs()
    assert wall.mean() < 0.5 / 255


def test_the_looks_get_stronger():
    change = {}
    for look in NAMES:
        source, made_up, _, _ = put_on(look, "light")
        change[look] = (made_up - source).abs().mean().item()
    assert 0 < change["natural"] < change["evening"] < change["bold"]


def test_the_benchmark_of_the_looks_runs(tmp_path):
    """The card's commands, on few small drawn faces: a row a look, and a row a look and third."""
    everybody = [Pair(str(number), Path(), Path(), None) for number in range(150)]
    train, held_out = split_pairs(everybody, 0.1, "(.+)")
    for number, pair in enumerate([*train[:2], *held_out[:9]]):
        picture = draw_face(MEAN, (256, 256), tuple(SKINS.values())[number % 3], seed=number)
        save_photo(tmp_path / "photos", f"{pair.stem}.png", picture, MEAN)
    for look in NAMES:
        flags = (tmp_path / "photos", "--look", look, "--size", 64, "--out", tmp_path / "pairs" / look)
        assert run_tool(*flags).returncode == 0
    flags = (tmp_path / "photos", "--pairs", tmp_path / "pairs", "--image_size", 64, "--displaced")
    command = [sys.executable, str(ROOT / "tests" / "bench_looks.py"), *map(str, flags)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for look in NAMES:
        assert len(re.findall(rf"^\| {look} \|", run.stdout, re.MULTILINE)) == 8
        assert f"{look}: the lightest third gains" in run.stdout
