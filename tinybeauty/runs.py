"""A run and its surroundings: the output folder, what may change before a resume, requests to stop."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tinybeauty.devices import Team
from tinybeauty.errors import Stopped, UserError, list_some
from tinybeauty.files import lock_folder, make_folder, save_bytes
from tinybeauty.shipping import RUN_FORMAT, load_content, name_damaged

STATE_FILE = "tinybeauty_last.ckpt"
BEST_LOSS, BEST_PSNR, FINAL = "tinybeauty_best_loss.pt", "tinybeauty_best_psnr.pt", "tinybeauty_final.pt"
NETWORKS = (BEST_LOSS, BEST_PSNR, FINAL)
OUTPUTS = ("tinybeauty_*.pt", STATE_FILE, "samples_epoch_*.png", "metrics.csv", "config.yaml")


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


@contextmanager
def open_output_dir(
    path: Path, resume: bool, overwrite: bool, program: Path, leads: bool
) -> Iterator[OutputDir]:
    """Give the output folder: made where it is missing, tried out, and no other run's while we are in it.

    One that was made here and that nothing was written to goes again.

    Args:
        path: where it is.
        resume: go on with the run in it.
        overwrite: delete the run in it.
        program: the program's own folder, which it must not be.
        leads: False in the processes of a team that do not write.

    Raises:
        UserError: it cannot be written to, another run is writing to it, or it holds a run that nobody
            said what to do with, or none to resume.
    """
    if not leads:
        yield OutputDir(path)
        return
    try:
        state_exists = (path / STATE_FILE).exists()
        if resume and not state_exists:
            raise UserError(f"there is nothing to resume: {path} holds no {STATE_FILE}")
        if path.resolve() == program:
            raise UserError(f"output_dir {path} is the folder of the program; choose another output_dir")
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        make_folder(path)
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {path}: {error.strerror}; choose another output_dir"
        ) from None
    with lock_folder(path):
        earlier = [file for pattern in OUTPUTS for file in path.glob(pattern)]
        if earlier and not (resume or overwrite):
            go_on = "--resume goes on with it, " if state_exists else ""
            raise UserError(
                f"{path} holds a run already: {go_on}--overwrite deletes it and starts anew, "
                "another --output_dir keeps both"
            )
        try:
            yield OutputDir(path, earlier if overwrite else [])
        finally:
            with suppress(OSError):  # Windows keeps the lock that is still ours
                if made and [file.name for file in path.iterdir()] == [".lock"]:
                    (path / ".lock").unlink()
                    for folder in made:
                        folder.rmdir()


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # finished ones
    pairs_done: int = 0  # of the epoch after that
    sums: dict[str, float] = field(default_factory=dict)  # of its losses over these pairs
    global_step: int = 0
    lr_scale: float = 1.0  # what the drops at plateaus leave of the learning rate
    seconds: float = 0.0  # of the finished epochs
    best_loss: float = math.inf
    best_psnr: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv
    wandb_id: str | None = None

    def finish_epoch(self, row: dict[str, float]) -> list[str]:
        """Note that an epoch is done; return which of the networks that ship it is the best for."""
        self.epoch, self.pairs_done, self.sums = row["epoch"], 0, {}
        self.seconds += row["time/epoch_s"]
        self.history.append(row)
        beaten = []
        if row["val/loss"] < self.best_loss:
            self.best_loss = row["val/loss"]
            beaten.append(BEST_LOSS)
        if row["val/psnr"] > self.best_psnr:
            self.best_psnr = row["val/psnr"]
            beaten.append(BEST_PSNR)
        return beaten

    def forget_missing(self, output_dir: Path) -> None:
        """Forget the best values of networks that were moved away: the next one is the best that is there."""
        if not (output_dir / BEST_LOSS).exists():
            self.best_loss = math.inf
        if not (output_dir / BEST_PSNR).exists():
            self.best_psnr = -math.inf


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
        raise UserError("cannot resume with another split or size:\n  " + "\n  ".join(refused))
    for edit in edits.values():
        print(f"changed   {edit}")


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
    output_dir: Path,
    defaults: dict[str, Any],
    now: dict[str, Any],
    fixed: tuple[str, ...],
    checksums: dict[str, int],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of the run in a folder and its settings; say which settings differ now.

    Args:
        output_dir: where the run is.
        defaults: of all settings; a state may be older than a setting.
        now: the settings of this start.
        fixed: the keys that cannot change within a run.
        checksums: of the pairs of this start.

    Raises:
        UserError: the state is damaged, or a setting or the pairs do not allow to go on.
    """
    path = output_dir / STATE_FILE
    state = load_content(path, RUN_FORMAT)
    with name_damaged(path):
        before = defaults | state["config"]
        check_edits(before, now, fixed)
        check_pairs(state["checksums"], checksums, now["data_dir"])
    return state, before


def check_finite(loss: float, epoch: int, learning_rate: float) -> None:
    """Raise UserError where the loss is no longer a finite number; what was saved before stays intact."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} in epoch {epoch}: training has diverged and stops; what was saved before is "
            f"intact. Lower learning_rate (now {learning_rate:g}) or set precision: float32"
        )


def describe_resume(argv: list[str]) -> str:
    """Return the command that goes on with a run that was started with these words."""
    again = [sys.argv[0], *(word for word in argv if word not in ("--resume", "--overwrite")), "--resume"]
    start = "torchrun ..." if "LOCAL_WORLD_SIZE" in os.environ else "python"
    return f"{start} {shlex.join(again)}"


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request to stop after the step; a second one ends at once."""

    def __init__(self) -> None:
        self._signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # the only one that may set handlers
            self._previous = {
                number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self._signal_number is not None:
            raise KeyboardInterrupt
        self._signal_number = number
        os.write(2, b"\nstopping after this step; once more ends at once\n")  # print may be under way

    def asked(self, team: Team) -> bool:
        """Return whether any process of the team was asked to stop; all of the team must call this."""
        asked = self._signal_number is not None
        return bool(team.all_reduce(torch.tensor(int(asked)))) if team.size > 1 else asked

    def stopped(self) -> Stopped:
        """Return what to raise once the state is saved."""
        return Stopped("stopped, the state is saved", self._signal_number or signal.SIGTERM)
