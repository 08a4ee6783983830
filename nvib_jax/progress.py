"""Lines for a person on standard error, and progress bars where that is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[unit]}"),
    TimeRemainingColumn(),
)


def to_standard_error(text: str) -> None:
    """A line for a person, beside whatever is on standard output."""
    print(text, file=sys.stderr, flush=True)


def console_of(file: TextIO, **options: Any) -> Console:
    """A console that is a terminal if the file is one, whatever FORCE_COLOR says.

    A notebook does not count as a terminal, because a bar would fill its page.
    """
    terminal = file.isatty() and not Console().is_jupyter
    return Console(file=file, force_terminal=terminal, force_jupyter=False, **options)


def track(
    items: Iterable[T], label: str, *, total: int, unit: str = "", least: int = 5
) -> Iterator[T]:
    """Iterate over the items with a bar that disappears at the end.

    Args:
      items: any.
      label: a description of the work.
      total: how many items there are.
      unit: what an item is called.
      least: with fewer items there is no bar.
    """
    console = console_of(sys.stderr)
    if total < least or not console.is_terminal:
        yield from items
        return
    # Text that is printed meanwhile goes above the bar, unless standard output is a file.
    to_bar = sys.stdout.isatty()
    with Progress(*COLUMNS, console=console, transient=True, redirect_stdout=to_bar) as bar:
        task = bar.add_task(label, total=total, unit=unit)
        for item in items:
            yield item
            bar.advance(task)
