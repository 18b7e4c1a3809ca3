"""The READMEs tell the truth: commands run, links lead somewhere, lists are complete, messages are ours."""

from __future__ import annotations

import ast
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

from tinybeauty.settings import load_settings, read_yaml
from tinybeauty_training import Config

RECIPE = "tinybeauty_model/pretrained/recipe.yaml"
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "tinybeauty").rglob("*.py"), *(ROOT / "data").glob("*.py")]


def read(document: Path | str) -> str:
    """Return the text of a document."""
    return (ROOT / document).read_text(encoding="utf-8")


def read_section(document: Path | str, heading: str) -> str:
    """Return what stands under a heading of the second level."""
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", read(document), re.DOTALL | re.MULTILINE)[1]


def find_commands(text: str) -> list[list[str]]:
    """Return the commands in the ```bash blocks: a list of words each, split at newlines and &&."""
    commands = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            parts = re.split(r"\s(?:&&|;)\s", line)
            commands += [words for part in parts if (words := shlex.split(part, comments=True))]
    return commands


DOCUMENTS = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md")])
WITH_COMMANDS = [document for document in DOCUMENTS if find_commands(read(document))]


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
# What is added to a command of a README, so that it does the same on few small faces.
SMALLER = {
    "tinybeauty_training.py": [*SMALL, "--epochs", "1"],
    "data/make_demo.py": ["--count", "12", "--size", "64"],
    "data/prepare_pairs.py": ["--size", "64"],
    "data/draw_scene.py": ["--width", "800"],
    "tinybeauty_apply.py": [],
    "tinybeauty_export.py": [],
    "tests/bench_architecture.py": ["--only", "this one", *FEW],
    "tests/bench_handful.py": ["--counts", "3", "--test", "1", "--image_size", "32", "--no-scratch"],
    "tests/bench_recipe.py": FEW,
    "tests/bench_start.py": FEW,
    "tests/bench_training.py": ["--pairs", "150", "--image_size", "32", "--goal", "1"],
}


def shrink(words: list[str], checkout: Path) -> list[str]:
    """Return what a test runs for a README command: the same, on few small faces.

    Raises:
        pytest.fail.Exception: nobody has told this test what the command is.
    """
    words = ["start" if word == "speed" else word for word in words]  # whose size is fixed: minutes
    if words[0] == "python" and words[1] in SMALLER:
        return [sys.executable, *words[1:], *SMALLER[words[1]]]
    if words[0] == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *words[1:], *SMALL, "--epochs", "1"]
    if words[:2] == ["wandb", "leet"]:  # a window in the terminal: its printing sibling reads the same run
        return [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", words[-1]]
    if words[:2] == ["wandb", "sync"]:
        assert (checkout / words[-1]).is_dir(), words
        return [sys.executable, "-m", "wandb", "sync", "--dry-run", words[-1]]
    if words[0] == "cp":
        return words
    pytest.fail(f"a README has a command that this test does not know: {shlex.join(words)}")


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=str)
def test_every_command_runs(document, copy_checkout, demo, request):
    """In order, in a fresh checkout in which a reader has `my_pairs`, photos and `my.yaml`."""
    gate = read(".ci/run")
    commands = [words for words in find_commands(read(document)) if not is_set_up(words, gate)]
    if document.name == str(document):  # the README at the top
        assert commands[0] == ["python", "tinybeauty_training.py"]
    if any(words[1:2] == ["tinybeauty_apply.py"] for words in commands):
        request.getfixturevalue("face_models")
    checkout = copy_checkout()
    shutil.copytree(demo, checkout / "my_pairs")
    for seed in range(6):
        face = draw_face(MEAN, (256, 256), seed=seed)
        for folder in ("my_photos", "dark_photos", "other_photos"):
            save_photo(checkout / folder, f"{folder[0]}{seed}.png", face, MEAN)
    (checkout / "my.yaml").write_text("batch_size: 4\n", encoding="utf-8")
    offline = any(words[0] == "wandb" for words in commands)  # the first run is then the one looked at
    done = []
    for words in commands:
        command = shrink(words, checkout)
        if command in done:  # two sizes of one benchmark
            continue
        environment = os.environ | {"WANDB_MODE": "offline" if offline and not done else "disabled"}
        run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{shlex.join(words)}\n{run.stderr}"
        done.append(command)
        if words[-1] == "my_looks.yaml":  # a reader writes a look into the copy
            look = re.search(r"```yaml\n(.*?)```", read("data/README.md"), re.DOTALL)[1]
            with (checkout / "my_looks.yaml").open("a", encoding="utf-8") as file:
                file.write(look)


def test_the_snippet_of_the_readme_makes_a_scene_up(face_models, tmp_path):
    snippet = re.search(r"```python\n(.*?)```", read("README.md"), re.DOTALL)[1]
    shutil.copytree(ROOT / "tinybeauty_model" / "pretrained", tmp_path / "tinybeauty_model" / "pretrained")
    tool = [sys.executable, ROOT / "data" / "draw_scene.py", "scene.jpg", "--width", "800"]
    subprocess.run(tool, cwd=tmp_path, check=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "made_up.png") as made_up, Image.open(tmp_path / "scene.jpg") as bare:
        assert made_up.size == bare.size
        assert made_up.tobytes() != bare.tobytes()


def test_the_python_snippet_runs(demo, tmp_path):
    """On a face, in the place that the snippet names, with the networks that ship."""
    snippet = re.search(r"```python\n(.*?)```", read("tinybeauty_model/README.md"), re.DOTALL)[1]
    shutil.copytree(ROOT / "tinybeauty_model" / "pretrained", tmp_path / "tinybeauty_model" / "pretrained")
    (tmp_path / "data" / "aligned" / "source").mkdir(parents=True)
    face = next((demo / "source").iterdir())
    shutil.copy(face, tmp_path / "data" / "aligned" / "source" / "anna.png")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "made_up.png") as made_up, Image.open(face) as bare:
        assert made_up.size == bare.size
        assert made_up.tobytes() != bare.tobytes()


def test_the_recipe_is_what_the_model_card_says():
    """And a YAML of some keys alone, whose other values are the defaults."""
    card = read_section("tinybeauty_model/README.md", "Three looks that ship")
    (sentence,) = re.findall(r"^\[recipe.yaml\].*", card, re.MULTILINE)
    said = {key: float(value) for key, value in re.findall(r"`(\w+): ([\d.e-]+)`", sentence)}
    assert {key: float(value) for key, value in read_yaml(ROOT / RECIPE).items()} == said
    assert load_settings(Config, {}, ROOT / RECIPE) == Config(**said)
    assert load_settings(Config, {"psnr_weight": "0"}, ROOT / RECIPE).psnr_weight == 0
    assert f"--config {RECIPE}" in card


def test_the_gate_is_the_workflows_too():
    workflow = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").iterdir())
    assert ".ci/run" in workflow


def find_anchors(document: Path) -> set[str]:
    """Return what a link can name in a document, as GitHub makes it from the headings."""
    headings = [heading.lower() for heading in re.findall(r"^#+ (.*)", read(document), re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = ROOT / document.parent / name if name else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in find_anchors(target), link


def test_nothing_is_left_to_fill_in():
    for document in DOCUMENTS:
        left = re.findall(r"@@|\b(?:TODO|FIXME|[A-Z]+TABLE|RESULTS|DEMO_[A-Z]+)\b", read(document))
        assert not left, document


def test_the_readme_is_short():
    """What a newcomer needs; studies go to tests/README.md, a run's files to tinybeauty_model/README.md."""
    assert len(read("README.md").splitlines()) <= 260


def test_the_glossary_has_every_metric_and_no_other(trained):
    section = read_section("tinybeauty_model/README.md", "Metrics")
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    names = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    with (trained.output_dir / "metrics.csv").open() as file:
        assert names == set(file.readline().strip().split(","))


def test_the_list_names_every_file_of_a_run(trained):
    text = read("tinybeauty_model/README.md")
    for path in trained.output_dir.glob("[!.]*"):
        assert re.sub(r"\d{3}\.png", "XXX.png", path.name) in text


def test_the_tree_names_every_program_file_and_no_other():
    """But for tests/, whose files are named after what they test."""
    tree = next(block for block in read("README.md").split("```") if "\ntinybeauty/ " in block)
    there = {path.name for path in SOURCES if path.name != "__init__.py"}
    assert set(re.findall(r"\w+\.py", tree)) == there


def test_what_survives_names_tests_that_there_are():
    tests = "".join(read(path) for path in (ROOT / "tests").glob("test_*.py"))
    for name in re.findall(r"`(test_\w+|tests/\w+\.py)`", read_section("README.md", "What survives what")):
        assert f"def {name}(" in tests or (ROOT / name).is_file(), name


def test_how_it_works_names_what_there_is():
    """Every `Class`, `Class.method` and `function` in that section is defined where a reader looks for it."""
    text = "".join(read(path) for path in SOURCES)
    names = re.findall(r"`([A-Za-z_.]+)`", read_section("README.md", "How it works"))
    names = [name for name in names if not name.endswith(".py")]
    assert {"MakeupLoss", "Run.watch_plateau", "OutputDir.save", "open_image"} <= set(names)
    for name in ".".join(names).split("."):
        assert re.search(rf"^ *(?:class|def) {name}\b", text, re.MULTILINE), name


def find_messages() -> list[str]:
    """Return the strings of each function of the program, joined, with ... for what is filled in."""
    messages = []
    for tree in (ast.parse(read(path)) for path in SOURCES):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                messages.append(" ... ".join(part for part in parts if isinstance(part, str)))
    return messages


def test_the_messages_in_troubleshooting_are_the_programs():
    messages = find_messages()
    said = re.findall(r"`(?:error: |(?=WARNING))(.*?)`", read_section("README.md", "Troubleshooting"))
    assert len(said) > 10
    for line in said:
        words = [part.strip() for part in line.split("...") if part.strip(" ;:")]
        assert any(all(part in message for part in words) for message in messages), line


def find_imports(path: Path) -> set[str]:
    """Return the names of the packages that a script cannot do without: imported, and not in a `try`."""
    tree = ast.parse(read(path))
    optional = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in optional:
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and id(node) not in optional:
            names.add(node.module.split(".")[0])
    return names


def test_requirements_name_every_import():
    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").lower()
    names = {"yaml": "pyyaml", "PIL": "pillow"}
    ours = {"tinybeauty", *(script.stem for script in SOURCES if ROOT / "tinybeauty" not in script.parents)}
    ours.add("ai_edge_litert")  # checks what tinybeauty_export wrote, where the tests' packages are there
    for name in set().union(*map(find_imports, SOURCES)) - sys.stdlib_module_names - ours:
        assert re.search(rf"^{names.get(name, name)}>=\d", needed, re.MULTILINE), name
