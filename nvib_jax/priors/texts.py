"""A language model as a prior: its sentences are encoded, and their posteriors are the draws.

A mixture of posteriors as the prior is the VampPrior of Tomczak & Welling (2018), arXiv 1705.07120,
whose sentences are learned and few; a language model writes as many as are wanted. Such a prior has
no holes, but also no density of its own.
"""

from typing import Any

from nvib_jax.generate import DecodingConfig
from nvib_jax.text.engine import Engine

ATTEMPTS = 8


def sentences_of(source: Any, model: Engine, count: int, *, seed: int = 0) -> list[str]:
    """Sentences that a language model writes and another model can read.

    Args:
      source: a `TextModel` that writes, such as a causal language model.
      model: for whose tokenizer and lengths they are.
      count: how many.
      seed: of the sentences.

    Raises:
      ValueError: too few of what it writes has 1 to `model.max_length` tokens.
    """
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        how = {"decoding": DecodingConfig(method="sample"), "seed": seed + (attempt << 20)}
        drawn = source.sample(count - len(found), **how)
        sizes = map(len, model.tokenizer.encode_batch(drawn))
        fits = (1 <= size <= model.max_length for size in sizes)
        found += [text for text, fit in zip(drawn, fits, strict=True) if fit]
        if len(found) == count:
            return found
    raise ValueError(
        f"the language model wrote {len(found)} sentences of 1 to {model.max_length} tokens in "
        f"{ATTEMPTS} attempts; wanted {count}"
    )
