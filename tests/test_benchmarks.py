"""The benchmarks run: each once, as small as it goes. tests/test_pretrained.py has that of the looks."""

from __future__ import annotations

import json
import re
import runpy
import sys

import pytest
from conftest import ROOT

import tinybeauty_training as program

SMALL = ["--image_size", "16", "--epochs", "1"]
CPU = [*SMALL, "--batch_size", "8", "--device", "cpu", "--precision", "float32", "--cache_dir", ""]


@pytest.fixture
def run_benchmark(monkeypatch, capsys):
    """Return a function that runs a benchmark as a command, in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(program, "load_batches", program.load_batches)  # they count and move batches

    def run(name: str, *flags: object) -> tuple[int, str, str]:
        script = ROOT / "tests" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, flags)])
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("name", "flags", "rows"),
    [
        ("bench_architecture", [*CPU, "--only", "the paper's network,plain U-Net in float32"], 3),
        ("bench_recipe", [*CPU, "--only", "defaults;2e-3, warm-up, small affine moves"], 2),
        ("bench_start", SMALL, 3),
    ],
)
def test_a_benchmark_prints_its_table(run_benchmark, demo, name, flags, rows):
    code, stdout, stderr = run_benchmark(name, "--data_dir", demo, *flags)
    assert code == 0, stderr
    header = r"^\| candidate |^\| settings |^start +epoch 1"
    table = re.split(header, stdout, flags=re.MULTILINE)[-1].splitlines()[1:]
    table = [line for line in table if not line.startswith(("| ---", "device"))]
    assert len(table) == rows
    assert all(re.search(r"\d\.\d", line) for line in table)


@pytest.mark.parametrize("system", ["straightforward", "ours"])
def test_both_systems_train_to_a_goal(run_benchmark, demo, system):
    """What `--parts goal` asks a process of its own for."""
    config = {"data_dir": str(demo), "image_size": 16, "cache_dir": ""}
    order = ["measure_goal", {"system": system, "goal": 1.0, "limit_s": 60.0}, config]
    code, stdout, stderr = run_benchmark("bench_training", "--order", json.dumps(order))
    assert code == 0, stderr
    result = json.loads(stdout.splitlines()[-1])
    assert result["epochs"] == 1
    assert result["psnr"] > 1


def test_a_missing_package_leaves_the_latencies_out(run_benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, stdout, stderr = run_benchmark("bench_architecture", "--no-training", "--only", "this one")
    assert code == 0, stderr
    assert "no latency, onnxscript is missing" in stdout
    assert re.search(r"^\| this one .* \| - \|$", stdout, re.MULTILINE)


def test_candidates_that_do_not_exist_are_named(run_benchmark):
    code, _, stderr = run_benchmark("bench_architecture", "--only", "U-Net")
    assert code == 1
    assert stderr.startswith("error: unknown candidates ['U-Net']; there are: this one, ")
