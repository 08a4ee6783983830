"""`nvib completion bash`: what makes a shell complete commands, options and choices at the Tab key.

tyro writes such a script for one parser. Here all commands are made one parser with a subcommand
each, which is only asked for that script.
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Print what makes a shell complete commands, options and choices at the Tab key.

    In bash, for good: nvib completion bash > ~/.local/share/bash-completion/completions/nvib"""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Which shell."""


def script(kinds: Mapping[str, Any], shell: str) -> str:
    """The script.

    Args:
      kinds: command -> the dataclass of its options, annotated with markers of tyro or not.
      shell: "bash" or "zsh".
    """
    parts = [
        Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)]
        for name, kind in kinds.items()
    ]
    every: Any = Union[tuple(parts)]  # noqa: UP007
    found = io.StringIO()
    with contextlib.redirect_stdout(found), contextlib.suppress(SystemExit):
        tyro.cli(every, args=["--tyro-print-completion", shell], prog="nvib")
    # bash then completes names of files where no option begins with the word.
    return found.getvalue().replace("\ncomplete -F ", "\ncomplete -o default -F ")
