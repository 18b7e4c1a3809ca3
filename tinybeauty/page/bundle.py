"""Looks as one HTML file: drop a photo on it or allow the camera, and be made up; nothing leaves the machine.

The same looks give the same bytes. The page holds the looks' .pt files, MediaPipe's face models and our
code; its Content-Security-Policy lets it reach nothing else.

All of it is deflated at once, the bytes of the models sorted before: their weights are float16, whose upper
bytes (sign, exponent) repeat and whose lower ones don't. The file is UTF-16, as each of its characters then
holds 16 bits of that with no more than 3 % for the codes that text cannot have; base64 takes 33 %.
Source of the hashes: W3C CSP Level 3, section 2.3.1.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import html
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinybeauty.errors import UserError, list_some
from tinybeauty.files import save_bytes
from tinybeauty.page.small_models import ROUNDINGS, shrink_model

HERE = Path(__file__).resolve().parent
# One script, in this order.
WORKER = ("graphs.js", "tflite.js", "pictures.js", "faces.js", "makeup.js", "look.js", "worker.js")
MODELS = {
    "shortRange": "face_detection_short_range.tflite",
    "fullRange": "face_detection_full_range_sparse.tflite",
    "mesh": "face_landmark_with_attention.tflite",
}
MOST_LOOK_BYTES = 100_000
STRINGS = r"""('(?:[^'\\]|\\.)*'|"[^"]*"|`[^`]*`)"""
# What the licence wants in a file that was changed, section 4 (b).
ROUNDED = b"The weights of MediaPipe's face models were rounded for this page.\n\n"
ESCAPE = 0xE000  # the first character of the private area


def tighten(part: str, marks: str) -> str:
    """Return a piece of code without the spaces around some marks; strings and patterns stay as they are."""
    if re.match(STRINGS, part) or "\\" in part:
        return part
    part = re.sub(r"(?<![+-]) ([+*/%-]) (?![+-])", r"\1", part) if "=" in marks else part  # not of `a + +b`
    return re.sub(rf" *([{marks}]) *", r"\1", part)


def read_code(name: str) -> str:
    """Return the text of one of the page's files without comments and the spaces that only people need."""
    text = (HERE / name).read_text(encoding="utf-8")
    text = re.sub(r"^\s*/\*.*?\*/\s*?\n", "", text, flags=re.MULTILINE | re.DOTALL)
    marks = "=*,;:?(){}<>&|" if name.endswith(".js") else ",;:{}"
    lines = []
    for line in text.splitlines():
        line = re.sub(r"  // .*$", "", line).strip()
        if line and not line.startswith("//") and line != "'use strict';":
            lines.append("".join(tighten(part, marks) for part in re.split(STRINGS, line)))
    return re.sub(r"(?<=[;{,(])\n", "", "\n".join(lines))


def hash_source(text: str) -> str:
    """Return the CSP source expression of an inline script or style."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def sort_bytes(data: bytes) -> bytes:
    """Return the bytes at even places, then those at odd places; `joinBytes` in tflite.js is the way back."""
    return data[::2] + data[1::2]


def write_units(data: bytes) -> str:
    """Return bytes as text, two in a character; `readData` in page.js is the way back.

    What a page's text cannot have or keep (control characters, `<`, surrogates, no characters) is written as
    ESCAPE and the same with its highest bit turned, which is always a plain character.
    """
    units = np.frombuffer(data + bytes(len(data) % 2), "<u2")
    bad = (units < 0x40) | ((units >= 0xD800) & (units <= ESCAPE)) | (units >= 0xFFFE)
    places = np.arange(len(units)) + np.cumsum(bad)
    text = np.full(len(units) + bad.sum(), ESCAPE, "<u2")
    text[places] = np.where(bad, units ^ 0x8000, units)
    return text.tobytes().decode("utf-16-le")


def make_block(parts: Sequence[tuple[str, bytes]]) -> str:
    """Return named bytes as one element that no browser runs or shows."""
    packer = zlib.compressobj(9, memLevel=6)  # a new code more often than by default, as weights change
    data = packer.compress(b"".join(part for _, part in parts)) + packer.flush()
    index = html.escape(json.dumps([[name, len(part)] for name, part in parts]))
    words = f'id="data" data-bytes="{len(data)}" data-parts="{index}"'
    return f'<script type="text/plain" {words}>{write_units(data)}</script>'


def read_looks(looks: Sequence[str | Path]) -> list[tuple[str, bytes]]:
    """Return the name and the bytes of each look's .pt file.

    Raises:
        UserError: two have one name, or a file is too large for a look.
        OSError: one cannot be read.
    """
    paths = [Path(look) for look in looks]
    names = [path.stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"looks of the same name cannot be told apart on a page: {list_some(twice)}")
    found = [(path.stem, path.read_bytes()) for path in paths]
    if large := [name for name, data in found if len(data) > MOST_LOOK_BYTES]:
        raise UserError(f"over {MOST_LOOK_BYTES:,} bytes, so no TinyBeauty looks: {list_some(large)}")
    return found


def read_models(folder: Path, small: bool) -> dict[str, bytes]:
    """Return {name: bytes} of the face models in a folder, as they are or with fewer bits a weight."""
    models = {name: (folder / file).read_bytes() for name, file in MODELS.items()}
    return {name: shrink_model(data, ROUNDINGS[name]) for name, data in models.items()} if small else models


def list_parts(
    looks: Sequence[str | Path], face_models: str | Path, small: bool = False
) -> list[tuple[str, bytes]]:
    """Return what a page holds in its one block: names and bytes; arguments and errors as of `write_page`."""
    if not looks:
        raise UserError("a page needs at least one look")
    worker = "'use strict';\n" + "\n".join(read_code(name) for name in WORKER)
    parts = [("code", worker.encode()), ("wasm", (HERE / "engine.wasm").read_bytes())]
    licence = (HERE / "apache-2.0.txt").read_bytes()
    parts.append(("licence", ROUNDED + licence if small else licence))
    parts.append(("face", (HERE / "face.jpg").read_bytes()))
    # The drawn face's landmarks: it is made up before any model is read.
    parts.append(("points", (HERE / "face.json").read_bytes()))
    parts += [(f"look {name}", data) for name, data in read_looks(looks)]
    return parts + [(name, sort_bytes(data)) for name, data in read_models(Path(face_models), small).items()]


def make_page(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the bytes of a page that holds `list_parts`."""
    script, style = "'use strict';\n" + read_code("page.js"), read_code("page.css")
    policy = (
        f"default-src 'none'; script-src {hash_source(script)} 'wasm-unsafe-eval'; "
        f"style-src {hash_source(style)}; "
        "worker-src blob:; img-src data:; media-src mediastream:; base-uri 'none'; form-action 'none'"
    )
    words = {"policy": policy, "style": style, "data": make_block(parts), "script": script}
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], page)
    return codecs.BOM_UTF16_LE + page.encode("utf-16-le")  # the mark outdoes what a host says about its files


def read_parts(page: bytes) -> list[tuple[str, bytes]]:
    """Return what a page holds, as its own code reads it.

    Raises:
        ValueError: it is damaged, or a script or a style is not the one that its policy allows.
    """
    text = page.decode("utf-16")
    for source in re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, re.DOTALL):
        if html.escape(hash_source(source), quote=False) not in text:
            raise ValueError("a script or a style that the policy does not allow")
    found = re.search(r'id="data" data-bytes="(\d+)" data-parts="(.*?)">(.*?)</script>', text, re.DOTALL)
    if found is None:
        raise ValueError("no data")
    units = np.frombuffer(found[3].encode("utf-16-le"), "<u2")
    turned = np.flatnonzero(units == ESCAPE)
    units = units.copy()
    units[turned + 1] ^= 0x8000
    try:
        data = zlib.decompress(np.delete(units, turned).tobytes()[: int(found[1])])
    except zlib.error as error:
        raise ValueError(str(error)) from None
    parts, start = [], 0
    for name, length in json.loads(html.unescape(found[2])):
        parts.append((name, data[start : start + length]))
        start += length
    return parts


def write_page(
    looks: Sequence[str | Path],
    path: str | Path,
    face_models: str | Path,
    check: bool = True,
    small: bool = False,
) -> int:
    """Write a page with these looks, the first one chosen; return its size in bytes.

    Args:
        looks: .pt files; their names without suffix stand beside the swatches.
        path: the HTML file; it is written whole or not at all.
        face_models: the folder with MediaPipe's models, as `fetch_face_models` gives it.
        check: read it back before it gets its name.
        small: give the face models fewer bits a weight: a megabyte less, and squares a little beside.

    Raises:
        UserError: no look, two of one name, one too large, or the file cannot be written.
        OSError: a look or a model cannot be read.
    """
    parts = list_parts(looks, face_models, small)
    page = make_page(parts)
    try:
        if check and read_parts(page) != parts:
            raise ValueError("it holds something else")
    except ValueError as error:
        raise UserError(
            f"page: what was made is not what it should be, {error}; nothing was written"
        ) from None
    save_bytes(Path(path), page)
    return len(page)
