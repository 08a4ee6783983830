"""Command-line options by tyro, with errors of one line: what came, and what was wanted."""

import contextlib
import difflib
import io
import itertools
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import tyro

Run = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Which = Literal["best", "last"]
T = TypeVar("T")

_NO_NUMBER = re.compile(
    r"(--\S+): (?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)"
)
_NO_NUMBER_OR_NONE = re.compile(
    r"(--\S+): no type matching \{None\}\|(?:INT|FLOAT) could be instantiated from \[(.*)\]"
)


def parse(kind: Any, arguments: list[str], *, prog: str, command: str = "", **options: Any) -> Any:
    """`tyro.cli`: a dataclass or what a function of options returns.

    Args:
      kind: the dataclass or function.
      arguments: words of the command line.
      prog: how the command is written, for the usage line.
      command: the command whose `--help` an error recommends; empty is `prog`.
      **options: passed to `tyro.cli`.

    Raises:
      ValueError: an option is wrong; the error names the nearest right one.
      SystemExit: after `--help`.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            found = tyro.cli(kind, args=arguments, prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_sentence(box.getvalue())}; see {command or prog} --help") from None
    sys.stderr.write(box.getvalue())  # such as a warning
    return found


def _sentence(box: str) -> str:
    """The message in tyro's error box, without the box's title and lines (Unicode or ASCII)."""
    lines = [line.strip("│| ") for line in box.strip().splitlines()[1:]]
    parts = [list(group) for rule, group in itertools.groupby(lines, _is_rule) if not rule] or [
        [box]
    ]
    said = " ".join(parts[0])
    given = next(iter(re.findall(r"--[\w.-]+", said)), "")
    said = re.sub(r"^Error parsing (\S+):", r"\1:", said)
    # "config.model: model.heads is 3" becomes "model.heads is 3".
    said = re.sub(r"^[\w.]+: (\w+\.\w+ )", r"\1", said)
    said = _NO_NUMBER.sub(r"\1 is \2; wanted a number", said)
    said = _NO_NUMBER_OR_NONE.sub(r"\1 is \2; wanted a number", said)
    near = [line.split()[0] for line in lines if re.match(r"--\w", line)]
    near = difflib.get_close_matches(given, near, n=1, cutoff=0) if said[:2] == "Un" else []
    return said.rstrip(".") + "".join(f"; did you mean {name}?" for name in near)


def _is_rule(line: str) -> bool:
    return set(line) <= set("─-╭╮╰╯+")


def warn(text: str) -> None:
    """Print a line to standard error, because a program may read standard output."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def notes_as_lines() -> Iterator[None]:
    """Within it, warnings of the category `UnusualText` are printed as plain lines."""
    from nvib_jax.text.as_typed import UnusualText

    with warnings.catch_warnings():
        warnings.simplefilter("always", UnusualText)
        show = warnings.showwarning

        def as_line(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, UnusualText):
                warn(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = as_line
        yield


def parse_command(kind: type[T], arguments: list[str]) -> T:
    """The options of the command with the name of this dataclass."""
    words = re.findall("[A-Z][a-z]*", kind.__name__)
    name = f"nvib {'-'.join(words).lower()}"
    return parse(kind, arguments, prog=name, config=(tyro.conf.FlagCreatePairsOff,))


def load(run: str, which: str) -> Any:
    """The `TextModel` of a run."""
    from nvib_jax.text_model import TextModel

    return TextModel.load(run, which=which)
