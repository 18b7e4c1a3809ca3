"""Work on many files in as many processes as there are cores; reading while others work."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from tinybeauty.errors import UserError

Job, Result = TypeVar("Job"), TypeVar("Result")


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_ahead(read: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Yield `read(job)` for each job; while the caller works on one result, a thread reads the next."""
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, job) for job in jobs[:1]]
        for job in jobs[1:]:
            result = coming.pop().result()
            coming.append(reader.submit(read, job))
            yield result
        for last in coming:
            yield last.result()


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
    # Ctrl-C is for this process alone, which then stops the workers.
    with ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), signal.signal,
        (signal.SIGINT, signal.SIG_IGN),
    ) as pool:  # fmt: skip
        try:
            results = pool.map(task, jobs, chunksize=4)
            return list(tqdm(results, total=len(jobs), unit=unit, desc=label, disable=None))
        except BrokenProcessPool:
            raise UserError(f"a worker process was ended from outside (out of memory?); {remedy}") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
