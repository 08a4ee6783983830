"""Sentences as the inputs and targets of a decoder that is told the words so far."""

import jax
import jax.numpy as jnp

from nvib_jax.models.special_ids import SpecialIds


def decoder_io(
    tokens: jax.Array, mask: jax.Array, special: SpecialIds | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(inputs, targets, which targets count), each (B, N + 1), of sentences (B, N).

    Inputs are beginning-of-sentence and the sentence; targets are the sentence and end-of-sentence.
    In a row that is all padding no target counts.
    """
    ids = special or SpecialIds()
    length = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)
    column = jnp.full((tokens.shape[0], 1), ids.bos, tokens.dtype)
    position = jnp.arange(tokens.shape[1] + 1, dtype=jnp.int32)[None]
    padded = jnp.concatenate([tokens, column], axis=1)
    targets = jnp.where(position == length, jnp.asarray(ids.eos, tokens.dtype), padded)
    counted = (position <= length) & (length > 0)
    return jnp.concatenate([column, tokens], axis=1), targets, counted


def blanked(tokens: jax.Array, share: float, key: jax.Array, special: SpecialIds) -> jax.Array:
    """Replace a random share of the words by the unknown one; padding stays."""
    if share == 0.0:
        return tokens
    blank = jax.random.bernoulli(key, share, tokens.shape) & (tokens != special.pad)
    return jnp.where(blank, special.unk, tokens)
