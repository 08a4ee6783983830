"""Counts what preparing a split dropped, with examples, so that nothing is lost silently."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_EXAMPLES = 3
_SHOWN = 60  # characters of an example


@dataclass
class Dropped:
    """Counts of one split, added up over its parts.

    Attributes:
      characters: how many were read, without spaces.
      lost: how many of each character the cleaning dropped.
      headings: lines dropped as headings.
      sentences: how many the text has.
      empty: sentences of which cleaning left nothing.
      short, long: sentences with fewer or more tokens than the limits allow.
      lossy, too_short, too_long: example sentences that lost a letter, or were too short or long.
    """

    characters: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    headings: int = 0
    sentences: int = 0
    empty: int = 0
    short: int = 0
    long: int = 0
    lossy: list[str] = field(default_factory=list)
    too_short: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)

    def read(self, raw: list[str], clean: list[str], drops: Callable[[str], bool] | None) -> None:
        """Count what cleaning did to these sentences.

        Args:
          raw: the sentences before cleaning.
          clean: the same sentences after it.
          drops: says whether cleaning drops a character; None if it drops none.
        """
        left = [r for r, c in zip(raw, clean, strict=True) if not c]
        blank = sum(not text.strip() for text in left)  # cleaning makes nothing of nothing
        self.sentences += len(raw) - blank
        self.empty += len(left) - blank
        codes = np.frombuffer("".join(raw).encode("utf-32-le", "surrogatepass"), np.uint32)
        found = np.bincount(codes)
        occurring = {chr(i): int(found[i]) for i in np.flatnonzero(found)}
        self.characters += sum(n for c, n in occurring.items() if not c.isspace())
        if drops is None:
            return
        lost = {c: n for c, n in occurring.items() if drops(c) and not c.isspace()}
        self.lost.update(lost)
        letters = [c for c in lost if c.isalpha()]
        if letters and len(self.lossy) < _EXAMPLES:
            words = re.compile("[" + re.escape("".join(letters)) + "]")
            lossy = (text for text in raw if words.search(text))
            self.lossy += [_around(text, words) for text in itertools.islice(lossy, _EXAMPLES)]

    def refuse(self, text: str, *, short: bool) -> None:
        """Count a sentence that is too short or too long."""
        if short:
            self.short += 1
        else:
            self.long += 1
        examples = self.too_short if short else self.too_long
        if len(examples) < _EXAMPLES:
            examples.append(_shown(text))

    def __add__(self, other: Dropped) -> Dropped:
        total = Dropped()
        for f in dataclasses.fields(Dropped):
            a, b = getattr(self, f.name), getattr(other, f.name)
            setattr(total, f.name, (a + b)[:_EXAMPLES] if isinstance(a, list) else a + b)
        return total

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON values, for the cache's metadata."""
        return dataclasses.asdict(self) | {"lost": dict(self.lost.most_common(100))}

    def of_characters(self) -> str:
        """A line about dropped characters; empty if there are none."""
        total = self.lost.total()
        if not total:
            return ""
        most = ", ".join(f"{c!r} {n:,}" for c, n in self.lost.most_common(5))
        line = f"{_share(total, self.characters)} of the characters dropped, mostly {most}"
        letters = sum(n for c, n in self.lost.items() if c.isalpha())
        if letters:
            line += (
                f"; letters among them {letters:,}, as in {self.lossy[0]!r} "
                "(data.clean.keep_characters)"
            )
        return line

    def of_sentences(self, low: int, high: int) -> str:
        """A line about dropped sentences; empty if there are none."""
        parts = []
        if self.empty:
            parts.append(f"{self.empty:,} empty after cleaning")
        for count, limit, name, examples in (
            (self.short, f"shorter than {low}", "min_tokens", self.too_short),
            (self.long, f"longer than {high}", "max_tokens", self.too_long),
        ):
            if count:
                parts.append(f"{count:,} {limit} tokens (data.clean.{name}), as {examples[0]!r}")
        if not parts:
            return ""
        total = self.empty + self.short + self.long
        return f"{_share(total, self.sentences)} of the sentences dropped: {'; '.join(parts)}"


def _share(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    return "less than 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def _around(text: str, letters: re.Pattern[str]) -> str:
    """The part of a text around the first letter that it loses."""
    place = letters.search(text)
    start = max(0, (place.start() if place else 0) - _SHOWN // 2)
    return _shown(text[start:].strip())


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
