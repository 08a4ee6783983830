"""Samples against a language that is known exactly: the embedded grammar."""

from collections.abc import Sequence

import numpy as np

from nvib_jax.data.grammar import default_grammar


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
    """
    if not texts:
        raise ValueError("texts is empty; wanted at least one sample")
    scores = np.array([default_grammar().log_prob(text) for text in texts])
    inside = np.isfinite(scores)
    return {
        "in_language": float(inside.mean()),
        "log_prob": float(scores[inside].mean()) if inside.any() else float("nan"),
        "distinct": len(set(texts)) / len(texts),
    }
