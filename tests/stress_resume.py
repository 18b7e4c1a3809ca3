"""Kill training runs with SIGKILL at random moments, resume them, and compare the bytes.

    python tests/stress_resume.py --kills 50

Every other kill waits until a file is being written, and two of four until there is a state to go on
with; the start after a kill resumes, or starts anew where there is none. A run that was killed and
resumed must end with the same three .pt files and the same metrics.csv (but for the clock's columns)
as a run that was left alone. Prints one line a finished run; exits with 1 at the first difference.
Two CPU cores take about 4 s a kill.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "data"))

CLOCK = {"time/epoch_s", "time/images_per_s"}
# What the first epoch imports: without these here nearly all kills would come before the first state.
IMPORTED_LATE = ("torchmetrics.functional.image", "torchvision.transforms.v2", "torchvision.utils")
SETTINGS = ["--image_size", "64", "--batch_size", "2", "--epochs", "6", "--val_fraction", "0.25"]
SETTINGS += ["--device", "cpu", "--sample_every", "2", "--wandb_mode", "disabled"]


def call_main(argv: list[str], log: Path) -> None:
    """Run the command line in a process of its own, printing into a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        from tinybeauty_training import main

        sys.exit(main(argv))


def start_run(argv: list[str], log: Path) -> multiprocessing.process.BaseProcess:
    """Start the training command; importing anew for each kill would take most of the time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinybeauty_training", *IMPORTED_LATE])
    process = context.Process(target=call_main, args=(argv, log))
    process.start()
    return process


def read_result(folder: Path) -> dict[str, object]:
    """Return what must not depend on kills: the networks' bytes and the rows without the clock."""
    from conftest import read_rows  # brings pytest along, which the runs need not wait for

    result: dict[str, object] = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    result["metrics.csv"] = [
        {name: value for name, value in row.items() if name not in CLOCK} for row in read_rows(folder)
    ]
    return result


def list_partials(folder: Path) -> set[tuple[str, int]]:
    """Return (name, time of the last change) of the files that are being written, or were in a kill."""
    partials = set()
    for path in folder.glob("*.partial"):
        with suppress(FileNotFoundError):  # it has just been renamed
            partials.add((path.name, path.stat().st_mtime_ns))
    return partials


def kill_at(
    process: multiprocessing.process.BaseProcess, folder: Path, moment: float, writing: bool, late: bool
) -> bool:
    """Kill the run after some seconds, or at the next file being written from then on.

    Args:
        process: the run.
        folder: it writes to.
        moment: seconds, counted from now.
        writing: wait on until a file is being written.
        late: count the seconds from when there is a state.

    Returns:
        Whether it was killed; False where it ended by itself before.
    """
    leftovers, end = list_partials(folder), None
    while process.is_alive():
        if end is None and (not late or (folder / "tinybeauty_last.ckpt").exists()):
            end = time.monotonic() + moment
        if end is not None and time.monotonic() >= end and (not writing or list_partials(folder) - leftovers):
            process.kill()
            process.join()
            return process.exitcode == -9
        time.sleep(0.0005)
    process.join()
    return False


def stress(kills: int, seed: int, folder: Path, data_dir: Path) -> tuple[int, int, int]:
    """Kill and resume until there were enough kills, comparing every run that ends.

    Returns:
        (runs compared, kills while a file was being written, kills that left a state to go on with)

    Raises:
        AssertionError: a killed run ended otherwise than the one left alone, or did not end well.
    """
    rng = random.Random(seed)
    log = folder / "log.txt"
    argv = ["--data_dir", str(data_dir), *SETTINGS]

    def finish(process: multiprocessing.process.BaseProcess) -> None:
        process.join()
        assert process.exitcode == 0, log.read_text()

    finish(start_run([*argv, "--output_dir", str(folder / "first")], log))  # pays for importing torch
    started = time.monotonic()
    finish(start_run([*argv, "--output_dir", str(folder / "alone")], log))
    seconds = time.monotonic() - started
    alone, runs, killed, in_writing, with_state = read_result(folder / "alone"), 0, 0, 0, 0
    assert read_result(folder / "first") == alone, "two runs left alone differ"
    while killed < kills:
        output_dir = folder / f"run_{runs}"
        while True:
            state = output_dir / "tinybeauty_last.ckpt"
            how = "--resume" if state.exists() else "--overwrite"
            process = start_run([*argv, "--output_dir", str(output_dir), how], log)
            if killed == kills:
                finish(process)
                break
            writing, late = killed % 2 == 1, killed % 4 > 1
            moment = rng.uniform(0, 0.4 * seconds if late else 0.8 * seconds)
            if not kill_at(process, output_dir, moment, writing, late):
                finish(process)
                seconds *= 0.8  # runs have become faster than the one that was timed: aim earlier
                break
            killed += 1
            in_writing += writing
            with_state += state.exists()
        assert read_result(output_dir) == alone, f"{output_dir} differs from the run left alone"
        leftovers = list(output_dir.glob("*.partial"))
        assert not leftovers, leftovers
        runs += 1
        print(
            f"{killed}/{kills} kills, {in_writing} of them while writing, {with_state} with a state: "
            f"run {runs} ended in the same bytes"
        )
        shutil.rmtree(output_dir)
    return runs, in_writing, with_state


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from make_demo import make_demo

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make_demo(Path(folder) / "faces", 16, 64, 1)
        runs, in_writing, with_state = stress(
            options.kills, options.seed, Path(folder), Path(folder) / "faces"
        )
    print(
        f"{options.kills} kills ({in_writing} while writing, {with_state} with a state to go on with), "
        f"{runs} runs, all ended in the same bytes; {time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
