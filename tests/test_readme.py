"""The README tells the truth: its commands run, its links lead somewhere, its glossary is complete."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from drawn_faces import MEAN, draw_face, save_photo
from PIL import Image

README = ROOT / "README.md"
DOCUMENTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md")])


def find_commands(text: str) -> list[list[str]]:
    """Return the commands in the ```bash blocks: a list of words each, split at newlines and &&."""
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            parts = re.split(r"\s(?:&&|;)\s", line)
            commands += [words for part in parts if (words := shlex.split(part, comments=True))]
    return commands


def find_look() -> str:
    """Return the look in the ```yaml block."""
    return re.search(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]


def is_set_up(words: list[str], gate: str) -> bool:
    """Tell whether a command prepares the machine; then the gate, .ci/run, must do the same."""
    if words[:2] in (["python3", "-m"], ["python", "-m"]) and words[2] == "venv":
        assert "-m venv" in gate
    elif words[0] in (".", "source") and words[1].endswith("bin/activate"):
        assert "bin/activate" in gate
    elif words[:3] == ["pip", "install", "-r"]:
        for name in words[3::2]:
            assert (ROOT / name).is_file(), name
            assert f"-r {name}" in gate
    elif words == ["python", "-m", "pytest"]:
        assert "\npython -m pytest\n" in gate
    else:
        return words[0] == "cd" or words[:2] == ["git", "clone"]
    return True


FEW = ["--epochs", "1", "--image_size", "64"]
# What is added to a command of the README, so that it does the same on few small faces.
SMALLER = {
    "tinybeauty_training.py": [*SMALL, "--epochs", "1"],
    "data/prepare_pairs.py": ["--size", "64"],
    "tests/bench_architecture.py": ["--only", "this one", *FEW],
    "tests/bench_recipe.py": FEW,
    "tests/bench_start.py": FEW,
    "tests/bench_training.py": ["--parts", "start", "--pairs", "150", "--image_size", "32"],
}


def shrink(words: list[str], checkout: Path) -> list[str]:
    """Return what a test runs for a README command: the same, on few small faces.

    Raises:
        pytest.fail.Exception: nobody has told this test what the command is.
    """
    if words[:2] == ["uv", "run"]:  # landmarks lie beside the photos: no need for uv
        words = ["python", *words[2:]]
    if words[0] == "python" and words[1] in SMALLER:
        return [sys.executable, *words[1:], *SMALLER[words[1]]]
    if words[0] == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *words[1:], *SMALL, "--epochs", "1"]
    if words[:2] == ["wandb", "leet"]:  # a window in the terminal: its printing sibling reads the same run
        return [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", words[-1]]
    if words[:2] == ["wandb", "sync"]:
        assert (checkout / words[-1]).is_dir(), words
        return [sys.executable, "-m", "wandb", "sync", "--dry-run", words[-1]]
    if words[:2] == ["cp", "data/looks.yaml"]:
        return words
    pytest.fail(f"README.md has a command that this test does not know: {shlex.join(words)}")


def test_every_command_runs(copy_checkout, demo):
    """In order, in a fresh checkout in which a reader has `my_pairs`, `my_photos` and `my.yaml`."""
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [
        words for words in find_commands(README.read_text(encoding="utf-8")) if not is_set_up(words, gate)
    ]
    assert commands[0] == ["python", "tinybeauty_training.py"]
    checkout = copy_checkout()
    shutil.copytree(demo, checkout / "my_pairs")
    for seed in range(6):
        save_photo(checkout / "my_photos", f"{seed}.png", draw_face(MEAN, (256, 256), seed=seed), MEAN)
    shutil.copy(checkout / "config.yaml", checkout / "my.yaml")
    offline = any(words[0] == "wandb" for words in commands)  # the first run is then the one looked at
    for number, words in enumerate(commands):
        environment = os.environ | {"WANDB_MODE": "offline" if offline and number == 0 else "disabled"}
        if words[0] == "uv" and "mine" in words:  # a reader has written the look into the file
            with (checkout / "my_looks.yaml").open("a", encoding="utf-8") as file:
                file.write(find_look())
        command = shrink(words, checkout)
        run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{shlex.join(words)}\n{run.stderr}"
    assert (checkout / "data" / "demo" / "source").is_dir()


def test_the_python_snippet_runs(demo, tmp_path):
    """On a face, in the place that the snippet names, with the networks that ship."""
    snippet = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    shutil.copytree(ROOT / "tinybeauty_model" / "pretrained", tmp_path / "tinybeauty_model" / "pretrained")
    (tmp_path / "data" / "aligned" / "source").mkdir(parents=True)
    shutil.copy(next((demo / "source").iterdir()), tmp_path / "data" / "aligned" / "source" / "anna.png")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "made_up.png") as image:
        assert image.size == (4 * 256, 256)


def test_the_gate_is_the_workflows_too():
    workflow = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").iterdir())
    assert ".ci/run" in workflow


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    headings = [heading.lower() for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    anchors = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        if name:
            assert (ROOT / document.parent / name).exists(), link
        else:
            assert anchor in anchors, link


def test_nothing_is_left_to_fill_in():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        assert not re.findall(r"@@|\b(?:TODO|FIXME|[A-Z]+TABLE|RESULTS|DEMO_[A-Z]+)\b", text), document


def test_the_glossary_has_every_metric_and_no_other(trained):
    text = README.read_text(encoding="utf-8")
    section = re.search(r"^## Metrics\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    names = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    assert names == set(trained.rows[0])


def test_the_readmes_name_every_file_of_a_run(trained):
    text = README.read_text(encoding="utf-8")
    for path in trained.output_dir.glob("[!.]*"):
        assert re.sub(r"\d{3}\.png", "XXX.png", path.name) in text


def test_requirements_name_every_import():
    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").lower()
    names = {"yaml": "pyyaml", "PIL": "pillow"}
    scripts = [*ROOT.glob("*.py"), *(ROOT / "tinybeauty").rglob("*.py"), *(ROOT / "data").glob("*.py")]
    texts = [script.read_text(encoding="utf-8") for script in scripts]
    ours = {"tinybeauty", *(script.stem for script in scripts if script.parent.name != "tinybeauty")}
    headers = re.findall(r"^# /// script\n(?:#.*\n)*?# ///\n", "".join(texts), re.MULTILINE)  # PEP 723
    own = {name for header in headers for name in re.findall(r'"(\w+)==\d', header)}
    for name in {
        name for text in texts for name in re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE)
    }:
        if name not in {*sys.stdlib_module_names, *ours, *own}:
            assert re.search(rf"^{names.get(name, name)}>=\d", needed, re.MULTILINE), name
