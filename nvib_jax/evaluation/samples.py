"""Scores of samples. Words are separated by spaces.

No single score is enough: one good sentence repeated a thousand times is in the language and
fluent, and a copy of the training data is both and varied as well.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nvib_jax.data.grammar import default_grammar

if TYPE_CHECKING:
    from nvib_jax.evaluation.language_model import LanguageModel

_COMPARED_AT_ONCE = 100_000  # training sentences; their similarities to 200 texts take 80 MB


def language_scores(texts: Sequence[str]) -> dict[str, float]:
    """How many texts are sentences of the embedded grammar, and how likely those are.

    Args:
      texts: samples.

    Returns:
      "in_language": share that the grammar derives, 0 to 1; "log_prob": mean exact
      log-probability of those, nats (nan if there are none); "distinct": number of different texts
      over the number of texts.

    Raises:
      ValueError: no texts.

    >>> language_scores(["the dog sees a cat", "dog the sees"])["in_language"]
    0.5
    """
    _check(texts)
    scores = np.array([default_grammar().log_prob(text) for text in texts])
    inside = np.isfinite(scores)
    return {
        "in_language": float(inside.mean()),
        "log_prob": float(scores[inside].mean()) if inside.any() else float("nan"),
        "distinct": len(set(texts)) / len(texts),
    }


def sample_scores(
    texts: Sequence[str],
    *,
    training: Sequence[str],
    language_model: "LanguageModel | None" = None,
    seed: int = 0,
) -> dict[str, float]:
    """All scores that need no grammar.

    Args:
      texts: samples; empty ones count in every figure.
      training: the sentences that the sampled model was trained on.
      language_model: a model of the data, for "forward_perplexity".
      seed: of the random subsets in `self_bleu` and `memorised`.

    Returns:
      "empty": share of texts without a word; "words": mean number of words; "distinct_1",
      "distinct_2", "self_bleu", "memorised" and "nearest": see the functions below; and with a
      language model "forward_perplexity", its perplexity per token of the texts. That is low if the
      texts are likely, and lowest if all texts are the likeliest one.

    Raises:
      ValueError: no texts, or no training sentences.

    >>> scores = sample_scores(["the dog sees a cat", "a cat sleeps"], training=["a cat sleeps"])
    >>> scores["words"], scores["memorised"]
    (4.0, 0.5)
    """
    _check(texts)
    lengths = np.array([len(text.split()) for text in texts])
    scores = {
        "empty": float(np.mean(lengths == 0)),
        "words": float(lengths.mean()),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts, seed=seed),
    }
    scores |= memorised(texts, training, seed=seed)
    if language_model is not None:
        scores["forward_perplexity"] = language_model.perplexity(texts)
    return scores


def self_bleu(texts: Sequence[str], *, count: int = 200, seed: int = 0) -> float:
    """Mean BLEU of each text with the others as references: 0 to 100, high if they are alike.

    This is the Self-BLEU of Zhu et al. (2018, Texygen), computed by `sacrebleu.metrics.BLEU(
    tokenize="none", effective_order=True).sentence_score`: with 4-grams, with shorter ones for
    texts of fewer words, and with its default "exp" smoothing. Because the score rises with the
    number of references, it is computed within a subset of fixed size.

    Args:
      texts: samples; an empty one scores 0.
      count: size of the subset, drawn without replacement; all texts if there are no more.
      seed: of the subset.

    Returns:
      The mean; nan for a single text, which has no other.

    Raises:
      ValueError: no texts, or `count < 2`.
    """
    from sacrebleu.metrics import BLEU

    _check(texts)
    if count < 2:
        raise ValueError(f"count is {count}; wanted at least 2, a text and another")
    chosen = _subset(texts, count, seed)
    if len(chosen) == 1:
        return float("nan")
    bleu = BLEU(tokenize="none", effective_order=True)
    scores = [
        bleu.sentence_score(text, [*chosen[:i], *chosen[i + 1 :]]).score
        for i, text in enumerate(chosen)
    ]
    return float(np.mean(scores))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct-n of Li et al. (2016): different word n-grams of all texts over all their n-grams.

    It falls with the number of texts, so compare equal numbers only.

    Args:
      texts: samples.
      n: words in an n-gram, at least 1.

    Returns:
      0 to 1; nan if no text has n words.

    Raises:
      ValueError: no texts, or `n < 1`.
    """
    _check(texts)
    if n < 1:
        raise ValueError(f"n is {n}; wanted at least 1")
    words = [text.split() for text in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def memorised(
    texts: Sequence[str], training: Sequence[str], *, count: int = 200, seed: int = 0
) -> dict[str, float]:
    """How much of the samples is copied from the training data.

    Args:
      texts: samples.
      training: the training sentences.
      count: size of the subset for "nearest", drawn without replacement; all texts if there are no
        more.
      seed: of the subset.

    Returns:
      "memorised": share of texts that are exactly a training sentence; "nearest": mean over a
      subset of the similarity to the nearest training sentence, `1 - edits / longer length` in
      words (Levenshtein, rapidfuzz), 1 for the same words. New sentences of the same language do
      not score 0, so compare with the score of held-out sentences.

    Raises:
      ValueError: no texts, no training sentences, or `count < 1`.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    _check(texts)
    _check(training, "training")
    if count < 1:
        raise ValueError(f"count is {count}; wanted at least 1")
    known = set(training)
    words = [text.split() for text in _subset(texts, count, seed)]
    nearest = np.zeros(len(words))
    for start in range(0, len(training), _COMPARED_AT_ONCE):
        part = [text.split() for text in training[start : start + _COMPARED_AT_ONCE]]
        found = process.cdist(words, part, scorer=Levenshtein.normalized_similarity, workers=-1)
        nearest = np.maximum(nearest, found.max(axis=1))
    return {
        "memorised": sum(text in known for text in texts) / len(texts),
        "nearest": float(nearest.mean()),
    }


def _check(texts: Sequence[str], name: str = "texts") -> None:
    if isinstance(texts, str) or not texts:
        raise ValueError(f"{name} is {texts!r}; wanted a list of at least one text")


def _subset(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` texts drawn without replacement; all texts if there are no more."""
    if len(texts) <= count:
        return list(texts)
    drawn = np.random.default_rng(seed).choice(len(texts), count, replace=False)
    return [texts[i] for i in drawn]
