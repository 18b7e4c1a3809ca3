"""What a system may lack: locks, mapped files, a home, a compiler, docstrings, cores, a terminal."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPT, SMALL

from tinybeauty import cache, devices, files, workers
from tinybeauty.errors import Stopped, UserError, run_command
from tinybeauty.runs import StopRequest
from tinybeauty_training import Config, load_data

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of it")


def fail(number: int):
    """Return a function that fails as the system would."""

    def raise_error(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return raise_error


# --- files ------------------------------------------------------------------------------------------


@unix
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_no_locks_on_a_network_drive(monkeypatch, tmp_path, capsys, number):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", fail(number))
    for _ in range(2):  # nothing stays behind that would keep the next one out
        with files.lock_folder(tmp_path), files.lock_folder(tmp_path, wait=True):
            pass
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert "cannot be locked" in lines[0]


def test_with_locks_a_second_run_is_still_kept_out(tmp_path, capsys):
    with files.lock_folder(tmp_path), pytest.raises(UserError), files.lock_folder(tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_no_mapped_files(monkeypatch, demo, tmp_path, capsys):
    config = Config(data_dir=demo, image_size=16, val_fraction=0.25, cache_dir=tmp_path)
    mapped, _ = load_data(config)
    monkeypatch.setattr(cache.np, "memmap", fail(errno.ENODEV))
    read, _ = load_data(config)
    assert "cannot be mapped" in capsys.readouterr().out
    everything = torch.arange(len(mapped))
    assert torch.equal(read.read(everything), mapped.read(everything))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_no_fsync(monkeypatch, tmp_path, number):
    monkeypatch.setattr(os, "fsync", fail(number))
    files.save_bytes(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(UserError):
        files.save_bytes(tmp_path / "x", b"lost")
    assert (tmp_path / "x").read_bytes() == b"whole"


@unix
def test_no_home(monkeypatch, tmp_path, capsys):
    import pwd

    def nobody(*args):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".cache").touch()  # in the place of the folder beside the pairs
    assert cache.choose_cache_dir("auto", tmp_path) is None
    assert "stay in memory" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no user's home"):
        files.tidy_path("~/x")


LACKING = """\
import errno, fcntl, os, pwd

def nobody(*args):
    raise KeyError("uid not found")

def no_locks(*args):
    raise OSError(errno.ENOSYS, "Function not implemented")

pwd.getpwuid, fcntl.flock = nobody, no_locks
"""


@linux
def test_a_run_on_a_system_that_lacks_nearly_everything(demo, tmp_path):
    """No docstrings (-OO), locks, home, entry in /etc/passwd or C++ compiler, and compile: true."""
    (tmp_path / "sitecustomize.py").write_text(LACKING, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment |= {"PYTHONPATH": str(tmp_path), "CXX": "/no/such/compiler", "PATH": "/no/such/folder"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    argv = ["--data_dir", demo, "--output_dir", tmp_path / "out", *SMALL, "--epochs", 1, "--compile", "true"]
    argv += ["--image_size", 16, "--precision", "float32"]
    run = subprocess.run(
        [sys.executable, "-OO", str(SCRIPT), *map(str, argv)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert "torch.compile does not work here" in run.stdout
    assert "cannot be locked" in run.stdout
    assert (tmp_path / "out" / "tinybeauty_final.pt").exists()


@pytest.mark.parametrize("tool", ["tinybeauty_apply.py", "data/prepare_pairs.py", "data/draw_scene.py"])
def test_the_tools_without_docstrings(tool):
    command = [sys.executable, "-OO", str(ROOT / tool), "--help"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "out" in run.stdout


# --- cores ------------------------------------------------------------------------------------------


def make_root(folder: Path, group: str, mounts: str, quotas: dict[str, str]) -> Path:
    """Make /proc and /sys of a system whose control groups have these quotas."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(group)
    (folder / "proc" / "self" / "mountinfo").write_text(mounts)
    for name, text in quotas.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 {} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1 += "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
ALL, CPU = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("group", "mounts", "quotas", "cores"),
    [
        ("0::/\n", V2, {f"{ALL}/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", V2, {f"{ALL}/cpu.max": "max 100000\n"}, float("inf")),
        ("0::/a/b\n", V2, {f"{ALL}/a/b/cpu.max": "max 100000", f"{ALL}/a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", V2, {f"{ALL}/a/b/cpu.max": "50000 100000", f"{ALL}/a/cpu.max": "400000 100000"}, 0.5),
        ("0::/../../x\n", V2, {f"{ALL}/cpu.max": "300000 100000"}, 3),
        (
            "4:cpu,cpuacct:/docker/1a\n3:memory:/docker/1a\n",
            V1.format("/docker/1a"),
            {f"{CPU}/cpu.cfs_quota_us": "200000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        (
            "4:cpu,cpuacct:/slurm/job\n",
            V1.format("/"),
            {f"{CPU}/slurm/cpu.cfs_quota_us": "400000\n", f"{CPU}/slurm/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        (
            "4:cpu,cpuacct:/\n",
            V1.format("/"),
            {f"{CPU}/cpu.cfs_quota_us": "-1\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
            float("inf"),
        ),
        ("", "", {}, float("inf")),
    ],
)
def test_a_containers_quota_counts(tmp_path, group, mounts, quotas, cores):
    assert workers.find_quota(make_root(tmp_path, group, mounts, quotas)) == cores


@pytest.mark.parametrize(("quota", "cores"), [(0.2, 1), (1.0, 1), (1.5, 2), (float("inf"), None)])
def test_a_part_of_a_core_is_one(monkeypatch, quota, cores):
    monkeypatch.setattr(workers, "find_quota", lambda: quota)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
        assert workers.count_cores() == (cores or 16)


@pytest.mark.parametrize(
    ("there", "cores", "variable", "team", "threads"),
    [
        (4, 8, None, devices.ALONE, 4),  # never more: the bytes depend on it
        (4, 2, None, devices.ALONE, 2),
        (4, 2, "3", devices.ALONE, 4),  # a person's own
        (1, 4, "1", devices.Team(0, 2, 0, 2), 2),  # torchrun's
        (4, 4, "4", devices.Team(0, 2, 0, 2), 4),
        (4, 1, None, devices.Team(1, 2, 1, 2), 1),
    ],
)
def test_as_many_threads_as_cores_may_be_used(monkeypatch, there, cores, variable, team, threads):
    before = torch.get_num_threads()
    monkeypatch.setattr(devices, "count_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    try:
        torch.set_num_threads(there)
        devices.choose_threads(team)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


WATCH_TORCH = """\
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            raise SystemExit(0)

sys.meta_path.insert(0, Watch())
import tinybeauty_training
"""


@pytest.mark.parametrize(("own", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep(own, policy):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": own} if own else {}
    command = [sys.executable, "-c", WATCH_TORCH]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == policy, run.stderr


# --- the terminal -----------------------------------------------------------------------------------


@unix
def test_a_closed_terminal_is_a_request_to_stop():
    before = signal.getsignal(signal.SIGHUP)
    with StopRequest() as stop:
        assert not stop.asked(devices.ALONE)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)  # the shell sends a second one, which is no second wish
        assert stop.asked(devices.ALONE)
        assert stop.stopped().signal_number == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGHUP) is before


@unix
def test_under_nohup_a_closed_terminal_is_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked(devices.ALONE)
    finally:
        signal.signal(signal.SIGHUP, before)


@unix
def test_what_is_printed_after_the_terminal_has_gone_harms_nothing(tmp_path):
    """A real terminal is closed while a program prints into it."""
    import pty

    code = (
        "import sys, time, pathlib\n"
        "from tinybeauty.runs import StopRequest\n"
        "from tinybeauty.devices import ALONE\n"
        "with StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.asked(ALONE):\n"
        "        time.sleep(0.01)\n"
        "    print('saving', flush=True); print('saving', file=sys.stderr, flush=True)\n"
        "    pathlib.Path(sys.argv[1]).write_text('saved')\n"
    )
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code, str(tmp_path / "state")])
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1024)
    os.close(terminal)
    for _ in range(600):
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            break
        time.sleep(0.1)
    assert (tmp_path / "state").read_text() == "saved"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "x.bin"), MemoryError(), BrokenPipeError(32, "x")],
)
def test_what_nobody_has_expected_is_one_line(error, capsys):
    def command(words):
        raise error

    assert run_command(command, [], "stopped") == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    assert ("too little memory" in stderr) == isinstance(error, MemoryError)


def test_a_stop_is_no_error(capsys):
    def command(words):
        raise Stopped("stopped, the state is saved", signal.SIGTERM)

    assert run_command(command, [], "stopped") == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped, the state is saved\n"
