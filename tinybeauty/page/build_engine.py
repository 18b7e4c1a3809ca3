"""Build engine.wasm from engine.c: `python tinybeauty/page/build_engine.py`.

The same bytes on every machine: the compiler is PyPI's ziglang, clang and its linker in a wheel, of the
version in tests/requirements.txt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = (
    "-target wasm32-freestanding -mcpu=generic+simd128+bulk_memory+nontrapping_fptoint -Os -ffreestanding "
    "-fno-builtin -nostdlib -std=c11 -Wall -Wextra -Werror -Wl,--no-entry -Wl,--strip-all"
)


def build_engine(scratch: Path) -> bytes:
    """Return the bytes of engine.wasm, built anew in a folder for this alone.

    Raises:
        subprocess.CalledProcessError: the compiler refuses; its message is in `stderr`.
    """
    target = scratch / "engine.wasm"
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS.split(), "engine.c", "-o", str(target)]
    subprocess.run(command, check=True, cwd=HERE, capture_output=True, text=True)
    return target.read_bytes()


def main() -> None:
    """Write engine.wasm beside engine.c."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = build_engine(Path(scratch))
    (HERE / "engine.wasm").write_bytes(data)
    print(f"{HERE / 'engine.wasm'}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
