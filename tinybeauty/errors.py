"""What goes wrong, said so that a person can act on it: one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# What a name may hold and no terminal, JSON or UTF-8 takes: control characters, and the surrogates that
# stand for bytes that are not UTF-8 (PEP 383).
UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class UserError(Exception):
    """Something a person can mend; `run_command` prints it after `error: ` and exits with code 1."""


class LeftOut(Exception):
    """Why a photo or a face gives no result; it is reported, and the work goes on with the next one."""


class Stopped(Exception):
    """The program was asked to stop and has saved what it had.

    Attributes:
        signal_number: the signal that came.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def one_line(error: Exception) -> str:
    """Return the message of an error of somebody else's without line breaks, or else its kind."""
    return " ".join(str(error).split()) or type(error).__name__


def readable(name: object) -> str:
    """Return a name as it can be printed, compared and stored anywhere.

    It is composed (NFC: a Mac writes e and an accent where others write one letter), and each byte that
    cannot be read stands there as a backslash, x and its number.
    """
    composed = unicodedata.normalize("NFC", str(name))
    return UNREADABLE.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", composed)


def list_some(names: Iterable[object], most: int = 5) -> str:
    """Return up to `most` names for a message, and how many more there are."""
    names = [readable(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_similar(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that somebody who typed `name` may have meant, or None."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with a command line like every other error of the program."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        """Describe the command by the first line of its docstring, which is None under `python -OO`."""
        super().__init__(description=(description or "").split("\n")[0], **{"allow_abbrev": False} | options)

    def error(self, message: str) -> None:
        """Raise UserError instead of printing the usage and exiting with code 2."""
        raise UserError(f"{message}; see --help")


def tell(text: object) -> None:
    """Print to stderr, if anybody still reads it."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def describe_fault(error: OSError | MemoryError) -> str:
    """Return what the system would not do; where nobody reads stdout any more, nothing is written to it."""
    if isinstance(error, MemoryError):
        return "there is too little memory"
    if getattr(error, "errno", None) in (errno.EPIPE, errno.EIO):
        with suppress(OSError, AttributeError):  # else Python complains once more when it flushes it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    where = f"{error.filename}: " if getattr(error, "filename", None) else ""
    return f"{where}{getattr(error, 'strerror', None) or one_line(error)}"


@contextmanager
def catch_signals(numbers: Iterable[int], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have a handler called for signals, and then whatever was called before; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
        numbers = ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def raise_signals(message: str) -> Iterator[None]:
    """Let SIGTERM and a closed terminal raise Stopped, as Ctrl-C raises: nothing half-written is left."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(message, number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Under nohup one is ignored, and stays so.
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    with catch_signals(numbers, stop):
        yield


def find_rank() -> int:
    """Return torchrun's number of this process, 0 without torchrun."""
    rank = os.environ.get("RANK", "")  # schedulers set one too
    return int(rank) if "LOCAL_WORLD_SIZE" in os.environ and rank.isdecimal() else 0


def run_command(command: Callable[[list[str]], None], argv: list[str] | None, interrupted: str) -> int:
    """Run a command and return its exit code; whatever a person can mend ends in one line on stderr.

    Args:
        command: takes the command line's words; raises UserError or Stopped.
        argv: these words; None takes them from `sys.argv`.
        interrupted: what to say after a Ctrl-C or another signal that the command does not handle itself.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Greek folder on a terminal that knows cp1252 alone
            stream.reconfigure(errors="backslashreplace")
    rank = find_rank()
    who = f"process {rank}: " if rank else ""
    try:
        with raise_signals(interrupted):
            command(sys.argv[1:] if argv is None else argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        tell(f"{who}error: {error}")
        return 1
    except Stopped as stopped:
        if not rank:  # it speaks for all
            tell(stopped)
        return 128 + stopped.signal_number  # as shells do
    except (KeyboardInterrupt, ImportError) as error:
        # A package in C++ makes an ImportError of a Ctrl-C that comes while it is imported.
        cause = error.__cause__ if isinstance(error, ImportError) else error
        if not isinstance(cause, KeyboardInterrupt | Stopped):
            raise
        tell(interrupted)
        return 128 + getattr(cause, "signal_number", signal.SIGINT)
    except (OSError, MemoryError) as error:  # that nobody has expected, and that is no fault of the program
        tell(f"{who}error: {describe_fault(error)}; {interrupted}")
        return 1
    return 0
