"""What goes wrong ends in one line that a person can act on, and an exit code that a script can."""

from __future__ import annotations

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
    words = []

    def command(argv: list[str]) -> None:
        words.extend(argv)
        if error is not None:
            raise error

    assert run_command(command, ["--red"], interrupted="at once") == code
    assert words == ["--red"]
    assert capsys.readouterr() == ("", told)


def test_a_ctrl_c_while_a_package_is_imported(capsys):
    """Packages in C++ raise an ImportError from it."""

    def command(argv: list[str]) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    assert run_command(command, [], interrupted="at once") == 130
    assert capsys.readouterr() == ("", "at once\n")


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
