"""The web page in a real headless Chromium, opened as a file: photo, camera, looks, hostile files."""

from __future__ import annotations

import random
import shutil
import struct
import time
import zlib
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from tinybeauty.errors import UserError
from tinybeauty.page.bundle import HERE, WORKER, read_code, write_page

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
    """Return a page with three looks."""
    path = tmp_path_factory.mktemp("page") / "look.html"
    write_page(LOOKS, path, face_models)
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
def page(document):
    """Yield the page in Chromium, the drawn face made up; `page.requests` are those to other places."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        save_video(document.with_name("face.y4m"))
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        flags.append(f"--use-file-for-fake-video-capture={document.with_name('face.y4m')}")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.requests, page.faults = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(document.as_uri())
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        yield page
        browser.close()


def count(page, name: str) -> int:
    """Return how often something has happened on the page."""
    return int(page.evaluate(f"document.body.dataset.{name} || 0"))


def wait_for_more(page, name: str, before: int) -> None:
    """Wait until something has happened more than `before` times; its policy forbids Playwright's way."""
    end = time.monotonic() + 60
    while count(page, name) <= before:
        assert time.monotonic() < end, f"still {before} x {name}: {page.inner_text('#message')}"
        page.wait_for_timeout(20)


def drop(page, name: str, data: bytes, event: str) -> None:
    """Give the page a file and wait until that event has happened once more."""
    before = count(page, event)
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})
    wait_for_more(page, event, before)


def read_after(page) -> str:
    """Return the shown picture's pixels as text."""
    return page.evaluate("document.getElementById('after').toDataURL()")


def make_huge_png() -> bytes:
    """Return a PNG of a few bytes that promises 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_same_looks_give_the_same_bytes(document, face_models, tmp_path):
    write_page(LOOKS, tmp_path / "again.html", face_models)
    assert (tmp_path / "again.html").read_bytes() == document.read_bytes()


def test_looks_of_one_name_are_refused(face_models, tmp_path):
    with pytest.raises(UserError, match="same name"):
        write_page([LOOKS[0], LOOKS[0]], tmp_path / "page.html", face_models)
    assert not (tmp_path / "page.html").exists()


def test_the_page_is_small(document):
    assert document.stat().st_size <= 3_200_000


def test_our_code_is_small():
    size = sum(len(read_code(name).encode()) for name in CODE) + (HERE / "engine.wasm").stat().st_size
    assert size <= 90_000


def test_the_drawn_face_is_made_up_first(page):
    assert page.evaluate("document.getElementById('before').toDataURL()") != read_after(page)
    assert page.locator("#looks label").all_inner_texts() == ["evening", "natural", "bold"]


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


def test_own_look_and_photo(page):
    drop(page, "mine.pt", LOOKS[2].read_bytes(), "made")
    assert page.locator("#looks label").last.inner_text() == "mine"
    drop(page, "photo.jpg", (HERE / "face.jpg").read_bytes(), "made")
    # What an earlier slider asked for may have come first.
    page.get_by_label("Your picture, 1 face made up").wait_for(timeout=60_000)


def test_hostile_files_get_a_message_each(page):
    rng, look = random.Random(0), LOOKS[0].read_bytes()
    hostile = [
        ("huge.png", make_huge_png()),
        ("empty.pt", b""),
        ("text.pt", b"hello"),
        ("zip.zip", b"PK\3\4" * 99),
    ]
    hostile += [(f"cut{index}.pt", look[: rng.randrange(len(look))]) for index in range(48)]
    hostile += [(f"noise{index}.jpg", rng.randbytes(rng.randrange(1, 3000))) for index in range(48)]
    for name, data in hostile:
        drop(page, name, data, "wrong")
        assert name in page.inner_text("#message")
    assert page.faults == []


def test_the_full_size_is_saved(page):
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename.endswith(".jpg")


def test_camera(page):
    page.click("#camera")
    wait_for_more(page, "frames", 3)
    assert page.inner_text("#message") == ""  # it says so where it sees no face
    page.click("#camera")
    assert page.inner_text("#camera") == "Use the camera"


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_nothing_else_was_asked_for(page, document):
    assert [
        url for url in page.requests if url != document.as_uri() and not url.startswith(("blob:", "data:"))
    ] == []
