"""For the site: puts the examples of docstrings, which Markdown takes for quotations, into code.

Griffe, which reads the docstrings, calls `on_object` for everything that it has read.
"""

import re
from typing import Any

import griffe

# From a line that begins with >>> to the next blank line, each with its indentation.
_EXAMPLE = re.compile(r"^([ \t]*)>>> .*(?:\n(?![ \t]*$).*)*", flags=re.MULTILINE)


def fenced(text: str) -> str:
    """The text with each example in a block of code, after a blank line."""
    return _EXAMPLE.sub(lambda m: f"\n{m[1]}```pycon\n{m[0]}\n{m[1]}```", text)


class Doctests(griffe.Extension):
    """Puts examples into blocks of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of whatever has one."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
