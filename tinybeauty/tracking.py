"""Weights & Biases, which must never ask, wait for long or stop a training run; and its sweeps."""

from __future__ import annotations

import importlib
import os
import shlex
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from tinybeauty.errors import tell
from tinybeauty.settings import read_yaml

WandbMode = Literal["auto", "online", "offline", "disabled"]

WAIT_S = 30.0  # for anything that WandB does
SAY_AFTER_S = 2.0  # of waiting at the end


class GivenUp(Exception):
    """Something has taken too long; it goes on in a thread that nobody waits for."""


def call_within(wait_s: float, action: Callable[[], Any], say: str = "") -> Any:
    """Return what an action returns, raise what it raises; where it takes long, `say` so.

    Raises:
        GivenUp: it takes longer than `wait_s`.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            results.append(action())
        except BaseException as error:  # SystemExit too; raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=act, daemon=True)  # Python's end does not wait for a daemon
    thread.start()
    if say and wait_s > SAY_AFTER_S:
        thread.join(SAY_AFTER_S)
        wait_s -= SAY_AFTER_S
        if thread.is_alive():
            tell(say)
    thread.join(wait_s)
    if errors:
        raise errors[0]
    if not results:
        raise GivenUp("no answer in time")
    return results[0]


def choose_mode(mode: WandbMode) -> str:
    """Return WandB's mode: what the configuration says or, for `auto`, the environment; else `auto`."""
    empty = [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]
    for name in empty:
        del os.environ[name]  # to whoever wrote it, it is unset; to WandB a wrong value
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"  # as many programs take it, though WandB does not
    named = os.environ.get("WANDB_MODE", "auto").strip().lower()
    return {"dryrun": "offline", "run": "online"}.get(named, named)


class Tracker:
    """A WandB run: online with an account, offline without one.

    Whatever goes wrong is said once; metrics.csv has it all. No wait is longer than WAIT_S; after one that
    would have been, WandB is left alone. `finish` ends it, after all that a person needs is printed.

    Attributes:
        run_id: WandB's name of the run, or what it was before where WandB is off.
        in_a_hurry: do not wait at the end, the person wants out.
    """

    def __init__(self) -> None:
        self.run: Any = None
        self.run_id: str | None = None
        self.in_a_hurry = False
        self._session: Any = None
        self._stuck = False
        self._said: set[str] = set()
        self._files: list[Path] = []

    def start(self, settings: dict[str, Any], run_id: str | None, leads: bool) -> str | None:
        """Start or continue a run.

        Args:
            settings: shown beside the curves; wandb_mode, wandb_project and output_dir are for us: `auto`
                follows WandB's own environment and settings, then is online with an account and else offline.
            run_id: of the run to go on with; None for a new one.
            leads: False in the processes of a team that do not log.

        Returns:
            WandB's name of the run, or what it was before where WandB is off.
        """
        mode = choose_mode(settings["wandb_mode"]) if leads else "disabled"
        if mode != "disabled":
            self._start(mode, settings, run_id)
        self.run_id = self.run.id if self.run is not None else run_id
        return self.run_id

    def _start(self, mode: str, settings: dict[str, Any], run_id: str | None) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # Python's end would wait for its telemetry
        try:  # here, because it costs seconds that a run without it should not pay
            self.wandb = importlib.import_module("wandb")
        except Exception as error:
            self._say(error)
            return
        self._session = self._attempt(self.wandb.setup)
        if self._session is None:
            return
        if mode == "auto" and self._session.settings.mode != "online":
            mode = self._session.settings.mode  # `wandb disabled` and `wandb offline` write it into a file
        if mode == "disabled":
            return
        # They end in good order before we lose patience.
        waits = {"init_timeout": WAIT_S * 0.8, "finish_timeout": WAIT_S / 3, "finish_timeout_raises": True}
        options = {
            "project": settings["wandb_project"],
            "dir": str(Path(settings["output_dir"]).absolute()),
            "config": settings,
            "id": run_id,
            "resume": "allow" if run_id else None,
            "settings": self.wandb.Settings(console="off", quiet=True, silent=True, **waits),
        }
        online = "shared" if mode == "shared" else "online"
        if mode in ("auto", online) and self._attempt(lambda: self.wandb.login(prompt=False, verify=False)):
            self.run = self._attempt(lambda: self.wandb.init(mode=online, **options))
        if self.run is None:
            self.run = self._attempt(lambda: self.wandb.init(mode="offline", **options))
        if self.run is not None:
            self._attempt(lambda: self.run.define_metric("*", step_metric="epoch"))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self.in_a_hurry = kind is not None and issubclass(kind, KeyboardInterrupt)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        if self._stuck:
            return None
        try:
            return call_within(WAIT_S, action)
        except GivenUp as error:
            self._stuck = True
            self._say(error)
        except Exception as error:  # whatever WandB throws: training goes on
            self._say(error)
        return None

    def _say(self, error: Exception) -> None:
        reason = textwrap.shorten(str(error), 100)
        if reason not in self._said:
            self._said.add(reason)
            tqdm.write(f"WandB: {reason}; training goes on, metrics.csv has every number")

    def describe(self) -> str:
        """Return one line: where the dashboard is, or how to look at an offline run."""
        if self.run is None:
            return "WandB is off"
        if not self.run.offline:
            return f"WandB {self.run.url}"
        folder = shlex.quote(os.path.relpath(Path(self.run.dir).parents[1] / "latest-run"))
        return f"WandB offline; look with: wandb leet {folder}"

    def log(self, row: dict[str, float], sample: Path | None) -> None:
        """Log one epoch's metrics and, if drawn, its sample grid."""
        if self.run is None:
            return
        self._attempt(
            lambda: self.run.log(row | ({"samples": self.wandb.Image(str(sample))} if sample else {}))
        )

    def log_files(self, paths: list[Path]) -> None:
        """Log the networks that ship as one artifact, at the end."""
        self._files = paths

    def finish(self, exit_code: int) -> int:
        """End the run, as failed where the exit code is not 0; return the exit code.

        What has not reached the server after WAIT_S, or at a Ctrl-C, can be sent later, and it says how.
        """
        if self._session is None:
            return exit_code
        run, self.run = self.run, None
        # The agent of a sweep that calls us as a function, in a thread of its own, still needs the session.
        ours = threading.current_thread() is threading.main_thread()

        def end() -> None:
            try:
                if run is not None:
                    run.finish(exit_code=exit_code)
            finally:
                if ours:  # otherwise Python's end would wait for it, and without end
                    self.wandb.teardown(exit_code)

        try:
            if self._stuck or self.in_a_hurry:
                raise GivenUp("it was not waited for")
            end_s, say = time.monotonic() + WAIT_S, f"WandB: sending what is left, {WAIT_S:.0f} s at most"
            problem = self._log_artifact(run, f"{say} (Ctrl-C: not now)") if run is not None else None
            call_within(end_s - time.monotonic(), end, "" if problem else f"{say} (Ctrl-C: not now)")
            if problem:
                raise problem
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if run is not None:
                folder = shlex.quote(os.path.relpath(Path(run.dir).parent))
                reason = textwrap.shorten(str(error), 100) or "interrupted"
                tell(f"WandB: not everything is sent ({reason}); do it later with: wandb sync {folder}")
            if ours:
                self._end_service()
        return exit_code

    def _log_artifact(self, run: Any, say: str) -> Exception | None:
        def log() -> None:
            artifact = self.wandb.Artifact("tinybeauty", type="model")
            for path in self._files:
                artifact.add_file(str(path))
            run.log_artifact(artifact)

        try:
            if self._files:
                call_within(WAIT_S / 3, log, say)
        except Exception as error:  # the run still has to end
            return error
        return None

    def _end_service(self) -> None:
        say = threading.excepthook

        def pass_over_wandbs(details: threading.ExceptHookArgs) -> None:
            if details.thread is None or not details.thread.name.startswith("wandb"):
                say(details)

        threading.excepthook = pass_over_wandbs  # its threads find the service gone
        # Nothing public ends the service, or keeps Python's end from waiting for it.
        with suppress(AttributeError, TypeError, OSError):
            connection = self._session._connection
            connection._cleanup()
            connection._proc._process.kill()


@dataclass(frozen=True)
class Trial:
    """What the agent of a WandB sweep wants to try.

    Attributes:
        folder: its own inside of output_dir; '' outside of a sweep.
        values: its settings.
    """

    folder: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def find_trial() -> Trial:
    """Return the trial that this process is.

    The settings are read from the agent's own file: of the ways in which it builds flags, one leaves out
    those that are false, and others are no flags at all.

    Raises:
        UserError: the file cannot be read.
    """
    sweep, run = (os.environ.get(f"WANDB_{name}_ID", "").strip() for name in ("SWEEP", "RUN"))
    if not (sweep and run):
        return Trial()
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    entries = read_yaml(Path(path)) if path else {}
    values = {key: entry["value"] for key, entry in entries.items() if isinstance(entry, dict)}
    return Trial(f"{sweep}/{run}", values)
