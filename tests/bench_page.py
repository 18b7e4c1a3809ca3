"""Print the page's bytes, the time to its first made-up picture and the camera's frames per second.

    python tests/bench_page.py

Needs Chromium; the camera is a film of the drawn face, 640 x 480.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from playwright.sync_api import sync_playwright
from test_page import CHROMIUM, CODE, LOOKS, save_video

from tinybeauty.face_models import fetch_face_models
from tinybeauty.page.bundle import HERE, read_code, write_page


def main() -> None:
    """Measure once and print."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        document, film = Path(folder) / "look.html", Path(folder) / "face.y4m"
        print(f"page with {len(LOOKS)} looks: {write_page(LOOKS, document, fetch_face_models()):,} bytes")
        code = sum(len(read_code(name).encode()) for name in CODE) + (HERE / "engine.wasm").stat().st_size
        print(f"code of ours, js and wasm: {code:,} bytes")
        save_video(film)
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, f"--use-file-for-fake-video-capture={film}"]
        )
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(document.as_uri())
        page.wait_for_selector("body[data-made]", timeout=60_000)
        print(f"from opening to a made-up picture: {time.perf_counter() - start:.2f} s")
        page.click("#camera")
        page.wait_for_timeout(3000)
        first, start = page.evaluate("Number(document.body.dataset.frames || 0)"), time.perf_counter()
        page.wait_for_timeout(5000)
        frames = page.evaluate("Number(document.body.dataset.frames || 0)") - first
        print(f"camera: {frames / (time.perf_counter() - start):.1f} frames/s")
        browser.close()


if __name__ == "__main__":
    main()
