"""A look as phones read it: the real command and runtime, damage, and a file that is wrong on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT, read_files

import tinybeauty_export
from tinybeauty.phones.graph import read_graph
from tinybeauty_export import draw_faces, find_truth, main
from tinybeauty_training import load_model

LOOKS = sorted(path.stem for path in (ROOT / "tinybeauty_model" / "pretrained").glob("*.pt"))
FILES = {name: f"evening{suffix}" for name, (_, suffix, _) in tinybeauty_export.FORMATS.items()}


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A drawn face, 256 x 256."""
    return draw_faces(1)[0]


def read_look(look: str):
    """Return the graph of a look that ships."""
    path = ROOT / "tinybeauty_model" / "pretrained" / f"{look}.pt"
    return read_graph(path, load_model(path), look)


@pytest.mark.parametrize("flags", [[], ["--float"]], ids=["bytes", "float"])
@pytest.mark.parametrize("name", FILES)
def test_the_command_writes_a_checked_file_the_same_each_time(name, flags, tmp_path, capsys):
    for folder in ("a", "b"):
        assert main(["evening", "--to", name, "--out", str(tmp_path / folder), *flags]) == 0
    assert "differs by" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "a").iterdir()] == [FILES[name]]
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


@pytest.mark.parametrize("name", FILES)
def test_strength_is_a_slider(name, face, tmp_path):
    assert main(["bold", "--to", name, "--no-check", "--out", str(tmp_path)]) == 0
    path = next(tmp_path.iterdir())
    run = tinybeauty_export.find_writer(name).make_runner(path, False)
    assert (run(face, 0.0) == face).all()
    graph = read_look("bold")
    for strength in (0.5, 1.0, 1.5):
        truth, made_up = find_truth(graph, face, strength), run(face, strength)
        if name == "coreml":  # float16, looked at before it is rounded
            assert np.abs(made_up - truth).max() <= 0.5
        else:
            assert np.abs(made_up - truth.round()).max() <= 1
            assert (made_up != truth.round()).mean() <= 1e-5


@pytest.mark.parametrize("name", FILES)
def test_a_broken_weight_is_refused_and_leaves_no_file(name, tmp_path, capsys, monkeypatch):
    def read_broken(path, model, look):
        graph = read_graph(path, model, look)
        weights = graph.steps[0].weights
        weights.values[0, 0] = -weights.values[0, 0]
        return graph

    monkeypatch.setattr("tinybeauty.phones.graph.read_graph", read_broken)
    assert main(["evening", "--to", name, "--out", str(tmp_path)]) == 1
    assert "not written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plum", "--to", "onnx"], "there is no look"),
        (["evening", "--to", "tnn"], "tnn"),
        (["missing.pt", "--to", "onnx"], "missing.pt"),
        ([str(ROOT / "README.md"), "--to", "onnx"], "is damaged or no file"),
    ],
    ids=["look", "format", "file", "foreign"],
)
def test_what_is_wrong_is_one_line(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evening", "--to", "onnx", "--out", str(tmp_path)]) == 1
    assert "onnx needs the package onnx: pip install" in capsys.readouterr().err
