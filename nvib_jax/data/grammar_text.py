"""Parses the format of `english.txt` to rules and word classes.

`name:` opens a rule, an indented `weight  symbols` is one of its expansions, and `CLASS = words`
lists a class of words; the comments in `english.txt` explain the rest.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

START = "sentence"

Rule = list[tuple[float, tuple[str, ...]]]

_PLACEHOLDERS = {
    "{n}": ("s", "p"),
    "{f}": ("s", "p", "d"),
    "{c}": ("person", "animal", "thing", "place"),
}


def read(text: str) -> tuple[dict[str, Rule], dict[str, list[str]]]:
    """Rules and word classes with the placeholders filled in."""
    rules: dict[str, Rule] = {}
    classes: dict[str, list[str]] = {}
    templates: list[tuple[str, Rule]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#")[0].rstrip()
        if match := re.fullmatch(r"([a-z{][\w{}]*):", line):
            templates.append((match[1], []))
        elif templates and (match := re.fullmatch(r"\s+([\d.]+)((?: +[\w{}]+)*)", line)):
            templates[-1][1].append((float(match[1]), tuple(match[2].split())))
        elif match := re.fullmatch(r"([A-Z]\w*(?: [A-Z]\w*)*) \+?= (.+)", line):
            for forms in match[2].split():
                for name, form in zip(match[1].split(), forms.split("/"), strict=True):
                    classes.setdefault(name, []).append(form)
        elif line:
            raise ValueError(f"grammar line {number} is neither a rule nor words: {line!r}")
    for name, rule in templates:
        for values in _fillings(name):
            rules[_fill(name, values)] = [
                (weight, tuple(_fill(symbol, values) for symbol in symbols))
                for weight, symbols in rule
            ]
    return rules, classes


def _fillings(name: str) -> Iterable[dict[str, str]]:
    used = [placeholder for placeholder in _PLACEHOLDERS if placeholder in name]
    for values in itertools.product(*(_PLACEHOLDERS[placeholder] for placeholder in used)):
        yield dict(zip(used, values, strict=True))


def _fill(symbol: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        symbol = symbol.replace(placeholder, value)
    return symbol


def check_symbols(rules: dict[str, Rule], classes: dict[str, list[str]]) -> None:
    """Raise ValueError for symbols that are used but not defined, or defined but not used."""
    known = rules.keys() | classes.keys()
    used = {s for rule in rules.values() for _, symbols in rule for s in symbols} | {START}
    if unknown := used - known:
        raise ValueError(f"the grammar uses symbols that it does not define: {sorted(unknown)}")
    if unused := known - used:
        raise ValueError(f"the grammar defines symbols that it does not use: {sorted(unused)}")


def class_of_words(classes: dict[str, list[str]]) -> dict[str, str]:
    """The class of each word; ValueError for a word in two, because tokens must be unique."""
    class_of: dict[str, str] = {}
    for name, words in classes.items():
        for word in words:
            if word in class_of:
                raise ValueError(
                    f"the word {word!r} is in two classes: {class_of[word]} and {name}"
                )
            class_of[word] = name
    return class_of
