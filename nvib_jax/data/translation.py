"""A made-up language that the embedded grammar's sentences are translated to, exactly.

Each word becomes its lemma's symbol. In a noun group the adjectives follow the noun, and determiner
and adjectives are each followed by the noun's gender, one of three. Plural and past are symbols of
their own. So a translation has to look ahead: the determiner's gender is that of a noun two or
three words on.

    the old dogs saw a garden   ->   the0 g2 animal0 plural quality0 g2 vt0 past article0 g2 place1

`sentence_pairs` makes pairs of a *domain*: those to train on, and shifts of them.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from nvib_jax.data.grammar import Grammar, default_grammar, with_articles

Domain = Literal["in", "long", "noise", "typos", "lexicon"]
DOMAINS: tuple[str, ...] = get_args(Domain)
SHORT = 12  # most words of a sentence to train on; "long" has 15 to 24
DROPPED, MISTYPED = 0.15, 0.1  # shares of the source's words in "noise" and "typos"
UNKNOWN = "unknown"  # what a mistyped word looks like

_DETERMINERS = {"THE", "ARTICLE", "POSSESSIVE", "THIS", "SOME", "THESE"}
_ADJECTIVES = {"QUALITY", "MOOD", "MATERIAL", "SCENE"}
_NOUNS = {"PERSON", "ANIMAL", "THING", "PLACE"}
_FORMS = {"p": "plural", "d": "past"}


def translate(sentence: str) -> str:
    """The translation of a sentence of the embedded grammar.

    Args:
      sentence: of the language; other words raise KeyError.

    >>> translate("the old dog sees a cat")
    'the0 g2 animal0 quality0 g2 vt0 article0 g2 animal1'
    """
    return " ".join(_groups(sentence.split()))


def sentence_pairs(domain: str, count: int, *, seed: int) -> tuple[list[str], list[str]]:
    """Sentences of a domain and their translations.

    Args:
      domain: "in", short sentences; "long", 15 to 24 words; "noise", 15 % of the source's words
        dropped; "typos", 10 % of them unknown; "lexicon", every class of words in reversed
        frequency. The translation is always that of the whole sentence.
      count: how many.
      seed: of the sentences and of what happens to them; another seed has other sentences.

    Raises:
      ValueError: an unknown domain.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}; wanted one of {', '.join(DOMAINS)}")
    rng = np.random.default_rng([seed, DOMAINS.index(domain)])
    least, most = (15, 24) if domain == "long" else (4, SHORT)
    sources: list[str] = []
    targets: list[str] = []
    for sentence in _endless(seed):
        if not least <= len(sentence.split()) <= most:
            continue
        sentence = _mirrored(sentence) if domain == "lexicon" else sentence
        words = sentence.split()
        if domain == "noise":
            kept = [word for word in words if rng.random() >= DROPPED]
            words = kept or words[:1]
        elif domain == "typos":
            words = [UNKNOWN if rng.random() < MISTYPED else word for word in words]
        sources.append(" ".join(words))
        targets.append(translate(sentence))
        if len(sources) == count:
            return sources, targets
    raise AssertionError("the corpus is endless")


def vocabulary() -> list[str]:
    """Every word of both languages, sorted."""
    lemmas = {symbol for symbol, _ in _table().values()}
    return sorted(default_grammar().words | lemmas | {"g0", "g1", "g2", *_FORMS.values(), UNKNOWN})


def _endless(seed: int) -> Iterator[str]:
    grammar = default_grammar()
    for part in range(1 << 30):
        yield from grammar.sentences([seed, part], 2000)


def _groups(words: list[str]) -> Iterator[str]:
    """The symbols of a translation; a noun ends the group that a determiner or adjective began."""
    determiners: list[str] = []
    adjectives: list[str] = []
    for word in words:
        symbol, form = _table()["a" if word == "an" else word]
        base = default_grammar().class_of(word)
        more = [_FORMS[form]] if form in _FORMS else []
        if base in _DETERMINERS:
            determiners.append(symbol)
        elif base in _ADJECTIVES:
            adjectives.append(symbol)
        elif base in _NOUNS:
            gender = _gender(symbol)
            for determiner in determiners:
                yield from (determiner, gender)
            yield from (symbol, *more)
            for adjective in adjectives:
                yield from (adjective, gender)
            determiners, adjectives = [], []
        else:
            yield from (*determiners, *adjectives, symbol, *more)
            determiners, adjectives = [], []
    yield from (*determiners, *adjectives)


@functools.cache
def _table() -> dict[str, tuple[str, str]]:
    """Word -> (its lemma's symbol, its form: "s", "p", "d" or "")."""
    table = {}
    for name, words in _classes().items():
        base, _, form = name.partition("_")
        for rank, word in enumerate(words):
            table[word] = (f"{base.lower()}{rank}", form)
    return table


@functools.cache
def _classes() -> dict[str, list[str]]:
    """Class -> its words by falling frequency; the forms of a lemma have the same rank."""
    grammar: Grammar = default_grammar()
    return {name: list(words) for name, words in grammar.classes.items()}


def _gender(symbol: str) -> str:
    return f"g{hashlib.sha256(symbol.encode()).digest()[0] % 3}"


def _mirrored(sentence: str) -> str:
    """Each word of a class of more than five replaced by that of the mirrored rank in it."""
    classes = _classes()
    where = {w: (name, i) for name, words in classes.items() for i, w in enumerate(words)}
    out = []
    for word in sentence.split():
        name, rank = where["a" if word == "an" else word]
        open_class = len(classes[name]) > 5
        out.append(classes[name][-1 - rank] if open_class else word)
    return " ".join(with_articles(["a" if word == "an" else word for word in out]))
