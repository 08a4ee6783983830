"""Sentences with some words changed: noisy copies, and near-duplicates in the grammar."""

from collections.abc import Sequence

import numpy as np

from nvib_jax.data.grammar import Grammar, default_grammar


def word_noise(text: str, share: float, rng: np.random.Generator, words: Sequence[str]) -> str:
    """The text with each word replaced by a random one, or left out, with probability `share` each.

    If no word would be left, the text is returned as it is.
    """
    chance = rng.random(len(text.split()))
    noisy = [
        str(rng.choice(words)) if u < share else word
        for word, u in zip(text.split(), chance, strict=True)
        if not share <= u < 2 * share
    ]
    return " ".join(noisy) or text


def replaced_word(text: str, rng: np.random.Generator, grammar: Grammar | None = None) -> str:
    """A sentence of the grammar with one word replaced by another of its class, in the language.

    Raises:
      ValueError: the sentence is not in the language.
    """
    grammar = grammar or default_grammar()
    words = text.split()
    tokens = list(grammar.tree(text).scan_values(lambda _: True))
    forms = {name.upper(): list(choices) for name, choices in grammar.classes.items()}
    for place in rng.permutation(len(words)):
        choices = [word for word in forms[tokens[place].type] if word != str(tokens[place])]
        for word in rng.permutation(choices) if choices else ():
            new = " ".join([*words[:place], str(word), *words[place + 1 :]])
            if grammar.contains(new):
                return new
    raise AssertionError(f"no word of {text!r} can be replaced")
