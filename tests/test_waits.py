"""WandB's server or service that falls silent: nobody waits without end, and what is needed is said first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT, SMALL

WAIT_S = 6  # instead of 30, at the end of the processes started here
HURRY = f"""\
import os, pathlib, signal, sys
from tinybeauty import tracking
finish = tracking.Tracker.finish
def finish_soon(tracker, exit_code):
    tracking.WAIT_S = {WAIT_S}
    return finish(tracker, exit_code)
tracking.Tracker.finish = finish_soon
"""
TRAIN = f"{HURRY}from tinybeauty_training import main\nsys.exit(main(sys.argv[1:]))"
TRACK = f"""\
{HURRY}
tracker = tracking.Tracker()
facts = {{"wandb_mode": "auto", "wandb_project": "p", "output_dir": "out"}}
pathlib.Path("out").mkdir(exist_ok=True)
tracker.start(facts, None, True)
print(tracker.describe(), flush=True)
tracker.log({{"epoch": 1, "x": 1.0}}, None)
"""


class WandbServer(ThreadingHTTPServer):
    """Answers what a run needs to begin, log and end; from `silent` on it accepts and says nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.silent = threading.Event()
        self.exit_codes: list[int] = []
        self.environment = os.environ | {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}",
            "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
            "PYTHONPATH": str(ROOT),
        }
        self.environment.pop("WANDB_MODE", None)


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.server.silent.is_set():
            time.sleep(0.1)
        with suppress(ValueError):
            asked = json.loads(body)
            if asked.get("complete"):
                self.server.exit_codes.append(asked["exitcode"])
        text = json.dumps({"data": self.answer(body)} if self.path == "/graphql" else {}).encode()
        with suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    do_GET = do_PUT = do_POST  # noqa: N815

    def answer(self, body: bytes) -> dict:
        asked = json.loads(body)
        name, values = asked.get("operationName"), asked.get("variables") or {}
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        if name == "UpsertBucket":
            bucket = {"id": "x", "name": values["name"], "displayName": "d", "config": "{}"}
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.headers['Host']}/up"} for name in values["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}"}}
        return {}


@pytest.fixture
def server():
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.silent.clear()
        server.shutdown()


def start(server, code: str, folder: Path, *argv: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, argv)],
        cwd=folder, env=server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read_to(process: subprocess.Popen, text: str) -> str:
    """Return stdout up to the line that begins with the text."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(text):
            return "".join(lines)
    raise AssertionError("".join(lines) + process.stderr.read())


def test_nobody_waits_longer_than_half_a_minute():
    from tinybeauty import tracking

    assert tracking.WAIT_S == 30


def test_a_server_that_disappears_does_not_keep_a_finished_run(server, demo, tmp_path):
    argv = ["--data_dir", demo, "--output_dir", "out", "--epochs", 2, "--sample_every", 9, *SMALL]
    with start(server, TRAIN, tmp_path, *argv) as run:
        assert "127.0.0.1" in read_to(run, "tracking")
        read_to(run, "epoch   1")
        server.silent.set()
        read_to(run, "2 epochs in")  # the table is there before anybody waits
        ended = time.monotonic()
        _, stderr = run.communicate(timeout=60)
    assert time.monotonic() - ended < WAIT_S + 24
    assert run.returncode == 0
    folder = stderr.split("do it later with: wandb sync ")[1].strip()
    assert list((tmp_path / folder).glob("run-*.wandb"))
    assert "Traceback" not in stderr


def test_after_ctrl_c_the_command_to_go_on_comes_before_the_wait(server, demo, tmp_path):
    argv = ["--data_dir", demo, "--output_dir", "out", "--epochs", 500, *SMALL]
    with start(server, TRAIN, tmp_path, *argv) as run:
        read_to(run, "epoch   1")
        server.silent.set()
        run.send_signal(signal.SIGINT)
        lines = []
        for line in run.stderr:
            lines.append(line)
            if line.startswith("WandB: sending what is left"):
                run.send_signal(signal.SIGINT)  # ends the wait, and undoes nothing
        run.wait(timeout=60)
    text = "".join(lines)
    assert run.returncode == 130
    assert text.index("go on with: python") < text.index("WandB: sending what is left")
    assert "do it later with: wandb sync" in text
    assert "stopped at once" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("exit_code", [0, 1, 143])
def test_the_server_hears_how_a_run_has_ended(server, tmp_path, exit_code):
    with start(server, f"{TRACK}tracker.finish({exit_code})", tmp_path) as run:
        _, stderr = run.communicate(timeout=60)
    assert stderr == ""
    assert server.exit_codes == [exit_code]


@pytest.mark.parametrize("harm", ["silent from the start", "service stopped", "service killed"])
def test_whatever_falls_silent_is_left_alone(server, tmp_path, harm):
    code = TRACK
    if harm == "silent from the start":
        server.silent.set()
        code = code.replace("tracker = ", f"tracking.WAIT_S = {WAIT_S}\ntracker = ", 1)
    else:
        number = "SIGSTOP" if "stopped" in harm else "SIGKILL"
        code += f"os.kill(tracker._session._connection._proc._process.pid, signal.{number})\n"
    code += f"tracking.WAIT_S = {WAIT_S}\ntracker.log({{'epoch': 2, 'x': 1.0}}, None)\n"
    code += "print('done', flush=True)\ntracker.finish(0)\n"
    started = time.monotonic()
    with start(server, code, tmp_path) as run:
        stdout, stderr = run.communicate(timeout=90)
    assert run.returncode == 0
    assert "done" in stdout
    assert "Traceback" not in stdout + stderr
    assert "training goes on" in stdout or "wandb sync" in stderr
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("WANDB_MODE", "", "auto"),
        ("WANDB_MODE", " ", "auto"),
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "Disabled", "disabled"),
        ("WANDB_MODE", "shared", "shared"),
        ("WANDB_DISABLED", "true", "disabled"),
        ("WANDB_DISABLED", "false", "auto"),
        ("WANDB_PROJECT", "", "auto"),
    ],
)
def test_the_environments_words_for_a_mode(monkeypatch, name, value, mode):
    from tinybeauty.tracking import choose_mode

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(name, value)
    assert choose_mode("auto") == mode
    assert choose_mode("offline") == "offline"  # what the configuration says wins
    assert value.strip() or name not in os.environ


@pytest.mark.parametrize(("command", "told"), [("disabled", "WandB is off"), ("offline", "WandB offline")])
def test_wandbs_own_commands_are_understood(server, tmp_path, command, told):
    (tmp_path / "wandb").mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "wandb", command], cwd=tmp_path, env=server.environment, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    with start(server, f"{TRACK}tracker.finish(0)", tmp_path) as run:
        stdout, stderr = run.communicate(timeout=60)
    assert stdout.startswith(told), stderr


def test_an_empty_mode_is_none(server, tmp_path):
    server.environment["WANDB_MODE"] = ""
    with start(server, f"{TRACK}tracker.finish(0)", tmp_path) as run:
        stdout, stderr = run.communicate(timeout=60)
    assert "WandB http://127.0.0.1" in stdout
    assert stderr == ""
