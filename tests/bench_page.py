"""Print what the web page costs: bytes, time to the first face, a frame; and ONNX Runtime beside it.

    python tests/bench_page.py
    npm pack onnxruntime-web && tar -xzf onnxruntime-web-*.tgz
    python tests/bench_page.py --onnxruntime_web package/dist
    python tests/bench_page.py --photos my_photos    # and how far a small page moves the faces' squares

Needs Chromium and Linux; the camera is a film of the drawn face, 640 x 480. Times of the processor tell more
than the clock's where other programs run.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from test_page import CHROMIUM, CODE, LOOKS, save_video
from test_page_engine import find_corners, find_shift, run_engine, save_small_models

import tinybeauty_export
from tinybeauty.face_models import fetch_face_models
from tinybeauty.images import list_images
from tinybeauty.page.bundle import HERE, WORKER, read_code, write_page

FRAMES_S = 8
RACE = """async () => {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL('.', location.href).href;
  const read = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  const session = await ort.InferenceSession.create('evening.onnx', {executionProviders: ['wasm']});
  const engine = await Engine.create(await read('engine.wasm'));
  engine.slot = engine.reserve(LOOK_FLOATS);
  const look = readLook(engine, await read('evening.pt'), 'evening');
  // Where a number of (3, H, W) stands in (H, W, 3).
  const count = 256 * 256, place = (at) => at % count * 3 + Math.floor(at / count);
  const picture = {width: 256, height: 256, data: Uint8Array.from({length: 3 * count}, (_, at) => at * 7919)};
  const planes = Float32Array.from({length: 3 * count}, (_, at) => picture.data[place(at)] / 255);
  const feeds = {source: new ort.Tensor('float32', planes, [1, 3, 256, 256])};
  self.theirs = async (rounds) => { while (rounds--) self.made = (await session.run(feeds)).made_up.data; };
  self.ours = async (rounds) => { while (rounds--) self.residual = runLook(engine, look, picture); };
  await theirs(5);
  await ours(5);
  const added = (at) => residual[at % count * 4 + Math.floor(at / count)];  // (H, W, 4)
  const own = (value, at) => Math.min(Math.max(value + added(at), 0), 1);
  return planes.reduce((most, value, at) => Math.max(most, 255 * Math.abs(own(value, at) - made[at])), 0);
}"""


def read_times() -> dict[str, int]:
    """Return the processor's milliseconds of all threads of our processes, by the threads' names."""
    parents, times = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has ended
    for process in list(parents):
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        for thread in Path(f"/proc/{process}/task").glob("*/stat") if above == os.getpid() else ():
            try:
                name, numbers = thread.read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            ticks = sum(map(int, numbers.split()[11:13]))
            times[name] = times.get(name, 0) + ticks * 1000 // os.sysconf("SC_CLK_TCK")
    return times


def open_page(browser: Browser, document: Path) -> None:
    """Print the time to the first face and that of a frame."""
    page = browser.new_page()
    start, before = time.perf_counter(), read_times()
    page.goto(document.as_uri())
    page.wait_for_selector("body[data-made]", timeout=120_000)
    spent = read_times().get("DedicatedWorker", 0) - before.get("DedicatedWorker", 0)
    opened = time.perf_counter() - start
    print(f"from opening to a made-up face: {opened:.2f} s; the worker's processor {spent} ms")
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    page.click("#camera")
    page.wait_for_timeout(3000)
    frames = [int(page.evaluate("document.body.dataset.frames || 0"))]
    before = read_times()["DedicatedWorker"]
    page.wait_for_timeout(FRAMES_S * 1000)
    frames.append(int(page.evaluate("document.body.dataset.frames || 0")))
    count = frames[1] - frames[0]
    cost = (read_times()["DedicatedWorker"] - before) / max(count, 1)
    print(f"camera: {count / FRAMES_S:.1f} frames/s; the worker's processor {cost:.0f} ms a frame")


def race(browser: Browser, runtime: Path, folder: Path) -> None:
    """Print the network's time beside ONNX Runtime's, one thread each, in turns."""
    for path in (*runtime.glob("ort.wasm.min.js"), *runtime.glob("ort-wasm-simd-threaded*")):
        shutil.copy(path, folder)
    tinybeauty_export.main(["evening", "--to", "onnx", "--float", "--no-check", "--out", str(folder)])
    shutil.copy(LOOKS[0], folder)
    shutil.copy(HERE / "engine.wasm", folder)
    (folder / "ours.js").write_text("\n".join(read_code(name) for name in WORKER[:-1]), encoding="utf-8")
    page = '<script src="ort.wasm.min.js"></script><script src="ours.js"></script>'
    (folder / "race.html").write_text(page, encoding="utf-8")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        window = browser.new_page()
        window.goto(f"http://127.0.0.1:{server.server_port}/race.html")
        apart, spent = window.evaluate(RACE), {"theirs": [], "ours": []}
        for _ in range(6):
            for name, times in spent.items():
                before = read_times()["chromium"]
                window.evaluate(f"{name}(10)")
                times.append((read_times()["chromium"] - before) / 10)
        server.shutdown()
    theirs, ours = (statistics.median(times) for times in spent.values())
    print(f"network, 256 x 256, one thread: {ours:.0f} ms of the processor, onnxruntime-web {theirs:.0f} ms")
    print(f"that is {ours / theirs:.2f} times; {apart:.4f} grey levels apart")


def compare_squares(photos: Path, models: Path, scratch: Path) -> None:
    """Print how far a small page's models move the squares of photos with one face each."""
    save_small_models(models, scratch)
    shifts = []
    for path in list_images(photos).values():
        with Image.open(path) as photo:
            said = [run_engine(photo.convert("RGB"), folder, scratch) for folder in (scratch, models)]
        shifts += find_shift(*(find_corners(words) for words in said)).tolist()
    print(
        f"squares of {len(shifts)} faces on a small page: {statistics.mean(shifts):.2f} px of 256 from their "
        f"place on average, {max(shifts):.2f} at most"
    )


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnxruntime_web", type=Path, metavar="FOLDER", help="its package's dist")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photos with one face each")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        document, film = Path(scratch) / "look.html", Path(scratch) / "face.y4m"
        models = fetch_face_models()
        print(f"page with {len(LOOKS)} looks: {write_page(LOOKS, document, models):,} bytes")
        code = sum(len(read_code(name).encode()) for name in CODE) + (HERE / "engine.wasm").stat().st_size
        print(f"code of ours, js and wasm: {code:,} bytes; load of the machine: {os.getloadavg()[0]:.1f}")
        small = write_page(LOOKS, Path(scratch) / "small.html", models, small=True)
        print(f"with small face models: {small:,} bytes")
        if flags.photos:
            compare_squares(flags.photos, models, Path(scratch))
        save_video(film)
        flags_of_camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        flags_of_camera.append(f"--use-file-for-fake-video-capture={film}")
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *flags_of_camera]
        )
        open_page(browser, document)
        if flags.onnxruntime_web:
            race(browser, flags.onnxruntime_web, Path(scratch))
        browser.close()


if __name__ == "__main__":
    main()
