"""Looks as one HTML file: drop a photo on it or allow the camera, and be made up; nothing leaves the machine.

The same looks give the same bytes. The page holds the looks' .pt files, MediaPipe's face models and our
code; its Content-Security-Policy lets it reach nothing else.
Source of the hashes: W3C CSP Level 3, section 2.3.1.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

from tinybeauty.errors import UserError, list_some
from tinybeauty.files import save_bytes

HERE = Path(__file__).resolve().parent
WORKER = ("graphs.js", "pictures.js", "faces.js", "look.js", "worker.js")  # one script, in this order
MODELS = {
    "shortRange": "face_detection_short_range.tflite",
    "fullRange": "face_detection_full_range_sparse.tflite",
    "mesh": "face_landmark_with_attention.tflite",
}
MOST_LOOK_BYTES = 100_000


def read_code(name: str) -> str:
    """Return the text of one of the page's files without comments and the spaces that only people need."""
    text = (HERE / name).read_text(encoding="utf-8")
    text = re.sub(r"^\s*/\*.*?\*/\s*?\n", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = []
    for line in text.splitlines():
        line = re.sub(r"  // .*$", "", line).strip()
        if line and not line.startswith("//") and line != "'use strict';":
            # Spaces in strings and patterns count, and beside + and - they keep `a + +b` apart.
            plain = name.endswith(".js") and not re.search(r"['\"`\\]", line)
            lines.append(re.sub(r" *([=*,;:?(){}<>&|]) *", r"\1", line) if plain else line)
    return "\n".join(lines)


def hash_source(text: str) -> str:
    """Return the CSP source expression of an inline script or style."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def make_block(attributes: str, data: bytes) -> str:
    """Return bytes as an element that no browser runs or shows."""
    return f'<script type="text/plain" {attributes}>{base64.b64encode(data).decode("ascii")}</script>'


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


def write_page(looks: Sequence[str | Path], path: str | Path, face_models: str | Path) -> int:
    """Write a page with these looks, the first one chosen; return its size in bytes.

    Args:
        looks: .pt files; their names without suffix stand beside the swatches.
        path: the HTML file; it is written whole or not at all.
        face_models: the folder with MediaPipe's models, as `fetch_face_models` gives it.

    Raises:
        UserError: no look, two of one name, or one too large.
        OSError: a file cannot be read or written.
    """
    if not looks:
        raise UserError("a page needs at least one look")
    blocks = [make_block(f'data-look="{html.escape(name)}"', data) for name, data in read_looks(looks)]
    blocks += [
        make_block(f'id="{name}"', (Path(face_models) / file).read_bytes()) for name, file in MODELS.items()
    ]
    blocks.append(make_block('id="wasm"', (HERE / "engine.wasm").read_bytes()))
    blocks.append(make_block('id="face"', (HERE / "face.jpg").read_bytes()))
    worker = "'use strict';\n" + "\n".join(read_code(name) for name in WORKER)
    blocks.append(f'<script type="text/plain" id="code">{worker}</script>')
    script, style = "'use strict';\n" + read_code("page.js"), read_code("page.css")
    policy = (
        f"default-src 'none'; script-src {hash_source(script)} 'wasm-unsafe-eval'; "
        f"style-src {hash_source(style)}; "
        "worker-src blob:; img-src data:; media-src mediastream:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "style": style,
        "licence": html.escape((HERE / "apache-2.0.txt").read_text(encoding="utf-8")),
        "data": "\n".join(blocks),
        "script": script,
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)
    data = page.encode("utf-8")
    save_bytes(Path(path), data)
    return len(data)
