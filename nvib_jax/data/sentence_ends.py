"""Splits paragraphs into sentences: tokenised text (`He ran . She sat .`) and ordinary prose.

Both functions take linear time for any text, because corpora may consist of a single line and lines
may consist of dots.
"""

from __future__ import annotations

import re

# It matches end marks, closing quotes and brackets after them, and a space. The lookbehind lets a
# match start only at the first of several marks. Otherwise a long run of marks without a space
# after it would be scanned again from each of its marks, in quadratic time.
_END_OF_RUNNING = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]]*+\s+")
_OPENS_SENTENCE = re.compile(r"[\"'“‘(\[<]*+\s*+(?:[^\W_a-z]|unk>)")
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "gen", "col", "capt", "lt", "sgt"),
        *("vs", "etc", "e.g", "i.e", "cf", "al", "no", "vol", "fig", "rev", "hon", "u.s", "u.k"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)
_LONGEST_LAST_WORD = 64  # characters before a mark that are searched for an abbreviation

_END_MARKS = frozenset({".", "!", "?"})
_CLOSERS = frozenset({"''", ")", "]", "”", "’"})
_STRAIGHT_QUOTES = frozenset({'"', "'"})
_MARKS = _END_MARKS | _STRAIGHT_QUOTES


def split_tokenised(text: str) -> list[str]:
    """Split text whose end marks are words of their own (WikiText): `He ran . She sat .`

    A mark ends a sentence together with the closing quotes and brackets after it, unless the next
    word is lower-case or a comma (`" Who ? " , he asked`). Dots inside words do not count.
    """
    words, sentences, start = text.split(), [], 0
    behind = 0  # the place after the last word that was read
    opened: set[str] = set()  # straight quotes that occurred an odd number of times so far
    for place in [i for i, word in enumerate(words) if word in _MARKS]:
        if place < behind:
            continue
        behind = place + 1
        if words[place] in _STRAIGHT_QUOTES:
            opened ^= {words[place]}
            continue
        while behind < len(words):
            word = words[behind]
            if not (word in _END_MARKS or word in _CLOSERS or word in opened):
                break
            opened.discard(word)
            behind += 1
        following = " ".join(words[behind : behind + 3])
        if not following or _OPENS_SENTENCE.match(following):
            sentences.append(" ".join(words[start:behind]))
            start = behind
            opened = set()
    return [*sentences, " ".join(words[start:])] if start < len(words) else sentences


def split_running(text: str) -> list[str]:
    """Split prose after an end mark and a space, if no lower-case letter follows.

    Common abbreviations and single initials do not end a sentence. A mark may also stand alone.
    """
    sentences, start = [], 0
    for match in _END_OF_RUNNING.finditer(text):
        before = text[max(start, match.start() - _LONGEST_LAST_WORD) : match.start()]
        words = before.rsplit(None, 1)
        last = words[-1].lstrip("\"'“‘([").lower() if words else ""
        is_initial = len(last) == 1 and last.isalpha() and last != "i"
        ends = text[match.start()] != "." or not (is_initial or last in _ABBREVIATIONS)
        if ends and _OPENS_SENTENCE.match(text, match.end()):
            sentences.append(text[start : match.end()].strip())
            start = match.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences
