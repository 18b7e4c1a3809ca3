"""What goes wrong ends in one line that a person can act on, and an exit code that a script can."""

from __future__ import annotations

import os
import signal

import pytest

from tinybeauty.errors import Parser, Stopped, UserError, find_similar, list_some, one_line, run_command


@pytest.mark.parametrize(
    ("error", "rank", "code", "told"),
    [
        (None, "0", 0, ""),
        (UserError("no paint"), "0", 1, "error: no paint\n"),
        (UserError("no paint"), "2", 1, "process 2: error: no paint\n"),
        (Stopped("saved", signal.SIGTERM), "0", 143, "saved\n"),
        (Stopped("saved", signal.SIGINT), "2", 130, ""),  # rank 0 speaks for all
        (KeyboardInterrupt(), "0", 130, "at once\n"),
    ],
)
def test_a_command_ends_in_one_line_and_an_exit_code(monkeypatch, capsys, error, rank, code, told):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    words = []

    def command(argv: list[str]) -> None:
        words.extend(argv)
        if error is not None:
            raise error

    assert run_command(command, ["--red"], interrupted="at once") == code
    assert words == ["--red"]
    assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "1"}, {"RANK": ""}, {"LOCAL_WORLD_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "2", "RANK": ""}],
)
def test_a_rank_that_torchrun_has_not_set_counts_for_nothing(monkeypatch, capsys, variables):
    for name in ("RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    def command(argv: list[str]) -> None:
        raise Stopped("saved", signal.SIGTERM)

    assert run_command(command, [], interrupted="at once") == 143
    assert capsys.readouterr() == ("", "saved\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped("at once", signal.SIGTERM)])
def test_a_request_to_stop_while_a_package_is_imported(capsys, error):
    """Packages in C++ raise an ImportError from it."""

    def command(argv: list[str]) -> None:
        raise ImportError("initialization failed") from error

    assert run_command(command, [], interrupted="at once") == 128 + getattr(error, "signal_number", 2)
    assert capsys.readouterr() == ("", "at once\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_in_order(capsys, name):
    number = getattr(signal, name)
    before, cleaned = signal.getsignal(number), []

    def command(argv: list[str]) -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    assert run_command(command, [], interrupted="at once") == 128 + number
    assert cleaned
    assert capsys.readouterr() == ("", "at once\n")
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_under_nohup_a_closed_terminal_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command(lambda argv: signal.raise_signal(signal.SIGHUP), [], interrupted="") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("bug", [ZeroDivisionError, ImportError])
def test_a_bug_is_not_hidden(bug):
    def command(argv: list[str]) -> None:
        raise bug

    with pytest.raises(bug):
        run_command(command, [], interrupted="")


def test_without_words_those_of_the_command_line_are_taken(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "--blue"])
    words = []
    assert run_command(words.extend, None, interrupted="") == 0
    assert words == ["--blue"]


def test_a_wrong_command_line_is_an_error_like_any_other():
    with pytest.raises(UserError, match=r"--red.*see --help"):
        Parser().parse_args(["--red"])


def test_up_to_five_names_are_listed():
    assert list_some([]) == ""
    assert list_some("abcde") == "a, b, c, d, e"
    assert list_some(range(2005)) == "0, 1, 2, 3, 4 and 2,000 more"
    assert list_some("abc", most=1) == "a and 2 more"


def test_what_somebody_may_have_meant():
    names = ("learning_rate", "epochs", "lr_factor")
    assert find_similar("learning_rte", names) == "learning_rate"
    assert find_similar("epoch", iter(names)) == "epochs"
    assert find_similar("zzz", names) is None
    assert find_similar("epoch", []) is None


def test_somebody_elses_message_becomes_one_line():
    assert one_line(ValueError("bad\n   paint\t here ")) == "bad paint here"
    assert one_line(KeyError()) == "KeyError"
