"""Work on many files in as many processes as there are cores; reading while others work."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from tinybeauty.errors import UserError

Job, Result = TypeVar("Job"), TypeVar("Result")


def read_quota(folder: Path) -> float:
    """Return the cores that one control group allows itself, infinity for all there are.

    Source: the Linux kernel's cgroup-v2.rst (`cpu.max`) and sched-bwc.rst (version 1, `cpu.cfs_quota_us`).
    """
    with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        return int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def find_quota(root: Path = Path("/")) -> float:
    """Return the cores that this process's control groups allow it (containers, Slurm), or infinity.

    Each group around the process's own can be the narrowest.

    Args:
        root: where /proc and /sys are.
    """
    try:
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # not Linux
        return math.inf
    quota = math.inf
    for fields in mounts:  # number, parent, device, root, where, options, ..., "-", kind, source, its options
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind != "cgroup2" and not (kind == "cgroup" and "cpu" in options.split(",")):
            continue
        for _, controllers, group in groups:  # version 2 names no controllers
            if controllers if kind == "cgroup2" else "cpu" not in controllers.split(","):
                continue
            # In a container the group's name is often the host's, and the mount begins inside of it.
            inner = Path(group.removeprefix(fields[3]).lstrip("/").replace("../", ""))
            mount = root / fields[4].lstrip("/")
            quota = min([quota, *(read_quota(mount / part) for part in (inner, *inner.parents))])
    return quota


def count_cores() -> int:
    """Return how many cores this process may use: those it is bound to, less where a quota allows less."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(there, find_quota())))


def run_ahead(items: Iterator[Result]) -> Iterator[Result]:
    """Yield the same items; while the caller works on one, a thread makes the next."""
    end = object()
    with ThreadPoolExecutor(1) as maker:  # who stops early, or is interrupted, waits here for that thread
        item = maker.submit(next, items, end).result()
        while item is not end:
            coming = maker.submit(next, items, end)
            yield item
            item = coming.result()


def read_ahead(read: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Yield `read(job)` for each job; while the caller works on one result, a thread reads the next."""
    return run_ahead(map(read, jobs))


def start_worker() -> None:
    """Leave Ctrl-C to the process that started this worker, which then stops it; end when that one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # it was killed: the pool alone would wait for its next job for ever

    threading.Thread(target=watch, daemon=True).start()


def run_jobs(
    task: Callable[[Job], Result],
    jobs: list[Job],
    workers: int,
    label: str,
    unit: str = "photo",
    remedy: str = "the same command goes on, with fewer --workers it needs less memory",
) -> list[Result]:
    """Return the results of all jobs in their order; they do not depend on the number of processes.

    Args:
        task: a function of a module, not a local one: it goes to other processes.
        jobs: what it is called with, one after the other.
        workers: processes at most.
        label: stands before the progress bar.
        unit: what a job is, for the progress bar.
        remedy: what a person can do when a worker dies.

    Raises:
        UserError: a worker died.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers: one a core is enough
    # "spawn" works alike on every system, and also when the caller has threads (PyTorch).
    with ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), start_worker
    ) as pool:
        try:
            results = pool.map(task, jobs, chunksize=max(1, min(4, len(jobs) // workers)))
            return list(tqdm(results, total=len(jobs), unit=unit, desc=label, disable=None))
        except BrokenProcessPool:
            raise UserError(f"a worker process was ended from outside (out of memory?); {remedy}") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
