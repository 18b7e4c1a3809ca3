"""What goes wrong, said so that a person can act on it: one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable


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


def list_some(names: Iterable[object], most: int = 5) -> str:
    """Return up to `most` names for a message, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_similar(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that somebody who typed `name` may have meant, or None."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


class Parser(argparse.ArgumentParser):
    """Reports what is wrong with a command line like every other error of the program."""

    def error(self, message: str) -> None:
        """Raise UserError instead of printing the usage and exiting with code 2."""
        raise UserError(f"{message}; see --help")


def run_command(command: Callable[[list[str]], None], argv: list[str] | None, interrupted: str) -> int:
    """Run a command and return its exit code; whatever a person can mend ends in one line on stderr.

    Args:
        command: takes the command line's words; raises UserError or Stopped.
        argv: these words; None takes them from `sys.argv`.
        interrupted: what to say after a Ctrl-C that the command does not handle itself.
    """
    rank = int(os.environ.get("RANK", 0))  # torchrun's number of this process
    who = f"process {rank}: " if rank else ""
    try:
        command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"{who}error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        if not rank:  # it speaks for all
            print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number  # as shells do
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0
