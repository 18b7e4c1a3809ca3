"""A look as phones read it: the real command and runtime, damage, and a file that is wrong on purpose."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tflite
import torch
from conftest import ROOT, make_bold_model, read_files
from PIL import Image

import tinybeauty_export
from tinybeauty import shipping
from tinybeauty.phones import networks
from tinybeauty.phones.checks import compare, draw_faces, find_truth
from tinybeauty.phones.networks import Network, Step, Weights, read_network, run_steps
from tinybeauty_export import FORMATS, main
from tinybeauty_training import TinyBeauty, load_model

LOOKS = ROOT / "tinybeauty_model" / "pretrained"
FILES = {name: f"evening{suffix}" for name, (_, suffix) in FORMATS.items()}
# Bytes that a file may have more than the .pt, which holds the same weights.
OVERHEAD = {"onnx": 7_800, "litert": 19_400, "coreml": 20_500}


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """Drawn faces, 256 x 256."""
    return draw_faces(ROOT / "data" / "make_demo.py", 2)


@pytest.fixture(scope="module", params=[4, (64, 32, 16)], ids=["groups of 4", "depthwise"])
def own_look(request, tmp_path_factory) -> Path:
    """A network of each kind of up layer, as a run of one's own writes it; its weights are random."""
    model = make_bold_model(torch.rand(2, 3, 64, 64), 0.03, request.param)
    path = tmp_path_factory.mktemp("tinybeauty_model") / "tinybeauty_best_psnr.pt"
    path.write_bytes(shipping.to_bytes(shipping.pack(model)))
    return path


def read_look(look: str | Path) -> Network:
    """Return a look that ships, or that of a path."""
    path = LOOKS / f"{look}.pt" if isinstance(look, str) else look
    return read_network(path, load_model(path), path.stem)


def open_file(name: str, path: Path, use_float: bool = False):
    """Return the function of a written file, in its real runtime (Core ML: read back and emulated)."""
    return getattr(tinybeauty_export.find_writer(name), f"open_{name}")(path, use_float)


def find_size(path: Path) -> int:
    """Return the bytes of a file or a package."""
    return sum(len(data) for data in read_files(path).values()) if path.is_dir() else path.stat().st_size


# --- Each format: the same numbers, the same bytes ----------------------------------------------------
@pytest.mark.parametrize("name", FILES)
def test_the_command_writes_a_checked_file_the_same_each_time(name, tmp_path, capsys):
    for folder, flags in (("a", []), ("b", ["--no-check"])):
        assert main(["evening", "--to", name, "--out", str(tmp_path / folder), *flags]) == 0
    out = capsys.readouterr().out
    assert "differs by" in out
    assert name != "litert" or "fits the GPU delegate" in out
    assert [path.name for path in (tmp_path / "a").iterdir()] == [FILES[name]]
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")
    size = find_size(tmp_path / "a" / FILES[name])
    assert f"{size:,} bytes" in out
    assert size <= (LOOKS / "evening.pt").stat().st_size + OVERHEAD[name]


@pytest.mark.parametrize("look", ["natural", "bold"])
def test_all_formats_of_the_other_looks_give_the_networks_numbers(look, faces, tmp_path):
    """Floats in and out; with bytes the command has checked it above."""
    assert main([look, "--to", *FILES, "--float", "--no-check", "--out", str(tmp_path)]) == 0
    for name, (_, suffix) in FORMATS.items():
        run = open_file(name, tmp_path / f"{look}{suffix}", use_float=True)
        difference = compare(read_look(look), run, faces[:1], (1.0, 0.5), rounded=False)
        assert difference.largest <= (0.5 if name == "coreml" else 0.001), name


def test_a_network_of_ones_own_in_all_formats(own_look, faces, tmp_path, capsys):
    """Older ones, too, whose up layers have four groups."""
    assert main([str(own_look), "--to", *FILES, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("differs by") == 3
    network = read_look(own_look)
    assert np.abs(find_truth(network.model, faces[0], 1.0) - faces[0]).mean() > 1  # it does something
    for name, (_, suffix) in FORMATS.items():
        path = tmp_path / f"tinybeauty_best_psnr{suffix}"
        assert find_size(path) <= own_look.stat().st_size + OVERHEAD[name], name
        limit = 0.5 if name == "coreml" else 1
        assert compare(network, open_file(name, path), faces, (0.7,), name != "coreml").largest <= limit


@pytest.mark.parametrize("name", FILES)
def test_strength_is_a_slider(name, faces, tmp_path):
    assert main(["bold", "--to", name, "--no-check", "--out", str(tmp_path)]) == 0
    run, face = open_file(name, next(tmp_path.iterdir())), faces[0]
    assert (run(face, 0.0) == face).all()
    network = read_look("bold")
    for strength in (0.5, 1.0, 1.5):
        truth, made_up = find_truth(network.model, face, strength), run(face, strength)
        if name == "coreml":  # float16, looked at before it is rounded
            assert np.abs(made_up - truth).max() <= 0.5
        else:
            assert np.abs(made_up - truth.round()).max() <= 1
            assert (made_up != truth.round()).mean() <= 1e-5


def test_integers_alone_cost_little_and_the_loss_is_told(faces, tmp_path, capsys):
    assert main(["evening", "--to", "litert", "--full-int8", "--out", str(tmp_path)]) == 0
    path = tmp_path / "evening.tflite"
    assert "dB" in capsys.readouterr().out
    difference = compare(read_look("evening"), open_file("litert", path), faces, (1.0,), rounded=True)
    assert difference.mean <= 0.31
    assert difference.psnr_db >= 51
    assert path.stat().st_size <= (LOOKS / "evening.pt").stat().st_size + 25_600


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_look_whose_name_is_no_text(tmp_path, capsys):
    look = tmp_path / os.fsdecode(b"caf\xe9.pt")
    shutil.copy(LOOKS / "evening.pt", look)
    assert main([str(look), "--to", *FILES, "--out", str(tmp_path / "phone")]) == 0, capsys.readouterr().err
    assert (tmp_path / "phone" / r"caf\xe9.onnx").exists()


def test_integers_of_a_network_that_changes_nothing(tmp_path, capsys):
    """What it adds is 0 everywhere: a range without width."""
    bare = shipping.pack(TinyBeauty().eval()) | {"epoch": 0, "metrics": {}}
    (tmp_path / "bare.pt").write_bytes(shipping.to_bytes(bare))
    words = [str(tmp_path / "bare.pt"), "--to", "litert", "--full-int8", "--out", str(tmp_path / "phone")]
    assert main(words) == 0, capsys.readouterr().err
    assert "differs by 0 of 255 levels" in capsys.readouterr().out


def test_ranges_of_pictures_that_are_no_faces_are_refused(tmp_path, demo, capsys):
    words = ["evening", "--to", "litert", "--full-int8", "--faces", str(demo / "eye_mask")]
    assert main([*words, "--out", str(tmp_path)]) == 1
    assert "what was written is not the network" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_calibration_takes_the_users_faces(tmp_path, demo, capsys):
    words = ["evening", "--to", "litert", "--full-int8", "--faces", str(demo / "source")]
    assert main([*words, "--out", str(tmp_path / "mine")]) == 0
    assert main([*words[:4], "--no-check", "--out", str(tmp_path / "demo")]) == 0
    assert read_files(tmp_path / "mine") != read_files(tmp_path / "demo")
    (tmp_path / "empty").mkdir()
    assert main([*words[:5], str(tmp_path / "empty"), "--out", str(tmp_path / "none")]) == 1
    assert "holds no picture of a face" in capsys.readouterr().err


def test_looks_of_any_name_and_place(tmp_path, capsys, monkeypatch):
    """By name, absolute, relative and below ~; capitals, umlauts, spaces, and one named twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("Höhle Nr. 1.pt", "mine.v2.pt", "Theirs.pt"):
        shutil.copy(LOOKS / "bold.pt", tmp_path / name)
    looks = ["bold", str(tmp_path / "Höhle Nr. 1.pt"), "mine.v2.pt", "~/Theirs.pt", "./Theirs.pt"]
    out = tmp_path / "für das Telefon" / "neu"
    assert main([*looks, "--to", "onnx", "onnx", "--no-check", "--out", str(out)]) == 0
    names = {"bold.onnx", "Höhle Nr. 1.onnx", "mine.v2.onnx", "Theirs.onnx"}
    assert {path.name for path in out.iterdir()} == names
    assert len(capsys.readouterr().out.splitlines()) == len(names)
    session = onnxruntime.InferenceSession(out / "Höhle Nr. 1.onnx")
    assert session.get_modelmeta().custom_metadata_map["look"] == "Höhle Nr. 1"


# --- What an app sees ---------------------------------------------------------------------------------
def test_onnx_takes_other_sizes_and_a_default_strength(tmp_path):
    assert main(["evening", "--to", "onnx", "--no-check", "--out", str(tmp_path)]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "evening.onnx")
    assert session.get_modelmeta().custom_metadata_map["look"] == "evening"
    assert float(session.get_modelmeta().custom_metadata_map["psnr_db"]) > 30
    face = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    (made_up,) = session.run(["made_up"], {"source": face})
    assert np.abs(made_up[0] - find_truth(read_look("evening").model, face[0], 1.0).round()).max() <= 1


def test_litert_takes_other_sizes_and_says_what_it_is(tmp_path):
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    assert main(["evening", "--to", "litert", "--no-check", "--out", str(tmp_path)]) == 0
    data = (tmp_path / "evening.tflite").read_bytes()
    interpreter = interpreters.Interpreter(model_content=data)
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["source", "strength"], "outputs": ["made_up"]}
    face = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    source, strength = (detail["index"] for detail in interpreter.get_input_details())
    interpreter.resize_tensor_input(source, face.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source, face)
    interpreter.set_tensor(strength, np.float32([1]))
    interpreter.invoke()
    made_up = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.abs(made_up[0] - find_truth(read_look("evening").model, face[0], 1.0).round()).max() <= 1
    model = tflite.Model.GetRootAsModel(data, 0)
    facts = json.loads(bytes(model.Buffers(model.Metadata(0).Buffer()).DataAsNumpy()))
    assert facts["look"] == "evening"


def test_litert_has_no_operator_that_phones_lack(tmp_path):
    assert main(["evening", "--to", "litert", "--no-check", "--out", str(tmp_path)]) == 0
    model = tflite.Model.GetRootAsModel((tmp_path / "evening.tflite").read_bytes(), 0)
    names = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
    used = {names[model.OperatorCodes(at).BuiltinCode()] for at in range(model.OperatorCodesLength())}
    assert not used & {"TRANSPOSE", "TRANSPOSE_CONV", "RESHAPE", "CUSTOM", "CAST", "SPLIT"}


def test_coreml_says_what_it_takes(tmp_path):
    coremltools = pytest.importorskip("coremltools")
    assert main(["evening", "--to", "coreml", "--no-check", "--out", str(tmp_path)]) == 0
    spec = coremltools.utils.load_spec(str(tmp_path / "evening.mlpackage"))
    source, strength = spec.description.input
    (made_up,) = spec.description.output
    for picture in (source, made_up):
        assert picture.type.imageType.colorSpace == picture.type.imageType.RGB
        assert (picture.type.imageType.width, picture.type.imageType.height) == (256, 256)
    assert strength.type.isOptional
    assert strength.type.multiArrayType.floatDefaultValue == 1
    assert spec.description.metadata.userDefined["look"] == "evening"
    assert spec.specificationVersion == 7  # iOS 16


# --- The same bytes with other versions of the packages -----------------------------------------------
def make_weights(channels: int, inputs: int, kernel: int, groups: int, bias: bool = True) -> Weights:
    """Return weights that are written down nowhere and the same everywhere."""
    count = channels * (inputs // groups) * kernel * kernel
    values = ((np.arange(count) * 37 + 11) % 251 - 125).astype(np.int8)
    scales = (2.0 ** -(8 + np.arange(channels) % 3)).astype(np.float32)
    offsets = ((np.arange(channels) % 7 - 3) / 8).astype(np.float32)
    return Weights(values.reshape(channels, -1, kernel, kernel), scales, offsets if bias else None, groups)


def make_network() -> Network:
    """Return a small network that has every kind of step, whatever TinyBeauty's looks like."""
    steps = [
        Step("conv", ("source",), "a", 16, make_weights(16, 3, 3, 1)),
        Step("relu", ("a",), "b", 16),
        Step("pool", ("b",), "c", 16),
        Step("conv", ("c",), "d", 16, make_weights(16, 16, 7, 16, bias=False)),
        Step("conv", ("d",), "e", 16, make_weights(16, 16, 1, 1)),
        Step("conv", ("c",), "f", 16, make_weights(16, 16, 1, 1, bias=False)),
        Step("add", ("e", "f"), "g", 16),
        Step("relu", ("g",), "h", 16),
        Step("up", ("h",), "i", 8, make_weights(8, 16, 2, 8)),
        Step("conv", ("i",), "j", 3, make_weights(3, 8, 1, 1)),
    ]
    return Network("small", steps, {"look": "small", "license": "none"}, torch.nn.Identity())


DIGESTS = {"onnx": "53d5a0001e06cade", "litert": "82cb4cc8567be1bb", "coreml": "5e302e867ada9268"}


@pytest.mark.parametrize("name", FILES)
def test_the_bytes_are_the_same_on_every_machine(name, tmp_path):
    path = tmp_path / f"small{FORMATS[name][1]}"
    getattr(tinybeauty_export.find_writer(name), f"write_{name}")(make_network(), path, False)
    data = b"".join(data for _, data in sorted(read_files(tmp_path).items()))
    assert hashlib.sha256(data).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("change", [networks.split_ups, networks.split_kernels])
def test_what_is_split_for_a_phone_stays_the_same_function(change):
    steps = make_network().steps
    changed = change(steps)
    assert len(changed) > len(steps)
    source = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(run_steps(changed, source), run_steps(steps, source), rtol=1e-4, atol=1e-4)


def test_the_snippet_on_adding_it_back_makes_a_scene_up(face_models, tmp_path):
    """And the fade and the residual leave what is away from the faces as it was."""
    page = (ROOT / "tinybeauty_model" / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## On a phone\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)[1]
    snippet = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert main(["evening", "--to", "onnx", "--no-check", "--out", str(tmp_path / "phone")]) == 0
    tool = [sys.executable, str(ROOT / "data" / "draw_scene.py"), "scene.jpg", "--width", "800"]
    subprocess.run(tool, cwd=tmp_path, check=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=environment, check=True)
    with Image.open(tmp_path / "made_up.png") as made_up, Image.open(tmp_path / "scene.jpg") as bare:
        changed = (np.asarray(made_up) != np.asarray(bare.convert("RGB"))).any(2)
    assert 0.005 < changed.mean() < 0.7


# --- What goes wrong ----------------------------------------------------------------------------------
@pytest.mark.parametrize("flags", [[], ["--full-int8"]], ids=["weights", "integers"])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_weight_is_refused_and_leaves_no_file(name, flags, tmp_path, capsys, monkeypatch):
    if flags and name != "litert":
        pytest.skip("LiteRT's alone")

    def read_broken(path, model, look):
        network = read_network(path, model, look)
        weights = network.steps[-1].weights
        weights.values[0] = -weights.values[0]
        return network

    monkeypatch.setattr(networks, "read_network", read_broken)
    assert main(["evening", "--to", name, "--out", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert f"{name}: what was written is not the network" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plum", "--to", "onnx"], "there is no look"),
        (["evening", "--to", "tnn"], "tnn"),
        (["missing.pt", "--to", "onnx"], "missing.pt"),
        ([str(ROOT / "README.md"), "--to", "onnx"], "is damaged or no file"),
        (["evening", "--to", "onnx", "--full-int8"], "--full-int8 is for --to litert"),
        (["evening", "--to", "page", "--float"], "--float is for --to onnx or litert or coreml"),
        (["evening", "--to", "litert", "--float", "--full-int8"], "give one of them"),
        (["evening", "--to", "page", "--faces", "mine"], "--faces is for --to onnx or litert or coreml"),
        (["evening", "--to", "onnx", "--face_models", "mine"], "--face_models is for --to page"),
        (["evening", "--to", "onnx", "--faces", "nowhere"], "nowhere"),
        (["evening", "a/Evening.pt", "--to", "onnx"], "would be written to one file"),
        (["~nobody-here/a.pt", "--to", "onnx"], "~nobody-here is no user's home"),
    ],
    ids=[
        "look",
        "format",
        "file",
        "foreign",
        "integers",
        "page",
        "both",
        "page's faces",
        "no page",
        "faces",
        "twice",
        "home",
    ],
)
def test_what_is_wrong_is_one_line(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_network_is_named(tmp_path, capsys):
    data = bytearray((LOOKS / "evening.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "mine.pt").write_bytes(data)
    assert main([str(tmp_path / "mine.pt"), "--to", "onnx", "--out", str(tmp_path / "out")]) == 1
    assert "mine.pt is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_and_a_missing_runtime_told(tmp_path, capsys, monkeypatch):
    find = tinybeauty_export.importlib.util.find_spec
    hidden = {"onnx", "ai_edge_litert"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in hidden else find(name))
    assert main(["evening", "--to", "onnx", "--out", str(tmp_path)]) == 1
    assert "onnx needs the package onnx: pip install onnx" in capsys.readouterr().err
    assert main(["evening", "--to", "litert", "--out", str(tmp_path)]) == 0
    assert "not checked: pip install ai-edge-litert" in capsys.readouterr().out


def test_what_is_in_the_way_stays(tmp_path, capsys):
    """A file where the folder should be, and a folder of the file's name."""
    (tmp_path / "file").write_text("mine")
    assert main(["evening", "--to", "onnx", "--no-check", "--out", str(tmp_path / "file")]) == 1
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / "evening.onnx").mkdir(parents=True)
    (tmp_path / "out" / "evening.onnx" / "mine").write_text("mine")
    assert main(["evening", "--to", "onnx", "--no-check", "--out", str(tmp_path / "out")]) == 1
    assert f"cannot write {tmp_path / 'out' / 'evening.onnx'}" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["evening.onnx", "mine"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for one process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_request_to_stop_leaves_nothing_half_written(tmp_path, name):
    words = [sys.executable, str(ROOT / "tinybeauty_export.py"), "evening", "--to", "onnx", "--out", "phone"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("phone/.partial*/*")):
        time.sleep(0.01)
    process.send_signal(number := getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + number, "stopped; no file is half-written\n")
    assert not list((tmp_path / "phone").iterdir())


def test_an_older_package_is_replaced_whole(tmp_path):
    pytest.importorskip("coremltools")
    package = tmp_path / "evening.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "old").write_text("old")
    assert main(["evening", "--to", "coreml", "--no-check", "--out", str(tmp_path)]) == 0
    assert not (package / "Data" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["evening.mlpackage"]
