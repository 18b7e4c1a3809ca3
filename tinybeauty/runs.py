"""A run and its surroundings: the output folder, what may change before a resume, requests to stop."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from tinybeauty.devices import Team
from tinybeauty.errors import Stopped, UserError, catch_signals, find_rank, list_some
from tinybeauty.files import lock_folder, make_folder, save_bytes
from tinybeauty.progress import FINAL, NETWORKS
from tinybeauty.settings import YAML_ERRORS, Settings
from tinybeauty.shipping import MODEL_FORMAT, RUN_FORMAT, load_content, name_damaged

STATE_FILE = "tinybeauty_last.ckpt"
SETTINGS, SETTINGS_BESIDE = "config.yaml", "config_used.yaml"  # the second where the first is a person's own
INTERRUPTED = "stopped at once; a state saved before is intact"
SAMPLES = re.compile(r"samples_epoch_\d{3,}\.png")
SETTINGS_HEAD = b"# The settings that the run in this folder used (%08x: as written by TinyBeauty).\n"

FIXED = ("image_size", "val_fraction", "person_pattern", "repeats", "start_from")  # within a run

# What an edit before a resume does, where that is more than "from the next step on".
EFFECTS = {
    "learning_rate": "it counts from the next step on, without the drops at plateaus so far",
    "warmup_steps": "the rate is what it would be with it from the first step on, with the drops so far",
    "lr_schedule": "the rate is what it would be with it from the first step on, with the drops so far",
    "lr_factor": "the drops at plateaus so far count with it too",
    "lr_patience": "the epochs without a better val/loss so far count",
    "seed": "for order and flips from the next epoch on, the running one keeps its own",
    "epochs": f"until the last of them is done {FINAL} stays what it is; a linear rate falls to 0 there",
    "l1_weight": "the best loss, the plateau and the running epoch's train/loss begin anew",
    "sample_every": "from the running epoch on",
    "data_dir": "the same pairs at another place",
    "output_dir": "the run has moved",
    "wandb_project": "what is logged from now on goes there",
}
EFFECTS |= dict.fromkeys(("eyeliner_weight", "psnr_weight"), EFFECTS["l1_weight"])


def to_yaml(values: dict[str, Any]) -> bytes:
    """Return settings as a YAML file, in their order."""
    return yaml.safe_dump(values, sort_keys=False).encode()


def is_ours(path: Path) -> bool:
    """Return whether a file of settings is as a run has written it; one that a person edited is theirs."""
    try:
        text = path.read_bytes()
        head, body = text.split(b"\n", 1)
        if head + b"\n" == SETTINGS_HEAD % zlib.crc32(body):
            return True
        # Earlier versions wrote no first line, but every setting, in their order, as YAML does by itself.
        values = yaml.safe_load(text)
        keys = list(values) if isinstance(values, dict) else []
        return {"data_dir", "wandb_project"} <= {*keys[:1], *keys[-1:]} and to_yaml(values) == text
    except (OSError, *YAML_ERRORS):
        return False


def find_outputs(folder: Path) -> list[Path]:
    """Return the files in a folder that a run has written, and none of a person's."""
    names = [*NETWORKS, STATE_FILE, "metrics.csv"]
    outputs = [folder / name for name in names if (folder / name).is_file()]
    outputs += [folder / name for name in (SETTINGS, SETTINGS_BESIDE) if is_ours(folder / name)]
    return outputs + [path for path in folder.iterdir() if SAMPLES.fullmatch(path.name)]


@dataclass
class OutputDir:
    """The folder that a run writes to.

    Attributes:
        path: where it is.
        outdated: files of an earlier run, which go when the first of this one is written, and not before:
            a run that fails in its first epoch costs nothing.
    """

    path: Path
    outdated: list[Path] = field(default_factory=list)

    def save(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        for old in self.outdated:
            with suppress(OSError):
                old.unlink()
        self.outdated = []
        try:
            save_bytes(self.path / name, data)
        except UserError as error:
            raise UserError(
                f"{error}: once this is mended, go on with --resume, or with --overwrite where nothing was "
                "saved yet"
            ) from None

    def save_settings(self, used: dict[str, Any]) -> None:
        """Write the settings: into config.yaml or, where a person has one of their own there, beside it.

        Raises:
            UserError: they cannot be written.
        """
        body = to_yaml(used)
        there = self.path / SETTINGS
        theirs = there not in self.outdated and there.exists() and not is_ours(there)
        self.save(SETTINGS_BESIDE if theirs else SETTINGS, SETTINGS_HEAD % zlib.crc32(body) + body)


@contextmanager
def open_output_dir(
    config: Settings, resume: bool, overwrite: bool, program: Path, leads: bool
) -> Iterator[OutputDir]:
    """Give the output folder: made where it is missing, tried out, and no other run's while we are in it.

    One that was made here and that nothing was written to goes again.

    Args:
        config: has output_dir and data_dir, among whose pictures it must not be.
        resume: go on with the run in it.
        overwrite: delete the run in it.
        program: the program's own folder, which it must not be.
        leads: False in the processes of a team that do not write.

    Raises:
        UserError: it cannot be written to, another run is writing to it, or it holds a run that nobody
            said what to do with, or none to resume.
    """
    path, data_dir = Path(config.output_dir), Path(config.data_dir)
    if not leads:
        yield OutputDir(path)
        return
    try:
        state_exists = (path / STATE_FILE).exists()
        if resume and not state_exists:
            raise UserError(f"there is nothing to resume: {path} holds no {STATE_FILE}")
        if path.resolve() == program:
            raise UserError(f"output_dir {path} is the folder of the program; choose another output_dir")
        pictures = [(data_dir / kind).resolve() for kind in ("source", "target", "eye_mask", ".cache")]
        if any(path.resolve().is_relative_to(folder) for folder in pictures):
            raise UserError(
                f"output_dir {path} is where data_dir has its pictures or cache; choose another output_dir"
            )
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        make_folder(path)
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {path}: {error.strerror}; choose another output_dir"
        ) from None
    with lock_folder(path):
        earlier = find_outputs(path)
        if earlier and not (resume or overwrite):
            go_on = "--resume goes on with it, " if state_exists else ""
            raise UserError(
                f"{path} holds a run already: {go_on}--overwrite deletes it and starts anew, "
                "another --output_dir keeps both"
            )
        if (path / SETTINGS).exists() and not is_ours(path / SETTINGS):
            print(f"          {path / SETTINGS} is your own and stays; the run's is {SETTINGS_BESIDE}")
        try:
            yield OutputDir(path, earlier if overwrite and not resume else [])
        finally:
            with suppress(OSError):  # Windows keeps the lock that is still ours
                if made and [file.name for file in path.iterdir()] == [".lock"]:
                    (path / ".lock").unlink()
                    for folder in made:
                        folder.rmdir()


def check_edits(before: dict[str, Any], now: dict[str, Any], fixed: tuple[str, ...]) -> None:
    """Print the settings that differ from the run's and take effect from now on.

    Args:
        before: the run's settings.
        now: those of this start.
        fixed: the keys that cannot change within a run.

    Raises:
        UserError: one of these has changed.
    """
    edits = {
        key: f"{key}: {before[key]!r} then, {value!r} now"
        for key, value in now.items()
        if before[key] != value
    }
    if refused := [edits[key] for key in fixed if key in edits]:
        raise UserError("cannot resume with another split, size or start:\n  " + "\n  ".join(refused))
    for key, edit in edits.items():
        print(f"changed   {edit}" + (f": {EFFECTS[key]}" if key in EFFECTS else ""))


def check_pairs(before: dict[str, int], now: dict[str, int], data_dir: str) -> None:
    """Raise UserError where the pairs, given as {stem: checksum}, are not those that the run began with."""
    stems = sorted(before.keys() | now.keys())
    if others := [stem for stem in stems if before.get(stem) != now.get(stem)]:
        raise UserError(
            f"cannot resume: {len(others):,} pairs were added, removed or changed since "
            f"({list_some(others)}; data_dir: {data_dir!r}); bring them back, or start anew in another "
            "output_dir"
        )


def read_state(
    output_dir: Path, config: Settings, fixed: tuple[str, ...], checksums: dict[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of the run in a folder and its settings; say which settings differ now.

    Args:
        output_dir: where the run is.
        config: the settings of this start.
        fixed: the keys that cannot change within a run.
        checksums: of the pairs of this start.

    Raises:
        UserError: the state is damaged, or a setting or the pairs do not allow to go on.
    """
    path = output_dir / STATE_FILE
    state = load_content(path, RUN_FORMAT)
    with name_damaged(path):
        before = type(config)().model_dump() | state["config"]  # it may be older than a setting
        check_edits(before, config.model_dump(), fixed)
        check_pairs(state["checksums"], checksums, str(config.data_dir))
    return state, before


def read_epoch(path: Path) -> int | None:
    """Return the epoch of a network that ships, None where the file is missing or damaged."""
    try:
        return load_content(path, MODEL_FORMAT).get("epoch")
    except UserError:
        return None


class Saved(Stopped):
    """The run was stopped and its state saved, so that it can go on; before that Stopped itself is raised."""


@contextmanager
def say_how_to_go_on(argv: list[str]) -> Iterator[None]:
    """Add to what is said of a run that was stopped the command that goes on with it."""
    try:
        yield
    except Saved as stopped:
        raise Stopped(f"{stopped}; go on with: {describe_resume(argv)}", stopped.signal_number) from None


def check_finite(loss: float, epoch: int, learning_rate: float) -> None:
    """Raise UserError where the loss is no longer a finite number; what was saved before stays intact."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} in epoch {epoch}: training has diverged and stops; what was saved before is "
            f"intact. Lower learning_rate (now {learning_rate:g}) or the losses' weights, or set precision: "
            "float32"
        )


def settle_trial(
    folder: str, config: Settings, resume: bool, argv: list[str]
) -> tuple[Settings, bool, list[str]]:
    """Give a sweep's trial a folder of its own in output_dir, and say which.

    A trial that the agent starts again, because its machine was taken away, goes on.

    Args:
        folder: its name; '' outside of a sweep, where all stays as it is.
        config: the settings.
        resume: whether the run that is there goes on.
        argv: the command line.

    Returns:
        the settings, whether to resume, and the command line that is the same training without the sweep.
    """
    if not folder:
        return config, resume, argv
    path = Path(config.output_dir) / folder
    if not find_rank():
        print(f"sweep     this trial writes into {path}")
    again = ["--config", str(path / SETTINGS)]
    return config.model_copy(update={"output_dir": str(path)}), resume or (path / STATE_FILE).exists(), again


def describe_resume(argv: list[str]) -> str:
    """Return the command that goes on with a run that was started with these words."""
    again = [sys.argv[0], *(word for word in argv if word not in ("--resume", "--overwrite")), "--resume"]
    start = "torchrun ..." if "LOCAL_WORLD_SIZE" in os.environ else "python"
    return f"{start} {shlex.join(again)}"


class StopRequest:
    """Turns Ctrl-C, SIGTERM and a closed terminal into a request to stop after the step.

    A second one ends at once. Under nohup, which has a closed terminal ignored, it stays so.
    """

    def __init__(self) -> None:
        self._signal_number: int | None = None
        self._handlers = ExitStack()
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    def __enter__(self) -> StopRequest:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # Windows has none
        self._handlers.enter_context(catch_signals(numbers, self._note))
        return self

    def __exit__(self, *details: object) -> None:
        self._handlers.close()

    def _note(self, number: int, frame: object) -> None:
        for terminal in self._terminals:
            if not os.isatty(terminal):  # closed: what is printed there would raise from now on
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if self._signal_number is not None:
            if number == getattr(signal, "SIGHUP", None):  # of one closed terminal there can be two
                return
            raise KeyboardInterrupt
        self._signal_number = number
        with suppress(OSError):
            os.write(2, b"\nstopping after this step; once more ends at once\n")  # print may be under way

    def asked(self, team: Team) -> bool:
        """Return whether any process of the team was asked to stop; all of the team must call this."""
        asked = self._signal_number is not None
        return bool(team.all_reduce(torch.tensor(int(asked)))) if team.size > 1 else asked

    def stopped(self) -> Saved:
        """Return what to raise once the state is saved."""
        return Saved("stopped, the state is saved", self._signal_number or signal.SIGTERM)
