"""Cleans raw text to sentences: one small function per step, applied in the order of this file.

By default no letter of any language is dropped. `PUBLISHED_CHARACTERS` together with the other
defaults gives the WikiText sentences of the published NVAE; `CleanConfig` has a switch for each
step. Limits on length in tokens are applied later, when the tokens are known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from nvib_jax.data.config import CleanConfig, Layout
from nvib_jax.data.dropped import Dropped
from nvib_jax.data.sentence_ends import split_running, split_tokenised

_HEADING = re.compile(r"\s*=.*=\s*")
_MARK = re.compile(r" ?@([-,.])@ ?")
# A text's own ▁ becomes a space too, because SentencePiece writes spaces as ▁ and would decode it
# to one.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f▁]")
_PLAIN_QUOTES = {"‘": "'", "’": "'", "“": '"', "”": '"'}
_SPLITTERS = {"running": split_running, "wikitext": split_tokenised}


def is_heading(line: str) -> bool:
    """Whether a line is enclosed in equals signs, like WikiText's ` = = Title = = `."""
    # Most lines have no such sign, and to look for one is cheaper than the expression.
    return "=" in line and len(line.strip()) > 1 and _HEADING.fullmatch(line) is not None


def collapse_spaces(text: str) -> str:
    """Leave one space between words and none at the ends; control characters become spaces."""
    if text.isprintable() and "▁" not in text:  # its spaces are ordinary ones
        return " ".join(text.split()) if "  " in text else text.strip(" ")
    return " ".join(_CONTROLS.sub(" ", text).split())


def join_marks(text: str) -> str:
    """`1 @,@ 000` to `1,000`, `red @-@ tipped` to `red-tipped`; expects single spaces."""
    return _MARK.sub(r"\1", text) if "@" in text else text


def join_punctuation(text: str) -> str:
    """Remove the space before `.`, `,` and `'`; expects single spaces."""
    return text.replace(" .", ".").replace(" ,", ",").replace(" '", "'")


class CharacterFilter:
    """Drops all characters except those in a regular expression's brackets.

    A dropped symbol leaves a space (`red-tipped` to `red tipped`), a dropped letter or accent
    leaves nothing. Typographic quotes become plain ones first (`don’t` to `don't`).

    Args:
      keep: the inside of a bracket expression, such as "a-z ".

    Raises:
      ValueError: `keep` is not the inside of a bracket expression.
    """

    def __init__(self, keep: str) -> None:
        try:
            kept = re.compile(f"[{keep}]")
        except re.error as error:
            raise ValueError(
                "data.clean.keep_characters must be the inside of a regular expression's brackets, "
                f"got {keep!r}: {error}"
            ) from error
        self._table = _Table(kept)

    def __call__(self, text: str) -> str:
        """The text without dropped characters."""
        return text.translate(self._table)

    def drops(self, character: str) -> bool:
        """Whether the character is dropped, and not kept or replaced by a plain quote."""
        plain = _PLAIN_QUOTES.get(character, character)
        return plain != " " and self._table[ord(character)] != plain


class _Table(dict[int, str]):
    """A table for `str.translate` that computes each character's entry when it first occurs."""

    def __init__(self, kept: re.Pattern[str]) -> None:
        self._kept = kept

    def __missing__(self, code: int) -> str:
        plain = _PLAIN_QUOTES.get(chr(code), chr(code))
        self[code] = plain if self._kept.match(plain) else _left_by(plain)
        return self[code]


def _left_by(character: str) -> str:
    return "" if character.isalnum() or unicodedata.combining(character) else " "


class Cleaner:
    """Every step of a `CleanConfig` that is switched on.

    Args:
      config: the switches.
      layout: `lines`, `running` or `wikitext`; it decides how documents are split into sentences.

    Raises:
      ValueError: `config.keep_characters` is not the inside of a bracket expression.
    """

    def __init__(self, config: CleanConfig, layout: Layout) -> None:
        self._config = config
        self._split: Any = _SPLITTERS.get(layout) if config.split_sentences else None
        self._filter = CharacterFilter(config.keep_characters) if config.keep_characters else None

    def sentence(self, text: str) -> str:
        """One sentence cleaned."""
        config = self._config
        text = collapse_spaces(text)
        if config.join_marks:
            text = join_marks(text)
        if self._filter is not None:
            text = collapse_spaces(self._filter(text))
        if config.join_punctuation:
            text = join_punctuation(text)
        return text.lower() if config.lowercase else text

    def sentences(self, documents: Iterable[str]) -> tuple[list[str], Dropped]:
        """(clean sentences of documents, without empty ones; what was dropped)."""
        dropped = Dropped()
        raw: list[str] = []
        for document in documents:
            if self._config.drop_headings and is_heading(document):
                dropped.headings += 1
            else:
                raw += self._split(document) if self._split else [document]
        clean = [self.sentence(text) for text in raw]
        dropped.read(raw, clean, self._filter.drops if self._filter else None)
        return [sentence for sentence in clean if sentence], dropped


def clean_text(text: str, config: CleanConfig) -> str:
    """Clean one sentence as the training text was; it is neither split nor treated as a heading.

    Raises:
      ValueError: `config.keep_characters` is not the inside of a bracket expression.

    >>> clean_text("My  name is Clara .", CleanConfig())
    'my name is clara.'
    """
    return Cleaner(config, "lines").sentence(text)
