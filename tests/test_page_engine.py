"""The page's engine against Python: the same squares, the same network, the same made-up photo.

PYTHONPATH=. python tests/test_page_engine.py     # writes face.json anew: the landmarks of face.jpg
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_couple, make_bold_model
from PIL import Image

from tinybeauty import shipping
from tinybeauty.faces import find_faces
from tinybeauty.page.build_engine import build_engine
from tinybeauty.page.bundle import MODELS, read_models
from tinybeauty.page.small_models import LAST, quantise
from tinybeauty_apply import put_makeup_on
from tinybeauty_training import load_model

ROOT = Path(__file__).resolve().parent.parent
LOOK = ROOT / "tinybeauty_model" / "pretrained" / "evening.pt"


FACE, POINTS = (ROOT / "tinybeauty" / "page" / name for name in ("face.jpg", "face.json"))
KINDS = {"in 4 groups": 4, "in as many groups as channels": (64, 32, 16)}  # how the up layers are grouped


def run_engine(photo: Image.Image, models: Path, folder: Path, looks: Sequence[Path] = ()) -> dict[str, Any]:
    """Return what the engine says of a photo: {quads: [corner, right, down] of each face, ...}.

    Args:
        photo: RGB; has a face.
        models: the folder of the face models.
        folder: where the made-up photo goes, `out`, and residuals of its first face.
        looks: whose residuals are written besides LOOK's.
    """
    (folder / "rgba").write_bytes(photo.convert("RGBA").tobytes())
    words = [Path(__file__).with_name("run_engine.js"), LOOK, models, photo.width, photo.height]
    words += [folder / "rgba", folder / "out", *looks]
    command = ["node", *(str(word) for word in words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def save_small_models(models: Path, folder: Path) -> None:
    """Write the models of a small page into a folder, by the names of those that they are made of."""
    for name, data in read_models(models, small=True).items():
        (folder / MODELS[name]).write_bytes(data)


def find_corners(said: dict[str, Any]) -> np.ndarray:
    """Return the corners of the faces' squares, (faces, 4, 2), as `find_quad` has them."""
    corner, right, down = np.array(said["quads"]).swapaxes(0, 1)
    return np.stack((corner, corner + down, corner + right + down, corner + right), 1)


def find_shift(squares: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how far corners (faces, 4, 2) are from others, the most of each face, its side being 256."""
    sides = np.hypot(*(others[:, 3] - others[:, 0]).T)
    return np.hypot(*(squares - others).transpose(2, 0, 1)).max(1) * 256 / sides


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Image.Image:
    """A drawn scene with five faces."""
    drawn = tmp_path_factory.mktemp("drawn") / "scene.png"
    tool = [sys.executable, str(ROOT / "data" / "draw_scene.py"), str(drawn), "--width", "1200"]
    subprocess.run(tool, check=True, capture_output=True)
    with Image.open(drawn) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def scene(photo, face_models, tmp_path_factory):
    """Return (photo, what node says, its pixels, the first face, [(network, its residual)]) of the scene."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("engine")
    looks = [folder / f"{kind}.pt" for kind in KINDS]
    for path, groups in zip(looks, KINDS.values(), strict=True):
        model = make_bold_model(torch.rand(2, 3, 64, 64), 0.1, groups)
        path.write_bytes(shipping.to_bytes(shipping.pack(model)))
    said = run_engine(photo, face_models, folder, looks)
    pixels = np.frombuffer((folder / "out").read_bytes(), np.uint8).reshape(photo.height, photo.width, 4)
    face = np.frombuffer((folder / "out.face").read_bytes(), np.uint8).reshape(256, 256, 3)
    files = [folder / f"out.residual{end}" for end in ("", 0, 1)]
    residuals = [np.frombuffer(file.read_bytes(), np.float32).reshape(256, 256, 4)[..., :3] for file in files]
    networks = list(zip(map(load_model, [LOOK, *looks]), residuals, strict=True))
    return photo, said, pixels, face, networks


def test_the_committed_engine_is_what_its_source_builds(tmp_path):
    pytest.importorskip("ziglang", reason="the compiler of tests/requirements.txt is not installed")
    assert build_engine(tmp_path) == (ROOT / "tinybeauty" / "page" / "engine.wasm").read_bytes()


def test_the_squares_are_pythons(scene):
    photo, said, *_ = scene
    found = np.array([face.quad for face in find_faces(photo).faces])
    assert len(said["quads"]) == len(found) == 5
    assert find_shift(find_corners(said), found).max() < 0.5


def test_faces_cheek_to_cheek_are_made_up_as_by_python(face_models, tmp_path):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    couple = draw_couple()
    assert len(run_engine(couple, face_models, tmp_path)["quads"]) == 2
    pixels = np.frombuffer((tmp_path / "out").read_bytes(), np.uint8).reshape(couple.height, couple.width, 4)
    own = np.asarray(put_makeup_on(couple, load_model(LOOK), 1.0, 0.5, 1.2, 0.8)).astype(int)
    assert np.abs(own - np.asarray(couple)).max() > 40
    assert (np.abs(pixels[..., :3] - own).max(2) <= 2).mean() >= 0.999


def test_a_small_page_moves_the_squares_by_less_than_a_pixel(scene, face_models, tmp_path):
    photo, whole, *_ = scene
    save_small_models(face_models, tmp_path)
    said = run_engine(photo, tmp_path, tmp_path)
    assert len(said["quads"]) == len(whole["quads"])
    assert 0 < find_shift(find_corners(said), find_corners(whole)).max() < 1


def test_weights_in_8_bits_are_half_a_level_off_at_most():
    generator = np.random.default_rng(1)
    channels = np.repeat(np.arange(40), 32)
    weights = generator.normal(size=1280) * 10.0 ** generator.uniform(-4, 2, 40)[channels]
    weights[::7] = 0
    levels, scales = quantise(weights, channels, LAST)
    own = scales.astype(float)[channels]
    assert (np.abs(levels * own - weights) <= own / 2).all()
    assert not levels[::7].any()
    assert np.abs(levels).reshape(40, 32).max(1).min() > 90  # no scale is wasted


def find_points() -> np.ndarray:
    """Return the landmarks (478, 2) of the drawn face that a page opens with, in its pixels."""
    with Image.open(FACE) as image:
        (face,) = find_faces(image.convert("RGB")).faces
    return face.points


def test_the_page_knows_where_the_drawn_face_is(face_models):
    assert np.abs(find_points() - json.loads(POINTS.read_text())).max() < 0.5


@pytest.mark.parametrize("kind", range(1 + len(KINDS)), ids=["evening", *KINDS])
def test_the_network_is_pythons(scene, kind):
    *_, face, networks = scene
    network, residual = networks[kind]
    with torch.inference_mode():
        own = network(torch.from_numpy(face.copy()).permute(2, 0, 1)[None].float() / 255)
    own = own[0].permute(1, 2, 0).numpy()
    assert own.std() > 0.01  # of what is added, 1 being white
    assert np.abs(own - residual.reshape(own.shape)).max() * 255 < 0.01


def test_the_photo_is_pythons(scene):
    photo, _, pixels, *_ = scene
    own = np.asarray(put_makeup_on(photo, load_model(LOOK), 1.0, 0.5, 1.2, 0.8)).astype(int)
    changed = (own != np.asarray(photo)).any(2)
    apart = np.abs(pixels[..., :3] - own).max(2)
    assert changed.mean() > 0.02, changed.mean()
    assert (apart[changed] <= 2).mean() >= 0.999, (apart[changed] <= 2).mean()
    assert apart[~changed].max() <= 3, np.bincount(apart[~changed])


def test_a_damaged_look_is_refused_in_words(scene):
    assert scene[1]["problems"] == ["refused"]


def make_bomb(look: bytes) -> bytes:
    """Return a look that names its largest file 20,000 times."""
    with zipfile.ZipFile(io.BytesIO(look)) as archive:
        largest, start = max(archive.infolist(), key=lambda entry: entry.file_size), archive.start_dir
    ends = look.index(largest.filename.encode(), start) + len(largest.filename)
    entry = bytearray(look[ends - len(largest.filename) - 46 : ends])
    entry[30:34] = bytes(4)  # neither more fields nor a comment
    end = look[look.rindex(b"PK\5\6") :]
    count = (20_000).to_bytes(2, "little")
    return (
        look[:start]
        + bytes(entry) * 20_000
        + end[:8]
        + count
        + count
        + end[12:16]
        + start.to_bytes(4, "little")
        + bytes(2)
    )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict:
    """Return what node says of small pictures and of looks that are not what they should be."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("looks")
    packed = torch.load(LOOK, weights_only=True)
    changes = {
        "kernel": {"bottleneck_kernels": [7, 7, -7]},  # as many weights
        "channels": {"channels": [16, 32, 64, 128, 128]},
    }
    for name, change in changes.items():
        torch.save(packed | {"architecture": packed["architecture"] | change}, folder / f"{name}.pt")
    torch.save(packed | {"version": 3}, folder / "version.pt")
    (folder / "bomb.pt").write_bytes(make_bomb(LOOK.read_bytes()))
    paths = [LOOK, *sorted(folder.glob("*.pt"))]
    command = ["node", str(Path(__file__).with_name("run_kernels.js")), *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout) | {"names": [path.name for path in paths]}


def test_windows_of_any_size_and_step_are_the_formulas(kernels):
    assert kernels["apart"] == 0  # the numbers are eighths: their sums are exact


def test_another_network_or_version_is_refused(kernels):
    said = dict(zip(kernels["names"], kernels["said"], strict=True))
    assert said.pop("evening.pt") == "evening.pt"
    assert "format version 3" in said.pop("version.pt")
    assert [name for name, words in said.items() if "damaged, or not a look" not in words] == []
    assert max(kernels["seconds"]) < 3  # the bomb took 10


if __name__ == "__main__":
    POINTS.write_text(json.dumps(find_points().round(1).tolist(), separators=(",", ":")) + "\n")
