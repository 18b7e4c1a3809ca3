"""Weights & Biases, which must never ask, wait for long or stop a training run."""

from __future__ import annotations

import importlib
import os
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

WandbMode = Literal["auto", "online", "offline", "disabled"]


class Tracker:
    """A WandB run: online with an account, offline without one.

    Whatever goes wrong is said once; metrics.csv has it all. Use it as a context: leaving it ends the run.

    Attributes:
        run_id: WandB's name of the run, or what it was before where WandB is off.
    """

    def __init__(
        self, mode: WandbMode, project: str, output_dir: Path, settings: dict[str, Any], run_id: str | None
    ) -> None:
        """Start or continue a run.

        Args:
            mode: `auto` follows `WANDB_MODE`, then is online with an account and else offline.
            project: the dashboard's project.
            output_dir: where WandB's files go.
            settings: shown beside the curves.
            run_id: of the run to go on with; None for a new one.
        """
        self.run: Any = None
        self.run_id = run_id
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        # Imported here, because it costs seconds that a run without it should not pay.
        self.wandb = self._attempt(lambda: importlib.import_module("wandb"))
        if self.wandb is None:
            return
        options = {
            "project": project,
            "dir": str(output_dir.absolute()),
            "config": settings,
            "id": run_id,
            "resume": "allow" if run_id else None,
            "settings": self.wandb.Settings(console="off", quiet=True, silent=True, init_timeout=30),
        }
        if mode in ("auto", "online") and self._attempt(lambda: self.wandb.login(prompt=False, verify=False)):
            self.run = self._attempt(lambda: self.wandb.init(mode="online", **options))
        if self.run is None:
            self.run = self._attempt(lambda: self.wandb.init(mode="offline", **options))
        if self.run is not None:
            self.run_id = self.run.id
            self._attempt(lambda: self.run.define_metric("*", step_metric="epoch"))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *details: object) -> None:
        if self.run is not None:
            self._attempt(self.run.finish)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever WandB throws: training goes on
            reason = textwrap.shorten(str(error), 100)
            tqdm.write(f"WandB: {reason}; training goes on, metrics.csv has every number")
            return None

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
        """Log the networks that ship as one artifact."""
        if self.run is None:
            return
        artifact = self.wandb.Artifact("tinybeauty", type="model")

        def log() -> None:
            for path in paths:
                artifact.add_file(str(path))
            self.run.log_artifact(artifact)

        self._attempt(log)
