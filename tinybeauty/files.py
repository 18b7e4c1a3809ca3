"""Files and folders: written whole or not at all, locked, tried out before an hour of work."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tinybeauty.errors import UserError, one_line

MAX_NAME_BYTES = 255  # of a file, on every common file system


def tidy_path(path: str | os.PathLike[str]) -> str:
    """Return a path as it was meant by the person who typed it into a YAML file or after `--key=`.

    There no shell has put in what `~` and `$NAME` stand for. '' stays ''.

    Raises:
        ValueError: it cannot be a path of this machine.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise ValueError(f"must be a string, got {path!r}")
    text = os.fsdecode(path)  # of bytes too
    if "\0" in text:
        raise ValueError(f"must be a path, got {text!r}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ValueError(f"must be a path of this machine, got {text!r}")
    full = os.path.expanduser(text)  # noqa: PTH111  Path's raises where there is no home
    if not os.path.lexists(full):  # a name may have a $ in it
        full = os.path.expandvars(full)
    if full.startswith("~") and not os.path.lexists(full):
        raise ValueError(f"{text.split('/')[0]} is no user's home here, got {text!r} (a folder: ./{text})")
    if (unset := re.search(r"\$(\w+|\{\w+\})", full)) and not os.path.lexists(full):
        raise ValueError(f"the environment has no {unset[0]}, got {text!r}")
    return str(Path(full)) if full else ""  # without a slash at the end


def path_flag(text: str) -> Path:
    """Return the path of a command line's flag, for argparse; raise its error where there is none."""
    try:
        return Path(tidy_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextmanager
def suppress_unsupported() -> Iterator[None]:
    """Go on where a file system (network drives, FUSE) lacks what was asked of it; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise


def hide(path: Path, suffix: str = "") -> Path:
    """Return the hidden name beside a file under which it is written before it is whole.

    Args:
        path: of the file.
        suffix: what the hidden name must end with.
    """
    name = f".{path.name}.partial{suffix}"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:  # of a name that itself is nearly as long
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.partial{suffix}"
    return path.with_name(name)


def save_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file whole or not at all: beside it under a hidden name, then renamed.

    Args:
        path: where it goes; an older file there is replaced.
        data: what it holds.
        durable: wait until it is on the disk; without, it may be lost (not damaged) when the power fails.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    partial = hide(path)
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                with suppress_unsupported():
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
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # it names a file that nobody knows
        raise OSError(error.errno, error.strerror, str(folder)) from None


@contextmanager
def lock_folder(folder: Path, wait: bool = False, name: str = ".lock") -> Iterator[None]:
    """Keep other runs out of the folder; the system lets go of it however this one ends.

    Where the file system has no locks, say so and go on without.

    Args:
        folder: which.
        wait: until another run is out of it.
        name: of the file that is locked; another one is another lock.

    Raises:
        UserError: another run is in there and we do not wait.
    """
    lock = FileLock(folder / name)
    try:
        with warnings.catch_warnings():
            # Newer versions of filelock warn and go on with a file instead of flock. One that a kill leaves
            # behind would keep all runs out: it is not known here what runs on the drive's other machines.
            warnings.filterwarnings("error", "flock not supported")
            lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(f"another run is writing into {folder}; wait, or choose another folder") from None
        print(f"          waiting for another run that writes into {folder}", flush=True)
        lock.acquire()
    except (OSError, NotImplementedError, UserWarning) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        print(f"          {folder} cannot be locked ({reason}): see to it that no other run writes into it")
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
