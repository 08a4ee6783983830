"""A bar where a person looks, nothing elsewhere."""

import io

import pytest
from rich.console import Console

from nvib_jax import progress


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal of 80 columns would have got."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "console_of", lambda where: console)
    return file


def test_a_bar_on_a_terminal(terminal):
    assert list(progress.track("abcdefg", "letters", total=7, unit="batches")) == list("abcdefg")
    shown = terminal.getvalue()
    assert "letters" in shown
    assert "7/7" in shown


def test_a_handful_needs_none(terminal):
    assert list(progress.track("abcd", "letters", total=4)) == list("abcd")
    assert terminal.getvalue() == ""


def test_what_is_printed_meanwhile_goes_where_it_would(terminal, capsys):
    """Standard output is a file here: nothing of it may land on the terminal."""
    for number in progress.track(range(9), "numbers", total=9):
        print("line", number)
    assert capsys.readouterr().out == "".join(f"line {i}\n" for i in range(9))
    assert "line" not in terminal.getvalue()


def test_nothing_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration has it
    assert list(progress.track(range(9), "numbers", total=9)) == list(range(9))
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_no_terminal(monkeypatch):
    """Though its standard output may say it is one."""
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    file.isatty = lambda: True
    assert progress.console_of(file).is_terminal
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    console = progress.console_of(file)
    assert not console.is_terminal  # no bar
    assert not console.is_jupyter  # no block of HTML for each line


def test_an_error_inside_leaves_no_bar_behind(terminal):
    def fail(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        list(map(fail, progress.track(range(9), "numbers", total=9)))
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is back
