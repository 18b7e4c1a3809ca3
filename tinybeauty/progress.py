"""How far a run is, and which of its networks ship."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinybeauty.errors import UserError

BEST_LOSS, BEST_PSNR, FINAL = "tinybeauty_best_loss.pt", "tinybeauty_best_psnr.pt", "tinybeauty_final.pt"
NETWORKS = (BEST_LOSS, BEST_PSNR, FINAL)


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # finished ones
    pairs_done: int = 0  # of the epoch after that
    sums: dict[str, float] = field(default_factory=dict)  # of its losses, over the last of these pairs ...
    summed: int = 0  # ... so many: all, but for an edit of the loss
    order_seed: int | None = None  # of the order of its pairs; None before the first step
    global_step: int = 0
    drops: int = 0  # of the learning rate, at plateaus
    seconds: float = 0.0  # of the finished epochs
    best_loss: float = math.inf
    best_psnr: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)  # the rows of metrics.csv
    wandb_id: str | None = None

    @classmethod
    def restore(cls, state: dict[str, Any], settings: dict[str, Any], epochs: int) -> Progress:
        """Return the progress of a state; what an older version did not note follows from its settings.

        Raises:
            UserError: more epochs are done or begun than are wanted now.
        """
        progress = cls(**state["progress"])
        begun = " and has begun the next" if progress.pairs_done else ""
        if progress.epoch + bool(begun) > epochs:
            raise UserError(f"this run has done {progress.epoch} epochs{begun}, more than epochs: {epochs}")
        if "summed" not in state["progress"]:
            progress.summed, progress.order_seed = progress.pairs_done, settings["seed"]
        if "drops" not in state["progress"] and progress.global_step > settings["warmup_steps"]:
            share = state["optimizer"]["param_groups"][0]["lr"] / settings["learning_rate"]
            progress.drops = round(math.log(share, settings["lr_factor"]))
        return progress

    def describe(self, epochs: int) -> str:
        """Return where a run goes on that is to have so many epochs."""
        if self.epoch == epochs:
            return f"all {epochs} epochs are done"
        return f"epoch {self.epoch + 1} of {epochs}, {self.pairs_done:,} of its pairs are done"

    def find_last_step(self, epochs: int, batch_size: int, pairs: int) -> int:
        """Return the step that ends the last epoch, of so many pairs each, from here on in such batches."""
        begun = math.ceil((pairs - self.pairs_done) / batch_size) if self.epoch < epochs else 0
        after = max(0, epochs - self.epoch - 1) * math.ceil(pairs / batch_size)
        return self.global_step + begun + after

    def finish_epoch(self, row: dict[str, float]) -> list[str]:
        """Note that an epoch is done; return which of the networks that ship it is the best for."""
        self.epoch, self.pairs_done, self.sums, self.summed = row["epoch"], 0, {}, 0
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

    def forget_losses(self) -> None:
        """Forget what was measured with another loss: the next epoch is the best of its kind."""
        self.best_loss, self.sums, self.summed = math.inf, {}, 0

    def forget_missing(self, output_dir: Path) -> None:
        """Forget the best values of networks that were moved away: the next one is the best that is there."""
        if not (output_dir / BEST_LOSS).exists():
            self.best_loss = math.inf
        if not (output_dir / BEST_PSNR).exists():
            self.best_psnr = -math.inf
