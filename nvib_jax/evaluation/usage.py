"""How many of its vectors a sentence uses: hard, by pseudo-count, and soft, by attention.

Neither can be trusted alone. A pseudo-count says how much a vector may weigh, but not whether it is
read. Attention says what is read, but not whether that carries any information.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.models.latents import LATENTS
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.summaries import KEPT_ABOVE, kept
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.text_model import TextModel
from nvib_jax.types import Mixture, Posterior


def vector_usage(model: TextModel, texts: Sequence[str]) -> dict[str, float]:
    """Share of vectors used, averaged over sentences.

    Args:
      model: the model.
      texts: held-out sentences.

    Returns:
      "kept_hard": the share of a sentence's n token vectors with a pseudo-count above 0.1, or above
      the config's threshold if it has one; without the prior's component.
      "kept_soft": `exp(H(mean attention)) / (n + 1)`, where the mean is over the decoder's
      positions, layers and heads under teacher forcing. It is 1 if all components are read equally,
      and k / (n + 1) if k components are read equally and no others.

    >>> sorted(vector_usage(model, texts))
    ['kept_hard', 'kept_soft']
    """
    vectors, effective, lengths, *_ = model.measure(usage, texts)
    return {
        "kept_hard": float((vectors / lengths).mean()),
        "kept_soft": float((effective / (lengths + 1)).mean()),
    }


def usage_by_length(model: TextModel, texts: Sequence[str]) -> list[dict[str, float]]:
    """Vectors used by sentences of each length.

    Returns:
      For each length that occurs: "length" in tokens, "sentences", and means over them: "vectors"
      above the threshold, "effective" number of components by attention.

    >>> rows = usage_by_length(model, texts)
    >>> sum(row["sentences"] for row in rows) == len(texts)
    True
    """
    vectors, effective, lengths, *_ = model.measure(usage, texts)
    return [
        {
            "length": int(length),
            "sentences": int(np.sum(lengths == length)),
            "vectors": float(vectors[lengths == length].mean()),
            "effective": float(effective[lengths == length].mean()),
        }
        for length in np.unique(lengths)
    ]


def growth(by_length: Sequence[dict[str, float]]) -> float:
    """Exponent b of `vectors ~ length^b`, least squares on logs weighted by sentences.

    1 means a constant share, below 1 the number grows more slowly than the length. nan if there are
    fewer than two lengths.
    """
    rows = [r for r in by_length if r["vectors"] > 0]
    if len(rows) < 2:
        return float("nan")
    x, y = (np.log([r[name] for r in rows]) for name in ("length", "vectors"))
    weights = np.sqrt([r["sentences"] for r in rows])
    return float(np.polyfit(x, y, 1, w=weights)[0])


def token_usage(model: TextModel, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Each text's "tokens", and the "pseudo_counts" and "attention" of their vectors, as lists.

    Attention is the mean over positions, layers and heads; the part missing to a sum of 1 is the
    prior component's. For a latent that pools, the last two lists are empty, because its vectors do
    not belong to tokens.

    >>> token_usage(model, ["the dog sees a cat"])[0]["tokens"]
    ['the', 'dog', 'sees', 'a', 'cat']
    """
    *_, counts, attention = model.measure(usage, texts)
    found = []
    for row, alpha, share in zip(model.tokenize(texts), counts, attention, strict=True):
        n = 0 if LATENTS[model.architecture.kind].pools else len(row)
        found.append(
            {
                "tokens": [model.tokenizer.decode([i]) for i in row],
                "pseudo_counts": [float(a) for a in alpha[:n]],
                "attention": [float(a) for a in share[:n]],
            }
        )
    return found


def attention_of(model: TextModel, text: str) -> tuple[np.ndarray, list[str], list[str]]:
    """How much each position of a text attends to each component, under teacher forcing.

    Returns:
      The mean over layers and heads, shape (T, S) with T = n + 1, where the last position predicts
      end-of-sentence; labels of the T positions; labels of the S components, "prior" first. For a
      latent that pools, the components are called "1", "2" ... and not by the text's tokens.

    >>> attention, rows, columns = attention_of(model, "the dog sees a cat")
    >>> attention.shape, rows[-1], columns[0]
    ((6, 6), '(end)', 'prior')
    """
    (row,) = model.tokenize([text])
    attention = model.measure(_by_position, [text])[0]
    words = [model.tokenizer.decode([i]) for i in row]
    pooled = LATENTS[model.architecture.kind].pools
    components = [str(i) for i in range(1, attention.shape[1])] if pooled else words
    found = attention[: len(words) + 1, : len(components) + 1]
    return found, [*words, "(end)"], ["prior", *components]


def usage(
    model: NVAE, tokens: jax.Array, mask: jax.Array, _: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The numbers from which all figures of this file are made, compiled together once.

    Returns:
      Five arrays: vectors above the threshold, effective number by attention and tokens, each (B,);
      then pseudo-counts and shares of attention of the vectors, each (B, max_length), or (B, S - 1)
      if the latent pools.
    """
    posterior, mixture, attention, counted = _read(model, tokens, mask)
    each = jnp.exp(posterior.log_alpha[:, 1:]), mean_attention(attention, counted)[:, 1:]
    missing = 0 if model.latent.pools else model.max_length - tokens.shape[1]
    return (
        jnp.sum(vectors_kept(model, posterior, mixture), axis=-1).astype(jnp.float32),
        effective_number(attention, counted),
        jnp.sum(mask, axis=-1),
        *jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, missing))), each),
    )


def _by_position(model: NVAE, tokens: jax.Array, mask: jax.Array, _: jax.Array) -> jax.Array:
    return _read(model, tokens, mask)[2]


def _read(model: NVAE, tokens: jax.Array, mask: jax.Array):
    posterior = model.encode(tokens, mask)
    mixture, read_form = read_still(model, posterior)
    inputs, _, counted = decoder_io(tokens, mask, model.special)
    return posterior, mixture, model.attention(model.memories(mixture, read_form), inputs), counted


def read_still(model: NVAE, posterior: Posterior) -> tuple[Mixture, str]:
    """The mixture that the decoder reads when nothing is drawn, one component for each vector.

    If the config reads draws, the posterior's mean is read instead, because the impulses of draws
    are random, and there may be several for each component.
    """
    form = "exact" if model.config.evaluation_form in ("drawn", "average") else None
    return model.read(posterior, form=form)


def mean_attention(attention: jax.Array, counted: jax.Array) -> jax.Array:
    """(B, T, S) over the positions that count, (B, T) -> (B, S)."""
    positions = jnp.maximum(jnp.sum(counted, axis=-1), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(counted[..., None], attention, 0.0), axis=1) / positions[:, None]


def effective_number(attention: jax.Array, counted: jax.Array) -> jax.Array:
    """`exp(H(mean attention))`: attention (B, T, S), the positions that count (B, T) -> (B,)."""
    mean = mean_attention(attention, counted)
    return jnp.exp(-jnp.sum(jnp.where(mean > 0, mean * jnp.log(mean), 0.0), axis=-1))


def vectors_kept(model: NVAE, posterior: Posterior, mixture: Mixture) -> jax.Array:
    """Which vectors are above the threshold and given to the decoder, bool (B, S - 1)."""
    own = model.config.threshold
    above = kept(posterior, KEPT_ABOVE if own is None else max(own, 0.0))
    return above & mixture.present[:, 1:]
