"""Work in many processes and reading ahead: the results are those of a plain loop."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from tinybeauty.errors import UserError
from tinybeauty.workers import count_cores, read_ahead, run_jobs


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_reading_ahead_gives_what_a_loop_would(count):
    jobs = list(range(count))
    assert list(read_ahead(lambda job: job * 10, jobs)) == [job * 10 for job in jobs]


def test_one_job_is_read_ahead_in_a_thread_and_no_more():
    begun, threads = [], set()
    second = threading.Event()

    def read(job: int) -> int:
        begun.append(job)
        threads.add(threading.current_thread())
        if job == 1:
            second.set()
        return job

    results = read_ahead(read, range(5))
    assert begun == []  # nothing before it is asked for
    assert next(results) == 0
    assert second.wait(10)  # while we work on the first one
    assert begun == [0, 1]
    assert list(results) == [1, 2, 3, 4]
    assert threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_an_error_comes_where_a_loop_would_raise_it():
    results = read_ahead(lambda job: 1 // job, [1, 1, 0, 1])
    assert next(results) == 1
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    results = read_ahead(abs, range(10))
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert run_jobs(math.factorial, list(range(20)), workers, "counting") == [
        math.factorial(job) for job in range(20)
    ]


def nap_and_name(job: int) -> int:
    """Return the process that does this job, after as long as another takes to start."""
    time.sleep(5)
    return os.getpid()


def test_few_jobs_are_shared_out():
    assert len(set(run_jobs(nap_and_name, [1, 2, 3, 4], 2, "napping"))) == 2


def test_a_worker_that_dies_is_an_error_with_a_remedy():
    with pytest.raises(UserError, match=r"out of memory\?\); turn it off and on") as caught:
        run_jobs(os._exit, [1, 1], 2, "dying", remedy="turn it off and on")
    assert "\n" not in str(caught.value)


def test_a_workers_own_error_comes_through():
    with pytest.raises(ValueError, match="negative"):
        run_jobs(math.factorial, [1, -1], 2, "counting")


WAITING = """\
import sys, time
from tinybeauty.workers import run_jobs

def work(job):
    print("at work", flush=True)
    time.sleep(100)

if __name__ == "__main__":
    run_jobs(work, [1, 2], 2, "waiting")
"""


def test_workers_end_with_the_command_that_is_killed(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    command, env = [sys.executable, tmp_path / "waiting.py"], os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:
        assert process.stdout.readline() == "at work\n"
        process.kill()
        process.communicate(timeout=50)  # returns when nobody has its stdout any more


def test_cores_are_those_this_process_may_use():
    assert 1 <= count_cores() <= os.cpu_count()
