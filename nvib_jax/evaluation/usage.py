"""How many of its vectors a sentence uses: hard, by pseudo-count, and soft, by attention.

Neither alone can be trusted. A pseudo-count says what a vector may weigh, not whether it is read;
attention says what is read, however little it carries.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.models.nvae import NVAE, decoder_io
from nvib_jax.text_model import ROWS, TextModel, pad
from nvib_jax.types import Mixture, Posterior

THRESHOLD = 0.1  # the published evaluation drops pseudo-counts at most this


def vector_usage(model: TextModel, texts: Sequence[str]) -> dict[str, float]:
    """Share of vectors used, averaged over sentences.

    Args:
      model: the model.
      texts: held-out sentences.

    Returns:
      "kept_hard": of a sentence's n token vectors, the share with a pseudo-count above 0.1 (or
      above the config's threshold, where it has one), the prior's component left out.
      "kept_soft": `exp(H(mean attention)) / (n + 1)`, where the mean is over the decoder's
      positions, layers and heads under teacher forcing: 1 if all components are read alike, the
      share k / (n + 1) if k of them are.
    """
    rows = model.tokenize(texts)
    hard, soft = [], []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        tokens, mask = pad(part, model.max_length, ROWS)
        measured = model.compiled(usage)(model.params, jnp.asarray(tokens), jnp.asarray(mask))
        kept, read = (np.asarray(x)[: len(part)] for x in measured)
        hard.append(kept)
        soft.append(read)
    return {
        "kept_hard": float(np.concatenate(hard).mean()),
        "kept_soft": float(np.concatenate(soft).mean()),
    }


def usage(model: NVAE, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(hard, soft) share of each sentence, shapes (B,); see `vector_usage`."""
    posterior = model.encode(tokens, mask)
    # A draw has no attention of its own to measure: its mean is read.
    form = "exact" if model.config.evaluation_form in ("drawn", "average") else None
    mixture, read_form = model.read(posterior, form=form)
    inputs, _, counted = decoder_io(tokens, mask)
    attention = model.attention(model.memories(mixture, read_form), inputs)
    lengths = jnp.sum(mask, axis=-1).astype(jnp.float32)
    soft = effective_number(attention, counted) / (lengths + 1)
    return kept(model, posterior, mask, mixture), soft


def effective_number(attention: jax.Array, counted: jax.Array) -> jax.Array:
    """`exp(H(mean attention))`: attention (B, T, S), the positions that count (B, T) -> (B,)."""
    positions = jnp.maximum(jnp.sum(counted, axis=-1), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(counted[..., None], attention, 0.0), axis=1) / positions[:, None]
    return jnp.exp(-jnp.sum(jnp.where(mean > 0, mean * jnp.log(mean), 0.0), axis=-1))


def kept(model: NVAE, posterior: Posterior, mask: jax.Array, mixture: Mixture) -> jax.Array:
    """Vectors above the threshold that the decoder is given, as a share of the tokens, (B,)."""
    threshold = THRESHOLD if model.config.threshold is None else max(model.config.threshold, 0.0)
    above = posterior.log_alpha[:, 1:] > jnp.log(threshold)
    given = ~jnp.isneginf(mixture.log_weights[:, 1:])
    real = posterior.mask[:, 1:]
    count = jnp.sum(above & given & real, axis=-1).astype(jnp.float32)
    return count / jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(jnp.float32)
