"""What samples are worth: texts in, figures out. Words are what stands between spaces.

No figure says it alone: one good sentence said a thousand times is in the language and fluent, the
training data said again are both and varied too.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nvib_jax.data.grammar import default_grammar

if TYPE_CHECKING:
    from nvib_jax.evaluation.language_model import LanguageModel

_COMPARED_AT_ONCE = 100_000  # training sentences: 80 MB of similarities to 200 texts


def language_scores(texts: Sequence[str]) -> dict[str, float]:
    """How many texts are sentences of the embedded grammar, and how likely those are.

    Args:
      texts: samples.

    Returns:
      "in_language": share that the grammar derives, 0 to 1; "log_prob": mean exact
      log-probability of those, nats (nan if there are none); "distinct": share of texts that are
      different, since one sentence said a thousand times is in the language too.

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
    """Everything that is known of samples of any language.

    Args:
      texts: samples; empty ones count in every figure.
      training: what the sampled model was trained on.
      language_model: of the data, for "forward_perplexity".
      seed: of the subsets that `self_bleu` and `memorised` take.

    Returns:
      "empty": share of texts without a word; "words": mean length; "distinct_1", "distinct_2",
      "self_bleu", "memorised" and "nearest" of the functions below; with a language model
      "forward_perplexity", its perplexity a token of the texts: low where they are likely, and
      lowest where all are the likeliest.

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
    """Mean BLEU of texts with one another as references: 0 to 100, high where they are alike.

    Self-BLEU of Zhu et al. (2018, Texygen), by `sacrebleu.metrics.BLEU(tokenize="none",
    effective_order=True).sentence_score`, so 4-grams, fewer in texts of fewer words, and its
    default "exp" smoothing. It rises with the number of references; that is why the others of the
    subset are the references, and not all others.

    Args:
      texts: samples; an empty one scores 0.
      count: texts in the subset, drawn without replacement; all where there are no more.
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
    """Distinct n-grams of words a n-gram of words (Li et al. 2016), of all texts together.

    It falls with the number of texts: compare equal numbers.

    Args:
      texts: samples.
      n: words in an n-gram, at least 1.

    Returns:
      0 to 1; nan where no text has n words.

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
    """How much of the samples are the training data again.

    Args:
      texts: samples.
      training: the training sentences.
      count: texts in the subset for "nearest", drawn without replacement; all where there are no
        more.
      seed: of the subset.

    Returns:
      "memorised": share of texts that are a training sentence, letter by letter; "nearest": mean
      over a subset of the similarity to the nearest training sentence, `1 - edits / longer length`
      in words (Levenshtein, rapidfuzz), 1 for the same words. Fresh sentences of the same language
      are not at 0: what they score is the figure to compare with.

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
    """`count` texts drawn without replacement, all where there are no more."""
    if len(texts) <= count:
        return list(texts)
    drawn = np.random.default_rng(seed).choice(len(texts), count, replace=False)
    return [texts[i] for i in drawn]
