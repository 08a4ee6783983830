"""Command-line options by tyro, with errors of one line: what came, and what was wanted."""

import contextlib
import io
import re
import sys
from typing import Any

import tyro

_NO_NUMBER = re.compile(
    r"(--\S+): (?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)"
)


def parse(kind: Any, arguments: list[str], *, prog: str, command: str = "", **options: Any) -> Any:
    """`tyro.cli`: a dataclass or what a function of options returns.

    Args:
      kind: the dataclass or function.
      arguments: words of the command line.
      prog: how the command is written, for the usage line.
      command: what shows its help with `--help`, where that is not `prog`.
      **options: `tyro.cli`'s.

    Raises:
      ValueError: options that are wrong, the nearest one named.
      SystemExit: after `--help`.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=arguments, prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_sentence(box.getvalue())}; see {command or prog} --help") from None


def _sentence(box: str) -> str:
    """What a box of tyro's says, without the box."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    rules = [i for i, line in enumerate(lines) if set(line) == {"─"}]
    said = " ".join(lines[: rules[0] if rules else None])
    said = re.sub(r"^Error parsing (\S+):", r"\1:", said)
    said = re.sub(r"^\w+: (\w+\.\w+ is )", r"\1", said)  # model: model.heads is 3
    said = _NO_NUMBER.sub(r"\1 is \2; wanted a number", said)
    near = next((line.split()[0] for line in lines if re.match(r"--\w", line)), "")
    hint = f"; did you mean {near}?" if near and "Perhaps you meant:" in lines else ""
    return said.rstrip(".") + hint


def warn(text: str) -> None:
    """A line for a person, beside what a program may read."""
    print(text, file=sys.stderr, flush=True)
