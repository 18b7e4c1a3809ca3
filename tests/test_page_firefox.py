"""The web page in a real headless Firefox, which speaks WebDriver BiDi itself: photo, camera, own look."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import ROOT
from test_page import HAND_OVER, decode_url, draw_photo

from tinybeauty_apply import put_makeup_on
from tinybeauty_export import main
from tinybeauty_training import load_model

LOOK = ROOT / "tinybeauty_model" / "pretrained" / "evening.pt"
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
# A camera that shows a coloured ball, and is allowed.
PREFERENCES = ("media.navigator.streams.fake", "media.navigator.permission.disabled")


class Page:
    """A page in Firefox. Source: w3c.github.io/webdriver-bidi"""

    def __init__(self, socket) -> None:
        self.socket, self.numbers = socket, itertools.count()
        self.call("session.new", capabilities={})
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **params) -> dict:
        """Return what a command gives."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=120))).get("id") != number:
            pass  # an event
        assert answer["type"] == "success", answer
        return answer["result"]

    def evaluate(self, code: str):
        """Return the JSON value of JavaScript that runs in the page."""
        answer = self.call(
            "script.evaluate",
            expression=f"Promise.resolve({code}).then(JSON.stringify)",
            target={"context": self.context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))

    def wait(self, code: str) -> None:
        """Wait until something is so."""
        end = time.monotonic() + 120
        while not self.evaluate(code):
            assert time.monotonic() < end, f"{code}; it says: {self.evaluate('find(`message`).textContent')}"
            time.sleep(0.05)

    def drop(self, name: str, data: bytes) -> None:
        """Drop a file onto the page."""
        files = json.dumps(["drop", [[name, base64.b64encode(data).decode()]]])
        self.evaluate(f"({HAND_OVER})({files})")


@pytest.fixture(scope="module")
def page(face_models, tmp_path_factory) -> Iterator[Page]:
    """Yield the page with one look, the drawn face made up."""
    client = pytest.importorskip("websockets.sync.client")
    if not FIREFOX:
        pytest.skip("no Firefox here")
    folder = tmp_path_factory.mktemp("firefox")
    document, profile = folder / "look.html", folder / "profile"
    assert main([str(LOOK), "--to", "page", "--out", str(document), "--face_models", str(face_models)]) == 0
    profile.mkdir()
    (profile / "user.js").write_text("".join(f'user_pref("{name}", true);\n' for name in PREFERENCES))
    command = [FIREFOX, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"]
    said = folder / "said"
    with said.open("w") as log, subprocess.Popen([*command, "about:blank"], stderr=log) as firefox:
        try:
            end = time.monotonic() + 120
            while not (found := re.search(r"BiDi listening on (ws://\S+)\n", said.read_text())):
                assert firefox.poll() is None and time.monotonic() < end, said.read_text()
                time.sleep(0.05)
            with client.connect(f"{found[1]}/session", max_size=None) as socket:
                page = Page(socket)
                page.call(
                    "browsingContext.navigate", context=page.context, url=document.as_uri(), wait="complete"
                )
                page.wait("document.body.dataset.ready")
                yield page
        finally:
            firefox.terminate()


def test_a_photo_is_pythons(page):
    photo, buffer = draw_photo((900, 700), (40, 80, 420), (480, 200, 380)), io.BytesIO()
    photo.save(buffer, "PNG")
    page.drop("two.png", buffer.getvalue())
    page.wait("find('after').getAttribute('aria-label') === 'Your picture, 2 faces made up'")
    shown = decode_url(page.evaluate("find('after').toDataURL()"))
    own = np.asarray(put_makeup_on(photo, load_model(LOOK)), int)
    changed = (own != np.asarray(photo)).any(2)
    apart = np.abs(shown - own).max(2)
    assert changed.mean() > 0.05, changed.mean()
    assert (apart[changed] <= 2).mean() >= 0.999, (apart[changed] <= 2).mean()


def test_the_camera_runs(page):
    page.evaluate("find('camera').click()")
    page.wait("Number(document.body.dataset.frames) > 5")
    assert page.evaluate("find('message').textContent") == "No face in sight"
    page.evaluate("find('camera').click()")
    page.wait("find('camera').textContent === 'Use the camera'")


def test_a_look_of_ones_own_and_a_file_that_is_none(page):
    page.drop("mine.pt", LOOK.read_bytes())
    page.wait("document.querySelectorAll('#looks label').length === 2")
    page.drop("bad.pt", LOOK.read_bytes()[:-100])
    page.wait("find('message').textContent.startsWith('bad.pt is damaged')")


def test_nothing_is_asked_for_and_no_code_but_ours_runs(page):
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    asked = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    assert [url for url in asked if not url.startswith("blob:") and "example.org" not in url] == []
