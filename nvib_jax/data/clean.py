"""Raw text in, clean sentences out: one small function a step, applied in the order of the file.

The steps and their defaults are those of the published NVAE's WikiText sentences; `CleanConfig` has
a switch for each. Limits on length in tokens are applied later, where the tokens are known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from nvib_jax.data.config import CleanConfig, Layout

_HEADING = re.compile(r"\s*=.*=\s*")
_MARK = re.compile(r"\s*@([-,.])@\s*")
_SPACES = re.compile(r"\s+")
_SPACE_BEFORE_PUNCTUATION = re.compile(r" +(?=[.,'])")

_PLAIN_QUOTES = str.maketrans("‘’“”", "''\"\"")

# An end mark, closing quotes and brackets after it, then a space.
_END_OF_RUNNING = re.compile(r"[.!?]+[\"'”’)\]]*\s+")
_OPENS_SENTENCE = re.compile(r"[\"'“‘(\[<]*\s*(?:[^\W_a-z]|unk>)")
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "gen", "col", "capt", "lt", "sgt"),
        *("vs", "etc", "e.g", "i.e", "cf", "al", "no", "vol", "fig", "rev", "hon", "u.s", "u.k"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)

_END_MARKS = frozenset({".", "!", "?"})
_CLOSERS = frozenset({'"', "''", "'", ")", "]", "”", "’"})


def is_heading(line: str) -> bool:
    """Whether a line stands between equals signs, as WikiText's ` = = Title = = ` do."""
    return len(line.strip()) > 1 and _HEADING.fullmatch(line) is not None


def split_tokenised(text: str) -> list[str]:
    """Splits text whose end marks stand alone (WikiText): `He ran . She sat .`

    A mark ends a sentence together with the closing quotes and brackets after it, unless the next
    word is lower-case or a comma (`" Who ? " , he asked`). Dots inside words are no marks.
    """
    words, sentences, start = text.split(), [], 0
    position = 0
    while position < len(words):
        end = position + 1
        if words[position] in _END_MARKS:
            while end < len(words) and (words[end] in _END_MARKS or _closes(words, start, end)):
                end += 1
            following = " ".join(words[end : end + 3])
            if not following or _OPENS_SENTENCE.match(following):
                sentences.append(" ".join(words[start:end]))
                start = end
        position = end
    return [*sentences, " ".join(words[start:])] if start < len(words) else sentences


def _closes(words: list[str], start: int, position: int) -> bool:
    """Whether a quote or bracket closes: straight quotes do when an odd number came before."""
    word = words[position]
    if word in ('"', "'"):
        return words[start:position].count(word) % 2 == 1
    return word in _CLOSERS


def split_running(text: str) -> list[str]:
    """Splits prose: an end mark on a word, a space, then anything but a lower-case letter.

    Common abbreviations and single initials end no sentence. Standing marks are marks as well.
    """
    sentences, start = [], 0
    for match in _END_OF_RUNNING.finditer(text):
        before = text[start : match.start()].rsplit(None, 1)
        last = before[-1].lstrip("\"'“‘([").lower() if before else ""
        is_initial = len(last) == 1 and last.isalpha() and last != "i"
        ends = text[match.start()] != "." or not (is_initial or last in _ABBREVIATIONS)
        if ends and _OPENS_SENTENCE.match(text, match.end()):
            sentences.append(text[start : match.end()].strip())
            start = match.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


def join_marks(text: str) -> str:
    """`1 @,@ 000` to `1,000`, `red @-@ tipped` to `red-tipped`."""
    return _MARK.sub(r"\1", text)


def character_filter(keep: str) -> Callable[[str], str]:
    """A function that keeps the characters of a regular expression's bracket content.

    A dropped symbol leaves a space (`red-tipped` to `red tipped`), a dropped letter or accent
    leaves nothing. Typographic quotes are written plainly first (`don’t` to `don't`).

    Raises:
      ValueError: `keep` is not the inside of a bracket expression.
    """
    try:
        dropped = re.compile(f"[^{keep}]")
    except re.error as error:
        raise ValueError(
            "clean.keep_characters must be the inside of a regular expression's brackets, "
            f"got {keep!r}: {error}"
        ) from error

    def replacement(match: re.Match[str]) -> str:
        character = match[0]
        return "" if character.isalnum() or unicodedata.combining(character) else " "

    return lambda text: dropped.sub(replacement, text.translate(_PLAIN_QUOTES))


def collapse_spaces(text: str) -> str:
    """One space between words, none at the ends."""
    return _SPACES.sub(" ", text).strip()


def join_punctuation(text: str) -> str:
    """No space before `.`, `,` and `'`."""
    return _SPACE_BEFORE_PUNCTUATION.sub("", text)


def clean_sentences(documents: Iterable[str], config: CleanConfig, layout: Layout) -> Iterator[str]:
    """Sentences of documents: every step of `config` that is switched on, empty results dropped.

    Args:
      documents: lines or paragraphs.
      config: the switches.
      layout: `lines`, `running` or `wikitext`, which says how sentences are told apart.
    """
    splitters = {"running": split_running, "wikitext": split_tokenised}
    split = splitters.get(layout) if config.split_sentences else None
    steps = _steps(config)
    for document in documents:
        if config.drop_headings and is_heading(document):
            continue
        for sentence in split(document) if split else [document]:
            for step in steps:
                sentence = step(sentence)
            if sentence:
                yield sentence


def clean_text(text: str, config: CleanConfig) -> str:
    """One sentence as the training text was cleaned: every step but splitting and headings.

    >>> clean_text("My  name is Zoë .", CleanConfig(keep_characters="a-zA-Z ."))
    'my name is zo.'
    """
    for step in _steps(config):
        text = step(text)
    return text


def _steps(config: CleanConfig) -> list[Callable[[str], str]]:
    """What a config does to a sentence, in order."""
    steps: list[Callable[[str], str]] = [join_marks] if config.join_marks else []
    if config.keep_characters:
        steps.append(character_filter(config.keep_characters))
    steps.append(collapse_spaces)
    if config.join_punctuation:
        steps.append(join_punctuation)
    if config.lowercase:
        steps.append(str.lower)
    return steps
