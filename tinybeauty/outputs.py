"""Which files are to be done, where they go, and what was done already.

A hidden file in the output folder says which file came from what. Nothing is written into the photos
themselves, so that all they say about themselves stays as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tinybeauty.errors import LeftOut, UserError
from tinybeauty.files import save_bytes

MARKS = ".tinybeauty_apply.jsonl"
Done = dict[str, str]  # digest of a file that was written -> fingerprint of what it was made from


# ======================================================================================================
# What goes where
# ======================================================================================================


def list_inputs(paths: list[Path], suffixes: set[str], out: Path) -> list[Path]:
    """Return the files that are asked for: of a folder those with one of the suffixes, sorted by name.

    Hidden files and folders in a folder are passed over, of `out` also what was written into it before; a
    file that is named twice counts once.

    Raises:
        UserError: something is not there, or a folder has no such file.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        try:
            if not path.is_dir():
                path.stat()
                files.setdefault(path.resolve(), path)
                continue
            own = read_marks(path) if path.resolve() == out.resolve() else {}
            inside = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
                if not (file.name in own and find_digest(file) in own[file.name])
            )
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        if not inside:
            raise UserError(f"no photo or video in {path} ({' '.join(sorted(suffixes))})")
        for file in inside:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def find_targets(sources: list[Path], out: Path, ending: str, as_jpeg: set[str]) -> list[Path]:
    """Return where each source goes: its own name in `out`.

    Args:
        sources: the files.
        out: the folder.
        ending: what is put before the suffix.
        as_jpeg: suffixes of formats that are written as JPEG.

    Raises:
        UserError: two would go to one place, or one onto a source.
    """
    originals = {source.resolve() for source in sources}
    targets: dict[str, tuple[Path, Path]] = {}
    for source in sources:
        suffix = ".jpg" if source.suffix.lower() in as_jpeg else source.suffix
        target = out / f"{source.stem}{ending}{suffix}"
        if target.resolve() in originals:
            raise UserError(f"{target} is one of the originals: choose another folder for --out")
        other, _ = targets.setdefault(target.name.casefold(), (source, target))
        if other is not source:
            raise UserError(f"{other} and {source} would both be written to {target}: do them apart")
    return [target for _, target in targets.values()]


# ======================================================================================================
# What was done
# ======================================================================================================


def find_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_source_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        LeftOut: it cannot be read.
    """
    try:
        return find_digest(path)
    except OSError as error:
        raise LeftOut(f"cannot be read: {error.strerror}") from None


def find_fingerprint(*parts: Any) -> str:
    """Return a SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_marks(folder: Path) -> dict[str, Done]:
    """Return what was written into a folder, by the file's name; lines that are damaged do not count."""
    done: dict[str, Done] = {}
    try:
        lines = (folder / MARKS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            name, digest, fingerprint = json.loads(line)
            done.setdefault(name, {})[digest] = fingerprint
        except (ValueError, TypeError):
            continue
    return done


def add_mark(target: Path, digest: str, fingerprint: str) -> None:
    """Note what is about to be written: first the note, so that no file of ours stands there without one.

    Raises:
        UserError: it cannot be written.
    """
    line = json.dumps([target.name, digest, fingerprint]) + "\n"
    try:  # one short write at the end: several processes may do so at once
        with (target.parent / MARKS).open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise UserError(f"cannot write {target.parent / MARKS}: {os.strerror(error.errno or 0)}") from None


def is_done(target: Path, done: Done, fingerprint: str) -> bool:
    """Return whether a file is there already, made from the same.

    Raises:
        LeftOut: a file of that name is there, and it is not ours.
    """
    try:
        digest = find_digest(target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LeftOut(f"{target} is in the way: {error.strerror}") from None
    if digest not in done:
        raise LeftOut(f"{target} is there already, and not as this command wrote it: move it away")
    return done[digest] == fingerprint


def save_marked(target: Path, data: bytes, fingerprint: str) -> None:
    """Write a file whole or not at all, and the note of it; raises UserError."""
    add_mark(target, hashlib.sha256(data).hexdigest(), fingerprint)
    save_bytes(target, data, durable=False)


def move_marked(partial: Path, target: Path, fingerprint: str) -> None:
    """Move a file that is written to its place, and write the note of it; raises UserError."""
    try:
        add_mark(target, find_digest(partial), fingerprint)
        partial.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
