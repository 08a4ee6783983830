"""The primitive in plain XLA: softmax(q.k + bias) v in chunks of queries, linear memory in S.

The logits and the width-D queries of only one chunk exist at a time. That holds in the backward
pass too, because each chunk is recomputed there.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nvib_jax.attention.inputs import MASK_VALUE, Memory, accumulator, causal_mask

ROWS = 512  # about this many (query, head) pairs of each example are in one chunk


def attend(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None = None,
    *,
    position_bias: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Attend to a memory.

    Args:
      query: projected, unscaled, shape (B, T, H, E).
      memory: from `make_memory`.
      mask: bool, shape (B, T, S), or None.
      position_bias: added to the logits, shape (H, T, S), or None.
      causal: query t sees component 0 and components up to t + S - T.

    Returns:
      shape (B, T, H, E), the query's dtype, without the value bias.
    """
    return _attend(query, memory, mask, position_bias, causal)


@partial(jax.jit, static_argnums=4)
def _attend(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None,
    position_bias: jax.Array | None,
    causal: bool,
) -> jax.Array:
    (batch, length, heads, _), components = query.shape, memory.key.shape[2]
    chunks = max(-(-length * heads // ROWS), 1)
    width = -(-length // chunks)

    def visible(mask: jax.Array | None, start: int | jax.Array) -> jax.Array | None:
        if not causal:
            return mask
        seen = causal_mask(length, components, start=start, rows=width)[None]
        return seen if mask is None else seen & mask

    if width == length:
        query = jnp.swapaxes(query, 1, 2)
        out = _attend_chunk(query, memory, visible(mask, 0), position_bias)
        return jnp.swapaxes(out, 1, 2)

    chunks = -(-length // width)
    padding = chunks * width - length

    def to_chunks(x: jax.Array | None) -> jax.Array | None:
        """(B or H, T, ...) -> (chunks, B or H, width, ...)."""
        if x is None:
            return None
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, width, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def body(xs: tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]) -> jax.Array:
        start, chunk, seen, bias = xs
        out = _attend_chunk(jnp.swapaxes(chunk, 1, 2), memory, visible(seen, start), bias)
        return jnp.swapaxes(out, 1, 2)

    starts = width * jnp.arange(chunks)
    parts = (starts, to_chunks(query), to_chunks(mask), to_chunks(position_bias))
    out = jnp.moveaxis(jax.lax.map(body, parts), 0, 1)
    return out.reshape(batch, chunks * width, heads, -1)[:, :length]


def attention_weights(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None = None,
    *,
    position_bias: jax.Array | None = None,
) -> jax.Array:
    """The softmax weights of `attend`, for plots and inspection.

    Args:
      query: shape (B, T, H, E).
      memory: from `make_memory`.
      mask: bool, shape (B, T, S), or None.
      position_bias: shape (H, T, S), or None.

    Returns:
      float32 weights, shape (B, H, T, S).
    """
    return _weights(query, memory, mask, position_bias)


@jax.jit
def _weights(
    query: jax.Array, memory: Memory, mask: jax.Array | None, position_bias: jax.Array | None
) -> jax.Array:
    logits, _ = _logits(jnp.swapaxes(query, 1, 2), memory, mask, position_bias)
    return jax.nn.softmax(logits, axis=-1)


def _logits(
    query: jax.Array, memory: Memory, mask: jax.Array | None, position_bias: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """(logits (B, H, T, S), queries mapped back into R^D or None if no term needs them), float32.

    The query has shape (B, H, T, E).
    """
    f32 = accumulator(query.dtype)
    logits = jnp.einsum("bhte,bhse->bhts", query, memory.key, preferred_element_type=f32)
    logits = logits + memory.bias[:, None, None, :]
    pulled = None
    if memory.key_kernel is not None:
        pulled = jnp.einsum("bhte,dhe->bhtd", query, memory.key_kernel, preferred_element_type=f32)
    if memory.shared_key is not None and pulled is not None:
        # Squares of a query reach hundreds, so this product is in full float32 (no bfloat16 passes
        # on a TPU), even when the model computes in bfloat16.
        logits = logits + jnp.einsum(
            "bhtd,bsd->bhts",
            jnp.square(pulled),
            memory.shared_key,
            precision=jax.lax.Precision.HIGHEST,
        )
    if position_bias is not None:
        logits = logits + position_bias.astype(f32)[None]
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, MASK_VALUE)
    return logits, pulled


def _attend_chunk(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None,
    position_bias: jax.Array | None,
) -> jax.Array:
    """(B, H, T, E) -> (B, H, T, E)."""
    dtype, f32 = query.dtype, accumulator(query.dtype)
    logits, pulled = _logits(query, memory, mask, position_bias)
    total: jax.Array | float = 1.0
    if logits.shape[-1] <= memory.value.shape[-1]:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        # There are more keys than the values are wide, so it is cheaper to divide the products by
        # the softmax's sum than the weights.
        weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
        total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(dtype)
    out = jnp.einsum("bhts,bhse->bhte", weights, memory.value, preferred_element_type=f32)
    if memory.shared_value is not None and pulled is not None:
        kept = jnp.einsum(
            "bhts,bsd->bhtd", weights, memory.shared_value, preferred_element_type=f32
        )
        moved = jnp.einsum(
            "bhtd,dhe->bhte",
            (kept / total * pulled).astype(dtype),
            memory.value_kernel,
            preferred_element_type=f32,
        )
        return (out / total + moved).astype(dtype)
    return (out / total).astype(dtype)
