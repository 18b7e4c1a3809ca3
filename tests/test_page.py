"""The web page in a real headless Chromium, opened as a file: photo, camera, looks, hostile files."""

from __future__ import annotations

import base64
import http.server
import io
import random
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from tinybeauty.errors import UserError
from tinybeauty.page.bundle import HERE, WORKER, read_code, read_parts, write_page
from tinybeauty_export import main

PRETRAINED = ROOT / "tinybeauty_model" / "pretrained"
LOOKS = [PRETRAINED / f"{name}.pt" for name in ("evening", "natural", "bold")]
CHROMIUM = shutil.which("chromium")
CODE = [*WORKER, "page.js"]


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Skip where the page's engine is not there."""
    if missing := [name for name in [*CODE, "engine.wasm"] if not (HERE / name).exists()]:
        pytest.skip(f"no {', '.join(missing)}")


@pytest.fixture(scope="module")
def document(face_models, tmp_path_factory) -> Path:
    """Return a page with three looks, which the command has written."""
    path = tmp_path_factory.mktemp("page") / "look.html"
    words = ["evening", "natural", "bold", "--to", "page", "--out", str(path)]
    assert main([*words, "--face_models", str(face_models)]) == 0
    return path


def save_video(path: Path) -> None:
    """Write the drawn face as an uncompressed film of ten frames, 640 x 480, for Chromium's fake camera."""
    frame = Image.new("RGB", (640, 480), (96, 104, 112))
    frame.paste(Image.open(HERE / "face.jpg").resize((400, 400)), (120, 60))
    planes = frame.convert("YCbCr").split()
    halves = [plane.resize((320, 240)).tobytes() for plane in planes[1:]]
    data = b"FRAME\n" + planes[0].tobytes() + b"".join(halves)
    path.write_bytes(b"YUV4MPEG2 W640 H480 F30:1 Ip A1:1 C420jpeg\n" + 10 * data)


@pytest.fixture(scope="module")
def browser(document):
    """Yield a Chromium whose camera is a film of the drawn face."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium here")
    save_video(document.with_name("face.y4m"))
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags.append(f"--use-file-for-fake-video-capture={document.with_name('face.y4m')}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def open_page(browser, document: Path, before: str = "", **context):
    """Return the page in a window of its own; `before` is JavaScript that runs ahead of its own."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **context).new_page()
    page.requests, page.faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    if before:
        page.add_init_script(before)
    page.goto(document.as_uri())
    return page


@pytest.fixture(scope="module")
def page(browser, document):
    """Return the page, the drawn face made up; `page.requests` are those to other places."""
    page = open_page(browser, document)
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    return page


def count(page, name: str) -> int:
    """Return how often something has happened on the page."""
    return int(page.evaluate(f"document.body.dataset.{name} || 0"))


def wait_until(page, done: Callable[[], bool], told: str) -> None:
    """Wait until something is so; the page's policy forbids Playwright's way."""
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, f"{told}; the page says: {page.text_content('#message')}"
        page.wait_for_timeout(20)


def wait_for_more(page, name: str, before: int) -> None:
    """Wait until something has happened more than `before` times."""
    wait_until(page, lambda: count(page, name) > before, f"still {before} x {name}")


def stop_camera(page) -> None:
    """Stop the camera, and wait until the picture from before it is there again."""
    made = count(page, "made")
    page.click("#camera")
    wait_for_more(page, "made", made)


def drop(page, name: str, data: bytes, event: str) -> None:
    """Give the page a file and wait until that event has happened once more."""
    before = count(page, event)
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})
    wait_for_more(page, event, before)


def wait_for_words(page, words: str) -> None:
    """Wait until the page says something."""
    wait_until(page, lambda: words in page.text_content("#message"), f"not said: {words}")


def read_after(page) -> str:
    """Return the shown picture's pixels as text."""
    return page.evaluate("document.getElementById('after').toDataURL()")


def decode_url(url: str) -> np.ndarray:
    """Return the pixels of a picture's data URL, (height, width, 3)."""
    data = base64.b64decode(url.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)


def read_size(page) -> list[int]:
    """Return the shown picture's width and height."""
    return page.evaluate("(({width, height}) => [width, height])(document.getElementById('after'))")


def draw_photo(size: tuple[int, int], *places: tuple[int, int, int]) -> Image.Image:
    """Return a photo with the drawn face at some places, (left, top, side)."""
    photo, face = Image.new("RGB", size, (96, 104, 112)), Image.open(HERE / "face.jpg")
    for left, top, side in places:
        photo.paste(face.resize((side, side)), (left, top))
    return photo


def to_jpeg(photo: Image.Image, orientation: int = 1) -> bytes:
    """Return a photo's bytes, with a camera's note on how it was held."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


HAND_OVER = """([kind, files]) => {
  const data = new DataTransfer();
  for (const [name, text] of files)
    data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name));
  const given = {bubbles: true, cancelable: true};
  document.body.dispatchEvent(kind === 'drop' ? new DragEvent('drop', {...given, dataTransfer: data})
    : new ClipboardEvent('paste', {...given, clipboardData: data}));
}"""


def hand_over(page, kind: str, files: list[tuple[str, bytes]]) -> None:
    """Drop files onto the page or paste them, as a mouse or keys would."""
    page.evaluate(HAND_OVER, [kind, [[name, base64.b64encode(data).decode()] for name, data in files]])


def make_huge_png() -> bytes:
    """Return a PNG of a few bytes that promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 120_000, 120_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


# --- The file -----------------------------------------------------------------------------------------
def test_same_looks_give_the_same_bytes(document, face_models, tmp_path):
    write_page(LOOKS, tmp_path / "again.html", face_models)
    assert (tmp_path / "again.html").read_bytes() == document.read_bytes()


def test_the_page_holds_the_looks_and_models_as_they_are(document, face_models):
    parts = dict(read_parts(document.read_bytes()))
    assert [parts[f"look {path.stem}"] for path in LOOKS] == [path.read_bytes() for path in LOOKS]
    mesh = (face_models / "face_landmark_with_attention.tflite").read_bytes()
    assert (parts["mesh"][: len(mesh) // 2], parts["mesh"][len(mesh) // 2 :]) == (mesh[::2], mesh[1::2])


def test_a_small_page_makes_up_the_drawn_face_as_a_photo_too(browser, face_models, tmp_path):
    path, words = tmp_path / "small.html", ["--to", "page", "--small", "--face_models", str(face_models)]
    assert main(["evening", "natural", "bold", *words, "--out", str(path)]) == 0
    assert path.stat().st_size <= 2_000_000
    page = open_page(browser, path)
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    before = count(page, "made")
    hand_over(page, "drop", [("a.jpg", (HERE / "face.jpg").read_bytes())])
    wait_for_more(page, "made", before)
    assert "no face" not in page.text_content("#message").lower()
    assert read_after(page) != page.evaluate("document.getElementById('before').toDataURL()")
    assert not [url for url in page.requests if url.startswith("http")]
    licence = page.text_content("#licence")
    assert "were rounded for this page" in licence and "Apache License" in licence
    page.context.close()


def test_looks_of_one_name_are_refused(face_models, tmp_path):
    with pytest.raises(UserError, match="same name"):
        write_page([LOOKS[0], LOOKS[0]], tmp_path / "page.html", face_models)
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_is_not_what_it_should_be_gets_no_name(face_models, tmp_path, monkeypatch):
    monkeypatch.setattr("tinybeauty.page.bundle.ESCAPE", 0xE001)  # the page's script knows 0xE000
    monkeypatch.setattr("tinybeauty.page.bundle.read_parts", lambda page: [])
    with pytest.raises(UserError, match="nothing was written"):
        write_page(LOOKS, tmp_path / "page.html", face_models)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_a_page_and_says_what_is_wrong(face_models, tmp_path, capsys, monkeypatch):
    words = ["--to", "page", "--face_models", str(face_models)]
    assert main(["natural", *words, "--out", str(tmp_path / "new")]) == 0
    size = (tmp_path / "new" / "natural.html").stat().st_size
    assert f"natural.html: {size:,} bytes, natural, read back" in capsys.readouterr().out
    assert main(["natural", "--to", "onnx", "--small", "--out", str(tmp_path)]) == 1
    assert "--small is for --to page" in capsys.readouterr().err
    assert main(["natural", *words, "--to", "page", "onnx", "--out", str(tmp_path / "a.html")]) == 1
    assert "give a folder" in capsys.readouterr().err
    (tmp_path / "b.html").mkdir()
    assert main(["natural", *words, "--out", str(tmp_path / "b.html")]) == 1
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["natural", "--to", "page", "--face_models", str(tmp_path / "none"), "--out", "c.html"]) == 1
    assert "lacks, or holds damaged: face_detection" in capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["natural", "--to", "page", "--out", str(tmp_path / "d.html")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: cannot fetch the face models")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.html", "empty", "new", "none"]


def test_the_page_is_small(document):
    assert document.stat().st_size <= 3_200_000


def test_our_code_is_small():
    size = sum(len(read_code(name).encode()) for name in CODE) + (HERE / "engine.wasm").stat().st_size
    assert size <= 90_000


def test_products_and_sums_are_one_step_where_the_browser_knows_it(page, browser, document):
    fuse = f"""(engine) => {{
      {read_code("graphs.js")}
      const bytes = Uint8Array.from(engine), fused = fuseMultiplyAdd(bytes);
      return [WebAssembly.validate(fused), fused.filter((byte, at) => byte !== bytes[at]).length];
    }}"""
    known, changed = page.evaluate(fuse, list((HERE / "engine.wasm").read_bytes()))
    assert known, "this Chromium has no relaxed SIMD"
    assert changed >= 25 * 6  # bytes of 25 places, of eight each

    other = open_page(
        browser,
        document,
        """self.Blob = class extends Blob {
          constructor(parts, kind) {
            const code = kind && kind.type === 'text/javascript';
            if (code) self.refused = true;
            super(code ? ['WebAssembly.validate = () => false;', ...parts] : parts, kind);
          }
        };""",
    )
    other.wait_for_selector("body[data-ready]", timeout=120_000)
    assert other.evaluate("self.refused")
    with_it, without = (decode_url(read_after(one)) for one in (page, other))
    assert np.abs(with_it - without).max() <= 1
    other.context.close()


def test_nothing_but_our_code_may_run(page):
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy
    page.evaluate("""() => {
      const script = document.createElement('script');
      script.textContent = 'document.body.dataset.foreign = 1';
      document.body.append(script);
    }""")
    assert page.evaluate("document.body.dataset.foreign") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    page.requests.clear()


class Host(http.server.BaseHTTPRequestHandler):
    """A static host that calls all its pages UTF-8, as many do."""

    def do_GET(self) -> None:
        """Send the page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.server.document.read_bytes())

    def log_message(self, *_) -> None:
        """Print nothing."""


def test_a_host_that_says_utf_8_does_no_harm(browser, document):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        server.document = document
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/look.html")
        page.wait_for_selector("body[data-made]", timeout=120_000)
        assert page.title() == "TinyBeauty"
        page.close()
        server.shutdown()


# --- What is wrong is said ----------------------------------------------------------------------------
@pytest.mark.parametrize("missing", ["delete self.DecompressionStream", "WebAssembly.validate = () => false"])
def test_an_old_browser_is_told(browser, document, missing):
    page = open_page(browser, document, missing)
    wait_for_words(page, "too old for this page: Chrome")
    assert page.faults == []
    page.context.close()


def test_a_page_that_was_damaged_on_its_way_says_so(browser, document, tmp_path):
    data = bytearray(document.read_bytes())
    (tmp_path / "cut.html").write_bytes(data[: len(data) // 2])
    page = open_page(browser, tmp_path / "cut.html")
    page.get_by_text("cut off on its way here").wait_for()
    page.context.close()
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.html").write_bytes(data)
    page = open_page(browser, tmp_path / "changed.html")
    wait_for_words(page, "damaged")
    page.context.close()


def test_a_camera_that_does_not_start_is_told(page):
    told = {
        "NotAllowedError": "was not allowed",
        "NotFoundError": "No camera",
        "NotReadableError": "Another program",
    }
    for name, words in told.items():
        refuse = f"() => Promise.reject(new DOMException('', '{name}'))"
        page.evaluate(f"void (navigator.mediaDevices.getUserMedia = {refuse})")
        page.click("#camera")
        wait_for_words(page, words)
        assert page.inner_text("#camera") == "Use the camera"
    page.evaluate("void delete navigator.mediaDevices.getUserMedia")
    for secure, words in {"true": "No camera", "false": "only to a page from https"}.items():
        page.evaluate(f"""() => {{
          Object.defineProperty(navigator, 'mediaDevices', {{value: undefined, configurable: true}});
          Object.defineProperty(self, 'isSecureContext', {{value: {secure}, configurable: true}});
        }}""")
        page.click("#camera")
        wait_for_words(page, words)
    page.evaluate("() => { delete navigator.mediaDevices; delete self.isSecureContext; }")


def test_hostile_files_get_a_message_each(page):
    rng, look = random.Random(0), LOOKS[0].read_bytes()
    hostile = [
        ("huge.png", make_huge_png()),
        ("empty.pt", b""),
        ("text.pt", b"hello"),
        ("zip.zip", b"PK\3\4" * 99),
    ]
    hostile += [(f"cut{index}.pt", look[: rng.randrange(len(look))]) for index in range(32)]
    for index in range(16):
        changed = bytearray(look)
        changed[rng.randrange(len(look) // 4, len(look) * 3 // 4)] ^= 1 << rng.randrange(8)  # a weight
        hostile.append((f"changed{index}.pt", bytes(changed)))
    hostile += [(f"noise{index}.jpg", rng.randbytes(rng.randrange(1, 3000))) for index in range(48)]
    page.evaluate("""() => {
      self.told = [];
      const watch = () => self.told.push(document.getElementById('message').textContent);
      new MutationObserver(watch).observe(document.getElementById('message'), {childList: true});
    }""")
    before = count(page, "wrong")
    hand_over(page, "drop", hostile)
    wait_for_more(page, "wrong", before + len(hostile) - 1)
    told = page.evaluate("self.told")
    assert [name for name, _ in hostile if not any(name in words for words in told)] == []
    assert page.faults == []


# --- Photos -------------------------------------------------------------------------------------------
def test_the_drawn_face_is_made_up_first(page):
    assert page.evaluate("document.getElementById('before').toDataURL()") != read_after(page)
    assert page.locator("#looks label").all_inner_texts() == ["evening", "natural", "bold"]


def test_a_photo_dropped_shows_upright_with_all_its_faces(page):
    photo = draw_photo((640, 900), (0, 0, 420), (220, 480, 420))
    held = to_jpeg(photo.transpose(Image.Transpose.ROTATE_90), orientation=6)
    hand_over(page, "drop", [("held.jpg", held)])
    page.get_by_label("Your picture, 2 faces made up").wait_for(timeout=120_000)
    assert read_size(page) == [640, 900]


def test_a_photo_pasted_without_a_face_says_so(page):
    hand_over(page, "paste", [("wall.jpg", to_jpeg(draw_photo((300, 200))))])
    wait_for_words(page, "No face found in this picture")


def test_a_drop_without_a_file_says_so(page):
    hand_over(page, "drop", [])
    wait_for_words(page, "That is no file")


def test_own_look_and_the_full_size_is_saved(page):
    drop(page, "large.jpg", to_jpeg(draw_photo((2000, 1500), (500, 200, 1100))), "made")
    page.get_by_label("Your picture, 1 face made up").wait_for(timeout=120_000)
    assert read_size(page) == [1400, 1050]
    before = read_after(page)
    hand_over(page, "drop", [("mine.pt", LOOKS[2].read_bytes())])
    page.get_by_label("mine").wait_for(timeout=120_000)
    page.wait_for_timeout(100)
    with page.expect_download(timeout=120_000) as download:
        page.click("#save")
    assert download.value.suggested_filename == "large mine.jpg"
    with Image.open(download.value.path()) as saved:
        assert saved.size == (2000, 1500)
    assert read_after(page) != before


def test_files_that_come_before_the_page_is_ready_are_opened(browser, document):
    late = """
      const {postMessage} = Worker.prototype;
      Worker.prototype.postMessage = function (message, ...rest) {
        setTimeout(() => postMessage.call(this, message, ...rest), message.kind === 'start' ? 1000 : 0);
      };"""
    page = open_page(browser, document, late)
    wall = to_jpeg(draw_photo((300, 200)))
    hand_over(page, "drop", [("mine.pt", LOOKS[2].read_bytes()), ("wall.jpg", wall)])
    assert page.evaluate("document.body.dataset.ready") is None
    wait_for_words(page, "No face found")
    assert page.locator("#looks label").all_inner_texts() == ["evening", "natural", "bold", "mine"]
    page.context.close()


# --- Hands and eyes -----------------------------------------------------------------------------------
def test_sliders_and_line_answer_to_keys(page):
    before, made = read_after(page), count(page, "made")
    page.focus("#strength")
    page.keyboard.press("Home")
    wait_for_more(page, "made", made)
    assert read_after(page) != before
    page.keyboard.press("End")
    page.focus("#split")
    page.keyboard.press("End")
    assert page.evaluate("document.getElementById('frame').style.getPropertyValue('--split')") == "100%"


def test_everything_is_reached_with_keys_alone(page):
    wanted = ["split", "file", "camera", "look", "strength", "lips", "eyes", "skin", "save", "type"]
    page.focus("#split")
    for name in wanted:
        assert page.evaluate("(({id, name}) => id || name)(document.activeElement)") == name
        page.keyboard.press("Tab")
    page.focus("#looks input:checked")
    made = count(page, "made")
    page.keyboard.press("ArrowLeft")
    wait_for_more(page, "made", made)
    with page.expect_file_chooser():
        page.focus("#file")
        page.keyboard.press("Enter")


def test_camera(page):
    page.click("#camera")
    wait_for_more(page, "frames", 3)
    assert page.inner_text("#message") == ""  # it says so where it sees no face
    page.click("#rate")
    page.locator("#rate", has_text="frames/s").wait_for(timeout=120_000)
    with page.expect_download(timeout=120_000) as download:
        page.click("#save")
    assert download.value.suggested_filename.startswith("camera ")
    stop_camera(page)
    assert page.inner_text("#camera") == "Use the camera"


def test_camera_asked_for_twice_or_stopped_before_it_shows_anything(page):
    page.evaluate("""() => {
      self.asked = 0;
      const {getUserMedia} = MediaDevices.prototype, {play} = HTMLMediaElement.prototype;
      const allowed = new Promise((resolve) => { self.allow = resolve; });
      const shown = new Promise((resolve) => { self.show_it = resolve; });
      navigator.mediaDevices.getUserMedia = async (...given) => {
        self.asked++;
        await allowed;
        return getUserMedia.apply(navigator.mediaDevices, given);
      };
      HTMLMediaElement.prototype.play = async function () {
        self.started = true;
        await shown;
        await play.call(this);
      };
    }""")
    page.click("#camera")
    page.click("#camera")
    assert page.evaluate("self.asked") == 1
    page.evaluate("self.allow()")
    wait_until(page, lambda: page.evaluate("self.started"), "not started")
    page.click("#save")
    wait_for_words(page, "The camera has shown nothing yet")
    made = count(page, "made")
    page.click("#camera")
    wait_for_more(page, "made", made)
    page.evaluate("self.show_it()")
    page.wait_for_timeout(500)
    assert page.inner_text("#camera") == "Use the camera"
    assert page.inner_text("#message") == ""
    page.evaluate("void delete navigator.mediaDevices.getUserMedia")
    assert page.faults == []


def test_a_slider_moved_as_the_camera_starts_does_not_stop_it(page):
    page.evaluate("""() => {
      const {getUserMedia} = MediaDevices.prototype;
      navigator.mediaDevices.getUserMedia = async (...given) => {
        const stream = await getUserMedia.apply(navigator.mediaDevices, given);
        document.getElementById('strength').dispatchEvent(new Event('input'));
        return stream;
      };
    }""")
    frames = count(page, "frames")
    page.click("#camera")
    wait_for_more(page, "frames", frames + 1)
    stop_camera(page)
    page.evaluate("void delete navigator.mediaDevices.getUserMedia")


def test_one_frame_is_under_way_until_the_next_is_wanted_whatever_else_is_asked_for(page):
    page.evaluate("""() => {
      self.under = self.most = 0;
      const {postMessage} = Worker.prototype, answer = worker.onmessage;
      worker.postMessage = (message, ...rest) => {
        if (message.kind === 'frame') self.most = Math.max(self.most, ++self.under);
        postMessage.call(worker, message, ...rest);
      };
      worker.onmessage = (event) => {
        if (event.data.kind === 'next') self.under--;
        answer(event);
      };
    }""")
    page.click("#camera")
    wait_for_more(page, "frames", count(page, "frames"))
    drop(page, "text.pt", b"hello", "wrong")
    with page.expect_download(timeout=120_000):
        page.click("#save")
    wait_for_more(page, "frames", count(page, "frames") + 2)
    stop_camera(page)
    assert page.evaluate("self.most") == 1


def test_a_file_that_is_no_picture_leaves_the_camera_and_shows_the_picture_before(page):
    picture, made = read_after(page), count(page, "made")
    page.click("#camera")
    wait_for_more(page, "frames", count(page, "frames"))
    drop(page, "text.jpg", b"hello", "wrong")
    wait_for_more(page, "made", made)
    assert page.inner_text("#message").startswith("text.jpg is neither")
    assert page.inner_text("#camera") == "Use the camera"
    assert read_after(page) == picture
    sizes = "['before', 'after'].map((id) => document.getElementById(id).height)"
    assert len(set(page.evaluate(sizes))) == 1  # the camera's is another


def test_what_is_said_with_each_frame_is_written_once(page):
    """A screen reader reads aloud what is written."""
    page.evaluate("""() => {
      self.written = 0;
      const watch = new MutationObserver(() => self.written++);
      watch.observe(document.getElementById('message'), {childList: true});
      say('No face in sight', true);
    }""")
    page.evaluate("say('No face in sight', true)")
    page.evaluate("say('No face in sight', true)")
    assert page.evaluate("self.written") == 1
    page.evaluate("say('')")


def test_dark_and_light(page):
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(247, 245, 243)", "rgb(23, 20, 22)"]
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("size", [(360, 740), (740, 360)])
def test_a_phone_needs_no_sideways_scrolling_and_shows_the_picture(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    box = page.locator("#frame").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= size[1]


def test_nothing_else_was_asked_for(page, document):
    asked = [url for url in page.requests if not url.startswith(("blob:", "data:"))]
    assert [url for url in asked if url != document.as_uri()] == []
    assert page.faults == []
