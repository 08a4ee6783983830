"""A bar on the terminal for what takes long, on standard error; nothing where there is none."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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


def console_of(**options: Any) -> Console:
    """A console. A notebook is no terminal: a bar would fill its page."""
    if Console().is_jupyter:
        options |= {"force_jupyter": False, "force_terminal": False}
    return Console(**options)


def track(items: Iterable[T], label: str, *, total: int, unit: str = "") -> Iterator[T]:
    """The items, with a bar that goes when they are done.

    Args:
      items: any.
      label: what is being done.
      total: how many; a handful needs no bar.
      unit: of what.
    """
    console = console_of(stderr=True)
    if total < 5 or not console.is_terminal:
        yield from items
        return
    with Progress(*COLUMNS, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, unit=unit)
        for item in items:
            yield item
            bar.advance(task)
