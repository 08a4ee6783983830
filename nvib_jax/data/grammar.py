"""A small probabilistic grammar of English: a corpus whose sentences can be checked and scored.

The rules and words are in `english.txt`. A sentence is drawn by expanding rules at random, starting
with `sentence`; a draw of fewer than 4 or more than 24 words is discarded and repeated. So the
probability of a sentence `x` of the language is known exactly,

    log p(x) = sum over its one derivation of log p(expansion | rule) - log Z,
    Z = P(4 <= length <= 24),

where the derivation comes from lark's LALR(1) parser. It is built in strict mode, which refuses
conflicts; a grammar without conflicts is unambiguous, so there is no second derivation to add. `Z`
comes from the distribution of lengths, computed exactly by dynamic programming. Log-probabilities
are in nats, lengths in words.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import itertools
import math
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nvib_jax.data.grammar_text import START, Rule, check_symbols, class_of_words, read

MIN_WORDS = 4
MAX_WORDS = 24

# Zipf-Mandelbrot: the word of rank r (from 0) weighs 1 / (r + 2) within its class.
_ZIPF_SHIFT = 2


class Grammar:
    """A probabilistic context-free grammar over words, with a length limit.

    Args:
      text: rules and word classes in the format that `english.txt` explains.

    Raises:
      ValueError: an unknown or unused symbol, a word in two classes, a line that cannot be read.

    >>> grammar = default_grammar()
    >>> grammar.sentences(seed=0, count=1) == grammar.sentences(seed=0, count=2)[:1]
    True
    >>> print(grammar.log_prob("the dog sees a cat"))  # nats
    -15.42
    """

    def __init__(self, text: str) -> None:
        rules, classes = read(text)
        check_symbols(rules, classes)
        self.rules = {name: _normalise(rule) for name, rule in rules.items()}
        self.classes = {name: _zipf(words) for name, words in classes.items()}
        self._class_of = class_of_words(classes)
        self._root = self._compile()
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """Every word that a sentence may contain, `an` included."""
        return frozenset(self._class_of) | {"an"}

    def class_of(self, word: str) -> str:
        """The word's class without its number and form: "PERSON", "VT"; empty if it has none."""
        return self._class_of.get("a" if word == "an" else word, "").partition("_")[0]

    # ---- drawing sentences

    def sample(self, rng: np.random.Generator) -> str:
        """One sentence: 4 to 24 lower-case words separated by single spaces."""
        return self._sentence(iter(rng.random, None))

    def sentences(self, seed: int | Sequence[int], count: int) -> list[str]:
        """The first `count` sentences of the endless corpus that `seed` names."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        uniforms = itertools.chain.from_iterable(iter(lambda: rng.random(8192).tolist(), None))
        return [self._sentence(uniforms) for _ in range(count)]

    def _sentence(self, uniforms: Iterator[float]) -> str:
        while True:
            words = self._expand(uniforms)
            if MIN_WORDS <= len(words) <= MAX_WORDS:
                return " ".join(with_articles(words))

    def _expand(self, uniforms: Iterator[float]) -> list[str]:
        """The words of one random derivation; it stops early once there are more than 24."""
        stack: list[Any] = [self._root]
        words: list[str] = []
        while stack and len(words) <= MAX_WORDS:
            is_class, cumulative, choices = stack.pop()
            choice = choices[bisect(cumulative, next(uniforms)) if cumulative else 0]
            if is_class:
                words.append(choice)
            else:
                stack.extend(choice)
        return words

    def _compile(self) -> Any:
        """The rules as linked nodes (is_class, cumulative shares, choices), for fast drawing."""
        nodes: dict[str, tuple[bool, list[float], list[Any]]] = {}
        for name, words in self.classes.items():
            nodes[name] = (True, _cumulative(words.values()), list(words))
        for name in self.rules:
            nodes[name] = (False, _cumulative(p for p, _ in self.rules[name]), [])
        for name, rule in self.rules.items():
            # The symbols are reversed, because a stack pops from its end.
            nodes[name][2].extend([nodes[s] for s in reversed(symbols)] for _, symbols in rule)
        return nodes[START]

    # ---- scoring sentences

    def contains(self, sentence: str) -> bool:
        """Whether the sentence is in the language (single spaces, lower case, 4 to 24 words)."""
        return self._derivation_log_prob(sentence) > -math.inf

    def log_prob(self, sentence: str) -> float:
        """Log-probability of the sentence in nats; the probabilities of all sentences sum to one.

        Returns `-inf` for a sentence that is not in the language.
        """
        return self._derivation_log_prob(sentence) - self._log_normaliser

    @functools.cached_property
    def length_probabilities(self) -> np.ndarray:
        """`[25]` float64: the probability of each length in words, 0 to 24, in the language."""
        lengths = self._unlimited_lengths
        limited = np.where(np.arange(MAX_WORDS + 1) >= MIN_WORDS, lengths, 0.0)
        return limited / limited.sum()

    @functools.cached_property
    def _log_normaliser(self) -> float:
        return math.log(self._unlimited_lengths[MIN_WORDS:].sum())

    @functools.cached_property
    def _unlimited_lengths(self) -> np.ndarray:
        """P(length = 0..24) of a draw, before any draw is discarded.

        After k sweeps the probabilities are exact for derivations of depth at most k. A sentence of
        at most 24 words has bounded depth, because no rule derives only itself, so the sweeps reach
        an exact fixed point.
        """
        size = MAX_WORDS + 1
        one_word = np.eye(1, size, 1)[0]
        lengths = dict.fromkeys(self.rules, np.zeros(size)) | dict.fromkeys(self.classes, one_word)
        while True:
            before = lengths.copy()
            for name, rule in self.rules.items():
                terms = [p * _convolve(lengths, symbols) for p, symbols in rule]
                lengths[name] = np.sum(terms, axis=0)
            if all(np.array_equal(lengths[name], before[name]) for name in self.rules):
                return lengths[START]

    def _derivation_log_prob(self, sentence: str) -> float:
        from lark.exceptions import UnexpectedInput

        tokens = self.tokens(sentence)
        if tokens is None:
            return -math.inf
        try:
            return self._parser.parse(tokens)
        except UnexpectedInput:
            return -math.inf

    def tree(self, sentence: str) -> Any:
        """The derivation of a sentence of the language, as a `lark.Tree`.

        A node's `data` is its rule's name and the number of the expansion, "clause_0"; its children
        are the expansion's symbols in order, a word a `lark.Token` whose type is its class.

        Raises:
          ValueError: the sentence is not in the language.
        """
        from lark.exceptions import UnexpectedInput

        tokens = self.tokens(sentence)
        if tokens is not None:
            with contextlib.suppress(UnexpectedInput):
                return self._tree_parser.parse(tokens)
        raise ValueError(
            f"{sentence!r} is not in the grammar's language; wanted one of its sentences"
        )

    @functools.cached_property
    def _tree_parser(self) -> Any:
        return self.lark(parser="lalr", strict=True)

    def tokens(self, sentence: str) -> list[Any] | None:
        """Words as lark tokens of their classes; None if the words alone show that it is no
        sentence of the language.
        """
        from lark import Token

        written = sentence.split(" ")
        words = ["a" if word == "an" else word for word in written]
        known = all(word in self._class_of for word in words)
        if not (known and MIN_WORDS <= len(words) <= MAX_WORDS and with_articles(words) == written):
            return None
        return [Token(self._class_of[word].upper(), word) for word in words]

    @functools.cached_property
    def _parser(self) -> Any:
        """LALR(1) parser whose result is the log-probability of the derivation."""
        log_probs = {
            f"{name}_{i}": math.log(share)
            for name, rule in self.rules.items()
            for i, (share, _) in enumerate(rule)
        }
        word_log_probs = {
            word: math.log(share)
            for words in self.classes.values()
            for word, share in words.items()
        }

        def scorer(log_prob: float) -> Any:
            # A child is the score of a sub-derivation, or a word that is not scored yet.
            return lambda children: (
                log_prob
                + sum(
                    word_log_probs[child] if isinstance(child, str) else child for child in children
                )
            )

        class Scores:
            pass

        for alias, log_prob in log_probs.items():
            setattr(Scores, alias, staticmethod(scorer(log_prob)))
        return self.lark(parser="lalr", strict=True, transformer=Scores())

    def lark(self, **options: Any) -> Any:
        """A `lark.Lark` parser of this grammar that reads `tokens(sentence)`."""
        from lark import Lark
        from lark.lexer import Lexer

        class PassThrough(Lexer):
            def __init__(self, lexer_conf: Any) -> None:
                pass

            def lex(self, data: Any) -> Iterator[Any]:  # type: ignore[override]
                return iter(data)

        # Lark takes a name for a terminal if it is written in capitals.
        spelling = {symbol: symbol.upper() for symbol in self.classes}
        lines = [f"%declare {name}" for name in spelling.values()]
        for name, rule in self.rules.items():
            expansions = (" ".join(spelling.get(s, s) for s in symbols) for _, symbols in rule)
            aliased = (f"{expansion} -> {name}_{i}" for i, expansion in enumerate(expansions))
            lines.append(f"{name}: " + "\n  | ".join(aliased))
        return Lark("\n".join(lines), start=START, lexer=PassThrough, **options)


@functools.cache
def default_grammar() -> Grammar:
    """The grammar of `english.txt`, read once.

    >>> grammar = default_grammar()
    >>> grammar.contains("the dog sees a cat"), grammar.contains("the dog sees cat")
    (True, False)
    """
    source = importlib.resources.files("nvib_jax.data").joinpath("english.txt")
    return Grammar(source.read_text(encoding="utf-8"))


# ---- arithmetic


def _normalise(rule: Rule) -> Rule:
    total = sum(weight for weight, _ in rule)
    return [(weight / total, symbols) for weight, symbols in rule]


def _zipf(words: list[str]) -> dict[str, float]:
    weights = [1 / (rank + _ZIPF_SHIFT) for rank in range(len(words))]
    return {word: weight / sum(weights) for word, weight in zip(words, weights, strict=True)}


def _cumulative(shares: Iterable[float]) -> list[float]:
    """Boundaries between choices: one fewer than choices, so bisect cannot run past the end."""
    return list(itertools.accumulate(shares))[:-1]


def _convolve(lengths: dict[str, Any], symbols: tuple[str, ...]) -> np.ndarray:
    """Distribution of the total length of `symbols`, up to the limit."""
    size = MAX_WORDS + 1
    result = np.eye(1, size, 0)[0]
    for symbol in symbols:
        result = np.convolve(result, lengths[symbol])[:size]
    return result


def with_articles(words: list[str]) -> list[str]:
    """Write `a` as `an` before a vowel, so that the rules need not distinguish them."""
    following = [*words[1:], ""]
    return [
        "an" if word == "a" and after[:1] in tuple("aeiou") else word
        for word, after in zip(words, following, strict=True)
    ]
