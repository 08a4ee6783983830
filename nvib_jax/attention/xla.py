"""The primitive in plain XLA: softmax(q.k + bias) v in chunks of queries, linear memory in S.

The logits and the width-D queries of only one chunk exist at a time. That holds in the backward
pass too, because each chunk is recomputed there.
"""

from functools import partial
from typing import Any

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
    with_lse: bool = False,
) -> Any:
    """Attend to a memory.

    Args:
      query: projected, unscaled, shape (B, T, H, E).
      memory: from `make_memory`.
      mask: bool, shape (B, T, S), or None.
      position_bias: added to the logits, shape (H, T, S) or (B, H, T, S), or None.
      causal: query t sees component 0 and components up to t + S - T.
      with_lse: return the log-sum-exp of the logits as well.

    Returns:
      shape (B, T, H, E), the query's dtype, without the value bias; with `with_lse`, a pair of it
      and the log-sum-exp, float32, shape (B, T, H, 1).
    """
    if position_bias is not None and position_bias.ndim == 3:
        position_bias = position_bias[None]
    outs = _attend(query, memory, mask, position_bias, causal, with_lse)
    return outs if with_lse else outs[0]


@partial(jax.jit, static_argnums=(4, 5))
def _attend(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None,
    position_bias: jax.Array | None,
    causal: bool,
    with_lse: bool,
) -> tuple[jax.Array, ...]:
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
        outs = _attend_chunk(query, memory, visible(mask, 0), position_bias, with_lse)
        return tuple(jnp.swapaxes(out, 1, 2) for out in outs)

    chunks = -(-length // width)
    padding = chunks * width - length

    def to_chunks(x: jax.Array | None, axis: int = 1) -> jax.Array | None:
        """The axis of the queries, T, is cut into (chunks, width), and the chunks come first."""
        if x is None:
            return None
        x = jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)])
        parts = x.reshape(*x.shape[:axis], chunks, width, *x.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis, 0)

    @jax.checkpoint
    def body(
        xs: tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None],
    ) -> tuple[jax.Array, ...]:
        start, chunk, seen, bias = xs
        query = jnp.swapaxes(chunk, 1, 2)
        outs = _attend_chunk(query, memory, visible(seen, start), bias, with_lse)
        return tuple(jnp.swapaxes(out, 1, 2) for out in outs)

    starts = width * jnp.arange(chunks)
    parts = (starts, to_chunks(query), to_chunks(mask), to_chunks(position_bias, 2))
    whole = (jnp.moveaxis(out, 0, 1) for out in jax.lax.map(body, parts))
    return tuple(o.reshape(batch, chunks * width, heads, -1)[:, :length] for o in whole)


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
      position_bias: shape (H, T, S) or (B, H, T, S), or None.

    Returns:
      float32 weights, shape (B, H, T, S).
    """
    if position_bias is not None and position_bias.ndim == 3:
        position_bias = position_bias[None]
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
        logits = logits + position_bias.astype(f32)
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, MASK_VALUE)
    return logits, pulled


def _attend_chunk(
    query: jax.Array,
    memory: Memory,
    mask: jax.Array | None,
    position_bias: jax.Array | None,
    with_lse: bool,
) -> tuple[jax.Array, ...]:
    """(B, H, T, E) -> (B, H, T, E), and the log-sum-exp (B, H, T, 1) if it is asked for."""
    dtype, f32 = query.dtype, accumulator(query.dtype)
    logits, pulled = _logits(query, memory, mask, position_bias)
    total: jax.Array | float = 1.0
    lse: tuple[jax.Array, ...] = ()
    if logits.shape[-1] <= memory.value.shape[-1] and not with_lse:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        # If there are more keys than the values are wide, it is cheaper to divide the products by
        # the softmax's sum than the weights. The sum is also what the log-sum-exp needs.
        most = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.exp(logits - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        lse = (most + jnp.log(total),) if with_lse else ()
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
        return ((out / total + moved).astype(dtype), *lse)
    return ((out / total).astype(dtype), *lse)
