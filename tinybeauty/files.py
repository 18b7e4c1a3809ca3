"""Files and folders: written whole or not at all, locked, tried out before an hour of work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tinybeauty.errors import UserError


def save_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file whole or not at all: beside it under a hidden name, then renamed.

    Args:
        path: where it goes; an older file there is replaced.
        data: what it holds.
        durable: wait until it is on the disk; without, it may be lost (not damaged) when the power fails.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was saved before is intact"
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing, and try out whether files can be written to it.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def lock_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other runs out of the folder; the system lets go of it however this one ends.

    Args:
        folder: which.
        wait: until another run is out of it.

    Raises:
        UserError: another run is in there and we do not wait.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(
                f"another run is writing into {folder}; wait, or choose another output_dir"
            ) from None
        print(f"          waiting for another run that writes into {folder}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
