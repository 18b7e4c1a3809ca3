"""Faces: as MediaPipe sees them, at any tilt; what is no face. Skipped where the models cannot be had.

`faces.json` holds what MediaPipe 0.10.21 itself saw in the same pictures:

    PYTHONPATH=. python tests/test_faces.py mp/bin/python     # record_faces.py says what this Python is
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinybeauty.alignment import align, find_quad, find_square, find_way_back
from tinybeauty.errors import LeftOut, UserError
from tinybeauty.face_models import FILES, FaceModels, fetch_face_models
from tinybeauty.faces import (
    Face,
    check_colours,
    check_face,
    check_shape,
    check_sharpness,
    find_faces,
    track,
)

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_name("faces.json")
SCENE = Path(__file__).with_name("drawn_scene.jpg")  # two drawn faces, one of them tilted by 35 degrees
# Squares around a face: top left corner, the vectors along the upper and the left side. The second is tilted.
SQUARES = {
    "hopper": [[[40, 0], [440, 0], [0, 440]], [[96, -20], [420, 60], [-60, 420]]],
    "scene": [[[14, 50], [330, 0], [0, 330]], [[60, 40], [290, 50], [-50, 290]]],
}


def open_pictures() -> dict[str, Image.Image]:
    """Return two square pictures: a public-domain portrait of 1984 (US Navy), and a drawn face."""
    from matplotlib import cbook

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        hopper = photo.convert("RGB").crop((0, 0, 512, 512))
    with Image.open(SCENE) as scene:
        return {"hopper": hopper, "scene": scene.convert("RGB").crop((0, 20, 360, 380))}


def record(python: str) -> None:
    """Write faces.json anew."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, picture in open_pictures().items():
            for side in (picture.width, 128, 192):
                path = Path(folder) / f"{name}_{side}.png"
                picture.resize((side, side), Image.Resampling.BOX).save(path)
                jobs.append({"picture": str(path), "squares": SQUARES[name] if side == picture.width else []})
        script = Path(__file__).with_name("record_faces.py")
        run = subprocess.run(
            [python, script], input=json.dumps(jobs), capture_output=True, text=True, check=True
        )
    whole, near, far = (json.loads(run.stdout)[start::3] for start in range(3))
    seen = {
        name: {
            "near": near[i]["near"],
            "far": far[i]["far"],
            "meshes": whole[i]["meshes"],
            "alone": whole[i]["alone"],
        }
        for i, name in enumerate(SQUARES)
    }
    RECORD.write_text(
        json.dumps(json.loads(json.dumps(seen), parse_float=lambda text: round(float(text), 2))) + "\n"
    )


@pytest.fixture(scope="module")
def models(face_models) -> FaceModels:
    return FaceModels(face_models)


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    with Image.open(SCENE) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def found(scene, models) -> list[Face]:
    return find_faces(scene, models).faces


def compare(quad: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of a corner, in pixels of 256."""
    return float(np.abs(quad - expected).max() * 256 / np.hypot(*(expected[3] - expected[0])))


# ----- as MediaPipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SQUARES)
def test_all_478_points_are_mediapipes(name, models):
    picture = np.asarray(open_pictures()[name])
    squares = np.array(SQUARES[name], np.float64)
    recorded = np.array(json.loads(RECORD.read_text())[name]["meshes"])
    for mesh, expected in zip(models.find_meshes(picture, squares), recorded, strict=True):
        assert np.abs(mesh.points - expected[:, :2]).max() < 0.5
        assert np.abs(mesh.depths - expected[:, 2]).max() < 1.0
        assert compare(find_quad(mesh.points), find_quad(expected[:, :2])) < 0.2
        assert mesh.presence > 0.99


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("kind", ["near", "far"])
def test_both_detectors_see_what_mediapipes_see(name, kind, models):
    detector = getattr(models, kind)
    picture = open_pictures()[name].resize((detector.side, detector.side), Image.Resampling.BOX)
    expected = json.loads(RECORD.read_text())[name][kind]
    seen = detector(np.asarray(picture)[None])[0]
    assert len(seen) == len(expected) == 1
    assert abs(seen[0].score - expected[0][0]) < 0.01
    assert np.abs(seen[0].keys - expected[0][1]).max() < 0.5


@pytest.mark.parametrize("name", SQUARES)
def test_a_face_is_where_mediapipe_alone_finds_it(name, models):
    picture = open_pictures()[name]
    (face,) = find_faces(picture, models).faces
    expected = np.array(json.loads(RECORD.read_text())[name]["alone"][0])[:, :2]
    assert compare(face.quad, find_quad(expected)) < 5  # one look of its own is off by up to 4


# ----- any tilt, any size ------------------------------------------------------------------------------


def test_every_face_of_a_scene_is_found_the_largest_first(found):
    sides = [float(np.hypot(*(face.quad[3] - face.quad[0]))) for face in found]
    assert len(found) == 2
    assert sides[0] > sides[1] > 100
    across = found[1].quad[3] - found[1].quad[0]
    assert 25 < np.degrees(np.arctan2(across[1], across[0])) < 45
    assert all(face.points.shape == (478, 2) and face.depths.shape == (478,) for face in found)


@pytest.mark.parametrize("angle", [33, 90, 180, -72])
def test_a_turned_photo_gives_the_same_squares(angle, scene, found, models):
    turned = scene.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(100, 100, 100))
    seen = find_faces(turned, models).faces
    radians = -np.deg2rad(angle)
    way = np.array(((np.cos(radians), -np.sin(radians)), (np.sin(radians), np.cos(radians))))
    assert len(seen) == len(found)
    for face, before in zip(seen, found, strict=True):
        expected = (before.quad - np.array(scene.size) / 2) @ way.T + np.array(turned.size) / 2
        assert compare(face.quad, expected) < 1.5


def test_a_mirrored_photo_gives_mirrored_squares(scene, found, models):
    seen = find_faces(scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT), models).faces
    assert len(seen) == len(found)
    for face, before in zip(seen, found, strict=True):
        expected = (before.quad * (-1, 1) + np.array((scene.width, 0)))[[3, 2, 1, 0]]
        assert compare(face.quad, expected) < 3


def test_a_small_face_in_a_large_photo(scene, found, models):
    photo = Image.new("RGB", (4000, 2600), (120, 130, 120))
    photo.paste(scene, (2500, 1500))
    seen = find_faces(photo, models).faces
    assert len(seen) == 2
    assert all(
        compare(face.quad, before.quad + np.array((2500, 1500))) < 2
        for face, before in zip(seen, found, strict=True)
    )


def test_a_face_that_fills_the_picture(scene, models):
    close = scene.crop((80, 120, 260, 320)).resize((720, 800), Image.Resampling.BICUBIC)
    assert len(find_faces(close, models).faces) == 1


def test_what_is_no_face_gives_none(models):
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    assert find_faces(Image.fromarray(noise), models).faces == []
    assert find_faces(Image.new("RGB", (3, 900), "white"), models).faces == []


def test_a_face_is_followed_without_a_detector(scene, found, models):
    moved = scene.transform(
        scene.size, Image.Transform.AFFINE, (1, 0, -6, 0, 1, -4), Image.Resampling.BICUBIC
    )
    for before in found:
        face = track(moved, models, before.points, places=4)
        assert face is not None
        assert compare(face.quad, before.quad + np.array((6, 4))) < 4
    assert track(Image.new("RGB", scene.size, "grey"), models, found[0].points) is None


# ----- checked -----------------------------------------------------------------------------------------


def test_drawn_faces_pass_every_check(scene, found):
    for face in found:
        check_face(scene, face.points)
        check_shape(face)
        picture, points = align(scene, face.points, 256)
        check_sharpness(picture, points)
        check_colours(picture, points)


def test_a_grey_photo_is_named(scene, found):
    with pytest.raises(LeftOut, match=r"grey: red, green and blue differ by 0.0 of 255"):
        check_colours(*align(scene.convert("L").convert("RGB"), found[0].points, 256))


@pytest.mark.parametrize(("width", "word"), [(1.5, "wider"), (0.66, "narrower")])
def test_a_squeezed_photo_is_named(width, word, scene, models):
    squeezed = scene.crop((0, 0, 350, 420)).resize((round(350 * width), 420), Image.Resampling.BICUBIC)
    (face,) = find_faces(squeezed, models).faces
    with pytest.raises(LeftOut, match=f"squeezed: made {word}"):
        check_shape(face)


def test_the_way_back_is_the_way_there_backwards(scene, found):
    for face in found:
        _, points = align(scene, face.points, 256)
        way = find_way_back(find_square(scene.size, face.points), 256)
        assert np.abs(face.points @ way[:, :2].T + way[:, 2] - points).max() < 1e-9


# ----- where the models come from ----------------------------------------------------------------------


def make_wheel(shelf: Path, contents: dict[str, bytes]) -> None:
    """Write a wheel that pip takes for MediaPipe's, with the models given."""
    shelf.mkdir()
    info = "mediapipe-0.10.21.dist-info"
    with zipfile.ZipFile(shelf / "mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-manylinux_2_28_x86_64\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
        for name, data in contents.items():
            wheel.writestr(f"{FILES[name][0]}/{name}", data)


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """An empty place for wheels, the only one that pip looks at; and an empty cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "shelf"


def read_models(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_models_come_once_and_a_damaged_one_again(face_models, shelf, tmp_path, capfd):
    make_wheel(shelf, read_models(face_models))
    cache = fetch_face_models()
    assert cache == tmp_path / "cache" / "tinybeauty" / "face_models"
    assert read_models(cache) == read_models(face_models)
    assert {path.name for path in cache.iterdir()} == set(FILES)
    assert "fetching the face models, once" in capfd.readouterr().err
    assert fetch_face_models() == cache
    assert capfd.readouterr().err == ""
    victim = cache / next(iter(FILES))
    victim.write_bytes(victim.read_bytes()[:-1])
    assert read_models(fetch_face_models()) == read_models(face_models)


def test_two_processes_fetch_at_once(face_models, shelf, tmp_path):
    make_wheel(shelf, read_models(face_models))
    code = "from tinybeauty.face_models import fetch_face_models; print(fetch_face_models())"
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert {run.communicate()[0].decode().strip() for run in runs} == {
        str(tmp_path / "cache/tinybeauty/face_models")
    }
    assert read_models(tmp_path / "cache/tinybeauty/face_models") == read_models(face_models)


def test_another_file_than_ours_is_refused_and_not_kept(shelf, tmp_path):
    make_wheel(shelf, dict.fromkeys(FILES, b"something else"))
    with pytest.raises(UserError, match=r"is not the file it should be \(SHA-256\)"):
        fetch_face_models()
    assert list((tmp_path / "cache" / "tinybeauty" / "face_models").iterdir()) == []


def test_without_a_wheel_pip_says_why_and_we_say_what_to_do(shelf):
    with pytest.raises(
        UserError, match=r"pip says: .*mediapipe==0.10.21; where that works, unpack"
    ) as caught:
        fetch_face_models()
    assert "\n" not in str(caught.value)


def test_without_network(shelf, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(UserError, match=r"cannot fetch the face models, pip says: .*; where that works"):
        fetch_face_models()


def test_without_pip(shelf, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = next((tmp_path / "bare").glob("[bS]*/python*"))
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=r"this Python has no pip; `python -m ensurepip`"):
        fetch_face_models()


def test_a_cache_that_cannot_be_written(shelf, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot keep the face models in .*; set XDG_CACHE_HOME"):
        fetch_face_models()


def test_a_given_folder_is_used_as_it_is(face_models, shelf, tmp_path):
    given = tmp_path / "given"
    shutil.copytree(face_models, given)
    assert fetch_face_models(given) == given
    last = list(FILES)[-1]
    (given / last).unlink()
    with pytest.raises(UserError, match=f"lacks, or holds damaged: {last}; they are in the wheel"):
        fetch_face_models(given)
    with pytest.raises(UserError, match=r"lacks, or holds damaged: face_detection_short_range.tflite, "):
        fetch_face_models(tmp_path / "nowhere")


def test_importing_takes_no_second():
    code = (
        "import sys, tinybeauty.faces, tinybeauty.face_models\n"
        "print(*{'torch', 'pydantic', 'tflite', 'flatbuffers'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


if __name__ == "__main__":
    record(sys.argv[1])
