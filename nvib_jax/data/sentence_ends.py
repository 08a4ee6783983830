"""Paragraphs -> sentences, for text whose marks stand alone and for prose.

Both take time in proportion to the text, whatever is in it: there are corpora of one line, and
lines of dots.
"""

from __future__ import annotations

import re

# An end mark, closing quotes and brackets after it, then a space. The lookbehind starts a run of
# marks at its beginning only, because a run that is followed by no space would otherwise be read
# anew from each of its marks.
_END_OF_RUNNING = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]]*+\s+")
_OPENS_SENTENCE = re.compile(r"[\"'“‘(\[<]*+\s*+(?:[^\W_a-z]|unk>)")
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "gen", "col", "capt", "lt", "sgt"),
        *("vs", "etc", "e.g", "i.e", "cf", "al", "no", "vol", "fig", "rev", "hon", "u.s", "u.k"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)
_LONGEST_LAST_WORD = 64  # beyond it no word is an abbreviation

_END_MARKS = frozenset({".", "!", "?"})
_CLOSERS = frozenset({"''", ")", "]", "”", "’"})
_STRAIGHT_QUOTES = frozenset({'"', "'"})
_MARKS = _END_MARKS | _STRAIGHT_QUOTES


def split_tokenised(text: str) -> list[str]:
    """Splits text whose end marks stand alone (WikiText): `He ran . She sat .`

    A mark ends a sentence together with the closing quotes and brackets after it, unless the next
    word is lower-case or a comma (`" Who ? " , he asked`). Dots inside words are no marks.
    """
    words, sentences, start = text.split(), [], 0
    behind = 0  # what has been read
    opened: set[str] = set()  # straight quotes of which an odd number came in this sentence
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
    """Splits prose: an end mark on a word, a space, then anything but a lower-case letter.

    Common abbreviations and single initials end no sentence. Standing marks are marks as well.
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
